"""Shows a row for each run: how it differs from the others, state, job, node, attempt, step, score, time. Then the
failures by cause, each with the command to type next. Without a name it shows the newest sweep that is not done,
and a line for each other sweep. On a terminal, rows of done and waiting runs that do not fit are replaced by
counts; elsewhere, and with --json, all are shown. The exit code is 1 if a run has stopped: it failed, or it is
to do and has a cause."""

from __future__ import annotations

import argparse

from sweeps.commands.arguments import add_json, add_store

SUMMARY = "show how far sweeps are, and what went wrong"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help="sweeps that were launched")
    parser.add_argument("--watch", action="store_true", help="repeat until all are done, or Ctrl-C")
    add_json(parser, "for programs: one JSON document")
    add_store(parser)


def run(given: argparse.Namespace) -> int:
    from sweeps.verbs.status import status

    return status(given.names, given.runs, given.watch, given.json)
