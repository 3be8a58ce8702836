"""`make bench`, or `python tests/bench [SUBJECT ...]`: every benchmark, or those named, as Markdown on the standard output."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import platform
import sys
from pathlib import Path

import torch

from mmprompt.training.frozen_features import processor

SUBJECTS = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in ("__main__", "measure"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    about = f"of {', '.join(SUBJECTS)}; none: all. submit=20: with 20 runs, to try it"
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT[=N]", help=about)
    chosen = [word.partition("=") for word in parser.parse_args().subjects or SUBJECTS]
    if unknown := {subject for subject, _, _ in chosen} - set(SUBJECTS):
        parser.error(f"there is no subject {unknown.pop()}; there are {', '.join(SUBJECTS)}")
    cores = len(os.sched_getaffinity(0))
    print(f"{processor()}, {cores} cores, torch {torch.__version__}, Python {platform.python_version()}\n")
    for subject, _, size in chosen:
        with contextlib.redirect_stdout(sys.stderr):  # what the measured says
            for section in importlib.import_module(subject).sections(*[int(size)] if size else []):
                print(section.markdown(), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    sys.exit(main())
