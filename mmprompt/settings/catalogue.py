"""What every key means and which values it takes, read from the schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmprompt.settings.section import Section

KINDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


@dataclass(frozen=True)
class Key:
    """A key of the configuration."""

    name: str  # dotted
    section: str  # the docstring of its section
    values: str  # which values it takes, in words
    meaning: str


def keys_of(schema: type[Section]) -> list[Key]:
    """Every key of a schema, in the order of its fields. A key that two sections have, as alternatives, is there twice."""
    whole = schema.model_json_schema()
    return list(_keys(whole, whole.get("$defs", {}), ""))


def _keys(section: Mapping[str, Any], sections: Mapping[str, Any], prefix: str) -> Iterator[Key]:
    about = " ".join(section.get("description", "").split())
    for name, field in section["properties"].items():
        inner = [sections[one["$ref"].rpartition("/")[2]] for one in _alternatives(field) if "$ref" in one]
        for one in inner:
            yield from _keys(one, sections, f"{prefix}{name}.")
        if not inner:
            yield Key(f"{prefix}{name}", about, _values(field), field.get("description", ""))


def _alternatives(field: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    alternatives: Sequence[Mapping[str, Any]] = field.get("anyOf") or field.get("oneOf") or [field]
    return alternatives


def _values(field: Mapping[str, Any]) -> str:
    """The values that a field takes, in words: `integer ≥ 1 or null`."""
    if len(alternatives := _alternatives(field)) > 1:
        return " or ".join(map(_values, alternatives))
    if "const" in field:
        return _text(field["const"])
    if "enum" in field:
        *others, last = map(_text, field["enum"])
        return f"{', '.join(others)} or {last}"
    if field.get("type") == "array":
        least, most = field.get("minItems", 0), field.get("maxItems")
        count = f" of {most}" if most is not None and most == least else ""
        return f"list{count} ({_values(field['items'])})"
    if field.get("type") == "object":
        return "table"
    if (field.get("minimum"), field.get("maximum")) == (0, 1):
        return f"{KINDS[field['type']]} from 0 to 1"
    bounds = " and ".join(f"{sign} {field[bound]:g}" for bound, sign in BOUNDS.items() if bound in field)
    return f"{KINDS[field['type']]} {bounds}".rstrip()


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
