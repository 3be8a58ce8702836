"""All families of tasks, by name."""

from __future__ import annotations

from typing import Any

from mmprompt.families.caption import CAPTION
from mmprompt.families.entailment import ENTAILMENT
from mmprompt.families.family import PERCENT, Family
from mmprompt.families.grounding import GROUNDING
from mmprompt.families.vqa import VQA

ALL: tuple[Family[Any, Any], ...] = (GROUNDING, ENTAILMENT, VQA, CAPTION)  # in the order in which metrics are shown
FAMILIES = {family.name: family for family in ALL}
PRIMARY_METRIC = {name: family.primary.name for name, family in FAMILIES.items()}


def highest(metric: str) -> float:
    """The highest possible value of a metric; the lowest is 0."""
    return next((family.primary.highest for family in ALL if family.primary.name == metric), PERCENT)
