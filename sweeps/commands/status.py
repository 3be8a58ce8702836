"""A row for each run: what tells it from the others, state, job, node, attempt, step, score, time. Then the
failures, by cause, with the command to type next. Without a name: the newest sweep that is not done, and a
line for each other one. On a terminal runs that are done or wait are counted where their rows have no place;
elsewhere, and with --json, all are there. The exit code is 1 if a run has stopped: failed, or to do with a
cause."""

from __future__ import annotations

import argparse

from sweeps.commands.arguments import add_json, add_store

SUMMARY = "how far it is, and what went wrong"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help="sweeps that were launched")
    parser.add_argument("--watch", action="store_true", help="again and again, until all are done or Ctrl-C")
    add_json(parser, "for programs: one JSON document")
    add_store(parser)


def run(given: argparse.Namespace) -> int:
    from sweeps.verbs.status import status

    return status(given.names, given.runs, given.watch, given.json)
