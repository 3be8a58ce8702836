"""The folder of a run: its settings, its attempts, and the result, published exactly once (layout: `mmprompt.runs.store`)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprompt.runs.attempt import LAST_WORDS, Attempt
from mmprompt.runs.config import RunConfig
from mmprompt.runs.files import (
    GoneError,
    StoreError,
    draft_of,
    drafted,
    is_number,
    matching,
    put_folder,
    remove,
    write_once,
    write_over,
)
from mmprompt.runs.identity import digest, frozen_text
from mmprompt.runs.records import EVALUATION, RESULT, DamagedError, EvaluationRecord, ResultRecord, as_json, read

DRAFTS = 3  # how often a claim is tried if its draft is removed


@dataclass(frozen=True)
class RunFolder:
    """One run's folder. A finished run has at most 15 files, one more for each evaluation whose answers are kept, and up to five
    more for each attempt that did not finish it."""

    root: Path  # of the store
    id: str

    @property
    def path(self) -> Path:
        return self.root / "run" / self.id

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
        return [file for folder in (self.evaluations, *own) for file in matching(folder, "[!.]*.json")]

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
        """The published result, or None while there is none. Raises DamagedError, also if it is that of another run."""
        found = read(self.result_file, RESULT, self._restore)
        if found is not None and (owner := found.get("run", self.id)) != self.id:
            raise DamagedError(self.result_file, f"is that of another run, {owner}", self._restore)
        return found

    def result_if_readable(self) -> ResultRecord | None:
        """The published result, or None if there is none or it is damaged."""
        with contextlib.suppress(DamagedError):
            return self.result()
        return None

    def attempts(self) -> list[Attempt]:
        """All attempts, oldest first. Raises DamagedError if attempts/ is not a folder."""
        return [attempt for attempt in self._numbered() if not attempt.is_leftover]

    def _numbered(self) -> list[Attempt]:
        """All folders of attempts, also what is left of removed ones."""
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
        for _ in range(DRAFTS - 1):
            with contextlib.suppress(GoneError):
                return attempt if self._put(attempt, text) else None
        return attempt if self._put(attempt, text) else None

    def _put(self, attempt: Attempt, job: str) -> bool:
        """Makes an attempt's folder with its `job.json`. Returns False if there is one.

        Raises StoreError if it cannot be made; GoneError if its draft was removed: a process that publishes may take it for a
        leftover (`tidy`).
        """
        try:
            with drafted(attempt.path) as draft:
                write_once(draft / "job.json", job, make=False)
                write_once(draft / attempt.last_words.name, bytes(LAST_WORDS), make=False)
                return put_folder(draft, attempt.path, "job.json")
        except OSError as error:
            gone = isinstance(error, FileNotFoundError)
            raise (GoneError if gone else StoreError)(f"{attempt.path} cannot be made: {error.strerror}") from error

    @property
    def next_number(self) -> int:
        """The number of the next attempt."""
        numbered = self._numbered()
        return numbered[-1].number + 1 if numbered else 1

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
        attempts = self.path / "attempts"
        for draft in filter(Path.is_dir, matching(attempts, ".*")):
            # Another process may be about to put it in place. Then it loses the whole folder, or none of it: not only job.json.
            with contextlib.suppress(OSError):
                shutil.rmtree(draft.rename(draft_of(attempts / "tidied")), ignore_errors=True)
        for file in matching(self.path, ".*"):
            remove(file)
