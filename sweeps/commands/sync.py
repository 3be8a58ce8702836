"""Sends the W&B records of the store, or of the named sweeps, to the server that `wandb login`, or WANDB_BASE_URL
and WANDB_API_KEY, name. No record is sent twice, and a record that an attempt is still writing is left for
later; if it is interrupted, the same command continues. The exit code is 1 if the server cannot be reached, or
did not accept a record."""

from __future__ import annotations

import argparse

from sweeps.commands.arguments import add_store

SUMMARY = "send the W&B records that the server does not have"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help="sweeps that were launched; none: the whole store")
    add_store(parser)


def run(given: argparse.Namespace) -> int:
    from sweeps.verbs.sync import sync

    return sync(given.names, given.runs)
