"""From a manifest, results and W&B records to the frame of a sweep, and what does not fit said in words.

A metric's value stands in several places: in the summary of the published attempt's W&B record, wherever that is read
(`analysis.sources`), in `result.json`, which says which attempt that is, and as the mean of the scores of single examples beside
the evaluation's own file. All that is there must agree, with the run's configuration and the manifest too (`analysis.verify`):
else there is no value, and a sentence says why. Nothing chooses between two numbers. A record that cannot be read, or only in
part, is noted; where there is no `result.json` the record of the first attempt that finished stands for it, which is noted too.
What was asked of finished weights later (another split, an attack) is in a file of its own, and in the record of the attempt
that asked; the same holds for those two.
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

from analysis import verify
from analysis.frame import ABOUT, WRONG, Sweep
from analysis.manifest import point_values, read_manifest
from analysis.sources import AnyRecord, Source, in_store
from analysis.stored import Files, Unreadable, read, read_evaluation, unfinished
from analysis.verify import RECORD, RESULT, Finding
from mmprompt.families.registry import FAMILIES
from mmprompt.runs.comparison import FACTS
from mmprompt.runs.config import Questions, RunConfig
from mmprompt.runs.records import RESULT as RESULT_RECORD
from mmprompt.runs.store import RunFolder, Store

NO_RECORD = "no readable W&B record; their values are from result.json"
NO_RESULT = "no result.json; their values are from the W&B record of the first attempt that finished"
NO_SCORES = "no scores of single examples for what is shown; nothing but their records says that the values are right"
ENDED_BADLY = ("failed", "crashed", "killed")  # states of W&B's


def read_sweep(store: Store, name: str) -> Sweep:
    """From the store alone. Raises StoreError when there is no such sweep."""
    return assemble(store, read_manifest(store, name), in_store)


def assemble(store: Store, manifest: dict[str, Any], source: Source, deep: bool = False) -> Sweep:
    """A sweep from these records. `deep`: what takes longer is checked as well (`analysis.verify.deeply`)."""
    reading = Reading(manifest, source, deep)
    points: dict[str, list[Mapping[str, Any]]] = {}
    for point in manifest["points"]:
        points.setdefault(point["run"], []).append(point)
    found = {run: iter(reading.rows(store.run(run), those)) for run, those in points.items()}
    rows = [next(found[point["run"]]) for point in manifest["points"]]
    if manifest["search"] is None:  # one run may be several trials
        reading.look_for_doubles(rows)
    reading.compare_counts(rows)
    notes = list(reading.notes)
    for count, what in (
        (len({row["run"] for row in rows if row["source"] == RESULT}), NO_RECORD),
        (len(reading.without_result), NO_RESULT),
        (len(reading.without_scores), NO_SCORES),
    ):
        if count:
            notes.append(f"{count} of {len(points)} runs have {what}")
    conflicts = verify.sentences(reading.findings)
    return Sweep(manifest, pd.DataFrame(rows), tuple(dict.fromkeys([*conflicts, *notes])), tuple(conflicts), store)


class Reading:
    """The runs of a sweep being read, and what is found of them on the way."""

    def __init__(self, manifest: Mapping[str, Any], source: Source, deep: bool) -> None:
        self.manifest, self.source, self.deep = manifest, source, deep
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        self.without_result: set[str] = set()
        self.without_scores: set[str] = set()
        self.counts: dict[tuple[str, str], int] = {}  # of examples, by run and evaluation

    def rows(self, folder: RunFolder, points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """A row for each of these points of one run."""
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
        about = {"state": "done", "source": RESULT if record is None or not record.summary else "wandb"}
        about |= {key: result[key] for key in ABOUT} | {key: number(result.get(key)) for key in FACTS}
        rows = [row | about for row in rows]
        if self.deep:
            self.notes.extend(f"run {folder.id}: {said}" for said in verify.deeply(folder, on_disk))
        said, config = verify.of_folder(folder.id, text, on_disk), config_of(text, record)
        if said is None and record is not None:
            said = verify.of_record(folder.id, result["attempt"], record.config, None if text is None else config)
            said = said or verify.of_published(result["evaluations"], record.summary)
        if said is None and config is not None:
            said = verify.of_header(self.manifest["header"], config)
        if said is not None:
            return self.without_values(rows, points, Finding("conflict", folder.id, said))
        run = _Run(folder, result, record, config)
        run.read_evaluations({one for point in points for one in point["evaluations"].values()}, self)
        for row, point in zip(rows, points, strict=True):
            self.fill(row, point, run)
        return rows

    def labelled(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """The beginning of a row: whose values they would be."""
        labels = point_values(self.manifest, point)
        metric = self.manifest["tasks"][labels["task"]]["metric"]
        ids = {f"{split}/evaluation": one for split, one in point["evaluations"].items()}
        return labels | {"state": None, "metric": metric, "source": None} | dict.fromkeys((*ABOUT, *FACTS)) | ids

    def without_values(
        self, rows: Sequence[dict[str, Any]], points: Sequence[Mapping[str, Any]], finding: Finding
    ) -> list[dict[str, Any]]:
        self.findings.append(finding)
        unknown = {"state": finding.kind} | dict.fromkeys(FACTS, math.nan)
        return [
            row | unknown | {f"{split}/conflict": finding.sentence for split in point["evaluations"]}
            for row, point in zip(rows, points, strict=True)
        ]

    def fill(self, row: dict[str, Any], point: Mapping[str, Any], run: _Run) -> None:
        """The values of a point, or why there are none."""
        said = None if run.config is None else verify.of_labels(point["values"], run.config, run.id)
        if said is not None:
            row |= self.without_values([row], [point], Finding("conflict", run.id, said))[0]
            return
        missing = False
        for split, one in point["evaluations"].items():
            found = run.value(split, one, row["metric"], self.questions(point), self)
            if isinstance(found, Finding):
                self.spoil(row, split, found)
            elif found is None:
                missing = True
            else:
                row[f"{split}/{row['metric']}"] = found
        row |= run.further(point["evaluations"], self.manifest["tasks"][row["task"]]["family"])
        if missing and row["state"] not in WRONG:
            row["state"] = _state_of_evaluations(run.folder, run.result)

    def questions(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """What the manifest says of the settings of a point's evaluations."""
        said = self.manifest["header"] | point["values"]
        return {key: value for key, value in said.items() if key.split(".")[0] in Questions.model_fields}

    def spoil(self, row: dict[str, Any], split: str, finding: Finding) -> None:
        """This split of a point has no value."""
        self.findings.append(finding)
        row.pop(f"{split}/{row['metric']}", None)
        row |= {f"{split}/conflict": finding.sentence}
        row["state"] = finding.kind if row["state"] != "conflict" else "conflict"

    def look_for_doubles(self, rows: Sequence[dict[str, Any]]) -> None:
        """Points with the same labels: a cell would count one seed twice."""
        alike = defaultdict(list)
        for row, point in zip(rows, self.manifest["points"], strict=True):
            if row["state"] not in WRONG:
                alike[tuple(row[axis] for axis in (*self.manifest["axes"], "task"))].append((row, point))
        for those in alike.values():
            if len(those) > 1:
                labels = ", ".join(f"{key} {value}" for key, value in those[0][1]["values"].items())
                runs = list(dict.fromkeys(row["run"] for row, _ in those))
                what = f"it {len(those)} times" if len(runs) == 1 else f"runs {' and '.join(runs)}"
                for row, point in those:
                    for split in point["evaluations"]:
                        self.spoil(
                            row, split, Finding("conflict", row["run"], f"the manifest lists {what} for {labels}")
                        )

    def compare_counts(self, rows: Sequence[dict[str, Any]]) -> None:
        """Examples of a column's evaluations: as many in all of them, unless the sweep varies how many there are."""
        if any(axis.startswith(("evaluation.examples", "task.data")) for axis in self.manifest["axes"]):
            return
        columns: defaultdict[tuple[Any, ...], list[tuple[dict[str, Any], str, str, int]]] = defaultdict(list)
        over = self.manifest["over"]
        for row, point in zip(rows, self.manifest["points"], strict=True):
            for split, one in point["evaluations"].items():
                count = self.counts.get((row["run"], one))
                if count is not None and f"{split}/conflict" not in row:
                    columns[row["task"], split, row.get(over)].append((row, split, one, count))
        for cells in columns.values():
            tally = Counter(count for *_, count in cells).most_common()
            if len(tally) > 1:
                most = tally[0][0] if tally[0][1] > tally[1][1] else None  # of as many of each, none is right
                others = " and ".join(f"{count} examples ({times} of {len(cells)})" for count, times in tally)
                for row, split, one, count in cells:
                    if count != most:
                        said = f"evaluation {one} has {count} examples, and its column {others}"
                        self.spoil(row, split, Finding("conflict", row["run"], said))


@dataclass
class _Run:
    """A run that has its result, and whose folder holds what it should."""

    folder: RunFolder
    result: Mapping[str, Any]
    record: AnyRecord | None  # the record of the attempt that was published
    config: Mapping[str, Any] | None

    @property
    def id(self) -> str:
        return self.folder.id

    def read_evaluations(self, wanted: set[str], reading: Reading) -> None:
        """Files and records of these evaluations, of those that there are."""
        self.files: dict[str, Files | Unreadable] = {}
        for one in sorted(wanted):
            try:
                self.files[one] = read_evaluation(self.folder, self.result["attempt"], one)
            except Unreadable as error:
                self.files[one] = error
        later = sorted(wanted - set(self.result["evaluations"].values()))
        said = {one: file.about for one in later if isinstance(file := self.files[one], Files)}
        self.later = reading.source.evaluated(self.folder, said, reading.notes)

    def value(
        self, split: str, one: str, metric: str, labels: Mapping[str, Any], reading: Reading
    ) -> float | Finding | None:
        """Of an evaluation that is shown as this split; None if it was not made."""
        files = self.files[one]
        if isinstance(files, Unreadable):
            return Finding("unreadable", self.id, str(files))
        published = {evaluation: name for name, evaluation in self.result["evaluations"].items()}
        if published.get(one, split) != split:
            return self.conflict(f"the manifest shows evaluation {one} as {split}, and {RESULT} says {published[one]}")
        if one not in published and one not in self.later and files.about is None:
            return None
        if files.about is not None:
            said = verify.of_evaluation(self.id, one, split, files.about, labels, self.config)
            said = said or verify.of_count(files.about, one, files.scores)
            if said is not None:
                return self.conflict(said)
        values: dict[str, float] = {}
        for where, found in self.sources(split, one, metric, files, one in published, reading):
            if isinstance(found, str):
                return self.conflict(found)
            values[where] = found
        said = verify.of_values(f"{split}/{metric}", metric, values, one, files.scores)
        if said is not None:
            return self.conflict(said)
        if files.scores is not None:
            reading.counts[self.id, one] = len(files.scores)
        elif self.folder.result_file.exists():
            reading.without_scores.add(self.id)
        return next(iter(values.values()))

    def further(self, evaluations: Mapping[str, str], family: str) -> dict[str, float]:
        """By `split/metric`: what these evaluations say besides the task's metric, from `result.json` and their files."""
        found: dict[str, float] = {}
        names = FAMILIES[family].names_beside
        for split, one in evaluations.items() if names else ():
            files = self.files[one]
            if self.result["evaluations"].get(split) == one:
                said = {name: self.result["metrics"].get(f"{split}/{name}") for name in names}
            else:
                said = files.about["metrics"] if isinstance(files, Files) and files.about is not None else {}
            found |= {f"{split}/{name}": number(said.get(name)) for name in names}
        return found

    def sources(
        self, split: str, one: str, metric: str, files: Files, is_published: bool, reading: Reading
    ) -> Iterator[tuple[str, float | str]]:
        """Where the value stands, and what it is there; or why it does not."""
        key = f"{split}/{metric}" if is_published else f"evaluation/{one}"
        record = self.record if is_published else self.later.get(one)
        if record is not None and not is_published:
            attempt = None if files.about is None else files.about["attempt"]
            said = verify.of_record(self.id, attempt, record.config, self.config, f"the W&B record of evaluation {one}")
            if said is not None:
                yield RECORD, said
        if record is not None and key in record.summary:
            yield RECORD, number(record.summary[key])
        elif record is not None and record.summary:
            reading.notes.append(f"run {self.id}: {key} is not in its W&B record")
        elif not is_published and files.about is not None:
            reading.notes.append("some evaluations have no readable W&B record; their values are from their files")
        if is_published:
            yield from self.said(RESULT, key, self.result["metrics"])
        if files.about is not None:
            yield from self.said(f"evaluations/{one}.json", metric, files.about["metrics"])

    @staticmethod
    def said(where: str, key: str, metrics: Mapping[str, Any]) -> Iterator[tuple[str, float | str]]:
        yield (
            where,
            number(metrics[key]) if key in metrics else f"{where} has no {key}, but {', '.join(metrics) or 'nothing'}",
        )

    def conflict(self, text: str) -> Finding:
        return Finding("conflict", self.id, text)


def _result(folder: RunFolder) -> Mapping[str, Any] | None:
    """What `result.json` says; None without one. Raises Unreadable."""
    result: Mapping[str, Any] | None = read(folder.result_file, RESULT_RECORD)
    lacking = (
        [] if result is None else [key for key in ("metrics", "evaluations", "wandb", *ABOUT) if key not in result]
    )
    if lacking:
        raise Unreadable(f"{RESULT} is damaged: it has no {lacking[0]}")
    return result


def _text(file: Path) -> str | None:
    """None without the file. Raises Unreadable."""
    try:
        return file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"{file.name} cannot be read: {error}") from None


def config_of(text: str | None, record: AnyRecord | None) -> dict[str, Any] | None:
    """The run's settings, from its record where its folder was not copied; None where nothing says them."""
    if text is not None:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return None  # its hash will say so
    said = {} if record is None else record.config
    return {key: said[key] for key in RunConfig.model_fields if key in said} or None


def _state(folder: RunFolder, record: AnyRecord | None) -> str:
    found = unfinished(folder)
    if found is not None:
        return found
    return "failed" if record is not None and record.state in ENDED_BADLY else "not done"


def _state_of_evaluations(folder: RunFolder, result: Mapping[str, Any]) -> str:
    """Of a run that is done, and not asked all that the sweep wants to know."""
    later = [attempt for attempt in folder.attempts() if attempt.number > result["attempt"]]
    return "failed" if later and later[-1].has_failed else "not evaluated"


def as_result(record: AnyRecord) -> dict[str, Any]:
    """What `result.json` would say, from the record."""
    said = record.config | record.summary
    end = "/evaluation"
    evaluations = {key.removesuffix(end): one for key, one in sorted(record.summary.items()) if key.endswith(end)}
    keys = [key for split in evaluations for key in sorted(record.summary) if key.startswith(f"{split}/")]
    metrics = {key: number(record.summary[key]) for key in keys if not key.endswith(end)}
    return {key: said.get(key) for key in (*ABOUT, *FACTS)} | {"evaluations": evaluations, "metrics": metrics}


def number(value: Any) -> float:
    """JSON's number as it was logged: W&B writes 5.0 as 5, and NaN may come as text. NaN for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
