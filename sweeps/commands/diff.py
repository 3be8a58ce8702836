"""Which setting, checkpoint or data set of a run differs from another run, or from the nearest finished one: why
it runs again. A run is named by the beginning of its id."""

from __future__ import annotations

import argparse

from sweeps.commands.arguments import add_store

SUMMARY = "why a run is not the same as another"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the beginning of its id")
    parser.add_argument("other", metavar="RUN", nargs="?", help="default: the finished run that differs least")
    add_store(parser)


def run(given: argparse.Namespace) -> int:
    from sweeps.verbs.diff import diff

    return diff(given.run, given.other, given.runs)
