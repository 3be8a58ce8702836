"""Arguments that several commands share, and the checks of them that need no slow imports."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mmprompt.runs.failures import RETRIED

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds conf/
OVERRIDES = """
overrides, in Hydra's grammar; several values make an axis, one value fixes it:
  seed=1,2,3,4,5                other values of an axis of the sweep
  'task=glob(micro_*)'          every file of conf/task that matches
  'optim.lr=0.05,0.1'           one more axis
  prompt.depth=encoder          a setting for every run
  cluster=local                 run on this machine; cluster=slurm: on SLURM; default: on SLURM if sinfo answers
  cluster.max_parallel=2        jobs at once; cluster.runs_per_job=4: runs in a SLURM job
  paths.runs=/scratch/me/runs   the store; also MMPROMPT_RUNS; default: runs/ in the clone
`settings WORD` lists the keys that contain a word, with what they mean
"""
NAME = "NAME ... [KEY=VALUE ...]"


class UsageError(ValueError):
    """A command line cannot be used. The message is one sentence."""


def sweeps() -> list[str]:
    """The names of the sweeps in conf/sweep/."""
    return sorted(file.stem for file in (ROOT / "conf" / "sweep").glob("*.yaml"))


def searches() -> list[str]:
    """The names of the searches in conf/search/."""
    return sorted(file.stem for file in (ROOT / "conf" / "search").glob("[!_]*.yaml"))


def epilog(command: str) -> str | None:
    """The text below the options in the help of a command that composes configurations; None for the other commands."""
    if command not in ("plan", "launch", "search", "measure", "doctor"):
        return None
    names = f"searches: {', '.join(searches())}" if command == "search" else f"sweeps: {', '.join(sweeps())}"
    return f"{names}\n{OVERRIDES}"


def add_words(parser: argparse.ArgumentParser, what: str, metavar: str = NAME) -> None:
    """Adds an argument for names and overrides in any order; `names_in` and `overrides_in` separate them."""
    parser.add_argument("words", metavar=metavar, nargs="*", help=what)


def add_retry(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--retry", metavar="CAUSE", nargs="?", const="all", help=what)


def add_limit(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--limit", metavar="N", type=positive, help=what)


def add_store(parser: argparse.ArgumentParser) -> None:
    default = os.environ.get("MMPROMPT_RUNS") or str(ROOT / "runs")
    parser.add_argument(
        "--runs", type=folder, default=default, help="the store; default: MMPROMPT_RUNS, or runs/ in the clone"
    )


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=what)


def is_override(word: str) -> bool:
    return "=" in word or word.startswith("~")


def names_in(words: Sequence[str], what: str, existing: Sequence[str]) -> list[str]:
    """The names among the words. Raises UsageError if there is none. `existing`: the names that exist, for the message."""
    names = [word for word in words if not is_override(word)]
    if not names:
        raise UsageError(f"which {what}? there are {', '.join(existing)}")
    return names


def overrides_in(words: Sequence[str], retry: str | None = None) -> list[str]:
    """The overrides among the words. In `--retry KEY=VALUE`, KEY=VALUE is no cause and counts as an override as well."""
    first = [retry] if retry is not None and "=" in retry else []
    return first + [word for word in words if is_override(word)]


def cause(retry: str | None) -> str | None:
    """The cause that --retry names, or "all"; None without --retry. Raises UsageError for a word that is no cause."""
    if retry is not None and "=" in retry:
        return "all"
    if retry not in (None, "all", *RETRIED):
        raise UsageError(f"--retry {retry}: no such cause; wanted one of {', '.join(RETRIED)}")
    return retry


def positive(text: str) -> int:
    """Reads a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def folder(text: str) -> Path:
    """The same as `mmprompt.runs.deployment.store_folder`, without the imports of that module."""
    return Path(os.path.expanduser(text)).absolute()
