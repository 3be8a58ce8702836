"""Measures what the rows of a sweep take, on one finished run of each: seconds per 100 answers and per update of
training, round by round in turns on one device, and peak memory, each in a process of its own; with ratios to the
baseline. Nothing is trained or changed; the result is STORE/costs/NAME/N.json, which the tables show. Measure on a
machine that does nothing else: what it does besides is recorded. On local processes it waits and prints the
result; on SLURM it submits one job and returns, with --wait it follows. The exit code is 1 if a row has no finished
run: it is named, and the others are measured."""

from __future__ import annotations

import argparse

from sweeps.commands.arguments import UsageError, add_words, names_in, overrides_in, positive, sweeps

SUMMARY = "what the rows of a sweep take, side by side: seconds, memory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_words(parser, "a file of conf/sweep/; and changes to it, see below", "NAME [KEY=VALUE ...]")
    parser.add_argument("--rounds", metavar="N", type=positive, default=7, help="that count (%(default)s)")
    parser.add_argument("--wait", action="store_true", help="on SLURM: follow the job to its end")


def run(given: argparse.Namespace) -> int:
    names = names_in(given.words, "sweep", sweeps())
    if len(names) > 1:
        raise UsageError(f"one sweep at a time is measured; {' '.join(names)} came")
    from sweeps.verbs.measure import measure

    return measure(names[0], overrides_in(given.words), given.rounds, given.wait)
