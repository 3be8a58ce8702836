"""Copies on a node's own disk: each file is copied once and completely, and no other user's copy is read."""

from __future__ import annotations

import multiprocessing
import os
import resource
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import LAST_RESORT

from mmprompt.data.staging import staged
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.fingerprint import fingerprint

CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What shall be staged; $TMPDIR is `disk`, beside it."""
    file = tmp_path / "shared" / "backbone.safetensors"
    file.parent.mkdir()
    file.write_bytes(CONTENT)
    (tmp_path / "disk").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "disk"))
    return file


def ours(file: Path) -> Path:
    return file.parents[1] / "disk" / f"mmprompt-{os.getuid()}"


def stage(file: Path, checksum: str, begin: multiprocessing.Barrier, made: multiprocessing.Queue[str]) -> None:  # type: ignore[valid-type]
    begin.wait()  # type: ignore[attr-defined]
    made.put(str(staged(file, checksum)))


def test_a_file_is_copied_once_and_its_copy_is_read_from_then_on(file: Path) -> None:
    checksum = fingerprint(file)
    copy = staged(file, checksum)
    assert copy == ours(file) / checksum / "backbone.safetensors" and copy.read_bytes() == CONTENT
    assert stat.S_IMODE(ours(file).stat().st_mode) == 0o700
    made = copy.stat()
    file.unlink()
    assert staged(file, checksum) == copy and copy.stat().st_ino == made.st_ino


def test_jobs_that_begin_at_once_all_get_the_same_whole_copy(file: Path) -> None:
    context = multiprocessing.get_context("spawn")
    begin, made = context.Barrier(4), context.Queue()
    processes = [context.Process(target=stage, args=(file, fingerprint(file), begin, made)) for _ in range(4)]
    for process in processes:
        process.start()
    copies = {made.get(timeout=LAST_RESORT) for _ in processes}
    for process in processes:
        process.join(LAST_RESORT)
    [copy] = copies
    assert Path(copy).is_relative_to(ours(file)) and Path(copy).read_bytes() == CONTENT
    assert len(list(Path(copy).parent.iterdir())) == 1


def finish_copies(copy: Path, stopped: threading.Event) -> None:
    """What other jobs of this node do in the copy's folder: they make drafts, and rename them to the copy."""
    while not stopped.is_set():
        draft = copy.with_name(f".another{time.monotonic_ns()}")
        draft.write_bytes(CONTENT)
        draft.rename(copy)


def test_a_copy_that_other_jobs_finish_at_the_same_moment_is_used(file: Path) -> None:
    checksum, stopped = fingerprint(file), threading.Event()
    copy = staged(file, checksum)
    others = [threading.Thread(target=finish_copies, args=(copy, stopped)) for _ in range(2)]
    for other in others:
        other.start()
    try:
        for _ in range(200):
            copy.unlink(missing_ok=True)
            assert staged(file, checksum) == copy
    finally:
        stopped.set()
        for other in others:
            other.join()


@pytest.mark.parametrize("damage", [CONTENT[:-1], b"", CONTENT[:-1] + b"x"])
def test_a_copy_that_is_not_what_was_asked_for_is_made_again(file: Path, damage: bytes) -> None:
    copy = staged(file, fingerprint(file))
    copy.write_bytes(damage)
    assert staged(file, fingerprint(file)) == copy and copy.read_bytes() == CONTENT


def test_a_file_that_changed_since_launch_is_not_staged(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checksum = fingerprint(file)
    file.write_bytes(b"another")
    assert staged(file, checksum) == file
    assert "the file has changed since launch" in capsys.readouterr().out
    assert list((ours(file) / checksum).iterdir()) == []


def writable(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o770)


def link(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to("elsewhere")


def foreign(folder: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can make a folder that is another user's")
    folder.mkdir(mode=0o700)
    os.chown(folder, 61001, 61001)


@pytest.mark.parametrize("trap", [writable, link, foreign, Path.touch])
def test_a_copy_in_a_folder_that_others_could_write_to_is_not_read(
    file: Path, trap: object, capsys: pytest.CaptureFixture[str]
) -> None:
    trap(ours(file))  # type: ignore[operator]
    assert staged(file, fingerprint(file)) == file
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "it is not a folder of this user alone" in said and str(file) in said


@pytest.fixture
def short_files() -> Iterator[None]:
    """No file of this process may grow beyond 64 KiB: what a full disk or a quota does in the middle of a copy."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_copy_that_cannot_be_completed_leaves_nothing_and_the_file_is_read_where_it_is(
    file: Path, short_files: None, capfd: pytest.CaptureFixture[str]
) -> None:
    checksum = fingerprint(file)
    assert staged(file, checksum) == file
    assert list((ours(file) / checksum).iterdir()) == []
    assert f"takes no copy (File too large): {file} is read where it is" in capfd.readouterr().out


SMALL = """
import sys
from pathlib import Path
from mmprompt.data.staging import staged
print(staged(Path(sys.argv[1]), sys.argv[2]))
"""


def test_a_disk_without_room_is_not_filled(file: Path) -> None:
    disk = file.parents[1] / "disk"
    mounted = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=100k none {disk} && exec "$@"', "sh"]
    if subprocess.run([*mounted, "true"], capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    done = subprocess.run(
        [*mounted, sys.executable, "-c", SMALL, str(file), fingerprint(file)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    said, copy = done.stdout.splitlines()
    assert copy == str(file) and "takes no copy (0.00105 GB are needed and 0.0001" in said


def test_what_a_killed_job_was_copying_is_removed_after_an_hour(file: Path) -> None:
    copy = staged(file, fingerprint(file))
    copy.unlink()
    old, new = copy.with_name(".old"), copy.with_name(".new")
    for left in (old, new):
        left.write_text("half")
    os.utime(old, (time.time() - 4000, time.time() - 4000))
    assert staged(file, fingerprint(file)).exists() and not old.exists() and new.exists()


def test_a_staging_folder_that_cannot_be_made_is_reported(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", str(file.parent / "nowhere"))
    assert staged(file, fingerprint(file)) == file
    assert "takes no copy (No such file or directory)" in capsys.readouterr().out
