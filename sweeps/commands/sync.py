"""Sends the W&B records of the store, or of the sweeps named, to the server that `wandb login` or WANDB_BASE_URL
and WANDB_API_KEY name. What is there is not sent again, what an attempt is still writing waits for its end;
interrupted, the same command goes on. The exit code is 1 if the server cannot be had, or did not take a
record."""

from __future__ import annotations

import argparse

from sweeps.commands.arguments import add_store

SUMMARY = "send the records that the W&B server has not"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help="sweeps that were launched; none: the whole store")
    add_store(parser)


def run(given: argparse.Namespace) -> int:
    from sweeps.verbs.sync import sync

    return sync(given.names, given.runs)
