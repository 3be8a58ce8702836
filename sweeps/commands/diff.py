"""Shows in which setting, checkpoint or data set a run differs from another run, or from the nearest finished run,
and so why it is trained again. A run is named by the beginning of its id."""

from __future__ import annotations

import argparse

from sweeps.commands.arguments import add_store

SUMMARY = "show in which settings a run differs from another"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the beginning of its id")
    parser.add_argument("other", metavar="RUN", nargs="?", help="default: the finished run that differs least")
    add_store(parser)


def run(given: argparse.Namespace) -> int:
    from sweeps.verbs.diff import diff

    return diff(given.run, given.other, given.runs)
