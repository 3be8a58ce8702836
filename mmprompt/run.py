"""A run on disk: its folder, its attempts, and how it is published exactly once.

    STORE/sweeps/NAME.json       manifest of a sweep
    STORE/searches/NAME/         a study (`mmprompt.study`)
    STORE/run/ID/config.json     the canonical JSON whose sha256 is ID; written once
    STORE/run/ID/attempts/N/     one try, and all that it makes: checkpoints, weights.safetensors, evaluations/, wandb/
    STORE/run/ID/result.json     the result; it names the attempt whose files are the run's
    STORE/run/ID/evaluations/    what later attempts found when they evaluated it; ID.json, each written once
    STORE/costs/NAME/N.json      what the rows of a sweep take, as measured for the N-th time (`mmprompt.costs`)
    STORE/cache/                 what frozen backbones made of examples (`mmprompt.cache`); may be deleted at any time

There are no locks. An attempt is claimed by renaming a prepared folder into place, which only one process can do; a result is
published by link(2), which never replaces what is there, and nothing else is moved. Two copies of one run are therefore
harmless, and a process may die between any two steps. What begins with a dot is not finished.

Several Unix users may share a store: all that is made in it has the group and the permissions of the folder it lies in.
Part of the light half of the package: no torch, no Hydra.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprompt.config import RunConfig
from mmprompt.files import StoreError, drafted, remove, write_once, write_over
from mmprompt.identity import frozen_text
from mmprompt.processes import lives

INTERRUPTED = "interrupted: "  # how the error of an attempt begins that nothing was wrong with
DIVERGED = "mmprompt.train.TrainingError: "  # in the error of an attempt whose loss or gradient became infinite
OF_SEARCH = "search-"  # how the name of a study's manifest begins
TRIES = 3  # attempts that end in an error without getting further than the ones before: then a run is left alone
NEAR_LIMIT = f"{INTERRUPTED}the time limit of its job was near"


@dataclass(frozen=True)
class Store:
    """The folder everything is written to, and the only place that knows how it is laid out."""

    root: Path

    def run(self, run: str) -> RunFolder:
        return RunFolder(self.root / "run" / run)

    def runs(self) -> set[str]:
        """The runs that have a folder."""
        try:
            return set(os.listdir(self.root / "run"))
        except FileNotFoundError:
            return set()

    def manifest(self, sweep: str) -> Path:
        return self.root / "sweeps" / f"{sweep}.json"

    @property
    def searches(self) -> Path:
        """One folder per study (`mmprompt.study`)."""
        return self.root / "searches"

    def studies(self) -> list[str]:
        """The names of the searches that were begun."""
        return sorted(file.parent.name for file in self.searches.glob("*/study.json"))

    def costs(self, sweep: str) -> Path:
        """What the rows of a sweep take: N.json, each written once, the newest counts."""
        return self.root / "costs" / sweep

    @property
    def cache(self) -> Path:
        """What frozen backbones made of examples; anyone may delete it at any time."""
        return self.root / "cache"

    @property
    def jobs(self) -> Path:
        """One folder per launch: what was submitted, submitit's files and logs."""
        return self.root / "jobs"

    @property
    def code(self) -> Path:
        """Copies of our packages as they were at a launch, by content hash."""
        return self.root / "code"


@dataclass(frozen=True)
class RunFolder:
    """One run's folder: at most 15 files once it is finished, and up to four for each attempt that did not finish it."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def published(self) -> Attempt:
        """The attempt whose files are the run's. Raises FileNotFoundError while there is none."""
        return Attempt(self, json.loads(self.result_file.read_text(encoding="utf-8"))["attempt"])

    @property
    def weights_file(self) -> Path:
        return self.published.weights_file

    @property
    def evaluations(self) -> Path:
        """Those that were made after the run had published."""
        return self.path / "evaluations"

    def evaluation_file(self, evaluation: str) -> Path:
        """Of a run that is done: its published attempt's, else that of a later one."""
        own = self.published.evaluation_file(evaluation)
        return own if own.exists() else self.evaluations / own.name

    def missing(self, wanted: Collection[str], result: Mapping[str, Any] | None) -> frozenset[str]:
        """Of these evaluations those that are not there. `result`: the run's, if it has one."""
        left = frozenset(wanted)
        if result is not None and left:
            left -= {*result.get("evaluations", {}).values(), *result.get("evaluated", ())}
        if result is None or not left:
            return left
        try:
            return left - {name.removesuffix(".json") for name in os.listdir(self.evaluations)}
        except FileNotFoundError:
            return left

    def is_done(self, wanted: Collection[str]) -> bool:
        result = self.result()
        return result is not None and not self.missing(wanted, result)

    def create(self, config: RunConfig) -> None:
        if not self.config_file.exists():
            write_once(self.config_file, frozen_text(config))

    def result(self) -> dict[str, Any] | None:
        """The published result, or None while there is none. Raises StoreError if it is damaged."""
        try:
            return json.loads(self.result_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise StoreError(f"{self.result_file} is cut off or damaged: {error}") from error

    def attempts(self) -> list[Attempt]:
        """All attempts, oldest first."""
        numbers = sorted(int(path.name) for path in (self.path / "attempts").glob("*") if path.name.isdigit())
        return [Attempt(self, number) for number in numbers]

    def attempts_at_hand(self, result: Mapping[str, Any] | None) -> list[Attempt]:
        """Those at what is left to do. Of a run that has its `result`: those that evaluate, since one of them came to its end."""
        if result is None:
            return self.attempts()
        evaluating = [attempt for attempt in self.attempts() if attempt.evaluates]
        ended = max((attempt.number for attempt in evaluating if attempt.has_ended), default=0)
        return [attempt for attempt in evaluating if attempt.number > ended]

    def claim(self, number: int, job: Mapping[str, Any]) -> Attempt | None:
        """Attempt `number`, holding `job.json`; None when another process claimed that number first.

        A caller takes the number before it looks whether somebody is at the run: whoever claims in between has it.
        """
        attempt = Attempt(self, number)
        try:
            with drafted(attempt.path) as draft:
                write_once(draft / "job.json", json.dumps(job, indent=1))
                draft.rename(attempt.path)  # fails if that attempt exists, because it holds a job.json
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                return None
            raise StoreError(f"{attempt.path} cannot be made: {error.strerror}") from error
        return attempt

    @property
    def next_number(self) -> int:
        """Of an attempt that would be made now."""
        attempts = self.attempts()
        return attempts[-1].number + 1 if attempts else 1

    def tries(self) -> int:
        """How many attempts in a row ended in an error, or at a time limit, without getting further than those before them.

        To get further is to leave a further checkpoint, where the next attempt would go on, or to have made an evaluation.
        """
        count, furthest, is_trained = 0, 0, self.result() is not None
        for attempt in self.attempts():
            if is_trained and not attempt.evaluates:
                continue
            step, error = max(attempt.checkpoint_steps, default=0), attempt.error
            if step > furthest or attempt.has_evaluated:
                count, furthest = 0, max(step, furthest)
            count += error is not None and (not error.startswith(INTERRUPTED) or error.startswith(NEAR_LIMIT))
        return count

    @property
    def validation(self) -> dict[int, float]:
        """The scores on validation while training, by update, as the attempt that got furthest has reported them."""
        reports = [attempt.progress for attempt in self.attempts() if not attempt.evaluates]
        scores = [{int(step): score for step, score in report["validation"]} for report in reports if report]
        return max(scores, key=lambda one: max(one, default=0), default={})

    def checkpoints(self) -> list[tuple[int, Attempt]]:
        """Step and attempt of every checkpoint, the furthest first; of equals the latest attempt's."""
        found = [(step, attempt) for attempt in self.attempts() for step in attempt.checkpoint_steps]
        return sorted(found, key=lambda one: (one[0], one[1].number), reverse=True)

    def publish(self, attempt: Attempt, result: Mapping[str, Any]) -> bool:
        """Make the attempt's result the run's. False if another attempt was first; then nothing changes."""
        won = write_once(self.result_file, json.dumps(result, indent=1))
        self.tidy(attempt)
        return won

    def tidy(self, mine: Attempt | None) -> None:
        """Of a done run, removes what nobody will need: checkpoints, what other attempts made, what was left half written.

        Attempts that are still at work, other than `mine`, are left to tidy up themselves; of those of which nobody here can
        tell, those that evaluate: they do not end because the run has its result.
        """
        published = self.published
        for attempt in self.attempts():
            lives = attempt.lives()
            if attempt == mine or lives is False or (lives is None and not attempt.evaluates):
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
    """One try of one run by one job. Everything it writes before publishing lies in its own folder."""

    run: RunFolder
    number: int

    @property
    def path(self) -> Path:
        return self.run.path / "attempts" / str(self.number)

    @property
    def job(self) -> dict[str, Any]:
        return json.loads((self.path / "job.json").read_text(encoding="utf-8"))

    @property
    def evaluates(self) -> bool:
        """Does it evaluate a run that had its result before, and train nothing?"""
        return self.job.get("work") == "evaluate"  # attempts of long ago do not say that they train

    def lives(self) -> bool | None:
        """Is its process still there? None: nobody here can tell."""
        return lives(self.job)

    @property
    def end_file(self) -> Path:
        return self.path / "evaluated.json"

    @property
    def has_ended(self) -> bool:
        """Has it, evaluating, done what it was made for? Its process may go on with other runs."""
        return self.end_file.exists()

    def end(self, facts: Mapping[str, Any]) -> None:
        """What an attempt that evaluates says last, when all is there."""
        write_once(self.end_file, json.dumps(facts, indent=1))

    @property
    def has_evaluated(self) -> bool:
        """Has it put an evaluation in place?"""
        progress = self.progress
        return progress is not None and bool(progress.get("evaluated"))

    @property
    def claimed(self) -> float:
        """When it began, in seconds since the epoch."""
        return (self.path / "job.json").stat().st_mtime

    @property
    def last_sign(self) -> float:
        """When it was last heard of at work. Somebody else may have written why it ended, much later: that does not count."""
        signs = [self.path / "progress.json", *map(self.checkpoint_file, self.checkpoint_steps)]
        times = [self.claimed]
        for sign in signs:
            with contextlib.suppress(FileNotFoundError):
                times.append(sign.stat().st_mtime)
        return max(times)

    def checkpoint_file(self, step: int) -> Path:
        return self.path / f"checkpoint.{step}.pt"

    @property
    def checkpoint_steps(self) -> list[int]:
        """Of the checkpoints that are there, in order."""
        return sorted(int(file.name.split(".")[1]) for file in self.path.glob("checkpoint.*.pt"))

    @property
    def weights_file(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations"

    def evaluation_file(self, evaluation: str) -> Path:
        """Its values; the scores of single examples lie beside it, as .npy."""
        return self.evaluations / f"{evaluation}.json"

    def sweep(self) -> None:
        """Removes what its process, now gone, was writing when it ended, and the W&B client's logs, but not its record."""
        for file in (*self.path.glob(".*"), *self.evaluations.glob(".*")):
            remove(file)
        for part in ("files", "logs", "tmp"):
            for folder in self.path.glob(f"wandb/*run-*/{part}"):
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def error(self) -> str | None:
        """Why it failed; None if it did not, or if it never got to say."""
        try:
            return (self.path / "error.txt").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    @property
    def diverged(self) -> bool:
        """Whether its loss or gradient became infinite: with the same settings it always will, so this is an outcome."""
        return DIVERGED in (self.error or "")

    @property
    def has_failed(self) -> bool:
        """Whether it ended for a reason that lies in the run, and was not interrupted."""
        error = self.error
        return error is not None and not error.startswith(INTERRUPTED)

    def fail(self, reason: str) -> None:
        write_over(self.path / "error.txt", reason)

    @property
    def progress(self) -> dict[str, Any] | None:
        try:
            return json.loads((self.path / "progress.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def report(self, progress: Mapping[str, Any]) -> None:
        write_over(self.path / "progress.json", json.dumps(progress))


def spent(attempts: Iterable[Attempt]) -> float:
    """Seconds that these attempts, which are over, were at work: from their claim to their last sign of life."""
    return sum(max(0.0, attempt.last_sign - attempt.claimed) for attempt in attempts)
