"""The status of a search: a line for each trial, the counts of states, and the outcome of the confirmation."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

from mmprompt.runs.files import StoreError
from mmprompt.runs.overrides import as_text
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.studies.confirmation import confirmed, is_over, is_settled
from mmprompt.studies.intervals import Interval
from mmprompt.studies.outcomes import Outcome, StudyProgress, StudyReader, next_rung
from mmprompt.studies.study import Study
from sweeps.display.live_table import MIN_ROWS, align_columns, fit_to_terminal, shorten_keys
from sweeps.grid.launched import label
from sweeps.jobs.batch import batches
from sweeps.states.state import Queue, State, queue, states
from sweeps.wording import duration

ORDER = ("running", "failed", "lost?", "queued", "to do", "stopped", "diverged", "done")  # the order of rows
SQUEUE = 30.0  # seconds between two queries of SLURM


@dataclass(frozen=True)
class TrialLine:
    """A trial's row: the keys of the JSON."""

    trial: int
    settings: Mapping[str, Any]
    group: Mapping[str, Any]
    state: str
    rung: int | None  # the last update at which the trial was compared with others
    step: int | None
    steps: int | None
    score: float | None  # the objective of a done trial, the latest validation score of any other
    values: Sequence[float] | None
    seeds: int
    job: str | None
    node: str | None
    runs: Sequence[str]

    @property
    def differences(self) -> dict[str, str]:
        """What tells the trial from others: its number, its group and its settings, as text."""
        return {"trial": str(self.trial)} | {
            key: as_text(value) for key, value in {**self.group, **self.settings}.items()
        }

    @property
    def cells(self) -> list[str]:
        """The row's cells, from the column `job` on."""
        rung = "" if self.rung is None else str(self.rung)
        step = "" if self.step is None or self.state != "running" else f"{self.step}/{self.steps}"
        score = "" if self.score is None else f"{self.score:.1f}"
        return [self.job or "", self.node or "", rung, step, score]


@dataclass(frozen=True)
class StudyStatus:
    """The status of a study at one moment."""

    study: Study
    progress: StudyProgress
    lines: Sequence[TrialLine] = field(default_factory=tuple)

    @classmethod
    def of(cls, study: Study, progress: StudyProgress, states: Mapping[str, State] | None = None) -> StudyStatus:
        """`states`: the states of open runs; None: the status is taken from the store alone."""
        return cls(study, progress, [line_of(progress, outcome, states or {}) for outcome in progress.outcomes])

    @property
    def counts(self) -> dict[str, int]:
        counts = Counter(line.state for line in self.lines)
        return {state: counts[state] for state in ORDER if counts[state]}

    @property
    def is_over(self) -> bool:
        return is_over(self.progress)

    @property
    def has_failed(self) -> bool:
        return any(line.state == "failed" for line in self.lines)

    @property
    def conclusion(self) -> list[str]:
        """Lines about the outcome of the confirmation; empty while the search goes on."""
        return list(conclusion(self.progress))

    def table(self, rows: int, width: int) -> list[str]:
        """A head, a row for each run of the confirmation that is running, and a row for each trial, running trials first. Trials
        beyond `rows` are counted in a last line."""
        lines = sorted(self.lines, key=lambda line: (ORDER.index(line.state), line.trial))
        entries = [
            *running_confirmation(self.progress),
            *((line.differences, self._cells(line)) for line in lines[:rows]),
        ]
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
        hidden = Counter(line.state for line in lines[rows:])
        more = ", ".join(f"{hidden[state]} {state}" for state in ORDER if hidden[state])
        return [*align_columns(cells, widths, width - 1, numbers), *([f"  and {more}"] if more else [])]

    def drawn(self, width: int, height: int) -> list[str]:
        """The lines to draw below permanent lines, on a terminal of `width` columns and `height` rows."""
        return fit_to_terminal([str(self), *self.table(MIN_ROWS, width)], width, height)

    def _cells(self, line: TrialLine) -> list[str]:
        """The row's cells, from the column `state` on; a running trial's state names the rung to which it is trained."""
        [trial] = [outcome.trial for outcome in self.progress.outcomes if outcome.trial.number == line.trial]
        rung = next_rung(self.progress.definition, trial, self.progress.decisions) if line.state == "running" else None
        return [line.state if rung is None else f"{line.state}, to {rung}", *line.cells]

    @property
    def budget_trials(self) -> int | None:
        """The number of trials that the budget allows in all groups; None if the budget is not counted in trials."""
        budget = self.progress.definition.budget.trials
        return None if budget is None else budget * len(self.progress.definition.groups)

    @property
    def confirming(self) -> tuple[int, int]:
        """The number of settled runs of the confirmation, and the number of all its runs."""
        confirmation = self.progress.confirmation
        runs = [
            (group.group, candidate, run)
            for group in (confirmation.groups if confirmation else [])
            for candidate in group.candidates
            for run in candidate.runs.values()
        ]
        return sum(is_settled(self.progress, *run) for run in runs), len(runs)

    @property
    def left(self) -> float | None:
        """Estimated seconds until the search is over, from what runs and trials have taken so far; None if that is unknown."""
        outcomes = self.progress.outcomes
        ended = [outcome for outcome in outcomes if outcome.state in ("done", "stopped", "diverged")]
        of_done_runs = [
            run_seconds(run.spans) for outcome in outcomes for run in outcome.runs.values() if run.state == "done"
        ]
        running = sum(line.state == "running" for line in self.lines)
        is_counted = self.budget_trials is not None or self.progress.confirmation is not None
        if self.is_over or not of_done_runs or not is_counted:
            return None
        definition = self.progress.definition
        if self.progress.confirmation is None:
            each = mean(sum(run_seconds(run.spans) for run in outcome.runs.values()) for outcome in ended)
            trials = (self.budget_trials or 0) - len(ended)
            confirming = len(definition.groups) * (definition.confirm.top + 1) * definition.confirm.seeds
            seconds = trials * each + confirming * median(of_done_runs)
        else:
            settled, total = self.confirming
            lost = sum(outcome.state == "open" for outcome in outcomes)
            seconds = (total - settled + lost) * median(of_done_runs)
        return seconds / max(1, running, self._at_once)

    @property
    def _at_once(self) -> int:
        """How many runs were executed at the same time when the latest run began."""
        spans = [span for outcome in self.progress.outcomes for run in outcome.runs.values() for span in run.spans]
        last = max(spans, default=(0.0, 0.0))
        return sum(begin <= last[0] <= end for begin, end in spans)

    def __str__(self) -> str:
        definition = self.progress.definition
        of = f" of {self.budget_trials}" if self.budget_trials is not None else ""
        words = ", ".join(f"{count} {state}" for state, count in self.counts.items()) or "none yet"
        parts = [f"search {self.study.name}: {len(self.lines)}{of} trials: {words}"]
        if self.progress.confirmation is not None:
            settled, total = self.confirming
            parts.append("over" if self.is_over else f"{settled} of {total} confirmation runs are done")
        if (left := self.left) is not None:
            parts.append(f"about {duration(left)} left")
        if len(definition.groups) == 1:
            parts.append(best(self.progress, 0))  # comes last, because a narrow terminal cuts the end
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
        best_trials = [
            [best.trial for best in self.progress.best(group)[:1]]
            for group in range(len(self.progress.definition.groups))
        ]
        return {
            "search": self.study.name,
            "objective": dict(self.progress.definition.objective),
            "counts": self.counts,
            "asked": self.budget_trials,
            "over": self.is_over,
            "confirming": {"done": settled, "of": total},
            "best": [trials_of_group[0] if trials_of_group else None for trials_of_group in best_trials],
            "left": self.left,
            "trials": trials,
        }


class StudyStatusReader:
    """Reads the status of studies repeatedly; SLURM is queried only now and then, about open runs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._readers: dict[str, StudyReader] = {}
        self.damaged: list[str] = []  # why some studies cannot be read
        self._queue, self._queried = Queue({}), -SQUEUE

    def read(self, names: Sequence[str]) -> list[StudyStatus]:
        """The status of these studies. Studies that cannot be read are left out; `damaged` then says why."""
        studies, self.damaged = [], []
        for name in names:
            reader = self._readers.setdefault(name, StudyReader(Study(self._store, name)))
            try:
                studies.append(reader.read())
            except StoreError as error:
                self.damaged += map(str, reader.study.damage() or [error])
        runs = {run: None for progress in studies for run in open_runs(progress)}
        if runs and time.monotonic() - self._queried >= SQUEUE:
            self._queue, self._queried = queue(self._store, list(runs), batches(self._store)), time.monotonic()
        run_states = states(self._store, list(runs), self._queue)
        return [StudyStatus.of(progress.reader.study, progress, run_states) for progress in studies]

    def read_one(self, study: Study) -> StudyStatus:
        """The status of this study. Raises StoreError if it cannot be read."""
        reports = self.read([study.name])
        if self.damaged:
            raise StoreError(self.damaged[0])
        return reports[0]


def open_runs(progress: StudyProgress) -> list[str]:
    """The ids of the runs of open trials."""
    return [one.trial.runs[str(seed)] for one in progress.outcomes if one.state == "open" for seed in one.seeds]


def run_seconds(spans: Sequence[tuple[float, float]]) -> float:
    """The seconds of a run's spans, (begin, end) for each attempt."""
    return sum(end - begin for begin, end in spans)


def line_of(progress: StudyProgress, outcome: Outcome, states: Mapping[str, State]) -> TrialLine:
    definition, trial = progress.definition, outcome.trial
    store = progress.reader.study.store
    runs = [trial.runs[str(seed)] for seed in outcome.seeds]
    run_states = [states[run] for run in runs if run in states]
    running = next((one for one in run_states if one.name == "running"), None)
    shown = running or next((one for one in run_states if one.name in ("queued", "lost?")), None)
    state: str = outcome.state
    if outcome.state == "open":
        state = shown.name if shown else "to do"
        if not run_states and any(is_running_here(store.run(run)) for run in runs):
            state = "running"
    score = outcome.values[0] if outcome.values is not None else None
    step = steps = None
    for run in runs:
        attempts = store.run(run).attempts() if outcome.state == "open" else []
        reported = attempts[-1].progress if attempts else None
        if reported and state == "running":
            step, steps = reported["step"], reported["steps"]
            score = reported["validation"][-1][1] if reported["validation"] else score
    if score is None and outcome.rungs:
        score = outcome.rungs[max(outcome.rungs)]
    job = shown.job if shown else None
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


def is_running_here(folder: RunFolder) -> bool:
    """Whether a process of this machine works on a run."""
    attempts = folder.attempts()
    return (
        bool(attempts) and attempts[-1].reason is None and folder.result() is None and attempts[-1].is_running() is True
    )


def best(progress: StudyProgress, group: int) -> str:
    """The best trial of a group so far, or the size of its front, in words; empty if there is none."""
    ranked = progress.best(group)
    if not ranked:
        return ""
    if len(progress.definition.objective) > 1:
        return f"{len(ranked)} on the front"
    words = label({key: as_text(value) for key, value in ranked[0].settings.items()})
    return f"best {ranked[0].values[0]:.1f} ({name_of(ranked[0].trial)}: {words})"


def name_of(trial: int | None) -> str:
    return "a warm trial" if trial is None else f"trial {trial}"


def events(progress: StudyProgress) -> Iterator[tuple[str, str]]:
    """A line for everything that has happened in a search, each with a key that identifies it: trials that ended, decisions at
    rungs, and the begin and the end of the confirmation."""
    report = StudyStatus.of(progress.reader.study, progress)
    of = f"/{report.budget_trials}" if report.budget_trials is not None else ""
    for outcome, line in zip(progress.outcomes, report.lines, strict=True):
        number, is_default = outcome.trial.number, outcome.trial.origin == "default"
        if outcome.state in ("done", "diverged", "failed"):
            score_text = f" {line.score:.1f}" if line.score is not None and outcome.state == "done" else ""
            words = label({key: text for key, text in line.differences.items() if key != "trial"})
            yield f"{number}", f"[{number + 1}{of}] {outcome.state:<8} {words}{score_text}"
        for rung, score in outcome.rungs.items():
            decision = progress.decisions.get((number, rung))
            if decision is not None and (decision.goes_on is False or not is_default):
                words = "goes on" if decision.goes_on else "stopped"
                yield f"{number}.{rung}", f"[{number + 1}{of}] {words:<8} at {rung}: {score:.1f} ({decision.why})"
    if progress.confirmation is not None:
        done, total = report.confirming
        seeds = ", ".join(map(str, progress.confirmation.seeds))
        yield "confirmation", f"the search is over: {total} runs confirm what it found, on seeds {seeds}"
        if done == total:
            yield "confirmed", f"{done} of {total} confirmation runs are done"


def running_confirmation(progress: StudyProgress) -> Iterator[tuple[dict[str, str], list[str]]]:
    """For each run of the confirmation that is running on this machine: what tells it from others, and its cells."""
    store = progress.reader.study.store
    for group in progress.confirmation.groups if progress.confirmation else []:
        for candidate in group.candidates:
            for seed, run in candidate.runs.items():
                folder = store.run(run)
                if is_running_here(folder):
                    reported = folder.attempts()[-1].progress
                    step = f"{reported['step']}/{reported['steps']}" if reported else ""
                    score = f"{reported['validation'][-1][1]:.1f}" if reported and reported["validation"] else ""
                    name = {"confirms": name_of(candidate.trial), "seed": seed}
                    yield name, ["running", "", "", "", step, score]


def conclusion(progress: StudyProgress) -> Iterator[str]:
    """For each group, lines about its best candidate on fresh seeds beside the default, on every split; nothing while the search
    goes on."""
    if progress.confirmation is None or not is_over(progress):
        return
    for group in progress.confirmation.groups:
        name = progress.definition.label(group.group)
        prefix = f"{name}: " if name else ""
        candidates = confirmed(progress, group)
        if len(candidates) < 2:
            yield f"{prefix}nothing but the default came to its end, so there is nothing to confirm"
            continue
        best = candidates[1]
        words = label({key: as_text(value) for key, value in best.candidate.settings.items()})
        yield f"{prefix}best of {len(candidates) - 1} on fresh seeds: {name_of(best.candidate.trial)} ({words})"
        if best.candidate.found is not None:
            yield f"  in the search it had {best.candidate.found[0]:.1f}, which is optimistic: it was chosen by that"
        for split, interval in best.intervals.items():
            default = interval_text(candidates[0].intervals[split])
            yield f"  {split}: {interval_text(interval)}, the default {default}; {verdict(best.differences[split])}"


def interval_text(interval: Interval) -> str:
    """A mean with half the width of its interval and n, the number of seeds: `61.3 ± 0.8 (5)`."""
    return (
        f"{interval.value:.1f} ± {interval.half:.1f} ({interval.n})"
        if interval.n > 1
        else f"{interval.value:.1f} ({interval.n})"
    )


def verdict(difference: Interval) -> str:
    """A difference from the default with its interval, and whether the interval excludes zero, in words."""
    if difference.n < 2:
        return "no difference is known"
    words = f"difference {difference.value:+.1f} ± {difference.half:.1f}"
    return words if difference.excludes_zero else f"{words}: not significant"
