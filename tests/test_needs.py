"""What a job asks of the cluster where its settings do not say: enough for the model and its data."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import composed

from mmprompt.runs.deployment import ROOT, deployment_of
from mmprompt.settings.model import Model
from mmprompt.settings.needs import parameter_count
from mmprompt.settings.parsing import ConfigError, parse
from sweeps.grid.manifest import expand, join

CONF = ROOT / "conf"
PUBLISHED = {"tiny": 33_488_336, "medium": 92_892_000, "base": 182_238_536, "large": 472_977_152, "huge": 929_486_848}


def needed(*overrides: str) -> tuple[float, int, int]:
    cluster = deployment_of(composed(*overrides)).cluster
    return cluster.mem_gb, cluster.cpus, cluster.time_min


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_number_of_parameters_is_that_of_the_official_size_to_five_percent(size: str) -> None:
    model = parse(Model, composed(f"model=ofa_{size}")["model"])
    assert parameter_count(model) == pytest.approx(PUBLISHED[size], rel=0.05)


def test_a_job_asks_for_what_its_model_and_its_data_need() -> None:
    assert needed() == (2.0, 1, 60)
    assert needed("method=finetune") == (2.0, 1, 60)
    memory, cores, minutes = needed("model=ofa_large", "task=refcoco", "cluster.gpus=1")
    assert 12 <= memory <= 16 and (cores, minutes) == (8, 240)
    assert needed("model=ofa_large", "task=refcoco", "cluster.gpus=1", "method=finetune")[0] >= memory + 14
    assert needed("model=ofa_large", "cluster.mem_gb=3", "cluster.time_min=7", "cluster.cpus=2") == (3.0, 2, 7)
    with pytest.raises(ConfigError, match=r"model\.dim"):
        needed("model.dim=wide")


def test_a_launch_asks_for_what_its_largest_run_needs(tmp_path: Path) -> None:
    def weights(model: str) -> str:
        file = tmp_path / f"{model}.pt"
        file.write_bytes(model.encode())
        return str(file)

    sweep = expand("length", ["model=ofa_tiny,ofa_base", "seed=1", f"paths.backbone={weights('ofa')}"], CONF)
    [tiny, base] = (needed(f"model=ofa_{size}") for size in ("tiny", "base"))
    assert tiny[0] < base[0] == sweep.deployment.cluster.mem_gb
    overrides = ["seed=1", "cluster.gpus=1"]
    assert join(["length", "methods"], overrides, CONF).deployment.cluster.mem_gb == needed(*overrides)[0]
    with pytest.raises(ConfigError, match=r"cluster\.mem_gb"):
        expand("length", ["cluster.mem_gb=none", "seed=1"], CONF)
