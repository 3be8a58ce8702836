"""The examples on the report page: those on which two rows of a sweep differ most, with their pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from analysis.records.frame import Sweep
from analysis.reports.paired import Paired, paired
from analysis.reports.report import SweepReport
from analysis.statistics.samples import plain
from mmprompt.runs.files import StoreError

EXAMPLES = 5  # most examples of one task of a sweep


@dataclass(frozen=True)
class Examples:
    """The examples on which two rows differ most on a task."""

    pair: Paired
    shown: list[dict[str, Any]]  # number, picture, question, answer, box, scores


def examples(report: SweepReport, pictures: int) -> Iterator[Examples]:
    """Yields for each task the examples on which two rows differ most.

    The rows are those of the sweep's first claim about two rows, otherwise the last row and the baseline. `pictures`: the most
    examples over all tasks.
    """
    sweep = report.sweep
    pair = _pair(sweep)
    if pair is None:
        return
    each = min(EXAMPLES, pictures // max(1, len(sweep.tasks)))
    for task in sweep.tasks if each else ():
        at = _middle_value(sweep)
        try:
            pair_on_task = paired(sweep, *pair, task, None, at)
        except StoreError:
            continue  # on this task a row or its scores are missing
        if pair_on_task.scenes is not None:
            yield Examples(
                pair_on_task, [_example(pair_on_task, example) for example in pair_on_task.frame.head(each).index]
            )


def _pair(sweep: Sweep) -> tuple[str, str] | None:
    """The names of the two rows that are compared; None if there are none."""
    labels = [name for name in sweep.roles if name != sweep.over]
    labelled = sweep.named.drop_duplicates(labels)
    rows = {" ".join(str(plain(value)) for value in row[labels]): row for _, row in labelled.iterrows()}
    baseline = next((name for name, row in rows.items() if row["baseline"]), None)
    for claim in sweep.manifest["claims"]:
        sides = [
            next((name for name, row in rows.items() if all(row[key] == value for key, value in side.items())), None)
            for side in (claim["row"], claim["than"])
            if side  # a claim about a trend has no rows
        ]
        if len(sides) == 2 and None not in sides:
            return str(sides[0]), str(sides[1])
    others = [name for name in rows if name != baseline]
    return (others[-1], baseline) if baseline is not None and others else None


def _middle_value(sweep: Sweep) -> dict[str, Any]:
    """The middle value of the sweep's axis `over`; empty without one."""
    if sweep.over is None:
        return {}
    values = sorted(sweep.frame[sweep.over].unique())
    return {sweep.over: plain(values[len(values) // 2])}


def _example(pair: Paired, example: int) -> dict[str, Any]:
    assert pair.scenes is not None
    row: dict[str, Any] = pair.frame.loc[example].to_dict()  # type: ignore[assignment]
    buffer = io.BytesIO()
    Image.fromarray(pair.scenes.images[example]).save(buffer, "JPEG", quality=90)
    return {
        "number": int(example),
        "picture": f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}",
        "side": pair.scenes.images.shape[1],
        "box": pair.scenes.boxes[example],
        "question": row["question"],
        "answer": pair.scenes.answers[example],
        "scores": [float(row[name]) for name in pair.names],
    }
