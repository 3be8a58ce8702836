"""A run on disk: its folder, its attempts, and how it is published exactly once.

    STORE/sweeps/NAME.json       manifest of a sweep
    STORE/searches/NAME/         a study (`mmprompt.studies.study`)
    STORE/run/ID/config.json     the canonical JSON whose sha256 is ID; written once
    STORE/run/ID/attempts/N/     one attempt: checkpoints, weights.safetensors, evaluations/, wandb/
    STORE/run/ID/result.json     the result; it names the attempt that was published
    STORE/run/ID/evaluations/    evaluations that later attempts made: ID.json, each written once
    STORE/costs/NAME/N.json      what the rows of a sweep take, N-th measurement (`execution.measurement`)
    STORE/cache/                 features from frozen backbones (`training.feature_cache`); may be deleted at any time

There are no locks. A process claims an attempt by renaming a prepared folder into place, which only one process can do. It
publishes a result by link(2), which never replaces a file; nothing else is moved. So two processes that execute the same run do
no harm, and a process may die between any two steps. Files whose names begin with a dot are unfinished.

Files may be damaged or removed at any time. A record that cannot be used raises DamagedError and concerns its run alone. Only a
launch and a claim create a run's folder: if it is removed, processes that work on the run end.

Several Unix users may share a store: new files get the group and the permissions of the folder they lie in.
Part of the light half of the package: no torch, no Hydra.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mmprompt.runs.config import RunConfig, nearest
from mmprompt.runs.failures import Reason, from_text
from mmprompt.runs.files import (
    Content,
    GoneError,
    StoreError,
    drafted,
    put_folder,
    remove,
    share,
    sync_folder,
    write_once,
    write_over,
)
from mmprompt.runs.identity import digest, frozen_text
from mmprompt.runs.processes import is_running
from mmprompt.runs.records import (
    ERROR,
    EVALUATION,
    JOB,
    PROGRESS,
    RESULT,
    DamagedError,
    EvaluationRecord,
    JobRecord,
    ProgressRecord,
    ResultRecord,
    as_json,
    read,
)
from mmprompt.runs.wandb_record import record_files

LISTED = 8  # runs in a message that is about several
OF_SEARCH = "search-"  # prefix of the name of a study's manifest
TRIES = 3  # failed attempts in a row without progress, after which a run is only retried on request
LAST_WORDS = 8192  # bytes that each attempt reserves for error.json while the disk has room
CHECKPOINT = re.compile(r"checkpoint\.(\d{1,15})\.pt", re.ASCII)
RUN = re.compile(r"[\w-]{1,128}", re.ASCII)  # the name of a run's folder; others do not belong to us


@dataclass(frozen=True)
class Store:
    """The folder that everything is written to. Only this module knows its layout."""

    root: Path

    def run(self, run: str) -> RunFolder:
        return RunFolder(self, run)

    def runs(self) -> set[str]:
        """The ids of the runs that have a folder."""
        try:
            with os.scandir(self.root / "run") as entries:
                return {entry.name for entry in entries if RUN.fullmatch(entry.name) and entry.is_dir()}
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def find(self, beginning: str) -> RunFolder:
        """Returns the run whose id begins with `beginning`. Raises NoRunError, or SeveralRunsError."""
        there = self.runs()
        found = sorted(run for run in there if run.startswith(beginning))
        if not found:
            raise NoRunError(f"no run's id begins with {beginning!r} in {self.root}{nearest(beginning, there)}")
        if len(found) > 1:
            raise SeveralRunsError(beginning, found)
        return self.run(found[0])

    def manifest(self, sweep: str) -> Path:
        return self.root / "sweeps" / f"{sweep}.json"

    def sweeps(self) -> list[str]:
        """The names of all manifests, the last launched first. The manifest of a search is called `search-NAME`."""
        found = []
        for file in (self.root / "sweeps").glob("[!.]*.json"):
            with contextlib.suppress(OSError):  # removed at this moment
                found.append((file.stat().st_mtime, file.stem))
        return [name for _, name in sorted(found, reverse=True)]

    def manifest_name(self, name: str) -> str:
        """Returns the name of the manifest of a sweep, or of the search of that name. Raises NoSweepError."""
        for one in (name, f"{OF_SEARCH}{name}"):
            if os.path.lexists(self.manifest(one)):
                return one
        raise NoSweepError(self, name)

    @property
    def searches(self) -> Path:
        """One folder per study (`mmprompt.studies.study`)."""
        return self.root / "searches"

    def studies(self) -> list[str]:
        """The names of all searches."""
        return sorted(file.parent.name for file in self.searches.glob("*/study.json"))

    def costs(self, sweep: str) -> Path:
        """The folder of a sweep's cost measurements: N.json, each written once; the newest counts."""
        return self.root / "costs" / sweep

    def measured(self) -> list[str]:
        """The names of the sweeps with cost measurements."""
        return sorted(folder.name for folder in (self.root / "costs").glob("[!.]*"))

    def measurements(self, sweep: str) -> dict[int, Path]:
        """The files of a sweep's cost measurements, by number."""
        files = self.costs(sweep).glob("*.json")
        return {int(file.stem): file for file in sorted(files) if is_number(file.stem)}

    @property
    def probes(self) -> Path:
        """One folder for each call of `doctor` that found something wrong."""
        return self.root / "doctor"

    @property
    def cache(self) -> Path:
        """Features that frozen backbones computed. The folder may be deleted at any time."""
        return self.root / "cache"

    @property
    def jobs(self) -> Path:
        """One folder per launch: the batch, its scripts and its logs."""
        return self.root / "jobs"

    @property
    def code(self) -> Path:
        """Copies of our packages as they were at launch, by content hash."""
        return self.root / "code"


class NoSweepError(StoreError):
    """No sweep of that name was launched into this store. The message names the nearest one, or all of them."""

    def __init__(self, store: Store, name: str) -> None:
        there = sorted(store.sweeps())
        known = f"; there are: {', '.join(there)}" if there else "; none was launched into it yet"
        super().__init__(f"no sweep {name} in {store.root}{nearest(name, there) or known}")


class NoRunError(StoreError):
    """No run's id begins like that."""


class SeveralRunsError(StoreError):
    """Several runs have ids that begin like that."""

    def __init__(self, beginning: str, runs: Sequence[str]) -> None:
        more = f" and {len(runs) - LISTED} more" if len(runs) > LISTED else ""
        listed = f"{', '.join(runs[:LISTED])}{more}"
        super().__init__(f"{beginning!r} begins the ids of {len(runs)} runs: {listed}; give more of it")
        self.beginning, self.runs = beginning, runs


@dataclass(frozen=True)
class RunFolder:
    """One run's folder. A finished run has at most 15 files, and up to five more for each attempt that did not finish it."""

    store: Store
    id: str

    @property
    def path(self) -> Path:
        return self.store.root / "run" / self.id

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def published(self) -> Attempt:
        """The attempt whose result was published. Raises FileNotFoundError if there is none yet, DamagedError."""
        result = self.result()
        if result is None:
            raise FileNotFoundError(self.result_file)
        return Attempt(self, result["attempt"])

    @property
    def weights_file(self) -> Path:
        return self.published.weights_file

    @property
    def evaluations(self) -> Path:
        """The folder of evaluations that were made after the run was published."""
        return self.path / "evaluations"

    def evaluation_file(self, evaluation: str) -> Path:
        """The file of an evaluation of a finished run, in the folder of the published attempt or in the run's."""
        own = self.published.evaluation_file(evaluation)
        return own if own.exists() else self.evaluations / own.name

    def evaluation(self, evaluation: str) -> EvaluationRecord | None:
        """An evaluation of a finished run, or None if it was not made. Raises DamagedError."""
        return read(self.evaluation_file(evaluation), EVALUATION)

    def missing(self, wanted: Collection[str], result: ResultRecord | None) -> frozenset[str]:
        """Returns those of the `wanted` evaluations that do not exist. `result`: the run's, if any. Raises DamagedError."""
        left = frozenset(wanted)
        if result is not None and left:
            left -= {*result.get("evaluations", {}).values(), *result.get("evaluated", ())}
        if result is None or not left:
            return left
        try:
            return left - {name.removesuffix(".json") for name in os.listdir(self.evaluations)}
        except FileNotFoundError:
            return left
        except OSError as error:
            raise DamagedError(self.evaluations, f"cannot be read: {error.strerror}", self._restore) from None

    def evaluation_files(self, published: int | None) -> list[Path]:
        """The files of all evaluations, those of the published attempt last. `published` is its number."""
        own = [] if published is None else [Attempt(self, published).evaluations]
        return [file for folder in (self.evaluations, *own) for file in sorted(folder.glob("[!.]*.json"))]

    def is_done(self, wanted: Collection[str]) -> bool:
        result = self.result()
        return result is not None and not self.missing(wanted, result)

    def create(self, config: RunConfig) -> None:
        if not self.config_file.exists():
            write_once(self.config_file, frozen_text(config))

    def mend(self, config: RunConfig) -> None:
        """Writes config.json again. The run's id proves that the content is the same."""
        if self.config_file.is_dir():
            shutil.rmtree(self.config_file, ignore_errors=True)
        write_over(self.config_file, frozen_text(config))

    def settings(self) -> dict[str, Any]:
        """The content of config.json, of any version. Raises DamagedError if its hash is not the run's id."""
        cure = "the next launch writes it again"
        try:
            text = self.config_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise DamagedError(self.config_file, "is not there", cure) from None
        except UnicodeDecodeError:
            raise DamagedError(self.config_file, "is damaged: it is no text", cure) from None
        except OSError as error:
            raise DamagedError(self.config_file, f"cannot be read: {error.strerror}", cure) from None
        if digest(text) != self.id:
            raise DamagedError(self.config_file, f"was changed after launch: its hash is {digest(text)}", cure)
        settings: dict[str, Any] = json.loads(text)
        return settings

    @property
    def _restore(self) -> str:
        return f"restore it, or remove {self.path}, and the next launch trains the run again"

    def result(self) -> ResultRecord | None:
        """The published result, or None while there is none. Raises DamagedError."""
        return read(self.result_file, RESULT, self._restore)

    def result_if_readable(self) -> ResultRecord | None:
        """The published result, or None if there is none or it is damaged."""
        with contextlib.suppress(DamagedError):
            return self.result()
        return None

    def attempts(self) -> list[Attempt]:
        """All attempts, oldest first. Raises DamagedError if attempts/ is not a folder."""
        try:
            names = os.listdir(self.path / "attempts")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DamagedError(self.path / "attempts", f"cannot be read: {error.strerror}", self._restore) from None
        return [Attempt(self, number) for number in sorted(int(name) for name in names if is_number(name))]

    def readable_attempts(self) -> Iterator[Attempt]:
        """The attempts whose records can be read, oldest first."""
        for attempt in self.attempts():
            with contextlib.suppress(DamagedError):
                attempt.job, attempt.reason  # noqa: B018
                yield attempt

    def current_attempts(self, result: ResultRecord | None) -> list[Attempt]:
        """The attempts at the work that is left. If the run has a `result`, these are the evaluating ones after the last finished.

        Raises DamagedError.
        """
        if result is None:
            return self.attempts()
        later = [attempt for attempt in self.attempts() if attempt.number != result["attempt"]]
        evaluating = [attempt for attempt in later if attempt.evaluates]
        ended = max((attempt.number for attempt in evaluating if attempt.has_ended), default=0)
        return [attempt for attempt in evaluating if attempt.number > ended]

    def claim(self, number: int, job: Mapping[str, Any]) -> Attempt | None:
        """Makes attempt `number` with its `job.json`. Returns None if another process claimed that number first.

        A caller reads the number before it checks whether the run is free: if a process claims it in between, this claim fails.
        """
        text = as_json(job)
        attempt = Attempt(self, number, text)
        try:
            with drafted(attempt.path) as draft:
                write_once(draft / "job.json", text)
                write_once(draft / attempt.last_words.name, bytes(LAST_WORDS))
                return attempt if put_folder(draft, attempt.path, "job.json") else None
        except OSError as error:
            raise StoreError(f"{attempt.path} cannot be made: {error.strerror}") from error

    @property
    def next_number(self) -> int:
        """The number of the next attempt."""
        attempts = self.attempts()
        return attempts[-1].number + 1 if attempts else 1

    def tries(self) -> int:
        """How many attempts in a row failed, or ran into a time limit, without getting further than the attempts before them.

        An attempt gets further if it leaves a checkpoint of a later update, or makes an evaluation.
        """
        count, furthest, is_trained = 0, 0, self.result_if_readable() is not None
        for attempt in self.readable_attempts():
            if is_trained and not attempt.evaluates:
                continue
            step, reason = max(attempt.checkpoint_steps, default=0), attempt.reason
            if step > furthest or attempt.has_evaluated:
                count, furthest = 0, max(step, furthest)
            count += reason is not None and reason.is_a_try
        return count

    @property
    def validation(self) -> dict[int, float]:
        """Validation scores during training, by update, from the attempt that got furthest."""
        reports = [attempt.progress for attempt in self.readable_attempts() if not attempt.evaluates]
        scores = [dict(report["validation"]) for report in reports if report]
        return max(scores, key=lambda one: max(one, default=0), default={})

    def checkpoints(self) -> list[tuple[int, Attempt]]:
        """Step and attempt of every checkpoint: the furthest step first, and for equal steps the latest attempt first."""
        found = [(step, attempt) for attempt in self.attempts() for step in attempt.checkpoint_steps]
        return sorted(found, key=lambda one: (one[0], one[1].number), reverse=True)

    def publish(self, attempt: Attempt, result: Mapping[str, Any]) -> bool:
        """Makes the attempt's result the run's. Returns False, and changes nothing, if another attempt was first."""
        won = attempt.put(self.result_file, as_json(result), once=True)
        self.tidy(attempt)
        return won

    def tidy(self, mine: Attempt | None) -> None:
        """Removes what a finished run does not need: checkpoints, files of other attempts, unfinished files.

        Attempts that still run, other than `mine`, clean up after themselves. So do evaluating attempts on other hosts, which
        may still run: they do not end when the run is published.
        """
        published = self.published
        for attempt in self.readable_attempts():
            running = attempt.is_running()
            if attempt == mine or running is False or (running is None and not attempt.evaluates):
                attempt.sweep()
                for step in attempt.checkpoint_steps:
                    remove(attempt.checkpoint_file(step))
                if attempt != published:
                    shutil.rmtree(attempt.evaluations, ignore_errors=True)
                    remove(attempt.weights_file)
        for draft in (self.path / "attempts").glob(".*"):
            shutil.rmtree(draft, ignore_errors=True)
        for file in self.path.glob(".*"):
            remove(file)


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
        found = [CHECKPOINT.fullmatch(file.name) for file in self.path.glob("checkpoint.*.pt")]
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
        """The file of an evaluation. The scores of single examples lie beside it, as .npy."""
        return self.evaluations / f"{evaluation}.json"

    def sweep(self) -> None:
        """Removes unfinished files of its process, which has ended, and the W&B client's logs, but not its record."""
        for file in (*self.path.glob(".*"), *self.evaluations.glob(".*")):
            remove(file)
        for part in ("files", "logs", "tmp"):
            for folder in self.path.glob(f"wandb/*run-*/{part}"):
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


def is_number(name: str) -> bool:
    """Whether `int` can read it as a count. (`str.isdigit` accepts `²`.)"""
    return name.isascii() and name.isdecimal() and len(name) < 10


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
