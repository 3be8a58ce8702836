"""Lists the keys of the configuration: the default of each, the values that it takes, and what it means. Words choose
keys that contain them: `settings prompt cluster.time`. Config groups, such as task, are listed with their files."""

from __future__ import annotations

import argparse

SUMMARY = "list every key of the configuration, with its meaning"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", metavar="WORD", nargs="*", help="a part of a key; none: all keys")
    parser.add_argument("--markdown", action="store_true", help="as the page docs/settings.md, always with all keys")


def run(given: argparse.Namespace) -> int:
    from sweeps.verbs.settings import settings

    return settings(given.words, given.markdown)
