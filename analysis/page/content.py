"""The content of the report page as plain values: the store, each sweep and search, and all of their runs."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.figures.search_figures import caption as search_caption
from analysis.page.behind import run_data
from analysis.page.charts import cell_data, cost_data, curve_data
from analysis.page.examples import Examples, examples
from analysis.page.svg import image
from analysis.records.inventory import runs as all_runs
from analysis.records.manifest import read_manifest
from analysis.records.missing import missing
from analysis.records.sources import in_store
from analysis.reports.report import SweepReport, read_report
from analysis.reports.search_report import SearchReport
from analysis.statistics.claims import COLUMNS
from analysis.tables.layout import Table
from analysis.tables.sweep_tables import paper
from mmprompt.runs.files import StoreError
from mmprompt.runs.store import Store

PICTURES = 50  # most examples with a picture on the whole page
FEW = 8  # most ids, commits or devices that a warning names
MIXED = {  # a column of the inventory in which runs should not differ -> its plural in a warning
    "commit": "commits",
    "device": "devices",
    "threads": "numbers of threads",
    "training_version": "training versions",
    "backbone.checksum": "backbones",
}


@dataclass(frozen=True)
class View:
    """A sweep's tables on some of its splits."""

    name: str  # its label in the switch
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
    """A search of the page."""

    report: SearchReport
    figure: str  # SVG
    caption: str


@dataclass(frozen=True)
class Content:
    """The whole page."""

    store: str
    made: str  # date and time
    facts: dict[str, str]
    warnings: list[str]
    claims: pd.DataFrame  # the claims of all sweeps
    sections: list[Section]
    unfinished: list[tuple[str, str]]  # sweeps without a result yet, and why
    searches: list[Search]
    data: dict[str, Any]


def content(store: Store) -> Content:
    """Reads all sweeps and searches of the store. One that cannot be read becomes a warning; the others are shown."""
    warnings: list[str] = []
    all_reports = list(readable_reports(store, warnings))
    reports = [one for one in all_reports if isinstance(one, SweepReport) and one.is_begun]
    searches = [one for one in all_reports if isinstance(one, SearchReport) and one.is_begun]
    inventory = all_runs(store)
    claims = [pd.DataFrame(columns=COLUMNS), *(report.claims for report in reports)]
    conflicts = [text for report in reports for text in report.sweep.conflicts]
    return Content(
        store=str(store.root.absolute()),
        made=datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        facts=dict(store_facts(reports, inventory)),
        warnings=[*conflicts, *warnings, *inventory_warnings(inventory)],
        claims=pd.concat(claims, ignore_index=True),
        sections=list(sections(reports)),
        unfinished=[without_result(one) for one in all_reports if not one.is_begun],
        searches=[Search(one, image(one.figure()), search_caption(one.searched)) for one in searches],
        data=run_data(reports),
    )


def readable_reports(store: Store, warnings: list[str]) -> Iterator[SweepReport | SearchReport]:
    """Yields every sweep and search that can be read; appends a warning for each of the others."""
    for name in sorted(store.sweeps()):
        try:
            manifest = read_manifest(store, name)
            is_search = manifest["search"] is not None
            yield SearchReport(store, manifest, in_store) if is_search else read_report(store, manifest, in_store)
        except StoreError as error:
            warnings.append(str(error))


def without_result(report: SweepReport | SearchReport) -> tuple[str, str]:
    """The name of a sweep or a search without a result, and why it has none."""
    if isinstance(report, SearchReport):
        return report.name, "none of its trials has a result yet"
    return report.name, f"none of its runs is done yet; `{report.sweep.manifest['command']}`"


def sections(reports: Sequence[SweepReport]) -> Iterator[Section]:
    """Yields a section per report; the pictures of examples are distributed evenly."""
    remaining = PICTURES
    for at, report in enumerate(reports):
        made = section(report, remaining // (len(reports) - at))
        remaining -= sum(len(one.shown) for one in made.examples)
        yield made


# The store


def store_facts(reports: Sequence[SweepReport], inventory: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yields name and text of each fact about the store. `inventory`: a row per run (`analysis.runs`)."""
    counts = Counter(inventory["state"])
    yield "runs", ", ".join(f"{count:,} {state}" for state, count in counts.most_common()) or "none"
    planned = {
        run: state for report in reports for run, state in report.sweep.frame[["run", "state"]].itertuples(index=False)
    }
    done = sum(state == "done" for state in planned.values())
    yield "of sweeps", f"{done:,} of {len(planned):,} planned runs are finished, with every evaluation"
    hours = inventory["device_hours_spent"].sum()
    yield "device-hours", f"{hours:.3g}, as recorded by finished runs, including their interrupted attempts"
    commits = Counter(inventory["commit"].dropna())
    yield (
        "commits",
        ", ".join(f"{commit[:10]} ({count:,})" for commit, count in commits.most_common(FEW)) or "none recorded",
    )


def inventory_warnings(inventory: pd.DataFrame) -> Iterator[str]:
    """Yields warnings about properties in which runs should not differ, uncommitted changes, and damaged runs."""
    done = inventory[inventory["state"] == "done"]
    if count := int(done["dirty"].eq(True).sum()):
        yield f"{count:,} of {len(done):,} finished runs were made by code with changes that were not committed"
    for column, plural in MIXED.items():
        values = Counter(done[column].dropna()) if column in done else Counter[Any]()
        if len(values) > 1:
            listed = ", ".join(f"{str(value)[:60]} ({count:,} runs)" for value, count in values.most_common(FEW))
            yield f"runs were made with {len(values)} {plural}: {listed}"
    damaged = list(inventory.index[inventory["state"] == "damaged"])
    if damaged:
        yield f"{len(damaged)} runs cannot be read: {', '.join(damaged[:FEW])}"


# A sweep


def section(report: SweepReport, pictures: int) -> Section:
    """The section of a sweep. `pictures`: the most examples with a picture."""
    sweep = report.sweep
    return Section(
        report=report,
        views=list(views(report)),
        missing=missing(sweep),
        figure=image(report.figure()),
        caption=report.caption(),
        papers=paper(report.paper_parts),
        examples=list(examples(report, pictures)),
        data={"cells": cell_data(sweep), "curves": curve_data(report), "costs": cost_data(report)},
    )


def views(report: SweepReport) -> Iterator[View]:
    """Yields the tables on the reported splits, and on the validation splits if these are not among them."""
    yield View("reported splits", report.tables)
    sweep = report.sweep
    validation = [split for split in sweep.splits if split in sweep.validation.values()]
    if validation and not {split for _, split in sweep.shown} & set(validation):
        other = report.with_manifest(splits=validation)
        yield View("validation", other.tables)
