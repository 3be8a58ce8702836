"""The reading of a sweep: its manifest, results and W&B records become a frame, and each contradiction becomes a sentence.

A metric's value is stored in several places: in the summary of the published attempt's W&B record (`analysis.records.sources`
reads it), in `result.json`, which names that attempt, and as the mean of the examples' scores beside the evaluation's own
file. All places
that exist must agree with each other, with the run's configuration and with the manifest (`analysis.records.verify`). If they
do not, there is no value, and a sentence gives the reason; the code never chooses between two numbers. A note reports a record
that is unreadable
or incomplete. If there is no `result.json`, the record of the first attempt that finished replaces it, and a note says so.
A later evaluation of finished weights (another split, an attack) is stored in its own file and in the record of the attempt that
made it; the same rules hold for these two.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.records import unscored, verify
from analysis.records.frame import ABOUT, WRONG, Sweep
from analysis.records.manifest import point_values, read_manifest
from analysis.records.sources import AnyRecord, Source, in_store
from analysis.records.stored import EvaluationFiles, Unreadable, read, read_evaluation, unfinished_state
from analysis.records.verify import RECORD, RESULT, Finding
from mmprompt.families.registry import FAMILIES
from mmprompt.runs.comparison import FACTS
from mmprompt.runs.config import RunConfig
from mmprompt.runs.records import RESULT as RESULT_RECORD
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.settings.evaluation import Questions

NO_RECORD = "no readable W&B record; their values are from result.json"
NO_RESULT = "no result.json; their values are from the W&B record of the first attempt that finished"
NO_SCORES = "no scores of single examples for what is shown; nothing but their records says that the values are right"
ENDED_BADLY = ("failed", "crashed", "killed")  # states of a W&B run


def read_sweep(store: Store, name: str) -> Sweep:
    """Reads a sweep from the store alone. Raises StoreError if there is no such sweep."""
    return assemble(store, read_manifest(store, name), in_store)


def assemble(store: Store, manifest: dict[str, Any], source: Source, deep: bool = False) -> Sweep:
    """Reads a sweep, its W&B records from `source`. `deep`: slow checks are made too (`analysis.records.verify.check_deeply`)."""
    reading = Reading(manifest, source, deep)
    points: dict[str, list[Mapping[str, Any]]] = {}
    for point in manifest["points"]:
        points.setdefault(point["run"], []).append(point)
    rows_of = {run: iter(reading.rows(store.run(run), points_of_run)) for run, points_of_run in points.items()}
    rows = [next(rows_of[point["run"]]) for point in manifest["points"]]
    if manifest["search"] is None:  # in a search, one run may belong to several trials
        reading.find_doubles(rows)
    reading.compare_counts(rows)
    notes = list(reading.notes)
    for count, problem in (
        (len({row["run"] for row in rows if row["source"] == RESULT}), NO_RECORD),
        (len(reading.without_result), NO_RESULT),
        (len(reading.without_scores), NO_SCORES),
    ):
        if count:
            notes.append(f"{count} of {len(points)} runs have {problem}")
    notes += unscored.notes(manifest, store)
    conflicts = verify.sentences(reading.findings)
    return Sweep(manifest, pd.DataFrame(rows), tuple(dict.fromkeys([*conflicts, *notes])), tuple(conflicts), store)


class Reading:
    """Reads the runs of a sweep one by one, and collects findings and notes on the way."""

    def __init__(self, manifest: Mapping[str, Any], source: Source, deep: bool) -> None:
        self.manifest, self.source, self.deep = manifest, source, deep
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        self.without_result: set[str] = set()
        self.without_scores: set[str] = set()
        self.counts: dict[tuple[str, str], int] = {}  # number of examples, by run and evaluation

    def rows(self, folder: RunFolder, points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Returns a row for each of these points of one run."""
        rows = [self.labelled(point) for point in points]
        try:
            on_disk, text = _result(folder), _text(folder.config_file)
        except Unreadable as error:
            return self.without_values(rows, points, Finding("unreadable", folder.id, str(error)))
        record = self.source.published(folder, on_disk, self.notes)
        if on_disk is not None and record is not None and record.state != "finished":
            self.notes.append(f"run {folder.id}: {RECORD} says {record.state}, its {RESULT} done")
        result = on_disk
        if result is None and record is not None and record.state == "finished":
            result = as_result(record)
            if folder.config_file.exists():
                self.without_result.add(folder.id)
        if result is None:
            state = {"state": _state(folder, record)}
            return [row | state for row in rows]
        columns = {"state": "done", "source": RESULT if record is None or not record.summary else "wandb"}
        columns |= {key: result[key] for key in ABOUT} | {key: number(result.get(key)) for key in FACTS}
        rows = [row | columns for row in rows]
        if self.deep:
            self.notes.extend(f"run {folder.id}: {problem}" for problem in verify.check_deeply(folder, on_disk))
        problem, config = verify.check_folder(folder.id, text, on_disk), config_of(text, record)
        if problem is None and record is not None:
            problem = verify.check_record(folder.id, result["attempt"], record.config, None if text is None else config)
            problem = problem or verify.check_published(result["evaluations"], record.summary)
        if problem is None and config is not None:
            problem = verify.check_header(self.manifest["header"], config)
        if problem is not None:
            return self.without_values(rows, points, Finding("conflict", folder.id, problem))
        run = _Run(folder, result, record, config)
        run.read_evaluations({one for point in points for one in point["evaluations"].values()}, self)
        for row, point in zip(rows, points, strict=True):
            self.fill(row, point, run)
        return rows

    def labelled(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """The first columns of a row: its labels, and the remaining columns without values."""
        labels = point_values(self.manifest, point)
        metric = self.manifest["tasks"][labels["task"]]["metric"]
        ids = {f"{split}/evaluation": one for split, one in point["evaluations"].items()}
        return labels | {"state": None, "metric": metric, "source": None} | dict.fromkeys((*ABOUT, *FACTS)) | ids

    def without_values(
        self, rows: Sequence[dict[str, Any]], points: Sequence[Mapping[str, Any]], finding: Finding
    ) -> list[dict[str, Any]]:
        """Records the finding. Returns the rows without values, with the finding's sentence as every split's conflict."""
        self.findings.append(finding)
        unknown = {"state": finding.kind} | dict.fromkeys(FACTS, math.nan)
        return [
            row | unknown | {f"{split}/conflict": finding.sentence for split in point["evaluations"]}
            for row, point in zip(rows, points, strict=True)
        ]

    def fill(self, row: dict[str, Any], point: Mapping[str, Any], run: _Run) -> None:
        """Fills a row with the values of its point, or with the reasons why there are none."""
        problem = None if run.config is None else verify.check_labels(point["values"], run.config, run.id)
        if problem is not None:
            row |= self.without_values([row], [point], Finding("conflict", run.id, problem))[0]
            return
        missing = False
        for split, evaluation in point["evaluations"].items():
            value = run.value(split, evaluation, row["metric"], self.evaluation_settings(point), self)
            if isinstance(value, Finding):
                self.withdraw(row, split, value)
            elif value is None:
                missing = True
            else:
                row[f"{split}/{row['metric']}"] = value
        row |= run.further(point["evaluations"], self.manifest["tasks"][row["task"]]["family"])
        if missing and row["state"] not in WRONG:
            row["state"] = _state_of_evaluations(run.folder, run.result)

    def evaluation_settings(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a point's evaluations according to the manifest."""
        settings = self.manifest["header"] | point["values"]
        return {key: value for key, value in settings.items() if key.split(".")[0] in Questions.model_fields}

    def withdraw(self, row: dict[str, Any], split: str, finding: Finding) -> None:
        """Records the finding, and replaces the value of this split by it."""
        self.findings.append(finding)
        row.pop(f"{split}/{row['metric']}", None)
        row |= {f"{split}/conflict": finding.sentence}
        row["state"] = finding.kind if row["state"] != "conflict" else "conflict"

    def find_doubles(self, rows: Sequence[dict[str, Any]]) -> None:
        """Finds points with the same labels, for which a cell would count one seed twice."""
        same_labels = defaultdict(list)
        for row, point in zip(rows, self.manifest["points"], strict=True):
            if row["state"] not in WRONG:
                same_labels[tuple(row[axis] for axis in (*self.manifest["axes"], "task"))].append((row, point))
        for doubles in same_labels.values():
            if len(doubles) > 1:
                labels = ", ".join(f"{key} {value}" for key, value in doubles[0][1]["values"].items())
                runs = list(dict.fromkeys(row["run"] for row, _ in doubles))
                listed = f"it {len(doubles)} times" if len(runs) == 1 else f"runs {' and '.join(runs)}"
                for row, point in doubles:
                    for split in point["evaluations"]:
                        self.withdraw(
                            row, split, Finding("conflict", row["run"], f"the manifest lists {listed} for {labels}")
                        )

    def compare_counts(self, rows: Sequence[dict[str, Any]]) -> None:
        """Finds evaluations with another number of examples than the rest of their column.

        A sweep that varies the number of examples is not checked.
        """
        if any(axis.startswith(("evaluation.examples", "task.data")) for axis in self.manifest["axes"]):
            return
        columns: defaultdict[tuple[Any, ...], list[tuple[dict[str, Any], str, str, int]]] = defaultdict(list)
        over = self.manifest["over"]
        for row, point in zip(rows, self.manifest["points"], strict=True):
            for split, evaluation in point["evaluations"].items():
                count = self.counts.get((row["run"], evaluation))
                if count is not None and f"{split}/conflict" not in row:
                    columns[row["task"], split, row.get(over)].append((row, split, evaluation, count))
        for cells in columns.values():
            tally = Counter(count for *_, count in cells).most_common()
            if len(tally) > 1:
                most = tally[0][0] if tally[0][1] > tally[1][1] else None  # in a tie, no number counts as right
                others = " and ".join(f"{count} examples ({times} of {len(cells)})" for count, times in tally)
                for row, split, evaluation, count in cells:
                    if count != most:
                        problem = f"evaluation {evaluation} has {count} examples, and its column {others}"
                        self.withdraw(row, split, Finding("conflict", row["run"], problem))


@dataclass
class _Run:
    """A run with a result, whose folder passed its checks."""

    folder: RunFolder
    result: Mapping[str, Any]
    record: AnyRecord | None  # the W&B record of the published attempt
    config: Mapping[str, Any] | None

    @property
    def id(self) -> str:
        return self.folder.id

    def read_evaluations(self, evaluations: set[str], reading: Reading) -> None:
        """Reads the files and records of these evaluations into `files` and `later`, as far as they exist."""
        self.files: dict[str, EvaluationFiles | Unreadable] = {}
        for evaluation in sorted(evaluations):
            try:
                self.files[evaluation] = read_evaluation(self.folder, self.result["attempt"], evaluation)
            except Unreadable as error:
                self.files[evaluation] = error
        later = sorted(evaluations - set(self.result["evaluations"].values()))
        records = {
            evaluation: file.about
            for evaluation in later
            if isinstance(file := self.files[evaluation], EvaluationFiles)
        }
        self.later = reading.source.evaluated(self.folder, records, reading.notes)

    def value(
        self, split: str, evaluation: str, metric: str, labels: Mapping[str, Any], reading: Reading
    ) -> float | Finding | None:
        """Returns the value of an evaluation that the manifest shows as this split; None if it was not made."""
        files = self.files[evaluation]
        if isinstance(files, Unreadable):
            return Finding("unreadable", self.id, str(files))
        published = {published_id: name for name, published_id in self.result["evaluations"].items()}
        if published.get(evaluation, split) != split:
            return self.conflict(
                f"the manifest shows evaluation {evaluation} as {split}, and {RESULT} says {published[evaluation]}"
            )
        if evaluation not in published and evaluation not in self.later and files.about is None:
            return None
        if files.about is not None:
            problem = verify.check_evaluation(self.id, evaluation, split, files.about, labels, self.config)
            problem = problem or verify.check_count(files.about, evaluation, files.scores)
            if problem is not None:
                return self.conflict(problem)
        values: dict[str, float] = {}
        for where, stored in self.sources(split, evaluation, metric, files, evaluation in published, reading):
            if isinstance(stored, str):
                return self.conflict(stored)
            values[where] = stored
        problem = verify.check_values(f"{split}/{metric}", metric, values, evaluation, files.scores)
        if problem is not None:
            return self.conflict(problem)
        if files.scores is not None:
            reading.counts[self.id, evaluation] = len(files.scores)
        elif self.folder.result_file.exists():
            reading.without_scores.add(self.id)
        return next(iter(values.values()))

    def further(self, evaluations: Mapping[str, str], family: str) -> dict[str, float]:
        """Returns the further metrics of these evaluations by `split/metric`, from `result.json` and their files."""
        values: dict[str, float] = {}
        names = FAMILIES[family].other_metric_names
        for split, evaluation in evaluations.items() if names else ():
            files = self.files[evaluation]
            if self.result["evaluations"].get(split) == evaluation:
                metrics = {name: self.result["metrics"].get(f"{split}/{name}") for name in names}
            else:
                metrics = (
                    files.about["metrics"] if isinstance(files, EvaluationFiles) and files.about is not None else {}
                )
            values |= {f"{split}/{name}": number(metrics.get(name)) for name in names}
        return values

    def sources(
        self, split: str, evaluation: str, metric: str, files: EvaluationFiles, is_published: bool, reading: Reading
    ) -> Iterator[tuple[str, float | str]]:
        """Yields each place that stores the value, with the value there, or with a sentence that says why there is none."""
        key = f"{split}/{metric}" if is_published else f"evaluation/{evaluation}"
        record = self.record if is_published else self.later.get(evaluation)
        if record is not None and not is_published:
            attempt = None if files.about is None else files.about["attempt"]
            problem = verify.check_record(
                self.id, attempt, record.config, self.config, f"the W&B record of evaluation {evaluation}"
            )
            if problem is not None:
                yield RECORD, problem
        if record is not None and key in record.summary:
            yield RECORD, number(record.summary[key])
        elif record is not None and record.summary:
            reading.notes.append(f"run {self.id}: {key} is not in its W&B record")
        elif not is_published and files.about is not None:
            reading.notes.append("some evaluations have no readable W&B record; their values are from their files")
        if is_published:
            yield from self.value_in(RESULT, key, self.result["metrics"])
        if files.about is not None:
            yield from self.value_in(f"evaluations/{evaluation}.json", metric, files.about["metrics"])

    @staticmethod
    def value_in(where: str, key: str, metrics: Mapping[str, Any]) -> Iterator[tuple[str, float | str]]:
        """Yields this place with the value of `key` among its metrics, or with a sentence that there is none."""
        yield (
            where,
            number(metrics[key]) if key in metrics else f"{where} has no {key}, but {', '.join(metrics) or 'nothing'}",
        )

    def conflict(self, text: str) -> Finding:
        return Finding("conflict", self.id, text)


def _result(folder: RunFolder) -> Mapping[str, Any] | None:
    """The content of `result.json`; None without one. Raises Unreadable if it is damaged."""
    result: Mapping[str, Any] | None = read(folder.result_file, RESULT_RECORD)
    absent = [] if result is None else [key for key in ("metrics", "evaluations", "wandb", *ABOUT) if key not in result]
    if absent:
        raise Unreadable(f"{RESULT} is damaged: it has no {absent[0]}")
    return result


def _text(file: Path) -> str | None:
    """The text of a file; None if it does not exist. Raises Unreadable."""
    try:
        return file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"{file.name} cannot be read: {error}") from None


def config_of(text: str | None, record: AnyRecord | None) -> dict[str, Any] | None:
    """The run's settings, from the text of its configuration, or from its W&B record if there is no such file.

    None if neither has them.
    """
    if text is not None:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return None  # the check of its hash reports it
    logged = {} if record is None else record.config
    return {key: logged[key] for key in RunConfig.model_fields if key in logged} or None


def _state(folder: RunFolder, record: AnyRecord | None) -> str:
    state = unfinished_state(folder)
    if state is not None:
        return state
    return "failed" if record is not None and record.state in ENDED_BADLY else "not done"


def _state_of_evaluations(folder: RunFolder, result: Mapping[str, Any]) -> str:
    """The state of a run that is done but lacks an evaluation of the sweep."""
    later = [attempt for attempt in folder.attempts() if attempt.number > result["attempt"]]
    return "failed" if later and later[-1].has_failed else "not evaluated"


def as_result(record: AnyRecord) -> dict[str, Any]:
    """The content that `result.json` would have, from a W&B record."""
    logged = record.config | record.summary
    end = "/evaluation"
    evaluations = {
        key.removesuffix(end): evaluation for key, evaluation in sorted(record.summary.items()) if key.endswith(end)
    }
    keys = [key for split in evaluations for key in sorted(record.summary) if key.startswith(f"{split}/")]
    metrics = {key: number(record.summary[key]) for key in keys if not key.endswith(end)}
    return {key: logged.get(key) for key in (*ABOUT, *FACTS)} | {"evaluations": evaluations, "metrics": metrics}


def number(value: Any) -> float:
    """Converts a number from JSON to float: W&B writes 5.0 as 5, and NaN may be text. NaN for anything that is no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
