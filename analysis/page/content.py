"""What the report page shows, as plain values: of the store, of each sweep and search, and of every run that they have."""

from __future__ import annotations

import base64
import datetime
import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import matplotlib
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from analysis import figures, names, style
from analysis.captions import caption
from analysis.claims import COLUMNS
from analysis.figures import keys_of
from analysis.frame import Sweep
from analysis.inventory import runs as all_runs
from analysis.layout import Table
from analysis.manifest import read_manifest, sweep_names
from analysis.missing import missing
from analysis.paired import Paired, paired
from analysis.report import Report, read_report
from analysis.run import Run
from analysis.samples import groups, plain
from analysis.search_figures import caption as search_caption
from analysis.search_report import SearchReport
from analysis.sources import in_store
from analysis.statistics import WHILE_TRAINING
from analysis.tables import paper
from mmprompt.files import StoreError
from mmprompt.identity import setting
from mmprompt.run import Store

READABLE = " <>='/:;,.()-+"  # of an address within double quotes, what is left as it is
PICTURES = 50  # examples with a picture, on the whole page
EXAMPLES = 5  # of one task of a sweep, at most
STEPS = 200  # of a curve, at most: of a longer one every so many are shown, and the page says so
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
class Examples:
    """Where two rows differ most on a task."""

    pair: Paired
    shown: list[dict[str, Any]]  # number, picture, question, answer, box, scores


@dataclass(frozen=True)
class Section:
    """A sweep of the page."""

    report: Report
    views: list[View]
    missing: pd.DataFrame
    figure: str  # the address of an image
    caption: str
    papers: list[Table]
    examples: list[Examples]
    data: dict[str, Any]  # for the script


@dataclass(frozen=True)
class Search:
    report: SearchReport
    figure: str
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
    reports, searches, unfinished = list[Report](), list[Search](), list[tuple[str, str]]()
    for name in sweep_names(store):
        try:
            manifest = read_manifest(store, name)
            if manifest["search"] is not None:
                found = SearchReport(store, manifest, in_store)
                if found.is_begun:
                    searches.append(Search(found, address(found.figure()), search_caption(found.searched)))
                else:
                    unfinished.append((name, "none of its trials has come to anything yet"))
                continue
            report = read_report(store, manifest, in_store)
        except StoreError as error:
            warnings.append(str(error))
            continue
        if report.is_begun:
            reports.append(report)
        else:
            unfinished.append((name, f"none of its runs is done yet; `{manifest['command']}`"))
    left = PICTURES
    sections = []
    for at, report in enumerate(reports):
        share = left // max(1, len(reports) - at)
        sections.append(section(report, share))
        left -= sum(len(one.shown) for one in sections[-1].examples)
    inventory = all_runs(store)
    conflicts = [text for report in reports for text in report.sweep.conflicts]
    return Content(
        store=str(store.root.absolute()),
        made=datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        facts=dict(store_facts(reports, inventory)),
        warnings=[*conflicts, *warnings, *mixed(inventory)],
        claims=pd.concat([pd.DataFrame(columns=COLUMNS), *(report.claims for report in reports)], ignore_index=True),
        sections=sections,
        unfinished=unfinished,
        searches=searches,
        data=run_data(reports, inventory),
    )


# The store


def store_facts(reports: Sequence[Report], inventory: pd.DataFrame) -> Iterator[tuple[str, str]]:
    counts = Counter(inventory["state"])
    yield "runs", ", ".join(f"{count:,} {state}" for state, count in counts.most_common()) or "none"
    planned = {
        run: state for report in reports for run, state in report.sweep.frame[["run", "state"]].itertuples(index=False)
    }
    done = sum(state == "done" for state in planned.values())
    yield "of sweeps", f"{done:,} of {len(planned):,} planned runs are done and have all that is asked of them"
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
    if count := int((done["dirty"] == True).sum()):  # noqa: E712, NaN is neither
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


def section(report: Report, pictures: int) -> Section:
    sweep = report.sweep
    drawn = figures.draw(
        sweep,
        report.primary,
        report.curves,
        averages=report.averages,
        trends=report.trends,
        references=report.references,
    )
    said = caption(
        sweep,
        report.primary,
        report.curves,
        averages=report.averages,
        trends=report.trends,
        references=report.references,
    )
    return Section(
        report=report,
        views=list(views(report)),
        missing=missing(sweep),
        figure=address(drawn),
        caption=said,
        papers=paper(report.papers),
        examples=list(examples(report, pictures)),
        data={"cells": cell_data(sweep), "curves": curve_data(report), "costs": cost_data(report)},
    )


def views(report: Report) -> Iterator[View]:
    """What tables show, and the splits on which choices are made."""
    yield View("reported splits", report.tables)
    sweep = report.sweep
    validation = [split for split in sweep.splits if split in sweep.validation.values()]
    if validation and not {split for _, split in sweep.shown} & set(validation):
        other = report.of(splits=validation)
        yield View("validation", other.tables)


def address(figure: Figure) -> Markup:
    """An image of the page, as SVG, safe within double quotes. Its text is text, in the fonts of the reader: outlines would be four
    times as large."""
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        image = bytes(figures.printed(figure, "svg")).decode()
    return Markup(f"data:image/svg+xml,{quote(compact(image), safe=READABLE)}")


def compact(svg: str) -> str:
    """Without what nobody sees: coordinates to the hundredth of a point, no blanks between elements, no names that nothing refers
    to. What stands between tags stays as it is."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r" id=\"[a-zA-Z0-9.]+_\d+\"", "", svg)
    svg = re.sub(r"<[^>]*>", lambda tag: _short(tag[0]), svg)
    return re.sub(r"<g ?/>", "", re.sub(r">\s+<", "><", svg))


def _short(tag: str) -> str:
    tag = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", " ".join(tag.split()))
    tag = re.sub(r" transform=\"rotate\(-0 [^)]*\)\"", "", tag)
    tag = tag.replace(f"'{style.FONT}'", f"{style.FONT},Times,serif").replace(": ", ":").replace("; ", ";")
    return tag if "'" in tag else tag.replace('"', "'")


def cell_data(sweep: Sweep) -> dict[str, list[list[Any]]]:
    """By cell, in the words of `analysis trace`: run, seed and value of each of its runs; null where there is none."""
    found = {}
    for group in groups(sweep):
        rows = group.rows
        seeds = rows["seed"] if "seed" in rows else pd.Series(None, index=rows.index, dtype=object)
        found[group.words] = [
            [run, plain(seed), None if pd.isna(value) else float(value)]
            for run, seed, value in zip(rows["run"], seeds, rows["value"], strict=True)
        ]
    return found


def curve_data(report: Report) -> dict[str, Any] | None:
    """The score on validation while training, of each run; None where no run has one, and of a sweep that trains nothing."""
    if report.sweep.over is not None:
        return None
    rows, _ = report.steps
    if WHILE_TRAINING not in rows:
        return None
    rows = rows[rows[WHILE_TRAINING].notna()]
    sweep = report.sweep
    labels = [name for name in sweep.roles if name != sweep.over]
    about = sweep.named.drop_duplicates("run").set_index("run")
    looks = style.looks(keys_of(sweep, report.primary, None).names)
    lines = []
    for run, curve in rows.groupby("run", sort=False):
        row, last = about.loc[run], curve["step"].max()
        thin = -(-len(curve) // STEPS)
        curve = curve.iloc[(len(curve) - 1) % thin :: thin]  # the last is among them
        key = " ".join(str(row[name]) for name in labels)
        lines.append(
            {
                "run": run,
                "task": str(row["task"]),
                "label": ", ".join(names.value(name, plain(row[name])) for name in labels),
                "colour": looks[key].colour if key in looks else style.GREY,
                "seed": plain(row.get("seed")),
                "steps": [int(step) for step in curve["step"]],
                "scores": [round(float(value), 3) for value in curve[WHILE_TRAINING]],
                "epochs": _per_step(row["epochs"], last),
                "hours": _per_step(row["device_hours"], last),
                "thinned": thin > 1,
            }
        )
    return {"tasks": {task: names.task(task) for task in sweep.tasks}, "lines": lines} if lines else None


def _per_step(whole: Any, steps: int) -> float | None:
    return None if pd.isna(whole) or not steps else float(whole) / steps


def cost_data(report: Report) -> list[dict[str, Any]]:
    """Of each row and task its score, and what it takes: what runs record, and what was measured."""
    sweep = report.sweep
    if sweep.over is not None:
        return []
    labels = list(sweep.roles)
    looks = style.looks(keys_of(sweep, report.primary, None).names)
    shown = report.primary[
        [pair in sweep.shown for pair in zip(report.primary["task"], report.primary["split"], strict=True)]
    ]
    recorded = sweep.named.groupby([*labels, "task"], sort=False)[["trainable_parameters", "seconds"]].mean()
    measured = report.costs.frame
    found = []
    for row in shown.to_dict("records"):
        if not row["n"]:
            continue
        place = tuple(row[name] for name in [*labels, "task"])
        takes = {key: float(value) for key, value in recorded.loc[place].items() if not pd.isna(value)}
        own = measured[(measured[[*labels, "task"]] == list(place)).all(axis=1)] if len(measured) else measured
        takes |= dict(zip(own["quantity"], own["median"].astype(float), strict=True))
        key = " ".join(str(row[name]) for name in labels)
        found.append(
            {
                "task": names.task(row["task"]),
                "label": ", ".join(names.value(name, plain(row[name])) for name in labels),
                "colour": looks[key].colour if key in looks else style.GREY,
                "metric": names.metric(row["metric"]),
                "score": [float(row[key]) if not math.isnan(row[key]) else None for key in ("value", "lower", "upper")],
                "takes": takes,
            }
        )
    return found


def examples(report: Report, pictures: int) -> Iterator[Examples]:
    """The examples on which two rows differ most: those of the sweep's first claim, else the baseline and the last row."""
    sweep = report.sweep
    pair = _pair(sweep)
    if pair is None:
        return
    each = min(EXAMPLES, pictures // max(1, len(sweep.tasks)))
    for task in sweep.tasks if each else ():
        at = _last_value(sweep)
        try:
            found = paired(sweep, *pair, task, None, at)
        except StoreError:
            continue  # a row is missing there, or its scores are
        if found.asked is not None:
            yield Examples(found, [_example(found, example) for example in found.frame.head(each).index])


def _pair(sweep: Sweep) -> tuple[str, str] | None:
    labels = [name for name in sweep.roles if name != sweep.over]
    named = sweep.named.drop_duplicates(labels)
    rows = {" ".join(str(plain(value)) for value in row[labels]): row for _, row in named.iterrows()}
    baseline = next((name for name, row in rows.items() if row["baseline"]), None)
    for claim in sweep.manifest["claims"]:
        sides = [
            next((name for name, row in rows.items() if all(row[key] == value for key, value in side.items())), None)
            for side in (claim["row"], claim["than"])
            if side is not None
        ]
        if len(sides) == 2 and None not in sides:
            return str(sides[0]), str(sides[1])
    others = [name for name in rows if name != baseline]
    return (others[-1], baseline) if baseline is not None and others else None


def _last_value(sweep: Sweep) -> dict[str, Any]:
    """Of a sweep that follows rows over an axis, the middle one of its values."""
    if sweep.over is None:
        return {}
    values = sorted(sweep.frame[sweep.over].unique())
    return {sweep.over: plain(values[len(values) // 2])}


def _example(pair: Paired, example: int) -> dict[str, Any]:
    assert pair.asked is not None
    row: dict[str, Any] = pair.frame.loc[example].to_dict()  # type: ignore[assignment]
    buffer = io.BytesIO()
    Image.fromarray(pair.asked.images[example]).save(buffer, "JPEG", quality=90)
    return {
        "number": int(example),
        "picture": f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}",
        "side": pair.asked.images.shape[1],
        "box": pair.asked.boxes[example],
        "question": row["question"],
        "answer": pair.asked.answers[example],
        "scores": [float(row[name]) for name in pair.names],
    }


# Runs


def run_data(reports: Sequence[Report], inventory: pd.DataFrame) -> dict[str, Any]:
    """`common`: the settings that all runs of the page share. `runs`: by id, the rest, and how each was made."""
    points: dict[str, tuple[Report, Mapping[str, Any]]] = {}
    for report in reports:
        for point in report.sweep.manifest["points"]:
            points.setdefault(point["run"], (report, point))
    runs = {run: Run(report.store.run(run), point) for run, (report, point) in points.items()}
    settings = {}
    for name, run in runs.items():
        try:
            settings[name] = run.config
        except StoreError:
            settings[name] = {}  # a warning says why
    keys = dict.fromkeys(key for values in settings.values() for key in values)
    first = next((values for values in settings.values() if values), {})
    common = {
        key: first[key]
        for key in keys
        if key in first and all(not values or setting(values, key) == first[key] for values in settings.values())
    }
    return {
        "common": common,
        "runs": {name: _run(run, settings[name], common) for name, run in runs.items()},
        "sweeps": {name: report.name for name, (report, _) in points.items()},
    }


def _run(run: Run, settings: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    try:
        result, attempts = run.result, run.attempts
    except (StoreError, ValueError, OSError):
        return {"state": "damaged", "settings": {}, "metrics": {}, "attempts": []}
    return {
        "state": run.state,
        "settings": {key: value for key, value in settings.items() if key not in common},
        "metrics": run.metrics,
        "commit": run.commit,
        "dirty": run.dirty,
        "device": run.device,
        "weights": result.get("weights"),
        "record": None if result.get("wandb") is None else f"run/{run.id}/{result['wandb']}",
        "command": run.command,
        "attempts": [
            {
                "number": int(row["number"]),
                "work": row["work"],
                "host": row["host"],
                "began": "" if pd.isna(row["began"]) else row["began"].isoformat(sep=" "),
                "published": bool(row["published"]),
                "resumed_from": plain(row["resumed_from"]),
                "error": row["error"],
            }
            for row in attempts.to_dict("records")
        ],
    }
