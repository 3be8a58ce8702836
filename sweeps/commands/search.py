"""Begins a search, or continues it: workers make one trial after another, on this machine or as SLURM jobs. When the
budget is spent, the best trials are trained on fresh seeds beside the default. The same command again continues,
or says that the search is over. `search plan NAME` says what it would do and what that costs, and changes
nothing; `search promote NAME` writes the confirmed best into conf/tuned/. On SLURM it submits the workers and
returns; with --wait it follows them. The exit code is 1 if trials failed or something is not done."""

from __future__ import annotations

import argparse

from sweeps.commands.arguments import (
    UsageError,
    add_limit,
    add_retry,
    add_words,
    cause,
    names_in,
    overrides_in,
    searches,
)

SUMMARY = "look for the best settings, trial by trial, and confirm them on fresh seeds"
ACTIONS = ("plan", "promote")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    overrides = "overrides for its runs, or for the search itself (budget.trials=20), see below"
    add_words(parser, f"a search (a file of conf/search/), and {overrides}", "[plan|promote] NAME [KEY=VALUE ...]")
    parser.add_argument(
        "--as", dest="called", metavar="NAME", help="the name of the study; default: that of the search"
    )
    parser.add_argument(
        "--wait", action="store_true", help="on SLURM: follow the workers to the end, and submit lost ones again"
    )
    add_limit(parser, "make at most N new trials now")
    add_retry(parser, "also trials that failed too often; with a cause: only trials that failed so")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="propose each trial again, from what was known then, and compare; trains nothing",
    )
    journal = "copy the trials into Optuna's storage: a journal file for optuna-dashboard, or a URL"
    parser.add_argument("--journal", metavar="FILE", help=journal)
    parser.add_argument(
        "--force",
        action="store_true",
        help="promote settings that fresh seeds do not show to be better than the default",
    )


def run(given: argparse.Namespace) -> int:
    words = names_in(given.words, "search", searches())
    action = next((word for word in words if word in ACTIONS), None)
    names = [word for word in words if word != action]
    if len(names) != 1:
        wanted = f"which search? there are {', '.join(searches())}"
        raise UsageError(f"one search at a time; {' '.join(names)} came" if names else wanted)
    overrides, retry = overrides_in(given.words, given.retry), cause(given.retry)
    from sweeps.verbs.search import search

    return search(
        names[0],
        overrides,
        action,
        called=given.called,
        wait=given.wait,
        limit=given.limit,
        retry=retry,
        verify=given.verify,
        journal=given.journal,
        force=given.force,
    )
