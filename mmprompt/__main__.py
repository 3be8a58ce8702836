"""One run by hand: `python -m mmprompt prompt.length=64 task=micro_grounding seed=1`, an ordinary Hydra program.

The same run in a sweep has the same id: whoever comes second finds it done. With `--config-name pretrain` it makes the small
backbone instead (`make pretrain-micro`).
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmprompt.config import ConfigError, Model, Place, check_override, parse
from mmprompt.run import (
    ROOT,
    Store,
    StoreError,
    backbone_file,
    default_store,
    follow_mode,
    freeze,
    provenance,
    run_id,
)

CONF = ROOT / "conf"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def program(composed: DictConfig) -> None:
    values: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    try:
        if "recipe" in values:
            pretrain(values)
        else:
            one_run(values)
    except (ConfigError, StoreError) as error:  # an exit, because Hydra adds a line of its own to every exception
        sys.exit(f"mmprompt: {error}")


def pretrain(values: dict[str, Any]) -> None:
    from mmprompt.pretrain import Recipe, make_backbone

    with bar() as progress:
        line = progress.add_task("pretraining", total=values["recipe"]["steps"])

        def watch(step: int, text: str) -> None:
            progress.update(line, completed=step, description=text)

        recipe, model = parse(Recipe, values["recipe"]), parse(Model, values["model"])
        said = make_backbone(recipe, model, Path(values["folder"]), watch)
    print(said)


def one_run(values: dict[str, Any]) -> None:
    config, place = freeze(values)
    runs = place.paths.runs
    store = Store(default_store() if runs is None else Path(runs).absolute())
    follow_mode(store.root)
    folder = store.run(run_id(config))
    folder.create(config)
    print(f"run {folder.id}")
    if folder.result() is None:
        from mmprompt.job import execute  # torch only where something is trained

        with bar() as progress:
            line = progress.add_task("training", total=config.optim.steps)

            def watch(state: Any) -> None:
                best = (
                    f"best validation {state.best_score:.1f} at step {state.best_step}"
                    if state.validation
                    else "training"
                )
                progress.update(line, completed=state.step, description=best)

            outcome = execute(folder.path.parent.parent, [folder.id], where(place), by_hand(), watch)
        if outcome[folder.id] == "open":
            job = folder.attempts()[-1].job
            sys.exit(f"process {job['pid']} on {job['host']} is at this run, or died there; see {folder.path}")
        if outcome[folder.id] == "failed":
            attempt = folder.attempts()[-1]
            last = (attempt.error or "").strip().splitlines()[-1]
            sys.exit(f"the run failed: {last}\n  the whole story: {attempt.path / 'error.txt'}")
    else:
        print("it is done already; another seed or setting makes another run")
    result = folder.result()
    assert result is not None
    for name, value in result["metrics"].items():
        print(f"  {name:24s} {value:7.2f}")
    chosen = f"chosen at step {result['best_step']} of {result['steps']}"
    print(f"  {chosen}; {result['trainable_parameters']:,} trained parameters\n  folder: {folder.path}")


def where(place: Place) -> dict[str, Any]:
    """What a job needs to know besides the frozen settings."""
    return {
        "backbone": str(backbone_file(place)),
        "tracking": place.tracking.model_dump(mode="json"),
        "gpus": place.cluster.gpus,
        "checkpoint_every": place.cluster.checkpoint_every,
        "cache": place.cache.model_dump(),
        "stage": place.data.stage,
    }


def by_hand() -> dict[str, Any]:
    """The job's facts for an attempt that no sweep launched."""
    return {
        "batch": f"by-hand-{os.getpid()}-{time.time_ns()}",
        "scheduler": "by hand",
        "job": None,
        "log": None,
        "code": None,
        **provenance(),
    }


def bar() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def main() -> None:
    """Hydra's program, with one sentence instead of a stack for whoever mistypes a setting."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here
    try:
        for word in sys.argv[1:]:
            if "=" in word and not word.startswith("-") and "pretrain" not in sys.argv:  # that has keys of its own
                key, value = word.lstrip("+~").split("=", 1)
                check_override(key, value, CONF)
        program()
    except ConfigError as error:
        sys.exit(f"mmprompt: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"mmprompt: {' '.join(sys.argv[1:])}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
