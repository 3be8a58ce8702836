"""Writes the W&B record of one attempt: by the real client, offline by default, complete when `finish` returns.

What the client (0.31) does by default, and what this module does about it (see also `wandb_client`):
- A background process writes the record. If our process dies of SIGTERM, unflushed rows are lost. So a job calls
  `end_when_told`, and then closes its records on SIGTERM.
- SLURM sends SIGTERM to every process of a step, and the background process dies of it. So it flushes every second, and
  at most a second is lost. If the record of a failing run can then not be closed, this raises no error of its own. The
  next record starts a new background process.
- `finish()` sometimes returns before the exit record is on disk. `RecordWriter.finish` waits until it can read it there.
- The values of the last row overwrite the summary. So that row is committed before the summary is set.
- A row whose step is smaller than the last one is dropped without an error. Here it raises an error.
- If no server can be used, the record is written offline, and `sync` uploads it later (`wandb_server`).

`conf/tracking` decides whether and where runs are tracked.
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

from mmprompt.runs.files import StoreError
from mmprompt.runs.wandb_client import CLIENT, SETTINGS, errors_of_a_dead_client, first_line
from mmprompt.runs.wandb_file import BLOCK, MAGIC, payloads
from mmprompt.runs.wandb_messages import decoder
from mmprompt.settings.deployment import Tracking

EXIT_DEADLINE = 10.0  # seconds; measured were 3 ms
INTERNAL: dict[str, Any] = {  # without these settings, which W&B may drop, a record is larger or flushed less often
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "x_server_side_derived_summary": True,  # do not write the summary again after each row: half the file
    "x_transaction_log_flush_interval": 1.0,
}


class TrackingError(RuntimeError):
    """The record cannot be written completely. The message names the path and the reason."""


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
        if not self.file.is_relative_to(folder):  # W&B silently falls back to a temporary folder
            raise TrackingError(f"{folder} cannot be written to: W&B went to {self.file.parent}")
        if not self.file.exists():  # W&B's background process logs why, and goes on without
            _check_room(self.file)
            raise TrackingError(f"W&B could not make its record {self.file}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs values of one step. Calls with the same step make one row. Steps may not decrease."""
        if self._run is None:
            return
        if step < self._step:
            raise TrackingError(f"step {step} was logged after step {self._step}; W&B would drop it")
        self._step = step
        with _living_client():
            self._run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, float | str], exit_code: int) -> None:
        """Sets the final values, closes the record, and returns when the file is complete. All other files of W&B are removed.

        Raises TrackingError if the file stays incomplete. For a failed run (exit_code is not 0) it raises nothing: its caller is
        about to raise the real error, perhaps SystemExit, and that must not be replaced.
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


def _check_room(file: Path) -> None:
    """Raises StoreError if the disk does not take this file now: then no run is to blame."""
    try:
        file.touch(exist_ok=False)
        file.unlink()
    except OSError as error:
        raise StoreError(f"{file} cannot be written: {error.strerror}") from error


def _open_online(folder: Path, what: Mapping[str, Any]) -> Any:
    """Starts a W&B run; if the server cannot be used, an offline one with a warning."""
    import wandb

    if CLIENT.may_go_online:
        try:
            return _open("online", folder, what)
        except (wandb.errors.Error, ValueError) as error:  # ValueError: a wrong setting, such as WANDB_BASE_URL
            CLIENT.stay_offline(f"W&B cannot be reached ({first_line(error)})")
        CLIENT.end()  # its background process still holds the id
        shutil.rmtree(folder / "wandb", ignore_errors=True)  # the failed start left an empty record
    return _open("offline", folder, what)


def _open(mode: Literal["offline", "online"], folder: Path, what: Mapping[str, Any]) -> Any:
    with _living_client(), CLIENT.wandb(mode) as wandb:
        internal = {key: value for key, value in INTERNAL.items() if key in wandb.Settings.model_fields}
        if mode == "online":
            internal.pop("x_server_side_derived_summary", None)  # a live view needs the last values
        settings = wandb.Settings(**SETTINGS, **internal)
        try:
            return wandb.init(mode=mode, dir=str(folder), settings=settings, **what)
        except wandb.errors.Error as error:
            if mode == "online":
                raise
            raise TrackingError(f"no W&B record can be opened in {folder}: {error}") from error


@contextlib.contextmanager
def _living_client() -> Iterator[None]:
    """Raises TrackingError if W&B's background process is dead. The next record starts a new one."""
    try:
        yield
    except errors_of_a_dead_client() as error:
        CLIENT.end()
        reason = "W&B's background process is gone (killed, or out of memory), and with it what it had not written"
        raise TrackingError(reason) from error


def _wait_for_exit(file: Path) -> None:
    deadline = time.monotonic() + EXIT_DEADLINE
    try:
        while not _holds_exit(file):
            if time.monotonic() > deadline:
                raise TrackingError(f"{file} holds no exit record {EXIT_DEADLINE:.0f} s after W&B said it was finished")
            time.sleep(0.002)
    except FileNotFoundError:
        raise TrackingError(f"{file} was removed while W&B wrote it") from None


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
    """Removes the client's debug logs and empty folders. What cannot be removed stays, and fails no run."""
    with contextlib.suppress(OSError):
        for path in file.parent.glob("*"):  # nothing if the folder was removed meanwhile
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path != file:
                path.unlink(missing_ok=True)
