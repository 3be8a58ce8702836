"""The analysis of finished runs: it reads the store and makes statistics, tables and figures of it.

It imports neither torch nor Hydra nor `sweeps`.

For notebooks and scripts:

    from analysis import diff, load, published, runs, study

    load("length")      a sweep: its tables, figure, claims, runs (`analysis.reports.results.Results`)
    study("prompt")     a search (`analysis.reports.search_report.SearchReport`)
    runs()              every run of the store, a row each
    diff("3f2a", "91b") the settings in which two runs differ
    published()         the paper's own values

Each of these is imported when it is first used, so `import analysis` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.paper_values import published_values as published
    from analysis.records.inventory import diff, runs
    from analysis.reports.results import load, study

__all__ = ["diff", "load", "published", "runs", "study"]

_PLACES = {
    "load": ("analysis.reports.results", "load"),
    "study": ("analysis.reports.results", "study"),
    "runs": ("analysis.records.inventory", "runs"),
    "diff": ("analysis.records.inventory", "diff"),
    "published": ("analysis.paper_values", "published_values"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'analysis' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)
