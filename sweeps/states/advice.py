"""Advice after failures: the failed runs grouped by cause, each cause with the command to type next."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mmprompt.runs.attempt import TRIES, Attempt
from mmprompt.runs.deployment import default_store
from mmprompt.runs.failures import RETRIED
from mmprompt.settings.deployment import Deployment
from sweeps.grid.launched import LaunchedSweep
from sweeps.states.causes import RunFailure
from sweeps.wording import volume

REASONS, RUNS = 4, 3  # most reasons shown for a cause, and most runs for a reason
FRAME = re.compile(r'  File "(.*)", line (\d+), in (.*)\n(.*)')
OF_A_GPU = re.compile(r"CUDA|OutOfMemoryError")
NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")  # reasons that differ only in numbers count as one


def advice(launched: LaunchedSweep, failures: Mapping[str, RunFailure], names: Mapping[str, str]) -> list[str]:
    """Returns lines for users. `names`: for each run the name by which the command line knows it."""
    lines: list[str] = []
    commands: list[str] = []
    for word, cause in RETRIED.items():
        group = [failure for failure in failures.values() if failure.cause == cause]
        if group:
            lines.append(f"{cause}: {len(group)} run{'s' if len(group) != 1 else ''}")
            lines += [f"  {line}" for line in _reasons(launched, group, names)]
            step, arguments = _next_step(word, group, names, launched.store.root)
            command = _launch_command(launched, group, *arguments)
            lines += [f"  {step}:", f"    {'the same command' if command in commands else command}"]
            commands.append(command)
    return lines


def _reasons(launched: LaunchedSweep, group: Sequence[RunFailure], names: Mapping[str, str]) -> Iterable[str]:
    """Yields the most frequent reasons, each with some of its runs."""
    by_reason: dict[str, list[RunFailure]] = {}
    for failure in group:
        by_reason.setdefault(NUMBER.sub("#", failure.reason), []).append(failure)
    for failures in sorted(by_reason.values(), key=len, reverse=True)[:REASONS]:
        yield failures[0].reason
        if failures[0].cause == "error" and failures[0].attempt:
            yield from _frame(failures[0].attempt)
        for failure in failures[:RUNS]:
            yield f"  {names[failure.run]}  {launched.labels[failure.run]}"
        if len(failures) > RUNS:
            yield f"  and {len(failures) - RUNS} more"
    if len(by_reason) > REASONS:
        yield f"and {len(by_reason) - REASONS} other reasons"


def _frame(attempt: Attempt) -> Iterable[str]:
    """Yields the place where the attempt's exception was raised, from its traceback."""
    reason = attempt.reason
    frames = FRAME.findall(reason.traceback) if reason else []
    if frames:
        file, line, function, code = frames[-1]
        yield f"  at {'/'.join(file.split('/')[-2:])}:{line}, in {function}: {code.strip()}"


def _next_step(word: str, group: Sequence[RunFailure], names: Mapping[str, str], store: Path) -> tuple[str, list[str]]:
    """Returns what to do next, in words, and the arguments to add to the launch command.

    `word`: the word of the failures' cause, as `--retry` takes it.
    """
    logs = f"`python -m sweeps logs {names[group[0].run]}`"
    clusters = [failure.batch.record["cluster"] for failure in group if failure.batch and failure.batch.is_slurm]
    match word:
        case "oom" if any(OF_A_GPU.search(failure.reason) for failure in group):
            return "next, on a GPU with more memory, named as your cluster names it", [
                "--retry",
                word,
                "cluster.gres=gpu:TYPE:1",
            ]
        case "oom" if not clusters:
            return "next, one at a time", ["--retry", word, "cluster.max_parallel=1"]
        case "oom":
            memory = 2 * max(cluster["mem_gb"] for cluster in clusters)
            return "next, with twice the memory", ["--retry", word, f"cluster.mem_gb={memory:g}"]
        case "time" if clusters:
            minutes = 2 * max(cluster["time_min"] for cluster in clusters)
            return "next, with twice the time", ["--retry", word, f"cluster.time_min={minutes}"]
        case "disk":
            is_counted = any(failure.attempt and failure.attempt.run.tries() for failure in group)
            return f"{_room(store)}; next, once there is room", ["--retry", word] if is_counted else []
        case "error":
            return f"see {logs}; next, once it is fixed", ["--retry", word]
        case "start":
            return f"see {logs}, and `python -m sweeps doctor` for the cluster's settings; next, once it is fixed", []
        case _:
            is_left_alone = any(failure.attempt and failure.attempt.run.tries() >= TRIES for failure in group)
            return "next, to resume them where they stopped", ["--retry", word] if is_left_alone else []


def _room(store: Path) -> str:
    """Returns a sentence with the free space of the store, and the commands that tell more about it or free some."""
    space = os.statvfs(store)
    number = f"{space.f_favail:,} file{'s' if space.f_favail != 1 else ''}"
    files = f" and {number}" if space.f_files else ""  # some file systems do not limit the number of files
    return (
        f"{volume(space.f_bavail * space.f_frsize)}{files} more fit into {store} now (`du -sh` shows its size, `quota -s` "
        "your quota, and `python -m sweeps clean` frees what is no longer needed)"
    )


def _launch_command(launched: LaunchedSweep, group: Sequence[RunFailure], *more: str) -> str:
    """Returns the command that launches the sweep again, with the deployment of these runs' newest batch and `more` arguments."""
    target, overrides = launched.launched_with
    newest = max((failure.batch for failure in group if failure.batch), key=lambda batch: int(batch.id), default=None)
    deployment = (
        [text for text in newest.record["overrides"] if _key(text).split(".")[0] in Deployment.model_fields]
        if newest
        else []
    )
    changed = {_key(text) for text in more}
    kind = [text.removeprefix("cluster=") for text in deployment if _key(text) == "cluster" and text != "cluster=auto"]
    overrides += [text for text in deployment if _key(text) not in {"cluster", "paths.runs", *changed}]
    variables = [f"CLUSTER={kind[-1]}"] if kind else []
    variables += [] if launched.store.root == default_store() else [f"RUNS={shlex.quote(str(launched.store.root))}"]
    arguments = re.sub(r'(["\\$`])', r"\\\1", shlex.join([*overrides, *more]))
    return " ".join(["make", target, *variables, *([f'ARGS="{arguments}"'] if arguments else [])])


def _key(override: str) -> str:
    return override.split("=")[0]
