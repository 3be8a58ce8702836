"""Parses and writes SLURM's job ids: `300` for a single job, `300_4` for a task of an array, `300_[0-2,5%4]` for several tasks."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

TASKS = re.compile(r"(?P<first>\d{1,9})(-(?P<last>\d{1,9})(:(?P<step>[1-9]\d{0,8}))?)?", re.ASCII)
AT_ONCE = 5000  # ids in one argument, which may have 128 KiB
LENGTH = 16 << 10  # characters of all arguments of a command; a single longer argument is allowed


def array_of(job: str) -> str:
    """Returns the id of the array that a task belongs to; a single job's own id."""
    return job.partition("_")[0]


def jobs_of(identity: str, most: int) -> Iterator[tuple[str, int]]:
    """Yields the id and the task number of each job that an id stands for. A single job counts as task 0.

    `most`: the number of jobs in the array; larger task numbers are left out.
    """
    array, _, tasks = identity.partition("_")
    if not tasks:
        yield array, 0
    for task in task_numbers(tasks.strip("[]"), most):
        yield f"{array}_{task}", task


def task_numbers(tasks: str, most: int) -> Iterator[int]:
    """Yields the task numbers below `most` in text like `0-2,5,10-20:5%4`. Other parts, such as the `...` of a list that SLURM cut,
    are left out."""
    for part in tasks.partition("%")[0].split(","):
        if span := TASKS.fullmatch(part):
            first, last, step = int(span["first"]), int(span["last"] or span["first"]), int(span["step"] or 1)
            yield from range(first, min(last + 1, most), step)


def comma_lists(ids: Iterable[str]) -> Iterator[str]:
    """Yields the ids as lists with commas, as SLURM's commands read them, none longer than an argument may be."""
    remaining = sorted(set(ids))
    while remaining:
        yield ",".join(remaining[:AT_ONCE])
        remaining = remaining[AT_ONCE:]


def argument_lists(ids: Sequence[str]) -> Iterator[list[str]]:
    """Yields the ids as arguments for several commands: some hundred ids each, fewer where the lists of tasks are long."""
    arguments: list[str] = []
    length = 0
    for identity in ids:
        if arguments and length + len(identity) > LENGTH:
            yield arguments
            arguments, length = [], 0
        arguments.append(identity)
        length += len(identity) + 1
    if arguments:
        yield arguments


def ranges(jobs: Iterable[str]) -> list[str]:
    """Returns the ids with the tasks of each array in one, such as 300_[0-3,7]. SLURM's programs accept such ids."""
    arrays: dict[str, list[int]] = {}
    for job in jobs:
        array, _, task = job.partition("_")
        arrays.setdefault(array, []).extend([int(task)] if task else [])
    return [f"{array}_[{_spans(sorted(tasks))}]" if tasks else array for array, tasks in arrays.items()]


def _spans(numbers: Sequence[int]) -> str:
    groups = itertools.groupby(enumerate(numbers), key=lambda indexed: indexed[1] - indexed[0])
    spans = [[number for _, number in group] for _, group in groups]
    return ",".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)
