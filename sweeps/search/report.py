"""How a search stands: a line for each trial, what they come to together, and what was confirmed in the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

from mmprompt.runs.files import StoreError
from mmprompt.runs.overrides import as_text
from mmprompt.runs.store import RunFolder, Store
from mmprompt.studies.confirmation import confirmed, is_over, is_settled
from mmprompt.studies.intervals import Interval
from mmprompt.studies.outcomes import Outcome, Picture, Reader, next_rung
from mmprompt.studies.study import Study
from sweeps.display.live_table import MIN_ROWS, align_columns, fit_to_terminal, shorten_keys
from sweeps.grid.launched import label
from sweeps.jobs.batch import batches
from sweeps.states.state import Queue, State, queue, states
from sweeps.wording import duration

ORDER = ("running", "failed", "lost?", "queued", "to do", "stopped", "diverged", "done")  # of rows
SQUEUE = 30.0  # seconds between two questions to SLURM


@dataclass(frozen=True)
class TrialLine:
    """A trial: the keys of the JSON."""

    trial: int
    settings: Mapping[str, Any]
    group: Mapping[str, Any]
    state: str
    rung: int | None  # furthest update at which it was compared
    step: int | None
    steps: int | None
    score: float | None  # of a done trial the objective, else the latest on validation
    values: Sequence[float] | None
    seeds: int
    job: str | None
    node: str | None
    runs: Sequence[str]

    @property
    def differences(self) -> dict[str, str]:
        return {"trial": str(self.trial)} | {
            key: as_text(value) for key, value in {**self.group, **self.settings}.items()
        }

    @property
    def cells(self) -> list[str]:
        rung = "" if self.rung is None else str(self.rung)
        step = "" if self.step is None or self.state != "running" else f"{self.step}/{self.steps}"
        score = "" if self.score is None else f"{self.score:.1f}"
        return [self.job or "", self.node or "", rung, step, score]


@dataclass(frozen=True)
class StudyStatus:
    """A study at this moment."""

    study: Study
    picture: Picture
    lines: Sequence[TrialLine] = field(default_factory=tuple)

    @classmethod
    def of(cls, study: Study, picture: Picture, states: Mapping[str, State] | None = None) -> StudyStatus:
        """`states`: of the runs that are open; None: as far as the store alone tells."""
        return cls(study, picture, [line_of(picture, one, states or {}) for one in picture.outcomes])

    @property
    def counts(self) -> dict[str, int]:
        counts = Counter(line.state for line in self.lines)
        return {state: counts[state] for state in ORDER if counts[state]}

    @property
    def is_over(self) -> bool:
        return is_over(self.picture)

    @property
    def has_failed(self) -> bool:
        return any(line.state == "failed" for line in self.lines)

    @property
    def conclusion(self) -> list[str]:
        return list(conclusion(self.picture))

    def table(self, rows: int, width: int) -> list[str]:
        """A head, and a row for each run that confirms now and each trial, those at work first; trials that have no place are
        counted."""
        lines = sorted(self.lines, key=lambda line: (ORDER.index(line.state), line.trial))
        entries = [*at_confirming(self.picture), *((line.differences, self._cells(line)) for line in lines[:rows])]
        if not entries:
            return []
        axes = list(dict.fromkeys(axis for line in self.lines for axis in line.differences))
        axes = list(dict.fromkeys([*axes, *(axis for differences, _ in entries for axis in differences)]))
        head = [*shorten_keys(axes), "state", "job", "node", "rung", "step", "score"]
        body = [[*(differences.get(axis, "") for axis in axes), *cells] for differences, cells in entries]
        used = [i for i in range(len(head)) if any(row[i] for row in body)]
        cells = [[row[i] for i in used] for row in [head, *body]]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        numbers = [at for at, i in enumerate(used) if i >= len(head) - 3]
        left = Counter(line.state for line in lines[rows:])
        more = ", ".join(f"{left[state]} {state}" for state in ORDER if left[state])
        return [*align_columns(cells, widths, width - 1, numbers), *([f"  and {more}"] if more else [])]

    def drawn(self, width: int, height: int) -> list[str]:
        """On a terminal of so many columns and rows, below lines that stay."""
        return fit_to_terminal([str(self), *self.table(MIN_ROWS, width)], width, height)

    def _cells(self, line: TrialLine) -> list[str]:
        """A trial at work says where it will be compared."""
        [trial] = [one.trial for one in self.picture.outcomes if one.trial.number == line.trial]
        rung = next_rung(self.picture.definition, trial, self.picture.decisions) if line.state == "running" else None
        return [line.state if rung is None else f"{line.state}, to {rung}", *line.cells]

    @property
    def asked(self) -> int | None:
        """Trials that the budget allows; None where it is not counted in trials."""
        budget = self.picture.definition.budget.trials
        return None if budget is None else budget * len(self.picture.definition.groups)

    @property
    def confirming(self) -> tuple[int, int]:
        """Of the runs that confirm: how many are settled, of how many."""
        confirmation = self.picture.confirmation
        runs = [
            (group.group, candidate, run)
            for group in (confirmation.groups if confirmation else [])
            for candidate in group.candidates
            for run in candidate.runs.values()
        ]
        return sum(is_settled(self.picture, *one) for one in runs), len(runs)

    @property
    def left(self) -> float | None:
        """Seconds until all is done, at the pace until now; None where that is not known."""
        ended = [one for one in self.picture.outcomes if one.state in ("done", "stopped", "diverged")]
        whole = [
            run_seconds(run.spans) for one in self.picture.outcomes for run in one.runs.values() if run.state == "done"
        ]
        at_work = sum(line.state == "running" for line in self.lines)
        if self.is_over or not whole or (self.asked is None and self.picture.confirmation is None):
            return None
        definition = self.picture.definition
        if self.picture.confirmation is None:
            each = mean(sum(run_seconds(run.spans) for run in one.runs.values()) for one in ended)
            trials = (self.asked or 0) - len(ended)
            confirming = len(definition.groups) * (definition.confirm.top + 1) * definition.confirm.seeds
            ahead = trials * each + confirming * median(whole)
        else:
            settled, total = self.confirming
            ahead = (total - settled) * median(whole)
        return ahead / max(1, at_work, self._at_once)

    @property
    def _at_once(self) -> int:
        """How many runs were at work together lately: of those that began last."""
        spans = [span for one in self.picture.outcomes for run in one.runs.values() for span in run.spans]
        last = max(spans, default=(0.0, 0.0))
        return sum(begin <= last[0] <= end for begin, end in spans)

    def __str__(self) -> str:
        definition = self.picture.definition
        of = f" of {self.asked}" if self.asked is not None else ""
        words = ", ".join(f"{count} {state}" for state, count in self.counts.items()) or "none yet"
        parts = [f"search {self.study.name}: {len(self.lines)}{of} trials: {words}"]
        if self.picture.confirmation is not None:
            settled, total = self.confirming
            parts.append("over" if self.is_over else f"{settled} of {total} runs that confirm are done")
        if (left := self.left) is not None:
            parts.append(f"about {duration(left)} left")
        if len(definition.groups) == 1:
            parts.append(best(self.picture, 0))  # last: on a terminal it may be cut
        return "; ".join(part for part in parts if part)

    def json(self) -> dict[str, Any]:
        settled, total = self.confirming
        trials = [
            {
                **{key: getattr(line, key) for key in TrialLine.__dataclass_fields__},
                "settings": dict(line.settings),
                "group": dict(line.group),
            }
            for line in self.lines
        ]
        found = [
            [found.trial for found in self.picture.best(group)[:1]]
            for group in range(len(self.picture.definition.groups))
        ]
        return {
            "search": self.study.name,
            "objective": dict(self.picture.definition.objective),
            "counts": self.counts,
            "asked": self.asked,
            "over": self.is_over,
            "confirming": {"done": settled, "of": total},
            "best": [one[0] if one else None for one in found],
            "left": self.left,
            "trials": trials,
        }


class StudyReader:
    """Reports of studies, again and again; SLURM is asked now and then, about runs that are open."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._readers: dict[str, Reader] = {}
        self.damaged: list[str] = []  # why some cannot be read
        self._queue, self._asked = Queue({}), -SQUEUE

    def read(self, names: Sequence[str]) -> list[StudyStatus]:
        """Of those that can be read; why others cannot is in `damaged`."""
        pictures, self.damaged = [], []
        for name in names:
            reader = self._readers.setdefault(name, Reader(Study(self._store, name)))
            try:
                pictures.append(reader.look())
            except StoreError as error:
                self.damaged += map(str, reader.study.damage() or [error])
        runs = {run: None for picture in pictures for run in open_runs(picture)}
        if runs and time.monotonic() - self._asked >= SQUEUE:
            self._queue, self._asked = queue(self._store, list(runs), batches(self._store)), time.monotonic()
        seen = states(self._store, list(runs), self._queue)
        return [StudyStatus.of(picture.reader.study, picture, seen) for picture in pictures]

    def at(self, study: Study) -> StudyStatus:
        """Of this one. Raises StoreError if it cannot be read."""
        reports = self.read([study.name])
        if self.damaged:
            raise StoreError(self.damaged[0])
        return reports[0]


def open_runs(picture: Picture) -> list[str]:
    return [one.trial.runs[str(seed)] for one in picture.outcomes if one.state == "open" for seed in one.seeds]


def run_seconds(spans: Sequence[tuple[float, float]]) -> float:
    return sum(end - begin for begin, end in spans)


def line_of(picture: Picture, outcome: Outcome, states: Mapping[str, State]) -> TrialLine:
    definition, trial = picture.definition, outcome.trial
    store = picture.reader.study.store
    runs = [trial.runs[str(seed)] for seed in outcome.seeds]
    seen = {run: states[run] for run in runs if run in states}
    running = next((one for one in seen.values() if one.name == "running"), None)
    at_hand = running or next((one for one in seen.values() if one.name in ("queued", "lost?")), None)
    state: str = outcome.state
    if outcome.state == "open":
        state = at_hand.name if at_hand else "to do"
        if not seen and any(is_here(store.run(run)) for run in runs):
            state = "running"
    score = outcome.values[0] if outcome.values is not None else None
    step = steps = None
    for run in runs:
        attempts = store.run(run).attempts() if outcome.state == "open" else []
        progress = attempts[-1].progress if attempts else None
        if progress and state == "running":
            step, steps = progress["step"], progress["steps"]
            score = progress["validation"][-1][1] if progress["validation"] else score
    if score is None and outcome.rungs:
        score = outcome.rungs[max(outcome.rungs)]
    job = at_hand.job if at_hand else None
    return TrialLine(
        trial=trial.number,
        settings=trial.settings,
        group=definition.groups[trial.group],
        state=state,
        rung=max(outcome.rungs, default=None),
        step=step,
        steps=steps,
        score=score,
        values=outcome.values,
        seeds=len(outcome.seeds),
        job=job.id if job else None,
        node=job.node if job and job.node else None,
        runs=runs,
    )


def is_here(folder: RunFolder) -> bool:
    """Whether a process of this machine is at a run."""
    attempts = folder.attempts()
    return (
        bool(attempts) and attempts[-1].reason is None and folder.result() is None and attempts[-1].is_running() is True
    )


def best(picture: Picture, group: int) -> str:
    """The best so far, in words."""
    found = picture.best(group)
    if not found:
        return ""
    if len(picture.definition.objective) > 1:
        return f"{len(found)} on the front"
    words = label({key: as_text(value) for key, value in found[0].settings.items()})
    return f"best {found[0].values[0]:.1f} ({name_of(found[0].trial)}: {words})"


def name_of(trial: int | None) -> str:
    return "a warm trial" if trial is None else f"trial {trial}"


def settled(picture: Picture) -> Iterator[tuple[str, str]]:
    """A line for each thing that has happened, with a key by which it is known: trials that ended, runs that confirm."""
    report = StudyStatus.of(picture.reader.study, picture)
    of = f"/{report.asked}" if report.asked is not None else ""
    for one, line in zip(picture.outcomes, report.lines, strict=True):
        if one.state in ("done", "diverged", "failed"):
            at = f" {line.score:.1f}" if line.score is not None and one.state == "done" else ""
            words = label({key: text for key, text in line.differences.items() if key != "trial"})
            yield f"{one.trial.number}", f"[{one.trial.number + 1}{of}] {one.state:<8} {words}{at}"
        for rung, score in one.rungs.items():
            decision = picture.decisions.get((one.trial.number, rung))
            if decision is not None and (decision.goes_on is False or one.trial.origin != "default"):
                words = "goes on" if decision.goes_on else "stopped"
                yield (
                    f"{one.trial.number}.{rung}",
                    f"[{one.trial.number + 1}{of}] {words:<8} at {rung}: {score:.1f} ({decision.why})",
                )
    if picture.confirmation is not None:
        done, total = report.confirming
        seeds = ", ".join(map(str, picture.confirmation.seeds))
        yield "confirmation", f"the search is over: {total} runs confirm what it found, on seeds {seeds}"
        if done == total:
            yield "confirmed", f"{done} of {total} runs that confirm are done"


def at_confirming(picture: Picture) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Of each run that confirms and is at work on this machine: what tells it from others, and its cells."""
    store = picture.reader.study.store
    for group in picture.confirmation.groups if picture.confirmation else []:
        for candidate in group.candidates:
            for seed, run in candidate.runs.items():
                folder = store.run(run)
                if is_here(folder):
                    progress = folder.attempts()[-1].progress
                    step = f"{progress['step']}/{progress['steps']}" if progress else ""
                    score = f"{progress['validation'][-1][1]:.1f}" if progress and progress["validation"] else ""
                    name = {"confirms": name_of(candidate.trial), "seed": seed}
                    yield name, ["running", "", "", "", step, score]


def conclusion(picture: Picture) -> Iterator[str]:
    """What the fresh seeds say of each group: of the best one, on the test splits."""
    if picture.confirmation is None or not is_over(picture):
        return
    for group in picture.confirmation.groups:
        name = picture.definition.label(group.group)
        prefix = f"{name}: " if name else ""
        found = confirmed(picture, group)
        if len(found) < 2:
            yield f"{prefix}nothing but the default came to its end, so there is nothing to confirm"
            continue
        chosen = found[1]
        words = label({key: as_text(value) for key, value in chosen.candidate.settings.items()})
        yield f"{prefix}best of {len(found) - 1} on fresh seeds: {name_of(chosen.candidate.trial)} ({words})"
        if chosen.candidate.found is not None:
            yield f"  in the search it had {chosen.candidate.found[0]:.1f}, which is optimistic: it was chosen by that"
        for split, interval in chosen.intervals.items():
            usual = said(found[0].intervals[split])
            yield f"  {split}: {said(interval)}, the default {usual}; {verdict(chosen.differences[split])}"


def said(interval: Interval) -> str:
    return (
        f"{interval.value:.1f} ± {interval.half:.1f} ({interval.n})"
        if interval.n > 1
        else f"{interval.value:.1f} ({interval.n})"
    )


def verdict(difference: Interval) -> str:
    if difference.n < 2:
        return "no difference is known"
    words = f"difference {difference.value:+.1f} ± {difference.half:.1f}"
    return words if difference.excludes_zero else f"{words}: not told apart"
