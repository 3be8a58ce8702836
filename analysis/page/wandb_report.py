"""The upload of a store's analysis as one run of its W&B project: the report page, tables, figures, and the files behind them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from analysis.figures.figure_formats import DEFAULT_FORMATS
from analysis.page.render import NAME, write_page
from analysis.records.manifest import read_manifest
from analysis.records.server import place_of
from analysis.records.sources import in_store
from analysis.reports.report import read_report, write
from analysis.reports.search_report import SearchReport, report_search
from analysis.tables.html import html
from mmprompt.runs.files import StoreError
from mmprompt.runs.store import Store
from mmprompt.runs.wandb_server import Shown, publish


def report_to_wandb(store: Store, project: str | None) -> str:
    """Sends all sweeps and searches that have a result; returns a line with the address of the W&B run.

    Raises StoreError if there is nothing to send or a sweep cannot be read, and ServerError if no server answers.
    """
    names = sorted(store.sweeps())
    with tempfile.TemporaryDirectory(prefix="mmprompt-report-") as scratch:
        out = Path(scratch)
        pages: dict[str, str] = {}
        sent = []
        for name in names:
            manifest = read_manifest(store, name)
            if manifest["search"] is not None:
                search = SearchReport(store, manifest, in_store)
                if search.is_begun:
                    report_search(search, out, "text", DEFAULT_FORMATS)
                    pages[f"{name}/tables"] = html(search.tables, search.notes)
                    sent.append(manifest)
                continue
            report = read_report(store, manifest, in_store)
            if report.is_begun:
                write(report, out, "text", DEFAULT_FORMATS)
                pages[f"{name}/tables"] = html(report.tables, report.notes)
                sent.append(manifest)
        if not sent:
            raise StoreError(f"no sweep in {store.root} has a result yet, so there is nothing to send")
        write_page(store, out)
        entity, name = place_of(sent[0], project)
        files = sorted(file for file in out.rglob("*") if file.is_file())
        images = {f"{file.stem}/figure": file for file in sorted((out / "figures").glob("*.png"))}
        pages["report"] = (out / NAME).read_text(encoding="utf-8")
        shown = Shown(pages, images, files, out)
        config = {"sweeps": [manifest["sweep"] for manifest in sent], "store": str(store.root.absolute())}
        return f"W&B      {publish(shown, 'report', config, name, entity)}"
