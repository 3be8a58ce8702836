"""Stops runs: by the beginning of their ids, by sweep, or those of a state. Nothing else is touched, and nobody
else's jobs ever. A run that was at work keeps its checkpoint: the next launch goes on from there. It asks
once; YES=1 skips the question."""

from __future__ import annotations

import argparse

from sweeps.commands.arguments import add_store

SUMMARY = "stop runs or sweeps"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="RUN|SWEEP", nargs="*", help="the beginning of a run's id, or a sweep")
    states = "of these only what is in this state; alone: of the store"
    parser.add_argument("--state", choices=("queued", "running"), help=states)
    add_store(parser)


def run(given: argparse.Namespace) -> int:
    from sweeps.verbs.cancel import cancel

    return cancel(given.what, given.runs, given.state)
