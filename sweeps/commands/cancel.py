"""Stops runs, chosen by the beginning of their ids, by sweep, or by state. It touches no other run, and no other
user's jobs. A run that was at work keeps its checkpoint, and the next launch resumes it from there. It asks for
confirmation once; YES=1 skips the question."""

from __future__ import annotations

import argparse

from sweeps.commands.arguments import add_store

SUMMARY = "stop runs or sweeps"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="RUN|SWEEP", nargs="*", help="the beginning of a run's id, or a sweep")
    states = "only the runs that are in this state; without names: all runs of the store in this state"
    parser.add_argument("--state", choices=("queued", "running"), help=states)
    add_store(parser)


def run(given: argparse.Namespace) -> int:
    from sweeps.verbs.cancel import cancel

    return cancel(given.what, given.runs, given.state)
