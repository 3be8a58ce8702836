"""Tries your cluster settings: it queries SLURM on this machine, then submits a probe job, of five minutes at most,
with exactly these settings. Each fault comes with the line for conf/cluster/mine.yaml that mends it.
cluster=local: the same checks in a process on this machine."""

from __future__ import annotations

import argparse

SUMMARY = "try your cluster settings; for each fault, show the line that fixes it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="settings to try, see below")


def run(given: argparse.Namespace) -> int:
    from sweeps.verbs.doctor import doctor

    return doctor(given.overrides)
