"""Runs that are over in a second: the embedded default with few steps and few examples, through the real code."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from mmprompt.data.task_data import TaskData
from mmprompt.data.task_files import TaskFiles
from mmprompt.runs.config import RunConfig
from mmprompt.runs.deployment import ROOT, JobSettings
from mmprompt.runs.identity import freeze, run_id
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.settings.deployment import Deployment
from sweeps.grid.compose import Composer, parse

SMALL = [
    *("task.data.train=40", "task.data.val=30", "task.data.test=30"),
    *(
        "optim.steps=4",
        "optim.batch_size=8",
        "optim.micro_batch=8",
        "optim.validate_every=2",
    ),
    "prompt.length=4",
]


@cache
def composer() -> Composer:
    """Hydra takes a quarter of a second for each choice of groups, and nothing for other values (`test_compose`)."""
    return Composer(ROOT / "conf")


@cache
def parsed(text: str) -> tuple[str, Any]:
    key, [value] = parse(text, ROOT / "conf", 1)
    return key, value


def composed(*overrides: str) -> dict[str, Any]:
    return composer().compose(dict(parsed(text) for text in overrides))


def settings(*overrides: str) -> tuple[RunConfig, Deployment]:
    return freeze(composed(*SMALL, *overrides))


def data_of(config: RunConfig) -> TaskData:
    """The data of a run of the small world, which has no files."""
    return TaskData(config.task, config.model, TaskFiles({}, None))


def frozen_run(store: Path, *overrides: str) -> RunFolder:
    """A run folder as a launch leaves it."""
    config, _ = settings(*overrides)
    folder = Store(store).run(run_id(config))
    folder.create(config)
    return folder


def job_settings(tracking: str = "disabled", **changes: Any) -> JobSettings:
    _, deployment = settings(f"tracking={tracking}")
    return JobSettings.of(deployment).model_copy(update={"gpus": 0, "checkpoint_every": 2, **changes})


JOB = {"batch": "test", "scheduler": "local", "job": "0", "log": "jobs/test/0_log.err"}
JOB |= {"code": None, "commit": None, "dirty": False}
