"""The data of the last tasks stay in memory: runs of a job that share their task share them."""

from __future__ import annotations

from pathlib import Path

from tiny import settings

from mmprompt.data.task_data import RecentTasks, TaskData
from mmprompt.data.task_files import TaskFiles
from mmprompt.runs.cache import Cache

NO_FILES = TaskFiles({}, None)


def asked(recent: RecentTasks, *overrides: str, files: TaskFiles = NO_FILES) -> TaskData:
    config, _ = settings(*overrides)
    return recent.get(config.task, config.model, files)


def test_runs_that_differ_in_something_else_share_the_data_of_their_task() -> None:
    recent = RecentTasks()
    data = asked(recent, "task=micro_vqa", "seed=1")
    assert asked(recent, "task=micro_vqa", "seed=2", "optim.lr=1e-3") is data
    assert data.split("val") is data.split("val")


def test_runs_whose_task_vocabulary_or_files_differ_share_nothing() -> None:
    for change in ("task.data.train=41", "model.num_bins=40"):
        recent = RecentTasks()
        assert asked(recent, "task=micro_vqa") is not asked(recent, "task=micro_vqa", change)
    recent = RecentTasks()
    assert asked(recent, "task=micro_vqa") is not asked(
        recent, "task=micro_vqa", files=TaskFiles({}, Cache(Path("cache"), 1.0))
    )


def test_the_last_two_tasks_stay_and_the_one_before_them_goes() -> None:
    recent = RecentTasks()
    vqa, caption = asked(recent, "task=micro_vqa"), asked(recent, "task=micro_caption")
    assert asked(recent, "task=micro_vqa") is vqa
    asked(recent, "task=micro_grounding")
    assert asked(recent, "task=micro_vqa") is vqa
    assert asked(recent, "task=micro_caption") is not caption
