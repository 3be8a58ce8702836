"""Writes the W&B record of one attempt: by the real client, offline by default, complete when `finish` returns.

What the client (0.31) does by itself, and what is done about it here (see also `wandb_client`):
- a background process writes, and loses what it has not flushed when ours gets SIGTERM: a job calls `end_when_told`;
- SLURM sends SIGTERM to every process of a step, and that one dies of it: it flushes every second, so that a second is
  lost; to close the record of a run that fails is then no error of its own, and the next record starts a new process;
- `finish()` returns before the exit record is on disk, sometimes: `RecordWriter.finish` waits until it reads it there;
- the values of the last row overwrite the summary: that row is committed before the summary is set;
- it drops a row whose step is below the last one without an error: here that is one;
- where no server can be had, the record is an offline one, which `sync` uploads (`wandb_server`).

What is tracked, and where, is what `conf/tracking` says.
Part of the light half of the package: wandb is imported when a record is opened.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from mmprompt.runs.wandb_client import CLIENT, SETTINGS, errors_of_a_dead_client, first_line
from mmprompt.runs.wandb_file import BLOCK, MAGIC, payloads
from mmprompt.runs.wandb_messages import decoder
from mmprompt.settings.deployment import Tracking

EXIT_DEADLINE = 10.0  # seconds; measured: 3 ms
INTERNAL: dict[str, Any] = {  # W&B may drop these; then the record is larger, or flushed every 15 s, and still complete
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "x_server_side_derived_summary": True,  # do not write the summary again after each row: half the file
    "x_transaction_log_flush_interval": 1.0,
}


class TrackingError(RuntimeError):
    """The record cannot be kept as promised. The message names the path and the reason."""


class RecordWriter:
    """Writes the W&B record of one attempt. With tracking.mode=disabled it writes nothing."""

    def __init__(
        self, folder: Path, id: str, name: str, group: str, config: Mapping[str, Any], tracking: Tracking
    ) -> None:
        self._step = -1
        self._run: Any = None
        self.file: Path | None = None
        if tracking.mode == "disabled":
            return
        folder = folder.absolute()
        place = {"project": tracking.project, "entity": tracking.entity}
        what = {"id": id, "name": name, "group": group, "config": dict(config)} | place
        self._run = _open_online(folder, what) if tracking.mode == "online" else _open("offline", folder, what)
        self.file = Path(self._run.settings.sync_file)
        if not self.file.is_relative_to(folder):  # W&B turns to a temporary folder and says so to nobody
            raise TrackingError(f"{folder} cannot be written to: W&B went to {self.file.parent}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Values of one step. Calls with the same step make one row; a step cannot go back."""
        if self._run is None:
            return
        if step < self._step:
            raise TrackingError(f"step {step} was logged after step {self._step}; W&B would drop it")
        self._step = step
        with _living_client():
            self._run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, float | str], exit_code: int) -> None:
        """Set the final values, close, and return when the file holds it all; that file is all that stays.

        Raises TrackingError when it does not. Of a run that failed (exit_code is not 0) nothing is raised, whatever the
        client says: the caller is about to raise what matters, a SystemExit maybe, and that must not be replaced.
        """
        if self._run is None or self.file is None:
            return
        with contextlib.suppress(*[Exception] if exit_code else []), _living_client():
            if self._step >= 0:
                self._run.log({}, step=self._step, commit=True)
            self._run.summary.update(dict(summary))
            try:
                self._run.finish(exit_code=exit_code)
            except TimeoutError:
                CLIENT.stay_offline(f"W&B did not take the end of {self._run.id} within {SETTINGS['finish_timeout']} s")
            _wait_for_exit(self.file)
        _keep_only(self.file)


def _open_online(folder: Path, what: Mapping[str, Any]) -> Any:
    """A started W&B run; an offline one, and a warning, if the server cannot be had."""
    import wandb

    if CLIENT.may_go_online:
        try:
            return _open("online", folder, what)
        except (wandb.errors.Error, ValueError) as error:  # ValueError: of a setting, such as WANDB_BASE_URL
            CLIENT.stay_offline(f"W&B cannot be reached ({first_line(error)})")
        CLIENT.end()  # its background process still holds the id
        shutil.rmtree(folder / "wandb", ignore_errors=True)  # the attempt to go online leaves an empty record
    return _open("offline", folder, what)


def _open(mode: Literal["offline", "online"], folder: Path, what: Mapping[str, Any]) -> Any:
    with _living_client(), CLIENT.wandb(mode) as wandb:
        internal = {key: value for key, value in INTERNAL.items() if key in wandb.Settings.model_fields}
        if mode == "online":
            internal.pop("x_server_side_derived_summary", None)  # a live view wants the last values
        settings = wandb.Settings(**SETTINGS, **internal)
        try:
            return wandb.init(mode=mode, dir=str(folder), settings=settings, **what)
        except wandb.errors.Error as error:
            if mode == "online":
                raise
            raise TrackingError(f"no W&B record can be opened in {folder}: {error}") from error


@contextlib.contextmanager
def _living_client() -> Iterator[None]:
    """Raises TrackingError when W&B's background process turns out to be dead; the next record starts a new one."""
    try:
        yield
    except errors_of_a_dead_client() as error:
        CLIENT.end()
        reason = "W&B's background process is gone (killed, or out of memory), and with it what it had not written"
        raise TrackingError(reason) from error


def _wait_for_exit(file: Path) -> None:
    deadline = time.monotonic() + EXIT_DEADLINE
    while not _holds_exit(file):
        if time.monotonic() > deadline:
            raise TrackingError(f"{file} holds no exit record {EXIT_DEADLINE:.0f} s after W&B said it was finished")
        time.sleep(0.002)


def _holds_exit(file: Path) -> bool:
    """Whether the last record is the exit record, which W&B writes last; reads the last two blocks."""
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        first = max(0, (size - 1) // BLOCK - 1) * BLOCK
        stream.seek(first)
        data = stream.read()
    found = [payload for payload in payloads(data, 0 if first else len(MAGIC)) if isinstance(payload, bytes)]
    return any(message.WhichOneof("record_type") == "exit" for message in map(decoder(), found[-4:]))


def _keep_only(file: Path) -> None:
    """Remove the client's debug logs and empty folders, as far as that is possible: no run fails for it."""
    with contextlib.suppress(OSError):
        for path in file.parent.glob("*"):  # of a folder that somebody removed nothing
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path != file:
                path.unlink(missing_ok=True)
