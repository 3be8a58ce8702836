"""Each verb that `bench/verbs.py` measures says of all runs what it should: the stand-in for SLURM's
commands answers what the verbs ask."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "bench"))

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
