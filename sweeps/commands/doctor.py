"""Tries your cluster settings: asks SLURM on this machine, then sends a probe job of five minutes at most with
exactly these settings. Each thing that is wrong comes with the line for conf/cluster/mine.yaml.
cluster=local: the same checks in a process here."""

from __future__ import annotations

import argparse

SUMMARY = "find out what a new cluster needs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="settings to try, see below")


def run(given: argparse.Namespace) -> int:
    from sweeps.verbs.doctor import doctor

    return doctor(given.overrides)
