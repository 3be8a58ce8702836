"""The W&B server: which of our records it has, and the upload of those that it lacks.

`wandb sync` (0.31) uploads records. This module makes up for what it does wrong:
- It tries for ever to reach a server that does not answer. So the server is asked first, and again whenever no record
  is sent for some time.
- It exits with 0 and marks a record as sent even if the server refused half of it. So the server is asked which records
  it has, and only these are marked in the store.
- A file without a record stops it before it has sent anything, and a damaged record is sent only up to the damage, as a
  failed run. So the former is left out, and of the latter everything that can be read is sent, from a copy.
- It sends a record again that was already sent while its run was training. So the server is asked before.

Links and copies lie in a temporary folder. Only W&B's own mark is added to the store.
Part of the light half of the package: wandb is imported when the server is asked.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mmprompt.runs.wandb_client import CLIENT, SETTINGS, first_line
from mmprompt.runs.wandb_file import framed
from mmprompt.runs.wandb_messages import sound_messages
from mmprompt.runs.wandb_record import RecordError, WandbRecord, contents, read_record

TIMEOUT = 20  # seconds for one answer
PAGE = 500  # runs in an answer
AT_ONCE = 8  # records that are sent at the same time
TOGETHER = 100  # records per process, because starting one takes as long as sending several records
STALLED = 30.0  # seconds without a sent record after which the server is asked whether it can still be used
GIVE_UP = 120.0  # seconds without a sent record after which the rest is given up, even if the server answers
SETTLED = 20.0  # seconds after which the server has counted the rows that it was sent
LOG = "said.txt"  # the output of `wandb sync`
STATES = {  # the server's states of a run, by the state of its record
    "finished": ("finished",),
    "failed": ("failed",),
    "no end": ("failed", "crashed", "killed"),
}


class ServerError(RuntimeError):
    """The W&B server cannot be used. The message says why."""


def sendable(file: Path) -> WandbRecord | None:
    """The record in a file, without its values; None if it contains nothing that could be sent."""
    try:
        record = read_record(file, history=False, values=False)
    except RecordError:
        return None
    return record if record.id is not None else None


def _mark(file: Path) -> Path:
    """W&B's own mark of a record that was sent."""
    return file.with_name(f"{file.name}.synced")


def is_marked(file: Path) -> bool:
    return _mark(file).exists()


def mark(file: Path) -> None:
    with contextlib.suppress(OSError):  # the store may belong to another user; then the server is asked again next time
        _mark(file).touch()


@contextlib.contextmanager
def server() -> Iterator[Any]:
    """W&B's public Api. Raises ServerError with the reason if the server cannot be used, now or later in the block."""
    with CLIENT.wandb("online") as wandb:
        from wandb.sdk.lib.service.service_connection import WandbApiFailedError

        try:
            yield wandb.Api(timeout=TIMEOUT)
        except (wandb.errors.Error, WandbApiFailedError, ValidationError) as error:  # ValidationError: a wrong setting
            raise ServerError(f"the W&B server cannot be used: {first_line(error)}") from error
        except TimeoutError as error:
            CLIENT.end()  # threads that still wait for an answer get an error
            raise ServerError("the W&B server stopped answering") from error


@dataclass(frozen=True)
class Shown:
    """What a W&B run of an analysis shows. Pages and images have the names that they get there."""

    pages: Mapping[str, str]  # HTML
    images: Mapping[str, Path]
    files: Sequence[Path]  # kept as they are
    folder: Path  # the names of the files are relative to it


def publish(shown: Shown, name: str, config: Mapping[str, Any], project: str, entity: str) -> str:
    """Uploads the content as one W&B run of job type `analysis`, and returns its address. Raises ServerError."""
    with CLIENT.wandb("online") as wandb, tempfile.TemporaryDirectory(prefix="mmprompt-wandb-") as scratch:
        settings = wandb.Settings(**SETTINGS)
        try:
            run = wandb.init(
                mode="online",
                dir=scratch,
                settings=settings,
                project=project,
                entity=entity or None,
                job_type="analysis",
                name=name,
                config=dict(config),
            )
            values: dict[str, Any] = {key: wandb.Html(text, inject=False) for key, text in shown.pages.items()}
            values |= {key: wandb.Image(str(file)) for key, file in shown.images.items()}
            run.log(values)
            for file in shown.files:
                run.save(str(file), base_path=str(shown.folder), policy="now")
            run.finish()
        except (wandb.errors.Error, TimeoutError, ValidationError) as error:
            CLIENT.end()
            raise ServerError(f"the W&B server cannot be used: {first_line(error)}") from error
    return str(run.url)


def find(api: Any, project: str, entity: str, key: str, values: Sequence[str], lazy: bool) -> Iterator[Any]:
    """Yields the project's runs whose `key` is one of the values, complete unless `lazy`, in one call per PAGE of them."""
    path = f"{entity or api.default_entity}/{project}"
    api.flush()  # else it answers from its memory
    for first in range(0, len(values), PAGE):
        filters = {key: {"$in": list(values[first : first + PAGE])}}
        try:
            yield from api.runs(path, filters=filters, per_page=PAGE, lazy=lazy)
        except ValueError as error:
            if "Could not find project" not in str(error):
                raise
            return  # nothing was ever sent to this project


def known(api: Any, records: Iterable[WandbRecord]) -> list[WandbRecord]:
    """The records that the server has completely: every row, and how the run ended."""
    places: dict[tuple[str, str], list[WandbRecord]] = {}
    for record in records:
        places.setdefault((record.project, record.entity), []).append(record)
    found: list[WandbRecord] = []
    for place, there in places.items():
        ids = [record.id for record in there if record.id is not None]
        runs = {run.id: run for run in find(api, *place, "name", ids, lazy=True)}
        found += [record for record in there if record.id in runs and _is_whole(record, runs[record.id])]
    return found


def _is_whole(record: WandbRecord, run: Any) -> bool:
    assert record.rows is not None  # the whole file was read
    return run.state in STATES[record.state] and run.historyLineCount >= record.rows


def send(api: Any, records: Sequence[WandbRecord]) -> Iterator[tuple[WandbRecord, str | None]]:
    """Sends records. Yields each with None once it has arrived and is marked, or with the reason why it has not arrived.

    Raises ServerError if the server stops answering. The next call finds out from the server what has arrived by then.
    """
    for first in range(0, len(records), TOGETHER):
        some = records[first : first + TOGETHER]
        refused = _wandb_sync(some)
        arrived = _arrived(api, [record for record in some if record not in refused])
        for record in some:
            if record in arrived:
                mark(record.path)
            yield record, None if record in arrived else refused.get(record, "the server has not all that was sent")


def _arrived(api: Any, records: Sequence[WandbRecord]) -> list[WandbRecord]:
    """The records that the server has. Waits for up to SETTLED until it has counted the rows that it was sent."""
    deadline = time.monotonic() + SETTLED
    while True:
        found = known(api, records)
        if len(found) == len(records) or time.monotonic() > deadline:
            return found
        time.sleep(1)


def _wandb_sync(records: Iterable[WandbRecord]) -> dict[WandbRecord, str]:
    """Runs `wandb sync`. Returns the records that it did not mark as sent, with the reasons. Raises ServerError."""
    with tempfile.TemporaryDirectory(prefix="mmprompt-sync-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        staged = {record: _staged(record, folder) for record in records}
        process = _started(list(staged.values()), folder)
        try:
            _wait(process, list(staged.values()))
        finally:
            process.kill()  # its background process notices, and ends too
            process.wait()
        waiting = {record: file for record, file in staged.items() if not is_marked(file)}
        return {record: _reason(folder, file) for record, file in waiting.items()}


def _wait(process: subprocess.Popen[bytes], files: Sequence[Path]) -> None:
    """Waits for the end of `wandb sync`, as long as it sends files and the server answers. It retries refused records for ever."""
    done, moved = 0, time.monotonic()
    asked = moved
    while process.poll() is None:
        now, sent = time.monotonic(), sum(map(is_marked, files))
        if sent > done:
            done, moved = sent, now
        if now - moved > GIVE_UP:
            if not done:
                raise ServerError(f"the W&B server answers, and took no record within {GIVE_UP:.0f} s")
            return
        if now - max(moved, asked) > STALLED:
            with server():
                asked = now
        time.sleep(0.1)


def _reason(folder: Path, file: Path) -> str:
    """Why W&B did not send a file: the error that it printed for it, or the last one in its log."""
    printed = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.partition("ERROR ")[2] for line in printed if "ERROR " in line and file.parent.name in line]
    for log in folder.glob("wandb/logs/debug-sync*.log"):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        told = [json.loads(line) for line in lines if file.parent.name in line and line.endswith("}")]
        errors += [str(line[key]) for line in reversed(told) for key in ("body", "error") if key in line]
    return (errors or ["W&B does not say why"])[0]


def _staged(record: WandbRecord, folder: Path) -> Path:
    """Makes a link to the record, or a copy of what can be read of it, in a folder where the client may write."""
    name = record.path.parent.name.removeprefix("offline-")
    file = folder / f"offline-{name}" / record.path.name  # under other names online runs are left out
    file.parent.mkdir()
    if record.damage:
        file.write_bytes(_mended(record.path))
    else:
        file.symlink_to(record.path.absolute())
    return file


def _mended(file: Path) -> bytes:
    """The readable part of a damaged record file, as an intact file."""
    try:
        return framed(sound_messages(contents(file)))
    except RecordError:  # the file has just been removed
        return framed([])


def _started(files: Iterable[Path], folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "wandb", "sync", "-n", str(AT_ONCE), *map(str, files)]
    with CLIENT.wandb("online"):
        environment: Mapping[str, str] = os.environ | {"TMPDIR": str(folder), "WANDB_DIR": str(folder)}
        with (folder / LOG).open("wb") as log:
            return subprocess.Popen(
                command,
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,  # without a terminal it does not ask for a key
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches only this process
            )
