"""What the settings of every method of tuning say about it; and which methods there are: one for each module of this package.

A method NAME is four files: `mmprompt/settings/NAME.py` with its class of settings, `mmprompt/methods/NAME.py` with
`install`, what it adds to a backbone and trains, `conf/method/NAME.yaml` with its defaults (conf/config.yaml reads it in one
line), and its tests. NAME is also the key of its section in a run's configuration. Light: no torch, no Hydra.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, ClassVar

from mmprompt import settings
from mmprompt.settings.section import Section


class MethodSettings(Section):
    """The settings of one method. Its fields are described, and titled where tables and figures need a name for them."""

    label: ClassVar[str]  # of the method in tables and figures
    is_published: ClassVar[bool] = False  # the published code has the method, and so official names for its tensors
    neutral: ClassVar[Mapping[str, Any]] = {}  # of fields that were added later: the value before; it is in no id

    def in_words(self) -> str:
        """What tells a run from others of its method, for the name of its W&B record; may be empty."""
        return ""

    def check_layers(self, model: str, layers: Mapping[str, int]) -> None:
        """Raises ValueError, one sentence, if the settings name a layer that the model does not have.

        `layers`: how many the encoder and the decoder of this model have.
        """


def methods() -> dict[str, type[MethodSettings]]:
    """The settings of every method by its name, which is that of their module; sorted by name."""
    return dict(sorted(_found()))


def _found() -> Iterator[tuple[str, type[MethodSettings]]]:
    for found in iter_modules(settings.__path__):
        module = import_module(f"{settings.__name__}.{found.name}")
        for value in vars(module).values():
            is_own = isinstance(value, type) and value.__module__ == module.__name__
            if is_own and issubclass(value, MethodSettings) and value is not MethodSettings:
                yield found.name, value
