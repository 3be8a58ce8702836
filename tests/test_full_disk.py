"""A disk that is really full, at the start, in the middle of a run, of bytes or of files: no run is to blame, and nothing is lost.

It is a small file system of the tests' own, with a limit on how many files may lie in it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attempts import error_of
from groups import some
from launcher import TINY
from tiny import frozen_run
from victim import Victims

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.failures import OLD_PREFIX as INTERRUPTED
from mmprompt.runs.store import Store
from sweeps.states.causes import failures
from sweeps.states.state import Queue, states

SIZE, FILES = 16, 400  # megabytes, inodes: the code of a launch takes about 210 of them
MOUNT = f"mount -t tmpfs -o size={SIZE}m,nr_inodes={FILES} none"
ALL_BYTES = "head -c 100M /dev/zero > {disk}/filler 2> /dev/null || true"
ALL_FILES = (
    "mkdir {disk}/many; i=0; while ( : > {disk}/many/$i ) 2> /dev/null; do i=$((i+1)); done; "
    "for j in $(seq {left}); do rm {disk}/many/$((i-j)); done"
)
ROOM = "rm -rf {disk}/filler {disk}/many"
NO_DISK = "no file system can be mounted here"


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    victims = Victims(tmp_path_factory.mktemp("full"))
    yield victims
    victims.close()


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (ALL_BYTES, "true"),
        pytest.param("true", ALL_BYTES, marks=pytest.mark.long),
        pytest.param(ALL_FILES.replace("{left}", "3"), "true", marks=pytest.mark.long),
        pytest.param(
            ALL_FILES.replace("{left}", "12"), "true", marks=pytest.mark.long
        ),  # W&B makes some before it fails
        ("true", ALL_FILES.replace("{left}", "0")),
        pytest.param("true", ALL_FILES.replace("{left}", "1"), marks=pytest.mark.long),  # enough to say why
    ],
    ids=["bytes at the start", "bytes", "few files at the start", "files at the start", "files", "all files but one"],
)
def test_runs_that_a_full_disk_ends_are_done_once_when_there_is_room_again(
    victims: Victims, tmp_path: Path, first: str, then: str
) -> None:
    if victims.disk is None:
        pytest.skip(NO_DISK)
    disk = victims.disk / tmp_path.name
    store, seen = disk / "runs", Path(f"/proc/{victims.process.pid}/root{disk}/runs")  # as its processes see it, and we
    assert victims.attempt(store, first=f"mkdir {disk} && {MOUNT} {disk}").code == 0
    runs = [frozen_run(seen, *settings) for settings in (("optim.steps=20",), ("optim.steps=20", "seed=9"))]
    ids = [run.id for run in runs]

    full = {"first": first.format(disk=disk), "then": then.format(disk=disk), "shell_after_step": 5}
    end = victims.attempt(store, *ids, tracking="offline", **full)
    assert end.code == 1 and "No space left on device" in end.output.splitlines()[-1], end.output
    assert runs[0].tries() == 0 and runs[1].attempts() == []
    found = states(Store(seen), ids, Queue({}))
    assert [found[run].name for run in ids] == ["to do", "to do"]
    for attempt in runs[0].attempts():  # as many as could be claimed
        assert (error_of(attempt) or "").startswith(INTERRUPTED) and "No space left on device" in (
            error_of(attempt) or ""
        )
        assert failures(Store(seen), ids, found)[ids[0]].cause == "disk full"

    end = victims.attempt(store, *ids, tracking="offline", first=ROOM.format(disk=disk))
    assert end.code == 0, end.output
    for run in runs:
        result = run.result()
        assert result is not None and result["attempt"] == len(run.attempts()) and run.tries() == 0
        assert not any(attempt.has_failed for attempt in run.attempts())


LAUNCHES = """
{mount} {store}
sweeps="{python} -m sweeps"
$sweeps launch length {settings} seed=3 > {out}/before.txt 2>&1 || exit 1
{full}
$sweeps launch length {settings} seed=1,2 > {out}/full.txt 2>&1 && exit 2
$sweeps status > {out}/status.txt 2>&1
{room}
$sweeps status --json > {out}/before.json
$sweeps launch length {settings} seed=1,2 > {out}/room.txt 2>&1 || exit 3
$sweeps status --json > {out}/after.json
"""


@pytest.mark.parametrize("left", some([16, 24, 32]))
def test_a_launch_onto_a_full_disk_blames_no_run_and_the_same_command_goes_on(tmp_path: Path, left: int) -> None:
    """So many files still fit: it ends before jobs claim runs, where W&B makes its folders, and while they train, at the latest in
    the second run."""
    store = tmp_path / "runs"
    store.mkdir()
    script = LAUNCHES.format(
        mount=MOUNT,
        store=store,
        python=sys.executable,
        out=tmp_path,
        full=ALL_FILES.format(disk=store, left=left),
        room=ROOM.format(disk=store),
        settings=" ".join([*TINY, "tracking=offline", "optim.steps=20"]),
    )
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*alone, "mount", "-t", "tmpfs", "none", str(store)], capture_output=True).returncode:
        pytest.skip(NO_DISK)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MMPROMPT_RUNS": str(store)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # compiled modules would be files as well, on this small disk
    done = subprocess.run([*alone, "sh", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True)
    printed = "\n".join(f"{file.name}: {file.read_text()}" for file in tmp_path.glob("*.*"))
    assert done.returncode == 0, done.stderr + printed
    said = (tmp_path / "status.txt").read_text()
    assert "Traceback" not in said and "failed" not in said, printed
    if "disk full" in said:
        assert (
            re.search(r"MB and \d+ files? more fit into", said)
            and "`python -m sweeps clean` frees what is no longer needed" in said
        )
        assert "--retry" not in said
    before, after = (json.loads((tmp_path / f"{name}.json").read_text())["sweeps"][0] for name in ("before", "after"))
    assert [row["state"] for row in before["runs"]] in (["to do", "to do"], ["done", "to do"]), printed
    assert [(row["state"], row["cause"]) for row in after["runs"]] == [("done", None)] * 2, printed
