"""Every sweep of conf/ as if all of it had run: its manifest, scores and costs that were made up. No store, no run."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pandas as pd

from analysis.records.frame import Sweep
from analysis.records.manifest import point_values
from analysis.statistics.costs import NUMBERS, Costs, labels_of
from mmprompt.runs.comparison import FACTS
from mmprompt.runs.deployment import ROOT
from sweeps.grid.manifest import expand
from sweeps.grid.manifest import manifest as frozen

MIDDLE = {"micro_grounding": 66.0, "micro_entailment": 98.5, "micro_vqa": 55.0, "micro_caption": 480.0}
SPREAD = {"micro_grounding": 0.9, "micro_entailment": 1.2, "micro_vqa": 2.0, "micro_caption": 90.0}


@cache
def sweep_of(name: str, seeds: str = "1,2,3") -> Sweep:
    """With scores in the size and spread that the small world has."""
    about = json.loads(
        json.dumps(frozen(expand(name, [f"seed={seeds}"], ROOT / "conf"), {"commit": None, "dirty": False}))
    )
    noise = np.random.default_rng(0)
    rows = []
    for point in about["points"]:
        known = point_values(about, point)
        task = known["task"]
        metric = about["tasks"][task]["metric"]
        row = known | {"state": "done", "metric": metric, "source": "wandb", "attempt": 1, "best_step": 100}
        row |= {"commit": "0123456789abcdef", "dirty": False, "device": "cpu: a core"}
        row |= {fact: float(noise.uniform(0.001, 0.02)) for fact in FACTS} | {
            "peak_memory_mb": noise.uniform(700, 1200)
        }
        row |= {"epochs": 9.6, "trainable_parameters": 61_440.0}
        for split in point["evaluations"]:
            value = noise.normal(MIDDLE[task] * (1 - 5 * point["values"].get("attack.epsilon", 0.0)), SPREAD[task])
            row[f"{split}/{metric}"] = float(np.clip(value, 0, 1000 if metric == "cider" else 100))
        rows.append(row)
    return Sweep(about, pd.DataFrame(rows), ())


def costs_of(sweep: Sweep) -> Costs:
    """A measurement of all of its rows, in which peak memory has a single round."""
    noise = np.random.default_rng(0)
    labels = labels_of(sweep)
    rows = []
    for *_, row in sweep.named.drop_duplicates([*labels, "task"]).iterrows():
        about = {key: row[key] for key in [*labels, "task", "run", "baseline"]}
        for quantity, size in {"seconds_per_update": 0.1, "device_hours": 0.01, "seconds_per_100": 0.4}.items():
            low, middle, high = (size * part for part in sorted(noise.uniform(0.9, 1.4, 3)))
            ratios = (1.0, 1.0, 1.0) if row["baseline"] else sorted(noise.uniform(0.8, 1.9, 3))
            taken = dict(zip(("median", "lowest", "highest"), (middle, low, high), strict=True))
            against = dict(zip(("ratio_lowest", "ratio", "ratio_highest"), ratios, strict=True))
            rows.append(about | {"quantity": quantity, "rounds": 3} | taken | against)
        memory = dict.fromkeys(("median", "lowest", "highest"), noise.uniform(700, 1200))
        ratio = dict.fromkeys(("ratio_lowest", "ratio", "ratio_highest"), noise.uniform(0.8, 1.2))
        rows.append(about | {"quantity": "peak_memory_mb", "rounds": 1} | memory | ratio)
    return Costs(pd.DataFrame(rows, columns=[*labels, "task", "quantity", *NUMBERS, "baseline", "run"]), ())
