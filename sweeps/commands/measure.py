"""Measures the cost of the rows of a sweep, on one finished run of each: seconds per 100 answers and per update of
training, in rounds, with the rows in turn on one device; and peak memory, each in a separate process; with
ratios to the baseline. It trains and changes nothing; the result is STORE/costs/NAME/N.json, which the tables
show. Measure on a machine that does nothing else; its load is recorded. On local processes it waits and prints
the result; on SLURM it submits one job and returns, and with --wait it follows the job. The exit code is 1 if a
row has no finished run: that row is named, and the others are measured."""

from __future__ import annotations

import argparse

from sweeps.commands.arguments import UsageError, add_words, names_in, overrides_in, positive, sweeps

SUMMARY = "measure the rows of a sweep side by side: seconds, memory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_words(parser, "a sweep (a file of conf/sweep/), and overrides for it, see below", "NAME [KEY=VALUE ...]")
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=positive,
        default=7,
        help="how many rounds to count, after one round to warm up (%(default)s)",
    )
    parser.add_argument("--wait", action="store_true", help="on SLURM: follow the job to its end")


def run(given: argparse.Namespace) -> int:
    names = names_in(given.words, "sweep", sweeps())
    if len(names) > 1:
        raise UsageError(f"one sweep at a time is measured; {' '.join(names)} came")
    from sweeps.verbs.measure import measure

    return measure(names[0], overrides_in(given.words), given.rounds, given.wait)
