"""Overrides on the command line: which keys there are, and one sentence for a mistyped one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmprompt.runs.config import RunConfig
from mmprompt.settings.deployment import Deployment
from mmprompt.settings.evaluation import Questions
from mmprompt.settings.parsing import ConfigError, dotted_keys
from mmprompt.settings.spelling import nearest
from mmprompt.settings.task import TABLES

SCHEMAS = (RunConfig, Questions, Deployment)  # the schemas of runs, of evaluations, and of where runs are executed
COMPUTED = {"training_version", "backbone.checksum", "task.data.fingerprint"}  # these keys are computed, never set


def known_keys() -> list[str]:
    """Every key a user can set, dotted: `prompt.length`, `cluster.time_min`, ..."""
    return [key for schema in SCHEMAS for key in dotted_keys(schema) if key not in COMPUTED]


def check_override(key: str, value: str | None, conf: Path) -> None:
    """Raises ConfigError if `key=value` names no key and no config group, or no file of its group."""
    groups = {path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in conf.iterdir() if path.is_dir()}
    if key in groups:
        options = groups[key]
        if value is not None and value not in options:
            raise ConfigError(f"{key}={value} does not exist{nearest(value, options)}; allowed: {', '.join(options)}")
    elif key not in known_keys() and not key.startswith(("hydra", *(f"{table}." for table in TABLES))):
        raise ConfigError(f"there is no key {key}{nearest(key, [*known_keys(), *groups])}")


def as_text(value: Any) -> str:
    """A value as text in Hydra's grammar. Different values have different texts."""
    if isinstance(value, dict):  # Hydra reads no quotes around its keys
        return f"{{{','.join(f'{key}:{as_text(one)}' for key, one in value.items())}}}"
    is_plain = isinstance(value, str) and value not in ("null", "true", "false") and is_word(value)
    return str(value) if is_plain else json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def is_word(text: str) -> bool:
    """Whether a text needs no quotes."""
    first, rest = text[:1], text[1:]
    return (first.isascii() and (first.isalpha() or first == "_")) and all(c.isalnum() or c in "_./-" for c in rest)
