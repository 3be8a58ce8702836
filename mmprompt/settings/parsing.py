"""From values to validated settings, with one sentence for a wrong value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from mmprompt.settings.section import Section
from mmprompt.settings.spelling import nearest
from mmprompt.settings.task import WORLDS

T = TypeVar("T", bound=Section)


class ConfigError(ValueError):
    """A setting is wrong. The message is one sentence that a user can act on: the key, what came, what is allowed."""


def sentence(error: ValidationError, schema: type[Section]) -> str:
    """The first complaint of pydantic as one sentence: which key, what came, what is allowed."""
    first = error.errors()[0]
    # the schema of a task's data is chosen by its `world`, and pydantic says which one it chose
    place = [
        part for at, part in enumerate(first["loc"]) if at == 0 or first["loc"][at - 1] != "data" or part not in WORLDS
    ]
    key = ".".join(str(part) for part in place)
    match first["type"]:
        case "union_tag_invalid":
            return f"{key}.world={first['ctx']['tag']!r} is not allowed; choose one of {', '.join(WORLDS)}"
        case "union_tag_not_found":
            return f"{key}.world is missing"
        case "value_error":  # raised by a validator above, which already says it all
            return str(first["ctx"]["error"])
        case "missing":
            return f"{key} is missing"
        case "extra_forbidden":
            return f"{key} is not a key of a run{nearest(key, dotted_keys(schema))}"
        case "literal_error":
            return f"{key}={first['input']!r} is not allowed; choose one of {first['ctx']['expected']}"
    wanted = first["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{key}={first['input']!r} ({type(first['input']).__name__}) is not allowed; wanted: {wanted}"


def parse(schema: type[T], values: Mapping[str, Any]) -> T:
    """Validated settings. Raises ConfigError naming the key, what came and what is allowed."""
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(sentence(error, schema)) from None


def dotted_keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of the settings, dotted, those of sections after the section's own: `prompt`, `prompt.length`, ..."""
    for name, field in schema.model_fields.items():
        yield prefix + name
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from dotted_keys(part, f"{prefix}{name}.")
