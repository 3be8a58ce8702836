"""Says what could be freed: leftovers of killed processes, checkpoints of finished runs, old code and logs; then
asks, and frees it (YES=1 skips the question). Results, their weights and records stay, and whatever a job may
still need."""

from __future__ import annotations

import argparse

from sweeps.commands.arguments import add_store, positive

SUMMARY = "free what nobody needs any more"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    unused = "logs and code not used for so many days (%(default)s)"
    parser.add_argument("--days", metavar="N", type=positive, default=30, help=unused)
    cached = "also what frozen backbones computed of examples; it is computed again when needed"
    parser.add_argument("--cache", action="store_true", help=cached)
    add_store(parser)


def run(given: argparse.Namespace) -> int:
    from sweeps.verbs.clean import clean

    return clean(given.runs, given.days, given.cache)
