"""Says what `launch` would do: which runs are done, failed, queued or to do, how many jobs it would submit, what
they cost, whether the disk has room, and what sbatch would be asked for. It changes nothing."""

from __future__ import annotations

import argparse

from sweeps.commands.arguments import add_json, add_limit, add_retry, add_words, cause, names_in, overrides_in, sweeps
from sweeps.commands.launch import RETRY, WORDS

SUMMARY = "say what a launch would do, and what it costs; changes nothing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_words(parser, WORDS)
    add_retry(parser, RETRY)
    add_limit(parser, "submit only the first N of the runs to do")
    add_json(parser, "for programs: one JSON document")


def run(given: argparse.Namespace) -> int:
    names, overrides = names_in(given.words, "sweep", sweeps()), overrides_in(given.words, given.retry)
    retry = cause(given.retry)
    from sweeps.verbs.plan import plan

    return plan(names, overrides, retry, given.limit, given.json)
