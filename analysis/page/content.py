"""What the report page shows, as plain values: of the store, of each sweep and search, and of every run that they have."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.claims import COLUMNS
from analysis.inventory import runs as all_runs
from analysis.layout import Table
from analysis.manifest import read_manifest
from analysis.missing import missing
from analysis.page.behind import run_data
from analysis.page.charts import cell_data, cost_data, curve_data
from analysis.page.examples import Examples, examples
from analysis.page.svg import image
from analysis.report import SweepReport, read_report
from analysis.search_figures import caption as search_caption
from analysis.search_report import SearchReport
from analysis.sources import in_store
from analysis.tables import paper
from mmprompt.runs.files import StoreError
from mmprompt.runs.store import Store

PICTURES = 50  # examples with a picture, on the whole page
FEW = 8  # ids, commits or devices that a warning names
MIXED = {  # a column of the inventory -> what it means that runs differ in it
    "commit": "commits",
    "device": "devices",
    "threads": "numbers of threads",
    "training_version": "training versions",
    "backbone.checksum": "backbones",
}


@dataclass(frozen=True)
class View:
    """A sweep's tables on some of its splits."""

    name: str  # as the switch calls it
    tables: list[Table]


@dataclass(frozen=True)
class Section:
    """A sweep of the page."""

    report: SweepReport
    views: list[View]
    missing: pd.DataFrame
    figure: str  # SVG
    caption: str
    papers: list[Table]
    examples: list[Examples]
    data: dict[str, Any]  # for the script


@dataclass(frozen=True)
class Search:
    report: SearchReport
    figure: str  # SVG
    caption: str


@dataclass(frozen=True)
class Content:
    store: str
    made: str  # when
    facts: dict[str, str]
    warnings: list[str]
    claims: pd.DataFrame  # of all sweeps
    sections: list[Section]
    unfinished: list[tuple[str, str]]  # sweeps without a result yet, and why
    searches: list[Search]
    data: dict[str, Any]


def content(store: Store) -> Content:
    """Reads all sweeps and searches of the store. One that cannot be read is a warning; the others are shown."""
    warnings: list[str] = []
    found = list(read(store, warnings))
    reports = [one for one in found if isinstance(one, SweepReport) and one.is_begun]
    searches = [one for one in found if isinstance(one, SearchReport) and one.is_begun]
    inventory = all_runs(store)
    claims = [pd.DataFrame(columns=COLUMNS), *(report.claims for report in reports)]
    conflicts = [text for report in reports for text in report.sweep.conflicts]
    return Content(
        store=str(store.root.absolute()),
        made=datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        facts=dict(store_facts(reports, inventory)),
        warnings=[*conflicts, *warnings, *mixed(inventory)],
        claims=pd.concat(claims, ignore_index=True),
        sections=list(sections(reports)),
        unfinished=[nothing(one) for one in found if not one.is_begun],
        searches=[Search(one, image(one.figure()), search_caption(one.searched)) for one in searches],
        data=run_data(reports),
    )


def read(store: Store, warnings: list[str]) -> Iterator[SweepReport | SearchReport]:
    """Every sweep and search that can be read."""
    for name in sorted(store.sweeps()):
        try:
            manifest = read_manifest(store, name)
            is_search = manifest["search"] is not None
            yield SearchReport(store, manifest, in_store) if is_search else read_report(store, manifest, in_store)
        except StoreError as error:
            warnings.append(str(error))


def nothing(one: SweepReport | SearchReport) -> tuple[str, str]:
    """Name of a sweep or a search without a result, and what to type."""
    if isinstance(one, SearchReport):
        return one.name, "none of its trials has come to anything yet"
    return one.name, f"none of its runs is done yet; `{one.sweep.manifest['command']}`"


def sections(reports: Sequence[SweepReport]) -> Iterator[Section]:
    """Pictures of examples are shared out evenly."""
    left = PICTURES
    for at, report in enumerate(reports):
        made = section(report, left // (len(reports) - at))
        left -= sum(len(one.shown) for one in made.examples)
        yield made


# The store


def store_facts(reports: Sequence[SweepReport], inventory: pd.DataFrame) -> Iterator[tuple[str, str]]:
    counts = Counter(inventory["state"])
    yield "runs", ", ".join(f"{count:,} {state}" for state, count in counts.most_common()) or "none"
    planned = {
        run: state for report in reports for run, state in report.sweep.frame[["run", "state"]].itertuples(index=False)
    }
    done = sum(state == "done" for state in planned.values())
    yield "of sweeps", f"{done:,} of {len(planned):,} planned runs are finished, with every evaluation"
    hours = inventory["device_hours_spent"].sum()
    yield "device-hours", f"{hours:.3g}, as recorded by finished runs, lost attempts of theirs included"
    commits = Counter(inventory["commit"].dropna())
    yield (
        "commits",
        ", ".join(f"{commit[:10]} ({count:,})" for commit, count in commits.most_common(FEW)) or "none recorded",
    )


def mixed(inventory: pd.DataFrame) -> Iterator[str]:
    """What runs of the store differ in that is not meant to differ."""
    done = inventory[inventory["state"] == "done"]
    if count := int(done["dirty"].eq(True).sum()):
        yield f"{count:,} of {len(done):,} finished runs were made by code with changes that were not committed"
    for column, what in MIXED.items():
        values = Counter(done[column].dropna()) if column in done else Counter[Any]()
        if len(values) > 1:
            listed = ", ".join(f"{str(value)[:60]} ({count:,} runs)" for value, count in values.most_common(FEW))
            yield f"runs were made with {len(values)} {what}: {listed}"
    damaged = list(inventory.index[inventory["state"] == "damaged"])
    if damaged:
        yield f"{len(damaged)} runs cannot be read: {', '.join(damaged[:FEW])}"


# A sweep


def section(report: SweepReport, pictures: int) -> Section:
    sweep = report.sweep
    return Section(
        report=report,
        views=list(views(report)),
        missing=missing(sweep),
        figure=image(report.figure()),
        caption=report.caption(),
        papers=paper(report.papers),
        examples=list(examples(report, pictures)),
        data={"cells": cell_data(sweep), "curves": curve_data(report), "costs": cost_data(report)},
    )


def views(report: SweepReport) -> Iterator[View]:
    """What tables show, and the splits on which choices are made."""
    yield View("reported splits", report.tables)
    sweep = report.sweep
    validation = [split for split in sweep.splits if split in sweep.validation.values()]
    if validation and not {split for _, split in sweep.shown} & set(validation):
        other = report.of(splits=validation)
        yield View("validation", other.tables)
