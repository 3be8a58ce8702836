"""`python -m sweeps search promote NAME`: makes the confirmed best settings a default in conf/tuned/, with their evidence."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mmprompt.runs.files import write_over
from mmprompt.runs.overrides import as_text
from mmprompt.settings.parsing import ConfigError
from mmprompt.studies.confirmation import Confirmed, confirmed, is_over
from mmprompt.studies.outcomes import StudyProgress, StudyReader
from mmprompt.studies.schemas import Group
from mmprompt.studies.study import Study
from sweeps.grid.compose import INNERMOST
from sweeps.grid.launched import label
from sweeps.search.definition import CheckedSearch
from sweeps.search.report import interval_text, verdict
from sweeps.search.settings import value_at

HEAD = "# @package _global_"
COLUMNS = ("phase", "group", "trial", "state", "settings", "seed", "run", "split", "value")


def promote(study: Study, search: CheckedSearch, force: bool, conf: Path) -> int:
    """Writes the best settings of each group if fresh seeds show that they are better than the default, or with `force`.

    Returns 0 if it wrote any, else 1. Raises ConfigError if the search is not over or has several objectives, and so no single
    best.
    """
    progress = StudyReader(study).read()
    if progress.confirmation is None or not is_over(progress):
        raise ConfigError(f"search {study.name} is not over; `make search-{study.name}` goes on with it")
    if len(progress.definition.objective) > 1:
        raise ConfigError(
            f"search {study.name} has several objectives, and a front has no best; choose a trial yourself"
        )
    written = 0
    for group in progress.confirmation.groups:
        candidates = confirmed(progress, group)
        name = progress.definition.label(group.group) or study.name
        if len(candidates) < 2:
            print(f"{name}: nothing but the default came to its end")
            continue
        best = candidates[1]
        validation = next(iter(best.differences))
        words = label({key: as_text(value) for key, value in best.candidate.settings.items()})
        difference = best.differences[validation]
        print(f"{name}: {words}: on {validation} {interval_text(best.intervals[validation])}; {verdict(difference)}")
        if not difference.lower > 0 and not force:
            print(
                "  not promoted: fresh seeds do not show that it is better than the default; --force promotes it all the same"
            )
            continue
        files = _write(study, progress, search, group, best, conf)
        print("\n".join(f"  wrote {file}" for file in files))
        written += 1
    return 0 if written else 1


def _write(
    study: Study, progress: StudyProgress, search: CheckedSearch, group: Group, best: Confirmed, conf: Path
) -> list[Path]:
    """Writes the file of defaults, over what it holds already, and the file of evidence. Returns both."""
    settings = best.candidate.settings
    config = search.composition.config(settings, group.group, 1)
    file = conf / "tuned" / f"{config.model.name}_{config.method}_{config.task.name}.yaml"
    evidence = conf.parent / "docs" / "evidence" / f"search_{study.name}.csv"
    content = OmegaConf.load(file) if file.is_file() else OmegaConf.create({})
    base = search.definition.bases[best.candidate.base]
    values = config.model_dump(mode="json")
    for key, value in settings.items():
        if key not in base.choices:
            OmegaConf.update(content, target(content, key, values), value, merge=False)
    # A table that reports one of these seeds gets a note, because its scores helped to choose the settings.
    before = OmegaConf.select(content, "tuned.seeds", default=[])
    OmegaConf.update(content, "tuned.seeds", sorted({*before, *seeds_of(progress)}), merge=False)
    validation = next(iter(best.differences))
    head = [
        HEAD,
        f"# Search {study.name}: the best of {len(progress.outcomes)} trials, on {validation} of fresh seeds",
        f"# {interval_text(best.intervals[validation])}, {verdict(best.differences[validation])} from the default before; "
        f"docs/evidence/{evidence.name}.",
    ]
    write_over(file, "\n".join([*head, OmegaConf.to_yaml(content).rstrip()]) + "\n")
    write_over(evidence, table(progress))
    return [file, evidence]


def seeds_of(progress: StudyProgress) -> set[int]:
    """All seeds whose scores helped to choose settings."""
    groups = progress.confirmation.groups if progress.confirmation else []
    confirmed_on = {int(seed) for group in groups for candidate in group.candidates for seed in candidate.runs}
    return confirmed_on | {seed for outcome in progress.outcomes for seed in outcome.runs}


def target(content: Any, key: str, values: Mapping[str, Any]) -> str:
    """The key at which a file holds a setting's value: the setting's own key, or the key that it refers to by interpolation, as
    in `${tuned.${prompt.reparameterization}}`. `values`: the settings that such references are resolved with."""
    node = OmegaConf.to_container(content, resolve=False)
    try:
        text = value_at(node, key)  # type: ignore[arg-type]
    except KeyError:
        return key
    if not isinstance(text, str) or not text.startswith("${"):
        return key
    while (match := INNERMOST.search(text)) and match.span() != (0, len(text)):
        text = f"{text[: match.start()]}{value_at(values, match[1])}{text[match.end() :]}"
    return target(content, text[2:-1], values)


def table(progress: StudyProgress) -> str:
    """The evidence as CSV: all trials and all candidates of the confirmation, with a row for each run and split."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_rows(progress))
    return out.getvalue()


def _rows(progress: StudyProgress) -> Iterator[tuple[Any, ...]]:
    definition = progress.definition
    objective = next(iter(definition.objective))
    for outcome in progress.outcomes:
        trial = outcome.trial
        words = label({key: as_text(value) for key, value in trial.settings.items()})
        split = definition.tasks[definition.task_of(trial.settings, trial.group)]["validation"]
        name = definition.label(trial.group)
        for seed, run in outcome.runs.items():
            value = run.values.get(objective, "")
            yield "search", name, trial.number, outcome.state, words, seed, trial.runs[str(seed)], split, value
    for group in progress.confirmation.groups if progress.confirmation else []:
        name = definition.label(group.group)
        for confirmed_candidate in confirmed(progress, group):
            candidate = confirmed_candidate.candidate
            words = label({key: as_text(value) for key, value in candidate.settings.items()})
            number = "warm" if candidate.trial is None else candidate.trial
            for split, scores in confirmed_candidate.scores.items():
                for seed, score in scores.items():
                    run_id = candidate.runs[str(seed)]
                    yield "confirmation", name, number, candidate.origin, words, seed, run_id, split, score
