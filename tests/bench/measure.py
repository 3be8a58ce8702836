"""Measurements: medians of interleaved rounds, as ratios to a baseline measured in the same run.

Each round takes every variant once, in an order that turns, so that a machine that slows down slows all of them alike.
The ratio of a variant is the median over rounds of (baseline / variant); wall seconds and CPU seconds are medians too.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Timing:
    wall: float  # seconds
    cpu: float  # seconds of this process and its ended children


@dataclass(frozen=True)
class Section:
    """One table: what was measured, and a row per variant; the first is the baseline."""

    title: str
    setting: str  # sizes, batch, threads: what one needs to measure it again
    rows: Mapping[str, list[Timing]]
    per: float = 1.0  # units of work in one measurement: seconds are shown per unit
    unit: str = ""
    parts: bool = False  # the rows are parts of the first
    by_wall: bool = False  # ratios of wall seconds: where it is waiting that is compared

    def markdown(self) -> str:
        baseline = next(iter(self.rows.values()))
        head = f"### {self.title}\n\n{self.setting}; {len(baseline)} rounds.\n\n"
        of = f" per {self.unit}" if self.unit else ""
        compared = "share" if self.parts else "times the first"
        by = "wall" if self.by_wall else "CPU"
        head += f"| | wall s{of} | CPU s{of} | {compared}, by {by} (least to most) |\n|---|--:|--:|--:|\n"
        lines = []
        for name, timings in self.rows.items():
            wall = statistics.median(t.wall for t in timings) / self.per
            cpu = statistics.median(t.cpu for t in timings) / self.per
            both = zip(baseline, timings, strict=True)
            pairs = [(b.wall, t.wall) if self.by_wall else (b.cpu, t.cpu) for b, t in both]
            ratios = sorted(t / b if self.parts else b / t for b, t in pairs)
            spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            lines.append(f"| {name} | {wall:.3g} | {cpu:.3g} | {'1' if timings is baseline else spread} |")
        return head + "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Skipped:
    """What could not be measured here, and why."""

    title: str
    reason: str

    def markdown(self) -> str:
        return f"### {self.title}\n\nNot measured: {self.reason}\n"


def timed(call: Callable[[], object]) -> Timing:
    def cpu() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(u.ru_utime + u.ru_stime for u in used)

    wall, before = time.perf_counter(), cpu()
    call()
    return Timing(time.perf_counter() - wall, cpu() - before)


def interleaved(
    variants: Mapping[str, Callable[[], object]], rounds: int, warm_up: bool = True
) -> dict[str, list[Timing]]:
    """Each variant `rounds` times, in turns; with `warm_up` once before, unmeasured."""
    if warm_up:
        for call in variants.values():
            call()
    return in_turns({name: partial(timed, call) for name, call in variants.items()}, rounds)


def in_turns(variants: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each variant says of itself, `rounds` times, in turns."""
    names: list[str] = list(variants)
    said: dict[str, list[T]] = {name: [] for name in variants}
    for turn in range(rounds):
        for i in range(len(names)):
            name = names[(turn + i) % len(names)]
            said[name].append(variants[name]())
    return said
