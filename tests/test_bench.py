"""Benchmarks measure what they say, here in small: verbs on queued runs (`bench/verbs.py`), whose stand-in for SLURM's commands
answers what they ask, and a step and decoding on whatever device there is (`bench/gpu.py`)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "bench"))

import gpu
from verbs import PER_BATCH, VERBS, Site


@pytest.mark.long
def test_every_verb_knows_all_runs_of_a_batch_and_of_many(tmp_path: Path) -> None:
    whole, spread = Site(tmp_path / "whole", 2 * PER_BATCH), Site(tmp_path / "spread", 2 * PER_BATCH)
    for site in (whole, spread):
        site.launch()
    spread.spread()
    for site in (whole, spread):
        for verb, said in VERBS.items():
            assert said.format(site.runs) in site.verb(verb), (site, verb)


@pytest.mark.long
def test_a_step_and_decoding_are_measured_and_their_work_is_a_share_of_what_the_device_can() -> None:
    table, speeds = gpu.sections()
    rows = [line.split("|") for line in table.markdown().splitlines() if line.startswith("| micro")]
    assert len(rows) == 2 and all(0 < float(row[4]) < 1 for row in rows)
    [beside] = [line.split("|") for line in speeds.markdown().splitlines() if line.startswith("| micro")]
    compiled = [float(cell.split("(")[1].split(",")[0].rstrip(") ")) for cell in beside[2:-1]]
    assert len(compiled) >= 2 and compiled[0] == 0 and all(seconds > 0 for seconds in compiled[1:])
