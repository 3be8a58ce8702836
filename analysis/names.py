"""The display names of tasks, splits, metrics, axes, values and facts, for tables and figures.

A name without an entry here is returned with its dots and underscores as spaces, so a user's own axis stays readable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmprompt.families.family import PERCENT
from mmprompt.families.registry import ALL, highest
from mmprompt.runs import config as runs

TASKS = {
    "micro_grounding": "Grounding",
    "micro_entailment": "Entailment",
    "micro_vqa": "VQA",
    "micro_caption": "Captions",
    "refcoco": "RefCOCO",
    "refcoco_plus": "RefCOCO+",
    "refcocog": "RefCOCOg",
    "snli_ve": "SNLI-VE",
    "coco_caption": "COCO Captions",
    "vqa": "VQA",
    "average": "Average",
}
SMALL = "micro_"  # prefix of the small world's tasks; no data set of the paper has it
SPLITS = {  # in the order in which the paper prints them
    "val": "val",
    "dev": "dev",
    "testA": "testA",
    "testB": "testB",
    "test": "test",
    "test_dev": "test-dev",
    "test_std": "test-std",
}
OF_TASK = {("refcocog", "val"): "val-u", ("refcocog", "test"): "test-u"}  # the paper's names for the UMD partition
METRICS = {  # the full name, and the short one for the head of a column
    **{metric.name: (metric.label, metric.short) for family in ALL for metric in family.shown},
    "gpu_hours": ("GPU-hours", "GPU-hours"),
    "average": ("Average score", "Score"),
}
AXES = {
    "task": "Task",
    "method": "Method",
    "seed": "Seed",
    "model": "Model",
    "optim.lr": "Learning rate",
    "optim.steps": "Updates",
    "optim.batch_size": "Batch size",
    "backbone.mode": "Backbone mode",
    "attack.epsilon": "Attack ε",
    "attack.kind": "Attack",
    "task.data.pixels": "Pixels",
    **{
        f"{method}.{field}": about.title
        for method, settings in runs.METHODS.items()
        for field, about in settings.model_fields.items()
        if about.title
    },
}
METHODS = {method: settings.label for method, settings in runs.METHODS.items()}
WORDS = {"mlp": "MLP", "none": "None", "both": "Both", "encoder": "Encoder", "decoder": "Decoder"}
WORDS |= {"plain": "Plain", "texture": "Texture", "fgsm": "FGSM", "pgd": "PGD"}
FACTS = {  # the full name, and the short one for the head of a column
    "trainable_parameters": ("Trainable parameters", "Trained"),
    "epochs": ("Epochs", "Epochs"),
    "epochs_to_99": ("Epochs to 99 % of best", "Epochs to 99 %"),
    "seconds": ("Training seconds", "Training s"),
    "device_hours": ("Device-hours", "Device-hours"),
    "device_hours_spent": ("Device-hours with lost attempts", "Spent"),
    "seconds_per_100": ("Seconds per 100 answers", "s per 100"),
    "peak_memory_mb": ("Peak memory (MB)", "Peak MB"),
}


def task(name: str) -> str:
    """`refcoco_plus` -> RefCOCO+, `micro_grounding` -> Grounding."""
    return TASKS.get(name, _readable(name))


def is_small(name: str) -> bool:
    """Whether a task is one of the small world, which the paper does not have."""
    return name.startswith(SMALL)


def split(name: str, of: str = "") -> str:
    """`test_dev` -> test-dev. `of`: the task; RefCOCOg's splits have names of their own (val-u, test-u)."""
    return OF_TASK.get((of, name), SPLITS.get(name, _readable(name)))


def split_order(name: str) -> tuple[int, str]:
    """The sorting key of splits: validation first, in the paper's order; unknown splits last, by name."""
    all_splits = list(SPLITS)
    return (all_splits.index(name), "") if name in all_splits else (len(all_splits), name)


def metric(name: str, short: bool = False) -> str:
    """`acc@0.5` -> Acc@0.5 (%), short Acc@0.5. Facts are accepted too."""
    return _long_or_short(METRICS | FACTS, name, short)


def has_own_scale(name: str) -> bool:
    """Whether a task's metric is not in percent, so that its differences are not called points: CIDEr-D."""
    return highest(name) != PERCENT


def metric_order(name: str) -> float:
    """The sorting key of one split's metrics, below 1: the paper's order, B@4 M C S."""
    all_metrics = list(METRICS)
    return all_metrics.index(name) / len(all_metrics) if name in all_metrics else 0.0


def fact(name: str, short: bool = False) -> str:
    """`peak_memory_mb` -> Peak memory (MB), short Peak MB."""
    return _long_or_short(FACTS, name, short)


def axis(name: str) -> str:
    """`prompt.length` -> Prompt length."""
    text = AXES.get(name, _readable(name))
    return text[:1].upper() + text[1:]


def value(axis: str, value: Any) -> str:
    """The name of a value on an axis, or on several compared together: `bitfit all` on method -> BitFit (all); 0.0 -> 0."""
    if isinstance(value, float):
        return f"{value:g}"
    if not isinstance(value, str):
        return str(value)
    if axis != "method":
        return " ".join(WORDS.get(word, word) for word in value.split(" "))
    first, *rest = value.split(" ")
    words = " ".join(WORDS.get(word, word) for word in rest if word != "none")
    return METHODS.get(first, first) + (f" ({words})" if words else "")


def in_sentence(text: str) -> str:
    """A name for use within a sentence: `Prompt tuning` -> prompt tuning; LoRA, VQA and BitFit stay as they are."""
    first = text.split(" ")[0]
    return text[:1].lower() + text[1:] if first == first.capitalize() else text


def _long_or_short(pairs: Mapping[str, tuple[str, str]], name: str, short: bool) -> str:
    return pairs[name][short] if name in pairs else _readable(name)


def _readable(name: str) -> str:
    return name.replace("_", " ").replace(".", " ")
