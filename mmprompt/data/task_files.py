"""Finds the files of a task: in their own folder, or staged on the node's own disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmprompt.data.staging import staged
from mmprompt.runs.cache import Cache
from mmprompt.runs.fingerprint import fingerprint, fingerprints
from mmprompt.settings.task import Task


@dataclass(frozen=True)
class TaskFiles:
    paths: Mapping[str, Path]  # by a file's name in the task's settings; empty for the small world
    cache: Cache | None  # for the files' indices and decoded images; None: they are not kept
    kept_in: Path | None = None  # folder for the fingerprints of large files
    folder: Path | None = None  # in which the task's files are; None for the small world
    stage: bool = False  # copy files to the node's own disk, and read the copies

    def of(self, who: str, names: Sequence[str], fingerprint_at_launch: str) -> TaskFiles:
        """The same with these files of the folder. `who`: the setting that names them, for messages.

        Raises RuntimeError if a file is not there, or if the files have changed since launch.
        """
        assert self.folder is not None
        paths = {name: self.folder / name for name in names}
        if missing := [path for path in paths.values() if not path.is_file()]:
            raise RuntimeError(f"{who} reads {missing[0]}, which does not exist")
        checksum = fingerprints((paths[name] for name in names), self.kept_in)
        if checksum != fingerprint_at_launch:
            raise RuntimeError(
                f"files of {who} in {self.folder} have changed since launch: their checksum is {checksum}, it was "
                f"launched with {fingerprint_at_launch}"
            )
        if self.stage:
            paths = {name: staged(path, fingerprint(path, self.kept_in)) for name, path in paths.items()}
        return replace(self, paths=paths)


def locate(task: Task, folder: str | None, stage: bool, cache: Cache | None, kept_in: Path | None = None) -> TaskFiles:
    """Finds a task's files in `folder`. `stage`: copies them to the node's own disk, and returns the copies. `kept_in`: the folder
    for the fingerprints of large files.

    Raises RuntimeError if a file is not there, or if the files have changed since launch.
    """
    if not task.files:
        return TaskFiles({}, cache, kept_in)
    if folder is None:
        raise RuntimeError(
            f"task={task.name} reads files, but this job's settings do not have their folder, paths.data"
        )
    whole = TaskFiles({}, cache, kept_in, Path(folder), stage)
    return whole.of(f"task={task.name}", task.files, task.data.fingerprint)
