"""Reads YAML files that users write. Any file is read within seconds or refused with one sentence, whatever it contains.

Its values are counted while it is parsed, before any of them is built. An alias counts as many values as it stands for: nine
aliases, nine levels deep, make a file of a few lines with four hundred million values.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmprompt.settings.parsing import ConfigError

VALUES = 100_000  # most keys, values, lists and sections, aliases expanded; this many take six seconds to read
INTERPOLATION = 100  # reading one ${...} takes as long as reading this many values
INTERPOLATIONS = 20  # most in one text: they can be nested, and each is parsed together with everything inside it
DEPTH = 20  # deepest nesting of lists in lists, or sections in sections
SIZE = 2_000_000  # bytes
OF_YAML = "tag:yaml.org,2002:"
PARSER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


def read(file: Path) -> Any:
    """Returns the file's content with its interpolations as written; an empty file is an empty section.

    Raises ConfigError with the reason, without the file's name.
    """
    text = text_of(file)
    check(text)
    try:
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:  # ValueError: a number like 0b_
        raise ConfigError(one_line(error)) from None


def text_of(file: Path) -> str:
    """Returns the file's text. Raises ConfigError if the file cannot be read, is larger than `SIZE`, or is not UTF-8."""
    try:
        if not file.is_file():
            raise ConfigError("it is a folder; wanted: a file" if file.is_dir() else "it is not a file")
        if (size := file.stat().st_size) > SIZE:
            raise ConfigError(f"it has {size:,} bytes; limit is {SIZE:,}")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"it cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"it is not UTF-8: {error.reason} at byte {error.start:,}; save it as UTF-8") from None


def check(text: str) -> None:
    """Raises ConfigError for YAML that would take long to read, for tags, and for a file that is a single text.

    No file in conf/ needs tags or consists of a single text.
    """
    size = Size()
    try:
        for event in yaml.parse(text, Loader=PARSER):
            size.add(event)
    except yaml.YAMLError as error:
        raise ConfigError(one_line(error)) from None
    if size.total > VALUES:
        raise ConfigError(f"it has {size.total:,} values with its aliases expanded; limit is {VALUES:,}")


class Size:
    """Counts the values parsed so far, event by event."""

    def __init__(self) -> None:
        self.total = 0
        self._anchored: dict[str, int] = {}  # by anchor: how many values an alias to it stands for
        self._open: list[tuple[str | None, int]] = []  # open lists and sections: the anchor, and the total before it

    def add(self, event: yaml.Event) -> None:
        """Counts an event. Raises ConfigError for YAML that is not allowed."""
        if isinstance(event, yaml.AliasEvent):
            self.total += self._size_of(str(event.anchor))
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            self._begin(event)
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionEndEvent):
            anchor, before = self._open.pop()
            if anchor is not None:
                self._anchored[anchor] = self.total - before

    def _size_of(self, anchor: str) -> int:
        if anchor not in self._anchored:
            raise ConfigError(f"the alias *{anchor} refers to no anchor that is complete before it")
        return self._anchored[anchor]

    def _begin(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
        if event.tag is not None:
            raise ConfigError(f"the tag {event.tag.replace(OF_YAML, '!!')} is not allowed; quotes make a text")
        text = event.value if isinstance(event, yaml.ScalarEvent) else ""
        if text and not self._open:
            raise ConfigError("it is a single text; wanted: KEY: VALUE lines")
        self._open.append((event.anchor, self.total))
        if len(self._open) > DEPTH:
            raise ConfigError(f"it has lists or sections nested more than {DEPTH} deep")
        if (count := text.count("${")) > INTERPOLATIONS:
            raise ConfigError(f"it has {count:,} interpolations in one text; limit is {INTERPOLATIONS}")
        self.total += 1 + INTERPOLATION * count


def one_line(error: Exception) -> str:
    """Returns the error's message on one line."""
    return " ".join(str(error).split())
