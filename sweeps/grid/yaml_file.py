"""A YAML file that somebody has written: it is read within seconds, or refused in one sentence, whatever is in it.

How large it is, is counted while it is parsed, before anything is made of it. An alias counts as what it stands for: nine of
them, nine deep, are a file of a few lines and four hundred million values.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmprompt.runs.config import ConfigError

VALUES = 100_000  # keys, values, lists and sections, aliases expanded; these take six seconds to read
INTERPOLATION = 100  # values that it takes as long to read as one ${...}
INTERPOLATIONS = 20  # in one text: they can be nested, and every one is parsed with all it holds
DEPTH = 20  # lists in lists, or sections in sections
SIZE = 2_000_000  # bytes
OF_YAML = "tag:yaml.org,2002:"
PARSER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


def read(file: Path) -> Any:
    """What it says, interpolations as they are written; an empty file is an empty section. Raises ConfigError with the reason,
    not with the file's name."""
    text = text_of(file)
    check(text)
    try:
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:  # ValueError: of a number like 0b_
        raise ConfigError(one_line(error)) from None


def text_of(file: Path) -> str:
    """Raises ConfigError if it cannot be read, or is no text."""
    try:
        if not file.is_file():
            raise ConfigError("it is a folder; wanted: a file" if file.is_dir() else "it is no file")
        if (size := file.stat().st_size) > SIZE:
            raise ConfigError(f"it has {size:,} bytes; limit is {SIZE:,}")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"it cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"it is not UTF-8: {error.reason} at byte {error.start:,}; save it as UTF-8") from None


def check(text: str) -> None:
    """Raises ConfigError for YAML that would take long to read, and for what no file of ours needs: tags, and one text alone."""
    size = Size()
    try:
        for event in yaml.parse(text, Loader=PARSER):
            size.add(event)
    except yaml.YAMLError as error:
        raise ConfigError(one_line(error)) from None
    if size.total > VALUES:
        raise ConfigError(f"it has {size.total:,} values with its aliases expanded; limit is {VALUES:,}")


class Size:
    """How much has been parsed, counted event by event."""

    def __init__(self) -> None:
        self.total = 0
        self._named: dict[str, int] = {}  # of what an alias can stand for
        self._open: list[tuple[str | None, int]] = []  # lists and sections: the anchor, and the total before them

    def add(self, event: yaml.Event) -> None:
        """Raises ConfigError for what is not allowed."""
        if isinstance(event, yaml.AliasEvent):
            self.total += self._of(str(event.anchor))
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            self._begin(event)
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionEndEvent):
            anchor, before = self._open.pop()
            if anchor is not None:
                self._named[anchor] = self.total - before

    def _of(self, anchor: str) -> int:
        if anchor not in self._named:
            raise ConfigError(f"*{anchor} stands for nothing that is complete before it")
        return self._named[anchor]

    def _begin(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
        if event.tag is not None:
            raise ConfigError(f"the tag {event.tag.replace(OF_YAML, '!!')} is not allowed; quotes make a text")
        text = event.value if isinstance(event, yaml.ScalarEvent) else ""
        if text and not self._open:
            raise ConfigError("it is one text; wanted: KEY: VALUE lines")
        self._open.append((event.anchor, self.total))
        if len(self._open) > DEPTH:
            raise ConfigError(f"it has lists or sections nested more than {DEPTH} deep")
        if (count := text.count("${")) > INTERPOLATIONS:
            raise ConfigError(f"it has {count:,} interpolations in one text; limit is {INTERPOLATIONS}")
        self.total += 1 + INTERPOLATION * count


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())
