"""What statistics give to tables, with inference that was made up: every column, and each verdict somewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.frame import Sweep
from analysis.layout import Table
from analysis.statistics import cells

RANGE = {"cider": 1000.0}  # of others 100


def designed(sweep: Sweep, margin: float = 1.0) -> pd.DataFrame:
    """The cells of a sweep; intervals cut off at the end of a metric's range, verdicts by the interval and `margin`."""
    frame = cells(sweep)
    top = frame["metric"].map(RANGE).fillna(100.0)
    frame = frame.assign(
        lower=frame["lower"].clip(lower=0.0),
        upper=frame["upper"].clip(upper=top),
        half_seeds=(frame["upper"] - frame["lower"]) / 2,
        half_examples=np.where(frame["n"] > 1, 0.5, np.nan),
        examples=2500.0,
        seeds="1 2 3",
        conflict=0,
        among=frame[next(iter(sweep.roles))].nunique(),
        note="",
    )
    for what in ("difference", "kept_difference"):
        if what in frame:
            lower, upper = frame[f"{what}_lower"], frame[f"{what}_upper"]
            verdict = pd.Series("not known", index=frame.index)
            verdict = verdict.mask((lower > -margin) & (upper < margin), "equivalent")
            verdict = verdict.mask(lower > 0, "higher").mask(upper < 0, "lower")
            frame[f"{what}_verdict"] = verdict.where(frame[what].notna(), "")
            frame[f"{what}_method"] = np.where(frame[f"{what}_n"] > 1, "Dunnett", "")
    return frame


def noted(frame: pd.DataFrame, at: Sequence[int], note: str, **changes: Any) -> pd.DataFrame:
    """With a note on these cells, and other changes there."""
    return frame.assign(
        **{
            column: [value if row in at else old for row, old in enumerate(frame[column])]
            for column, value in ({"note": note} | changes).items()
        }
    )


def trends(sweep: Sweep, frame: pd.DataFrame) -> pd.DataFrame:
    """A row per task and split, of a sweep whose axis is numeric."""
    rows = []
    for at, ((task, split, metric), _) in enumerate(frame.groupby(["task", "split", "metric"], sort=False)):
        about = {"task": task, "split": split, "metric": metric, "axis": sweep.compare, "n": 3}
        slope = {"slope": 0.9 + 3 * at, "slope_lower": 0.56 + 3 * at, "slope_upper": 1.24 + 3 * at}
        bend = {"curvature": -0.02, "curvature_lower": -0.31, "curvature_upper": 0.27}
        rest = {"slope_p": 10.0 ** -(3 + at), "turning_point": 64.2 if at else np.nan, "lack_of_fit_p": 0.4567}
        rows.append(about | slope | bend | rest)
    return pd.DataFrame(rows)


def averages(sweep: Sweep, frame: pd.DataFrame) -> pd.DataFrame:
    labels = [name for name in sweep.roles if name != sweep.over]
    rows = []
    for label, those in frame.groupby(labels, sort=False):
        mean, base = those["value"].mean(), bool(those["baseline"].all())
        difference = np.nan if base else 1.25
        rows.append(
            dict(zip(labels, label, strict=True))
            | {"rule": "mean of percent metrics", "tasks": len(sweep.tasks), "n": 3, "baseline": base}
            | {"value": mean, "lower": mean - 1.23, "upper": mean + 1.23, "difference": difference}
            | {"difference_lower": difference - 2.2, "difference_upper": difference + 2.2, "better": 0.625}
            | {"difference_verdict": "" if base else "not known"}
        )
    return pd.DataFrame(rows)


def detectable(sweep: Sweep, frame: pd.DataFrame) -> pd.DataFrame:
    """A row per task and split."""
    rows = frame.drop_duplicates(["task", "split"])[["task", "split", "metric"]].reset_index(drop=True)
    return rows.assign(
        n=3, difference=[5.1 + 3 * at for at in rows.index], with_5_seeds=[2.6 + at for at in rows.index]
    )


def said(value: float, half: float, sign: str = "") -> str:
    """`83.1 ± 1.2`: two significant digits of the half-width, the value to the same place."""
    digits = 1 - int(f"{half:.1e}".partition("e")[2])
    value, half = round(value, digits), round(half, digits)
    return f"{value:{sign if value else ''},.{max(digits, 0)}f} ± {half:,.{max(digits, 0)}f}".replace("-0.0 ", "0.0 ")


def told(table: Table) -> str:
    """All that a table says in words."""
    return " ".join([table.caption, *table.notes, *table.about])
