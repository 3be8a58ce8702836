"""Ids of SLURM's jobs, as its programs write them: `300` of one alone, `300_4` of a task of an array, `300_[0-2,5%4]` of some."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

TASKS = re.compile(r"(?P<first>\d{1,9})(-(?P<last>\d{1,9})(:(?P<step>[1-9]\d{0,8}))?)?", re.ASCII)
AT_ONCE = 5000  # ids in one argument, which may have 128 KiB
LENGTH = 16 << 10  # characters of all arguments of a command, a single one aside


def array_of(job: str) -> str:
    return job.partition("_")[0]


def each(identity: str, most: int) -> Iterator[tuple[str, int]]:
    """The jobs that an id stands for, each with its task, of an array of `most`; one that is alone is as task 0."""
    array, _, tasks = identity.partition("_")
    if not tasks:
        yield array, 0
    for task in numbers(tasks.strip("[]"), most):
        yield f"{array}_{task}", task


def numbers(tasks: str, most: int) -> Iterator[int]:
    """`0-2,5,10-20:5%4` as numbers, those below `most`; what is none, such as `...` where a list was cut, is left out."""
    for part in tasks.partition("%")[0].split(","):
        if found := TASKS.fullmatch(part):
            first, last, step = int(found["first"]), int(found["last"] or found["first"]), int(found["step"] or 1)
            yield from range(first, min(last + 1, most), step)


def lists(ids: Iterable[str]) -> Iterator[str]:
    """Each id in one of these, as SLURM's commands take them: with commas, and not longer than an argument may be."""
    left = sorted(set(ids))
    while left:
        yield ",".join(left[:AT_ONCE])
        left = left[AT_ONCE:]


def commands(ids: Sequence[str]) -> Iterator[list[str]]:
    """The arguments of as many commands as it takes: some hundred ids each, fewer where lists of tasks are long."""
    some: list[str] = []
    length = 0
    for identity in ids:
        if some and length + len(identity) > LENGTH:
            yield some
            some, length = [], 0
        some.append(identity)
        length += len(identity) + 1
    if some:
        yield some


def ranges(jobs: Iterable[str]) -> list[str]:
    """SLURM's ids, tasks of one array together: 300_[0-3,7]. SLURM's programs take them so."""
    arrays: dict[str, list[int]] = {}
    for job in jobs:
        array, _, task = job.partition("_")
        arrays.setdefault(array, []).extend([int(task)] if task else [])
    return [f"{array}_[{_spans(sorted(tasks))}]" if tasks else array for array, tasks in arrays.items()]


def _spans(numbers: Sequence[int]) -> str:
    groups = itertools.groupby(enumerate(numbers), key=lambda one: one[1] - one[0])
    spans = [[number for _, number in group] for _, group in groups]
    return ",".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)
