"""`python -m sweeps settings [WORD ...]`: the keys of the configuration, from the schemas and from `conf/`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.overrides import COMPUTED, SCHEMAS, as_text, known_keys
from mmprompt.settings.catalogue import Key, keys_of
from mmprompt.settings.parsing import ConfigError
from mmprompt.settings.spelling import nearest
from sweeps.grid.compose import MINE, Composer

CONF = ROOT / "conf"
WIDTH = 200  # columns, where the output is no terminal
PAGE = """# Settings

Every key of the configuration: `KEY=VALUE` on a command line, or a line in a file of `conf/`. `mmprompt settings WORD` shows the
keys that contain a word. This page is written by `mmprompt settings --markdown`.

Defaults are those of a run without any override: the small model, grounding, prompt tuning. Other files of a config group, and
rates that were chosen on validation (`conf/tuned/`), have other defaults. `cluster`, `tracking`, `cache`, `data`, `paths` and
`limits` change no number, so they are in no run's id; `evaluation` and `attack` are in an evaluation's id.
"""


def settings(words: Sequence[str], markdown: bool) -> int:
    """Prints the keys that contain one of the words, or all. Raises ConfigError if no key contains them."""
    if markdown:
        print(page(CONF), end="")
        return 0
    composer, shown = (
        Composer(CONF),
        [key for key in all_keys() if not words or any(word in key.name for word in words)],
    )
    if not shown:
        raise ConfigError(f"no key contains {' or '.join(words)}{nearest(words[0], known_keys())}")
    defaults = composer.compose({})
    table = Table("key", "default", "values", "meaning", box=None, pad_edge=False)
    for key in shown:
        shown_default = default(key, defaults)
        table.add_row(*map(escape, (key.name, shown_default, values(key, shown_default), key.meaning)))
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(table)
    if not words:
        print(*(f"{group}={'|'.join(files)}" for group, files in choices(composer).items()), sep="\n")
    return 0


def all_keys() -> list[Key]:
    """Every key that a user can set."""
    return [key for schema in SCHEMAS for key in keys_of(schema) if key.name not in COMPUTED]


def choices(composer: Composer) -> dict[str, list[str]]:
    """The files of each config group that a user chooses from."""
    left_out = {"tuned": composer.options.get("tuned", []), "cluster": ["base", MINE]}  # read by others
    files = {
        group: [file for file in files if file not in left_out.get(group, [])]
        for group, files in composer.options.items()
    }
    return {group: names for group, names in files.items() if names}


def default(key: Key, defaults: Mapping[str, Any]) -> str:
    """The default of a key as it is typed; empty if the default task or method does not have it."""
    value: Any = defaults
    for part in key.name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return ""
        value = value[part]
    return as_text(value)


def values(key: Key, default: str) -> str:
    """The values that a key takes. null is one of them if it is the default, though a schema sees what is put in its place."""
    return f"{key.values} or null" if default == "null" and "null" not in key.values else key.values


def page(conf: Path) -> str:
    """The page docs/settings.md."""
    composer = Composer(conf)
    groups = [
        f"| `{group}` | {', '.join(f'`{file}`' for file in files)} |" for group, files in choices(composer).items()
    ]
    table = ["## Config groups", "", "| `GROUP=` | files |", "|---|---|", *groups, ""]
    return "\n".join([PAGE, *table, *_sections(all_keys(), composer.compose({}))])


def _sections(keys: Sequence[Key], defaults: Mapping[str, Any]) -> Iterator[str]:
    for (section, about), own in groupby(keys, lambda key: (key.name.rpartition(".")[0], key.section)):
        yield from (f"## {section or 'The run'}", "")
        if section:
            yield from (about, "")
        yield from ("| key | default | values | meaning |", "|---|---|---|---|")
        for key in own:
            shown = default(key, defaults)
            cells = (f"`{key.name}`", f"`{shown}`" if shown else "", values(key, shown), key.meaning)
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        yield ""
