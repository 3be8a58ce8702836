"""Advice: failures grouped by cause, and the command to type next."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mmprompt.runs.deployment import Deployment, default_store
from mmprompt.runs.failures import RETRIED
from mmprompt.runs.store import TRIES, Attempt
from sweeps.grid.launched import LaunchedSweep
from sweeps.states.causes import RunFailure
from sweeps.wording import volume

REASONS, RUNS = 4, 3  # that are shown: reasons of one cause, runs of one reason
FRAME = re.compile(r'  File "(.*)", line (\d+), in (.*)\n(.*)')
OF_A_GPU = re.compile(r"CUDA|OutOfMemoryError")
ALIKE = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")  # reasons that differ in numbers alone are one


def advice(launched: LaunchedSweep, failures: Mapping[str, RunFailure], names: Mapping[str, str]) -> list[str]:
    """Lines for a person. `names`: what to call each run on the command line."""
    lines: list[str] = []
    commands: list[str] = []
    for word, cause in RETRIED.items():
        group = [failure for failure in failures.values() if failure.cause == cause]
        if group:
            lines.append(f"{cause}: {len(group)} run{'s' if len(group) != 1 else ''}")
            lines += [f"  {line}" for line in _reasons(launched, group, names)]
            why, more = _next(word, group, names, launched.store.root)
            command = _launch(launched, group, *more)
            lines += [f"  {why}:", f"    {'the same command' if command in commands else command}"]
            commands.append(command)
    return lines


def _reasons(launched: LaunchedSweep, group: Sequence[RunFailure], names: Mapping[str, str]) -> Iterable[str]:
    alike: dict[str, list[RunFailure]] = {}
    for failure in group:
        alike.setdefault(ALIKE.sub("#", failure.reason), []).append(failure)
    for failures in sorted(alike.values(), key=len, reverse=True)[:REASONS]:
        yield failures[0].reason
        if failures[0].cause == "error" and failures[0].attempt:
            yield from _frame(failures[0].attempt)
        for failure in failures[:RUNS]:
            yield f"  {names[failure.run]}  {launched.labels[failure.run]}"
        if len(failures) > RUNS:
            yield f"  and {len(failures) - RUNS} more"
    if len(alike) > REASONS:
        yield f"and {len(alike) - REASONS} other reasons"


def _frame(attempt: Attempt) -> Iterable[str]:
    """Where an exception was raised, of the traceback that an attempt left."""
    reason = attempt.reason
    frames = FRAME.findall(reason.traceback) if reason else []
    if frames:
        file, line, function, code = frames[-1]
        yield f"  at {'/'.join(file.split('/')[-2:])}:{line}, in {function}: {code.strip()}"


def _next(word: str, group: Sequence[RunFailure], names: Mapping[str, str], store: Path) -> tuple[str, list[str]]:
    """What is to be done, and what a launch has to be told beyond what it was told before."""
    logs = f"`python -m sweeps logs {names[group[0].run]}`"
    asked = [failure.batch.record["cluster"] for failure in group if failure.batch and failure.batch.is_slurm]
    match word:
        case "oom" if any(OF_A_GPU.search(failure.reason) for failure in group):
            return "next, on a GPU with more memory, named as your cluster names it", [
                "--retry",
                word,
                "cluster.gres=gpu:TYPE:1",
            ]
        case "oom" if not asked:
            return "next, one at a time", ["--retry", word, "cluster.max_parallel=1"]
        case "oom":
            memory = 2 * max(cluster["mem_gb"] for cluster in asked)
            return "next, with twice the memory", ["--retry", word, f"cluster.mem_gb={memory:g}"]
        case "time" if asked:
            minutes = 2 * max(cluster["time_min"] for cluster in asked)
            return "next, with twice the time", ["--retry", word, f"cluster.time_min={minutes}"]
        case "disk":
            is_counted = any(failure.attempt and failure.attempt.run.tries() for failure in group)
            return f"{_room(store)}; next, once there is room", ["--retry", word] if is_counted else []
        case "error":
            return f"see {logs}; next, once it is mended", ["--retry", word]
        case "start":
            return f"see {logs}, and `python -m sweeps doctor` for the cluster's settings; next, once it is mended", []
        case _:
            is_left_alone = any(failure.attempt and failure.attempt.run.tries() >= TRIES for failure in group)
            return "next, from where they were", ["--retry", word] if is_left_alone else []


def _room(store: Path) -> str:
    """What fits into a store now, and what tells more or makes room."""
    there = os.statvfs(store)
    number = f"{there.f_favail:,} file{'s' if there.f_favail != 1 else ''}"
    files = f" and {number}" if there.f_files else ""  # some file systems have no limit
    return (
        f"{volume(there.f_bavail * there.f_frsize)}{files} more fit into {store} now (`du -sh` says what it takes, `quota -s` "
        "what you may have, and `python -m sweeps clean` frees what nobody needs)"
    )


def _launch(launched: LaunchedSweep, group: Sequence[RunFailure], *more: str) -> str:
    """The launch again: the sweep as it is now, in the place where these runs were, with what is to be other."""
    target, asked = launched.launched_with
    newest = max((failure.batch for failure in group if failure.batch), key=lambda batch: int(batch.id), default=None)
    place = (
        [text for text in newest.record["overrides"] if _key(text).split(".")[0] in Deployment.model_fields]
        if newest
        else []
    )
    changed = {_key(text) for text in more}
    kind = [text.removeprefix("cluster=") for text in place if _key(text) == "cluster" and text != "cluster=auto"]
    asked += [text for text in place if _key(text) not in {"cluster", "paths.runs", *changed}]
    where = [f"CLUSTER={kind[-1]}"] if kind else []
    where += [] if launched.store.root == default_store() else [f"RUNS={shlex.quote(str(launched.store.root))}"]
    arguments = re.sub(r'(["\\$`])', r"\\\1", shlex.join([*asked, *more]))
    return " ".join(["make", target, *where, *([f'ARGS="{arguments}"'] if arguments else [])])


def _key(override: str) -> str:
    return override.split("=")[0]
