"""Lists what can be freed: leftovers of killed processes, checkpoints of finished runs, old code and logs. Then it
asks for confirmation, and frees it (YES=1 skips the question). Results, their weights and records stay, and so
does everything that a job may still need."""

from __future__ import annotations

import argparse

from sweeps.commands.arguments import add_store, positive

SUMMARY = "free disk space that is no longer needed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    unused = "free logs and code that were not used for N days (%(default)s)"
    parser.add_argument("--days", metavar="N", type=positive, default=30, help=unused)
    cached = "also free cached features, indices of files and decoded images; they are made again when needed"
    parser.add_argument("--cache", action="store_true", help=cached)
    add_store(parser)


def run(given: argparse.Namespace) -> int:
    from sweeps.verbs.clean import clean

    return clean(given.runs, given.days, given.cache)
