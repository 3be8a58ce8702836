"""`python -m sweeps search promote NAME`: the confirmed best becomes a default, conf/tuned/, with its evidence."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mmprompt.runs.config import ConfigError
from mmprompt.runs.files import write_over
from mmprompt.runs.overrides import as_text
from mmprompt.studies.confirmation import Confirmed, confirmed, is_over
from mmprompt.studies.outcomes import Picture, Reader
from mmprompt.studies.study import Group, Study
from sweeps.grid.compose import INNERMOST
from sweeps.grid.launched import label
from sweeps.search.report import said, verdict
from sweeps.search.settings import at
from sweeps.search.space import Asked

HEAD = "# @package _global_"
COLUMNS = ("phase", "group", "trial", "state", "settings", "seed", "run", "split", "value")


def promote(study: Study, one: Asked, force: bool, conf: Path) -> int:
    """Writes what the fresh seeds tell apart from the default; returns 1 if there is nothing.

    Raises ConfigError where the search is not over, has no single best, or the best is not told apart, unless `force` is given.
    """
    picture = Reader(study).look()
    if picture.confirmation is None or not is_over(picture):
        raise ConfigError(f"search {study.name} is not over; `make search-{study.name}` goes on with it")
    if len(picture.definition.objective) > 1:
        raise ConfigError(
            f"search {study.name} has several objectives, and a front has no best; choose a trial yourself"
        )
    written = 0
    for group in picture.confirmation.groups:
        found = confirmed(picture, group)
        name = picture.definition.label(group.group) or study.name
        if len(found) < 2:
            print(f"{name}: nothing but the default came to its end")
            continue
        best = found[1]
        validation = next(iter(best.differences))
        words = label({key: as_text(value) for key, value in best.candidate.settings.items()})
        difference = best.differences[validation]
        print(f"{name}: {words}: on {validation} {said(best.intervals[validation])}; {verdict(difference)}")
        if not difference.lower > 0 and not force:
            print(
                "  not promoted: fresh seeds do not show that it is better than the default; --force promotes it all the same"
            )
            continue
        files = _write(study, picture, one, group, best, conf)
        print("\n".join(f"  wrote {file}" for file in files))
        written += 1
    return 0 if written else 1


def _write(study: Study, picture: Picture, one: Asked, group: Group, best: Confirmed, conf: Path) -> list[Path]:
    settings = best.candidate.settings
    config = one.composition.config(settings, group.group, 1)
    file = conf / "tuned" / f"{config.model.name}_{config.method}_{config.task.name}.yaml"
    evidence = conf.parent / "docs" / "evidence" / f"search_{study.name}.csv"
    there = OmegaConf.load(file) if file.is_file() else OmegaConf.create({})
    base = one.definition.bases[best.candidate.base]
    values = config.model_dump(mode="json")
    for key, value in settings.items():
        if key not in base.choices:
            OmegaConf.update(there, target(there, key, values), value, merge=False)
    # A table that reports one of these seeds gets a note: its scores helped to choose.
    before = OmegaConf.select(there, "tuned.seeds", default=[])
    OmegaConf.update(there, "tuned.seeds", sorted({*before, *seeds_of(picture)}), merge=False)
    validation = next(iter(best.differences))
    about = [
        HEAD,
        f"# Search {study.name}: the best of {len(picture.outcomes)} trials, on {validation} of fresh seeds",
        f"# {said(best.intervals[validation])}, {verdict(best.differences[validation])} from the default before; "
        f"docs/evidence/{evidence.name}.",
    ]
    write_over(file, "\n".join([*about, OmegaConf.to_yaml(there).rstrip()]) + "\n")
    write_over(evidence, table(picture))
    return [file, evidence]


def seeds_of(picture: Picture) -> set[int]:
    """All on which something was chosen."""
    groups = picture.confirmation.groups if picture.confirmation else []
    confirmed_on = {int(seed) for group in groups for candidate in group.candidates for seed in candidate.runs}
    return confirmed_on | {seed for one in picture.outcomes for seed in one.runs}


def target(there: Any, key: str, values: Mapping[str, Any]) -> str:
    """Where a key's value stands in a file: at the key, or where that refers to: `${tuned.${prompt.reparameterization}}`."""
    node = OmegaConf.to_container(there, resolve=False)
    try:
        text = at(node, key)  # type: ignore[arg-type]
    except KeyError:
        return key
    if not isinstance(text, str) or not text.startswith("${"):
        return key
    while (match := INNERMOST.search(text)) and match.span() != (0, len(text)):
        text = f"{text[: match.start()]}{at(values, match[1])}{text[match.end() :]}"
    return target(there, text[2:-1], values)


def table(picture: Picture) -> str:
    """Every trial and everything that confirms, a row per run and split, as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_rows(picture))
    return out.getvalue()


def _rows(picture: Picture) -> Iterator[tuple[Any, ...]]:
    definition = picture.definition
    objective = next(iter(definition.objective))
    for one in picture.outcomes:
        words = label({key: as_text(value) for key, value in one.trial.settings.items()})
        split = definition.tasks[definition.task_of(one.trial.settings, one.trial.group)]["validation"]
        name = definition.label(one.trial.group)
        for seed, outcome in one.runs.items():
            value = outcome.values.get(objective, "")
            yield "search", name, one.trial.number, one.state, words, seed, one.trial.runs[str(seed)], split, value
    for group in picture.confirmation.groups if picture.confirmation else []:
        for found in confirmed(picture, group):
            words = label({key: as_text(value) for key, value in found.candidate.settings.items()})
            for split, scores in found.scores.items():
                for seed, score in scores.items():
                    name, run = definition.label(group.group), found.candidate.runs[str(seed)]
                    trial = "warm" if found.candidate.trial is None else found.candidate.trial
                    yield "confirmation", name, trial, found.candidate.origin, words, seed, run, split, score
