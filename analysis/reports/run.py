"""One run with all its data: settings, origin, scores, attempts, evaluations and history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from analysis.records.inventory import settings_of
from analysis.records.reading import as_result, config_of
from analysis.records.sources import AnyRecord, Source, in_store
from analysis.records.stored import Unreadable, read, read_scores, unfinished_state
from analysis.reports.trace import command_to_repeat
from mmprompt.runs.attempt import Attempt
from mmprompt.runs.files import StoreError
from mmprompt.runs.identity import NEUTRAL, dotted
from mmprompt.runs.records import EVALUATION, RESULT, Record
from mmprompt.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Run:
    """A run of the store. `point`: the point of a sweep's manifest that led to it."""

    folder: RunFolder
    point: Mapping[str, Any]
    source: Source = in_store

    @property
    def id(self) -> str:
        return self.folder.id

    @cached_property
    def result(self) -> dict[str, Any]:
        """The content of `result.json`, or of the W&B record of a finished attempt in its place; empty while there is neither.

        Raises StoreError if the file is damaged.
        """
        result: Any = _read(self, self.folder.result_file, RESULT)
        if result is None and self._wandb_record is not None and self._wandb_record.state == "finished":
            result = as_result(self._wandb_record)
        return result or {}

    @cached_property
    def _wandb_record(self) -> AnyRecord | None:
        """The W&B record of the published attempt."""
        return self.source.published(self.folder, _read(self, self.folder.result_file, RESULT), [])

    @property
    def state(self) -> str:
        """The run's state: done, diverged, failed or not done."""
        return "done" if self.result else unfinished_state(self.folder) or "not done"

    @cached_property
    def config(self) -> dict[str, Any]:
        """Every setting by its dotted key, as it was at launch. Raises StoreError if the file was changed after launch."""
        settings = settings_of(self.folder) or dict(dotted(config_of(None, self._wandb_record) or {}))
        return {**NEUTRAL, **settings}

    @property
    def metrics(self) -> dict[str, float]:
        """The run's metrics by `split/metric`."""
        return dict(self.result.get("metrics", {}))

    @property
    def commit(self) -> str | None:
        return self.result.get("commit")

    @property
    def dirty(self) -> bool | None:
        """Whether the code had uncommitted changes."""
        return self.result.get("dirty")

    @property
    def device(self) -> str | None:
        return self.result.get("device")

    @cached_property
    def attempts(self) -> pd.DataFrame:
        """A row per attempt, oldest first.

        Columns: number, work (train or evaluate), host, began, published (whether its result is the run's), resumed_from (the
        step), error (one line).
        """
        rows = [self._attempt(attempt) for attempt in self.folder.readable_attempts()]
        return pd.DataFrame(rows, columns=["number", "work", "host", "began", "published", "resumed_from", "error"])

    def _attempt(self, attempt: Attempt) -> dict[str, Any]:
        job, reason = attempt.job, attempt.reason
        is_published = attempt.number == self.result.get("attempt")
        return {
            "number": attempt.number,
            "work": job.get("work", "train"),
            "host": job.get("host"),
            "began": pd.Timestamp(job["started"], unit="s", tz="UTC").round("s") if "started" in job else pd.NaT,
            "published": is_published,
            "resumed_from": self.result.get("resumed_from") if is_published else None,
            "error": reason.message if reason else "",
        }

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """A row per evaluation, indexed by its id.

        Columns: split, settings (all but the split), examples (their number), then a column per metric.
        """
        rows = []
        for file in sorted(self._evaluation_files().values()):
            record = _read(self, file, EVALUATION)
            if record is None:
                continue  # it was removed in the meantime
            settings = dict(record["settings"])
            row = {
                "evaluation": file.stem,
                "split": settings.pop("split"),
                "settings": settings,
                "examples": record["n"],
            }
            rows.append(row | record["metrics"])
        frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=["evaluation", "split", "settings", "examples"])
        return frame.set_index("evaluation")

    def examples(self, which: str = "test") -> np.ndarray:
        """The score of each example, shape (m,), on the metric's scale.

        `which`: a split, for its default evaluation, or the id of an evaluation. Raises StoreError if there are no such scores.
        """
        evaluation = self.result.get("evaluations", {}).get(which, which)
        file = self._evaluation_files().get(evaluation)
        try:
            scores = None if file is None else read_scores(file.with_suffix(".npy"))
        except Unreadable as error:
            raise StoreError(f"run {self.id}: {error}") from None
        if scores is None:
            available = ", ".join([*self.result.get("evaluations", {}), *self._evaluation_files()]) or "none"
            raise StoreError(
                f"run {self.id} has no scores of single examples of {which}; it has evaluations {available}"
            )
        return scores

    def _evaluation_files(self) -> dict[str, Any]:
        """The files of evaluations by id, those of the published attempt before later ones."""
        if not self.result:
            return {}
        return {file.stem: file for file in self.folder.evaluation_files(self.result["attempt"])}

    @cached_property
    def history(self) -> pd.DataFrame:
        """A row per logged step, indexed by the step, from the W&B record; empty without a record."""
        rows = pd.DataFrame() if self._wandb_record is None else self.source.history(self._wandb_record, [])
        if not len(rows):
            return pd.DataFrame()
        logged = rows[[key for key in rows.columns if not key.startswith("_")]]
        return logged.astype("float64").set_index(pd.Index(rows["_step"].astype("int64"), name="step"))

    @property
    def record(self) -> str | None:
        """The path of the W&B record's file; None if the result names none."""
        place = self.result.get("wandb")
        return None if place is None else str(self.folder.path / place)

    @property
    def command(self) -> str:
        """The command that trains and evaluates the run again, in a separate store."""
        return command_to_repeat(self.point, self.commit)

    def __repr__(self) -> str:
        values = " ".join(f"{key}={value}" for key, value in self.point.get("values", {}).items())
        scores = ", ".join(f"{key} {value:.4g}" for key, value in self.metrics.items())
        return f"<run {self.id}: {values}; {self.state}{f', {scores}' if scores else ''}>"

    def _repr_html_(self) -> str:
        values = self.point.get("values", {})
        lines = {
            "run": self.id,
            "settings": " ".join(f"{key}={value}" for key, value in values.items()),
            "state": self.state,
            **{key: f"{value:.6g}" for key, value in self.metrics.items()},
            "commit": f"{self.commit or 'not known'}{' with uncommitted changes' if self.dirty else ''}",
            "device": self.device or "not known",
            "again": self.command,
        }
        rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(str(text))}</td></tr>" for key, text in lines.items())
        return f"<table><tbody>{rows}</tbody></table>"


def _read(run: Run, file: Path, schema: TypeAdapter[Record]) -> Record | None:
    """Reads a file of the run; None if it does not exist. Raises StoreError if it is damaged."""
    try:
        return read(file, schema)
    except Unreadable as error:
        raise StoreError(f"run {run.id}: {error}") from None
