"""Prints the output of a run's job, and why its attempt ended. A run is named by the beginning of its id."""

from __future__ import annotations

import argparse

from sweeps.commands.arguments import add_store, positive

SUMMARY = "print the output of a run's job"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the beginning of its id")
    parser.add_argument("-f", "--follow", action="store_true", help="go on while the run is queued or running")
    parser.add_argument(
        "--attempt", metavar="N", type=positive, help="the attempt with this number; default: the newest"
    )
    add_store(parser)


def run(given: argparse.Namespace) -> int:
    from sweeps.verbs.logs import logs

    return logs(given.run, given.runs, given.follow, given.attempt)
