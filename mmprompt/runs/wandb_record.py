"""The W&B record of one attempt: written by the real client, offline by default, complete when `finish` returns.

What the client (0.31) does by itself, and what is done about it here:
- a background process writes, and loses what it has not flushed when ours gets SIGTERM: a job calls `end_when_told`;
- SLURM sends SIGTERM to every process of a step, and that one dies of it: it flushes every second, so that a second is
  lost; to close the record of a run that fails is then no error of its own, and the next record starts a new process;
- `finish()` returns before the exit record is on disk, sometimes: `RecordWriter.finish` waits until it reads it there;
- the values of the last row overwrite the summary: that row is committed before the summary is set;
- it drops a row whose step is below the last one without an error: here that is one;
- it waits for a server that does not answer, at the beginning and at the end of each run: here up to 20 s and 30 s, and
  then not again for `ASK_AGAIN`; meanwhile records are offline ones, which `sync` uploads (`mmprompt.runs.wandb_server`);
- it reads its environment once, and asks that server ever after: it begins anew when the environment is another;
- it looks for an account, captures the console, reads git, logs under $HOME: switched off, or in a temporary folder.

The user's WANDB_* variables and settings file are for the user's own runs: offline none of them is read, so WANDB_MODE,
WANDB_DIR or WANDB_API_KEY change nothing. Online, those that say which server and who (`CREDENTIALS`) are read, and the
settings file. What is tracked, and where, is what `conf/tracking` says.
Part of the light half of the package: wandb is imported when a record is opened.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from mmprompt.runs.deployment import Tracking
from mmprompt.runs.wandb_file import BLOCK, MAGIC, payloads

EXIT_DEADLINE = 10.0  # seconds; measured: 3 ms
ASK_AGAIN = 600.0  # seconds until a server that could not be had is asked again: a job may be many short runs
CREDENTIALS = (
    "WANDB_API_KEY",
    "WANDB_BASE_URL",
    "WANDB_CONFIG_DIR",
    "WANDB_CREDENTIALS_FILE",
    "WANDB_HTTP_TIMEOUT",
    "WANDB_IDENTITY_TOKEN_FILE",
    "WANDB_INSECURE_DISABLE_SSL",
)
SETTINGS: dict[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "finish_timeout": 30,  # what is not uploaded by then is on disk
    "finish_timeout_raises": True,
    "init_timeout": 20,
    "label_disable": True,
    "reinit": "create_new",  # a record left open by a failed run is not ours to finish as a success
    "sagemaker_disable": True,
    "save_code": False,
    "silent": True,
    "symlink": False,
    "use_dot_wandb": False,
}
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
    """The W&B run of one attempt. With tracking.mode=disabled it writes nothing."""

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
                _stay_offline(f"W&B did not take the end of {self._run.id} within {SETTINGS['finish_timeout']} s")
            _wait_for_exit(self.file)
        _keep_only(self.file)


def record_files(folder: Path) -> list[Path]:
    """The records in an attempt's folder, the newest last; none where tracking is disabled."""
    return sorted(folder.glob("wandb/*run-*-*/run-*.wandb"))


_offline_until = 0.0  # by the monotonic clock


def _stay_offline(reason: str) -> None:
    global _offline_until
    _offline_until = time.monotonic() + ASK_AGAIN
    rest = f"records are offline ones for {ASK_AGAIN / 60:.0f} minutes; `make sync` uploads what is missing there"
    warnings.warn(f"{reason}: {rest}", stacklevel=4)


def _open_online(folder: Path, what: Mapping[str, Any]) -> Any:
    """A started W&B run; an offline one, and a warning, if the server cannot be had."""
    import wandb

    if time.monotonic() >= _offline_until:
        try:
            return _open("online", folder, what)
        except (wandb.errors.Error, ValueError) as error:  # ValueError: of a setting, such as WANDB_BASE_URL
            _stay_offline(f"W&B cannot be reached ({first_line(error)})")
        forget_client()  # its background process still holds the id
        shutil.rmtree(folder / "wandb", ignore_errors=True)  # the attempt to go online leaves an empty record
    return _open("offline", folder, what)


def first_line(error: Exception) -> str:
    """The reason, without the advice that W&B adds, and without the value of a setting, which may be a key."""
    if isinstance(error, ValidationError):
        wrong = error.errors()[0]
        return f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _open(mode: Literal["offline", "online"], folder: Path, what: Mapping[str, Any]) -> Any:
    with _living_client(), client(mode) as wandb:
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
    """Raises TrackingError when W&B's background process turns out to be dead, and forgets it."""
    try:
        yield
    except _dead() as error:
        forget_client()
        reason = "W&B's background process is gone (killed, or out of memory), and with it what it had not written"
        raise TrackingError(reason) from error


def _dead() -> tuple[type[Exception], ...]:
    """What the client raises when its background process is dead."""
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    return (ConnectionError, HandleAbandonedError, MailboxClosedError)


def forget_client() -> None:
    """End the background process, if it has not ended by itself, and forget what it was told."""
    import wandb

    with contextlib.suppress(*_dead()):
        wandb.teardown()


_seen: dict[str, str] = {}  # the environment that the client has read


@contextlib.contextmanager
def client(mode: Literal["offline", "online"]) -> Iterator[Any]:
    """The wandb module, with only our own WANDB_* variables, and online the user's credentials; afterwards the user's again.

    It reads them when it is first used. What it read for another mode or server is forgotten: it would go on to ask that
    server, and show it this one's key.
    """
    global _seen
    users = {key: value for key, value in os.environ.items() if key.startswith("WANDB_") or key == "TERM"}
    kept = {key: users[key] for key in CREDENTIALS if key in users and mode == "online"}
    ours = {f"WANDB_{kind}DIR": _scratch() for kind in ("", "CACHE_", "DATA_", "CONFIG_")}
    if mode == "online":
        del ours["WANDB_CONFIG_DIR"]  # `wandb login --host` leaves the server's address there
    quiet = {"WANDB_ERROR_REPORTING": "false", "TERM": "dumb"}  # such a terminal is not asked for a key
    _set_variables(quiet | ours | kept)
    try:
        import wandb

        if _seen != {"mode": mode} | kept:
            forget_client()
            _seen = {"mode": mode} | kept
        yield wandb
    finally:
        _set_variables(users)


def _set_variables(values: Mapping[str, str]) -> None:
    """W&B's, and the kind of the terminal."""
    for key in [key for key in os.environ if key.startswith("WANDB_") or key == "TERM"]:
        del os.environ[key]
    os.environ.update(values)


@cache
def _scratch_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mmprompt-wandb-", ignore_cleanup_errors=True)


def _scratch() -> str:
    """Where the client keeps what nobody reads; removed when this process ends."""
    return _scratch_folder().name


def _wait_for_exit(file: Path) -> None:
    deadline = time.monotonic() + EXIT_DEADLINE
    while not _holds_exit(file):
        if time.monotonic() > deadline:
            raise TrackingError(f"{file} holds no exit record {EXIT_DEADLINE:.0f} s after W&B said it was finished")
        time.sleep(0.002)


def _holds_exit(file: Path) -> bool:
    """Whether the last record is the exit record, which W&B writes last; reads the last two blocks."""
    from wandb.proto.wandb_internal_pb2 import Record as Message  # type: ignore[attr-defined]

    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        first = max(0, (size - 1) // BLOCK - 1) * BLOCK
        stream.seek(first)
        data = stream.read()
    found = [payload for payload in payloads(data, 0 if first else len(MAGIC)) if isinstance(payload, bytes)]
    return any(Message.FromString(payload).WhichOneof("record_type") == "exit" for payload in found[-4:])


def _keep_only(file: Path) -> None:
    """Remove the client's debug logs and empty folders."""
    for path in file.parent.glob("*"):  # of a folder that somebody removed nothing
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path != file:
            path.unlink(missing_ok=True)
