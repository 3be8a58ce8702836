"""An attempt: one try of one run by one job, and all that it writes (layout: `mmprompt.runs.store`)."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprompt.runs.failures import Reason, from_text
from mmprompt.runs.files import (
    Content,
    GoneError,
    StoreError,
    matching,
    remove,
    share,
    sync_folder,
    write_once,
    write_over,
)
from mmprompt.runs.processes import is_running
from mmprompt.runs.records import ERROR, JOB, PROGRESS, DamagedError, JobRecord, ProgressRecord, as_json, read
from mmprompt.runs.wandb_record import record_files

if TYPE_CHECKING:
    from mmprompt.runs.run_folder import RunFolder

TRIES = 3  # failed attempts in a row without progress, after which a run is only retried on request
LAST_WORDS = 8192  # bytes that each attempt reserves for error.json while the disk has room
CHECKPOINT = re.compile(r"checkpoint\.(\d{1,15})\.pt", re.ASCII)


@dataclass(frozen=True)
class Attempt:
    """One try of one run by one job. It writes into its own folder alone, until it publishes."""

    run: RunFolder
    number: int
    claim: str = field(default="", compare=False)  # the job.json of who works at it; the others do not say any

    @property
    def path(self) -> Path:
        return self.run.path / "attempts" / str(self.number)

    @property
    def job_file(self) -> Path:
        return self.path / "job.json"

    @property
    def job(self) -> JobRecord:
        """Raises DamagedError if job.json is missing or damaged."""
        cure = f"restore it, or remove {self.path}, and the next launch goes on without that attempt"
        found = read(self.job_file, JOB, cure)
        if found is None:
            raise DamagedError(self.job_file, "is not there", cure)
        return found

    @property
    def is_leftover(self) -> bool:
        """Whether the attempt was removed, and W&B's process, which outlived the attempt's, has made its own folder again."""
        if self.job_file.exists():
            return False
        try:
            return os.listdir(self.path) == ["wandb"]
        except OSError:
            return False

    def put(self, file: Path, content: Content, once: bool = False, durable: bool = True) -> bool:
        """Writes a file into the run's or the attempt's folder, or into their `evaluations`. Returns False if `once` is set and the
        file exists. Raises StoreError; GoneError if the attempt was removed or belongs to another process now: then nothing
        of it is created again.
        """
        self.check_claim()
        if file.parent.name == "evaluations":
            make_in(file.parent)
        won = write_once(file, content, make=False) if once else True
        if not once:
            write_over(file, content, make=False, durable=durable)
        try:
            self.check_claim()
        except GoneError:  # it was being removed meanwhile, and what was put there kept a folder alive
            if not self.job_file.exists():
                remove(file)
                self.leave()
            raise
        return won

    def check_claim(self) -> None:
        """Raises GoneError if the attempt was removed, or if another process has claimed its number since; StoreError if
        job.json cannot be read.
        """
        try:
            found = self.job_file.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            raise GoneError(f"{self.path} was removed") from None
        except OSError as error:
            raise StoreError(f"{self.job_file} cannot be read: {error.strerror}") from error
        if self.claim and found != self.claim:
            raise GoneError(f"{self.path} was removed, and another process is at it now")

    def leave(self) -> None:
        """Removes files that this process wrote after its attempt was removed, and empty folders above them. If there are
        checkpoints, only job.json was removed: then everything stays."""
        if self.job_file.exists() or self.checkpoint_steps:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        for folder in (self.path.parent, self.run.evaluations, self.run.path):
            with contextlib.suppress(OSError):
                folder.rmdir()

    @property
    def evaluates(self) -> bool:
        """Whether the attempt evaluates a finished run, and trains nothing."""
        return self.job.get("work") == "evaluate"  # attempts of long ago do not say that they train

    def is_running(self) -> bool | None:
        """Whether its process still runs; None if that cannot be known on this host."""
        return is_running(self.job)

    @property
    def end_file(self) -> Path:
        return self.path / "evaluated.json"

    @property
    def has_ended(self) -> bool:
        """Whether an evaluating attempt has done all its work. Its process may go on with other runs."""
        return self.end_file.exists()

    def end(self, facts: Mapping[str, Any]) -> None:
        """Writes the last record of an evaluating attempt, when all its evaluations exist."""
        self.put(self.end_file, as_json(facts), once=True)

    @property
    def has_evaluated(self) -> bool:
        """Whether it has made an evaluation."""
        progress = self.progress
        return progress is not None and bool(progress.get("evaluated"))

    @property
    def claimed(self) -> float:
        """When it was claimed: seconds since 1970 by the clock of the file server. Raises DamagedError if job.json is gone."""
        try:
            return self.job_file.stat().st_mtime
        except OSError as error:
            raise DamagedError(self.job_file, f"cannot be read: {error.strerror}") from None

    @property
    def last_sign(self) -> float:
        """When it last wrote something while it worked: seconds since 1970 by the clock of the file server. error.json does not
        count: another process may have written it much later."""
        signs = [self.path / "progress.json", *map(self.checkpoint_file, self.checkpoint_steps)]
        times = [self.claimed]
        for sign in signs:
            with contextlib.suppress(OSError):
                times.append(sign.stat().st_mtime)
        return max(times)

    def checkpoint_file(self, step: int) -> Path:
        return self.path / f"checkpoint.{step}.pt"

    @property
    def checkpoint_steps(self) -> list[int]:
        """The updates of its checkpoints, in ascending order."""
        found = [CHECKPOINT.fullmatch(file.name) for file in matching(self.path, "checkpoint.*.pt")]
        return sorted(int(name[1]) for name in found if name)

    @property
    def weights_file(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def wandb(self) -> str | None:
        """The path of its W&B record relative to the run's folder; None if tracking is disabled."""
        files = record_files(self.path)
        return str(files[-1].relative_to(self.run.path)) if files else None

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations"

    def evaluation_file(self, evaluation: str) -> Path:
        """The file of an evaluation. The scores of single examples lie beside it, as .npy, and some answers, as .answers.jsonl."""
        return self.evaluations / f"{evaluation}.json"

    def sweep(self) -> None:
        """Removes unfinished files of its process, which has ended, and the W&B client's logs, but not its record."""
        for file in (*matching(self.path, ".*"), *matching(self.evaluations, ".*")):
            remove(file)
        for part in ("files", "logs", "tmp"):
            for folder in matching(self.path, f"wandb/*run-*/{part}"):
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def error_file(self) -> Path:
        return self.path / "error.json"

    @property
    def error_text(self) -> Path:
        """The same as text for people. Attempts from before error.json existed have this file alone."""
        return self.path / "error.txt"

    @property
    def reason(self) -> Reason | None:
        """Why it ended before its work was done. None if it finished, still runs, or was killed before it could write anything.
        Raises DamagedError."""
        cure = f"remove {self.path}, and the next launch goes on without that attempt"
        record = read(self.error_file, ERROR, cure)
        if record is not None:
            fields = ("kind", "message", "traceback", "interrupted", "signal")
            return Reason(**{key: record[key] for key in fields})  # type: ignore[literal-required]
        try:
            return from_text(self.error_text.read_text(encoding="utf-8", errors="replace"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DamagedError(self.error_text, f"cannot be read: {error.strerror}", cure) from None

    @property
    def diverged(self) -> bool:
        """Whether its loss or gradient became infinite. The same settings always will, so this is an outcome."""
        reason = self.reason
        return reason is not None and reason.kind == "diverged"

    @property
    def has_failed(self) -> bool:
        """Whether it ended for a reason that lies in the run: it failed, and was not interrupted."""
        reason = self.reason
        return reason is not None and not reason.interrupted

    @property
    def last_words(self) -> Path:
        """A file that reserves room for error.json, for when the disk is full."""
        return self.path / ".last-words"

    def fail(self, reason: Reason) -> None:
        """Writes error.json and error.txt. Raises GoneError if the attempt was removed; StoreError if error.json cannot be
        written, not even into the room that was reserved for it."""
        try:
            with contextlib.suppress(StoreError):
                self.put(self.error_text, reason.text)
            self.put(self.error_file, as_json(asdict(reason)))
            remove(self.last_words)
        except GoneError:
            raise
        except StoreError:
            if not self._fail_without_room(reason):
                raise

    def _fail_without_room(self, reason: Reason) -> bool:
        reason = replace(reason, message=reason.message[: LAST_WORDS // 16])
        while len(text := as_json(asdict(reason)).encode()) > LAST_WORDS:
            reason = replace(reason, traceback=reason.traceback[len(reason.traceback) // 2 + 1 :])
        try:
            with self.last_words.open("r+b") as file:
                file.write(text)
                file.truncate()
            self.last_words.replace(self.error_file)
        except OSError:
            return False
        return True

    @property
    def progress(self) -> ProgressRecord | None:
        """The last progress report; None if there is none or it cannot be read. Nothing depends on it."""
        with contextlib.suppress(DamagedError):
            return read(self.path / "progress.json", PROGRESS)
        return None

    def report(self, progress: Mapping[str, Any]) -> None:
        """Raises StoreError; GoneError if the attempt was removed."""
        self.put(self.path / "progress.json", as_json(progress), durable=False)


def make_in(folder: Path) -> None:
    """Makes a folder whose parent has to exist. Raises GoneError if the parent does not exist, StoreError."""
    try:
        folder.mkdir()
    except FileExistsError:
        return
    except FileNotFoundError as error:
        raise GoneError(f"{folder} cannot be made: {folder.parent} is not there any more") from error
    except OSError as error:
        raise StoreError(f"{folder} cannot be made: {error.strerror}") from error
    share(folder)
    sync_folder(folder.parent)


def seconds_at_work(attempts: Iterable[Attempt]) -> float:
    """How many seconds these attempts, which are over, worked: from their claim to the last file they wrote."""
    return sum(max(0.0, attempt.last_sign - attempt.claimed) for attempt in attempts)
