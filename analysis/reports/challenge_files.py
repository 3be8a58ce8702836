"""The files of answers that challenges take, for `python -m analysis export RUN`: written from the answers of evaluations.

EvalAI's for visual question answering, COCO's for captions (`mmprompt.families.challenge`). A file has the answers of one run to
one whole split. Each is checked before it is written: as many answers as the split has examples, each id a number and there once.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.records.manifest import read_manifest
from mmprompt.families.challenge import Challenge
from mmprompt.families.registry import FAMILIES
from mmprompt.runs.answer_file import answer_file, read_answers
from mmprompt.runs.files import StoreError, write_over
from mmprompt.runs.identity import canonical
from mmprompt.runs.records import EVALUATION, DamagedError, EvaluationRecord, read
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import NoRunError, NoSweepError, Store

Line = tuple[str, bool]  # a line to print, and whether it reports no fault
PLENTY = 10**6  # examples; more than a split of a challenge has


@dataclass(frozen=True)
class Asked:
    """A run whose answers are asked for."""

    folder: RunFolder
    evaluations: Mapping[str, str] | None  # the split of each evaluation, by id; None: all that the run has
    manifest: Mapping[str, Any] | None  # of a sweep that the run is in

    def again(self, more: str = "") -> str:
        """The command that makes what is missing, with this override."""
        if self.manifest is None:
            return f"`mmprompt run` with the settings of {self.folder.config_file}{f' and {more}' if more else ''}"
        command = str(self.manifest["command"])
        if not more:
            return f"`{command}`"
        return f'`{command[:-1]} {more}"`' if command.endswith('"') else f'`{command} ARGS="{more}"`'


def export(store: Store, names: Sequence[str], out: Path) -> Iterator[Line]:
    """Writes the files of these sweeps, and of the runs whose ids begin so, into the folder `out`. Yields a line for each.

    Raises StoreError for a name that neither a sweep nor a run has.
    """
    all_asked = [asked_of(store, name) for name in names]  # all names first: a mistyped one writes nothing
    for name, asked in zip(names, all_asked, strict=True):
        lines = [line for one in asked for line in of_run(one, out)]
        yield from lines or [(f"{name}: {NO_CHALLENGE}", False)]


NO_CHALLENGE = "no challenge takes its answers; one takes those of OFA's files of " + " and ".join(
    family.name for family in FAMILIES.values() if family.challenge is not None
)


def asked_of(store: Store, name: str) -> list[Asked]:
    """The runs of the sweep with this name, or the one run whose id begins so. Raises StoreError if there is neither."""
    try:
        manifest = read_manifest(store, name)
    except NoSweepError as no_sweep:
        try:
            folder = store.find(name)
        except NoRunError:
            raise StoreError(f"{no_sweep}; and no run's id begins so") from None
        return [Asked(folder, None, sweep_of(store, folder.id))]
    wanted: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for point in manifest["points"]:
        by_split = point["evaluations"] | point.get("unscored", {})
        wanted[point["run"]] |= {evaluation: split for split, evaluation in by_split.items()}
    return [Asked(store.run(run), evaluations, manifest) for run, evaluations in wanted.items()]


def sweep_of(store: Store, run: str) -> Mapping[str, Any] | None:
    """The manifest of the sweep launched last that has the run; None if none has."""
    for name in store.sweeps():
        with contextlib.suppress(StoreError):
            manifest = read_manifest(store, name)
            if any(point["run"] == run for point in manifest["points"]):
                return manifest
    return None


def challenge_of(folder: RunFolder) -> Challenge | None:
    """The challenge that takes a run's answers; None if the task is of another family, or of the small world.

    Raises DamagedError.
    """
    task = folder.settings()["task"]
    return FAMILIES[task["family"]].challenge if task["data"]["world"] == "tsv" else None


def of_run(asked: Asked, out: Path) -> Iterator[Line]:
    """Writes the files of one run, and yields a line for each; where there is none, one that says why. Yields nothing if no
    challenge takes its answers."""
    folder = asked.folder
    try:
        challenge = challenge_of(folder)
        if challenge is None:
            return
        records, damaged = records_of(asked)
    except DamagedError as error:
        yield f"run {folder.id}: {error}", False
        return
    yield from ((f"run {folder.id}: {text}", False) for text in damaged)
    if not records and not damaged:
        yield f"run {folder.id} is not finished; {asked.again()} finishes it", False
        return
    missing = [split for one, split in (asked.evaluations or {}).items() if one not in records]
    if missing and not damaged:
        yield f"run {folder.id} is not evaluated on {' and '.join(missing)}; {asked.again()} does it", False
    alike: defaultdict[str, dict[str, EvaluationRecord]] = defaultdict(dict)
    for evaluation, record in records.items():
        settings = record["settings"]
        if "attack" not in settings and settings["split"] != "train":
            alike[canonical({key: value for key, value in settings.items() if key != "examples"})][evaluation] = record
    for evaluations in alike.values():  # of one split, decoded in one way: their answers are the same
        faults = []
        for evaluation, record in evaluations.items():
            try:
                yield written(asked, challenge, evaluation, record, out), True
                break
            except StoreError as error:
                faults.append(str(error))
        else:
            yield from ((f"run {folder.id}: {fault}", False) for fault in faults)


def records_of(asked: Asked) -> tuple[dict[str, EvaluationRecord], list[str]]:
    """The records of the evaluations that are asked for, by id, and a sentence for each that is damaged. Raises DamagedError."""
    records: dict[str, EvaluationRecord] = {}
    damaged = []
    result = asked.folder.result()
    for file in [] if result is None else asked.folder.evaluation_files(result["attempt"]):
        if asked.evaluations is None or file.stem in asked.evaluations:
            try:
                record = read(file, EVALUATION)
            except DamagedError as error:
                damaged.append(str(error))
                continue
            if record is not None:
                records[file.stem] = record
    return records, damaged


def written(asked: Asked, challenge: Challenge, evaluation: str, record: EvaluationRecord, out: Path) -> str:
    """Checks and writes the file of one evaluation; returns the line that says where.

    Raises StoreError if the evaluation has no answers, or answers that the challenge would refuse.
    """
    split = record["settings"]["split"]
    what = f"evaluation {evaluation} of {split}"
    if "answers" not in record:
        more = f"evaluation.examples={record.get('n', PLENTY)}"
        raise StoreError(f"{what} was made before answers were kept; {asked.again(more)} makes it again")
    answers = read_answers(answer_file(asked.folder.evaluation_file(evaluation)), record["answers"])
    count, whole = len(answers.ids), record.get("of", 0)
    if count != whole:
        raise StoreError(f"{what} has {count:,} answers, and {challenge.name} wants all {whole:,}")
    try:
        entries = challenge.entries(answers.ids, answers.texts)
    except ValueError as error:
        raise StoreError(f"{what}: {error}; task.data.columns.id says in which column ids stand") from None
    file = out / challenge.file_name(split, f"{asked.folder.id}-{evaluation}")
    write_over(file, json.dumps(entries))
    return f"answers  {file} ({count:,} answers to {split}, for {challenge.name})"
