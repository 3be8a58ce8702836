"""The examples on which two rows of a sweep differ most, with their pictures, for the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from analysis.frame import Sweep
from analysis.paired import Paired, paired
from analysis.report import SweepReport
from analysis.samples import plain
from mmprompt.runs.files import StoreError

EXAMPLES = 5  # of one task of a sweep, at most


@dataclass(frozen=True)
class Examples:
    """Where two rows differ most on a task."""

    pair: Paired
    shown: list[dict[str, Any]]  # number, picture, question, answer, box, scores


def examples(report: SweepReport, pictures: int) -> Iterator[Examples]:
    """The examples on which two rows differ most: those of the sweep's first claim, else the baseline and the last row."""
    sweep = report.sweep
    pair = _pair(sweep)
    if pair is None:
        return
    each = min(EXAMPLES, pictures // max(1, len(sweep.tasks)))
    for task in sweep.tasks if each else ():
        at = _middle_value(sweep)
        try:
            found = paired(sweep, *pair, task, None, at)
        except StoreError:
            continue  # a row is missing there, or its scores are
        if found.asked is not None:
            yield Examples(found, [_example(found, example) for example in found.frame.head(each).index])


def _pair(sweep: Sweep) -> tuple[str, str] | None:
    labels = [name for name in sweep.roles if name != sweep.over]
    named = sweep.named.drop_duplicates(labels)
    rows = {" ".join(str(plain(value)) for value in row[labels]): row for _, row in named.iterrows()}
    baseline = next((name for name, row in rows.items() if row["baseline"]), None)
    for claim in sweep.manifest["claims"]:
        sides = [
            next((name for name, row in rows.items() if all(row[key] == value for key, value in side.items())), None)
            for side in (claim["row"], claim["than"])
            if side  # none of a trend
        ]
        if len(sides) == 2 and None not in sides:
            return str(sides[0]), str(sides[1])
    others = [name for name in rows if name != baseline]
    return (others[-1], baseline) if baseline is not None and others else None


def _middle_value(sweep: Sweep) -> dict[str, Any]:
    """Of a sweep that follows rows over an axis, the middle one of its values."""
    if sweep.over is None:
        return {}
    values = sorted(sweep.frame[sweep.over].unique())
    return {sweep.over: plain(values[len(values) // 2])}


def _example(pair: Paired, example: int) -> dict[str, Any]:
    assert pair.asked is not None
    row: dict[str, Any] = pair.frame.loc[example].to_dict()  # type: ignore[assignment]
    buffer = io.BytesIO()
    Image.fromarray(pair.asked.images[example]).save(buffer, "JPEG", quality=90)
    return {
        "number": int(example),
        "picture": f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}",
        "side": pair.asked.images.shape[1],
        "box": pair.asked.boxes[example],
        "question": row["question"],
        "answer": pair.asked.answers[example],
        "scores": [float(row[name]) for name in pair.names],
    }
