"""Executes the runs and evaluations of sweeps that are not done yet. The same command again runs nothing twice;
after a change of a value only the changed runs are new; an interrupted sweep resumes. Several sweeps are one
launch, and runs that they share are executed once. Settings and code are frozen: edits made while jobs queue do
not affect them. On local processes it waits, and Ctrl-C stops them. On SLURM it asks for confirmation (YES=1: it
does not), submits and returns; with --wait it follows the jobs, and submits again what was killed. The exit code
is 1 if a run failed. Divergence is not a failure: it is an outcome, and would happen again."""

from __future__ import annotations

import argparse

from mmprompt.runs.failures import RETRIED
from sweeps.commands.arguments import add_json, add_limit, add_retry, add_words, cause, names_in, overrides_in, sweeps

SUMMARY = "train and evaluate the runs of sweeps that are not done yet"
WORDS = "sweeps (files of conf/sweep/), which make one launch, and overrides for all of them, see below"
RETRY = f"also runs that diverged, failed too often or may be lost; with one of {', '.join(RETRIED)}: only runs that ended so"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_words(parser, WORDS)
    add_retry(parser, RETRY)
    add_limit(parser, "submit only the first N of the runs to do")
    parser.add_argument(
        "--wait", action="store_true", help="on SLURM: follow the jobs to their end, and submit killed runs again"
    )
    add_json(parser, "for programs: one JSON document at the end, as from `status --json`; messages go to stderr")


def run(given: argparse.Namespace) -> int:
    names, overrides = names_in(given.words, "sweep", sweeps()), overrides_in(given.words, given.retry)
    retry = cause(given.retry)
    from sweeps.verbs.launch import launch

    return launch(names, overrides, given.wait, retry, given.limit, given.json)
