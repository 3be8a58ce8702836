"""Fingerprints see every byte of a file, and those of large files are computed once."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from mmprompt.runs import fingerprint as module
from mmprompt.runs.fingerprint import fingerprint, fingerprints

SIZE = 3 << 20


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", SIZE - 1)
    monkeypatch.setattr(module, "BLOCK", 1 << 20)
    module._fingerprint.cache_clear()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "ofa.pt"
    file.write_bytes(bytes(SIZE))
    return file


@pytest.fixture
def kept_in(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store" / "fingerprints"


def again(file: Path, kept_in: Path | None) -> str:
    """As another process computes it."""
    module._fingerprint.cache_clear()
    return fingerprint(file, kept_in)


def spoil(file: Path) -> None:
    """Other content that nothing tells from outside: same size, date and inode."""
    status = file.stat()
    with file.open("r+b") as there:
        there.write(b"x")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_it_is_the_hash_of_the_size_and_of_every_byte(file: Path, kept_in: Path) -> None:
    assert fingerprint(file) == hashlib.sha256(str(SIZE).encode() + bytes(SIZE)).hexdigest()
    before = fingerprint(file, kept_in)
    for place in (0, SIZE // 3, SIZE - 1):
        with file.open("r+b") as there:
            there.seek(place)
            there.write(b"x")
        os.utime(file, ns=(0, place))
        assert fingerprint(file, kept_in) != before
        before = fingerprint(file, kept_in)


def test_a_large_files_is_kept_and_read_by_another_process(file: Path, kept_in: Path) -> None:
    before = fingerprint(file, kept_in)
    [record] = kept_in.iterdir()
    spoil(file)
    assert again(file, kept_in) == before and again(file, None) != before
    assert [record] == list(kept_in.iterdir())


def test_a_small_files_is_not_kept(file: Path, kept_in: Path) -> None:
    file.write_bytes(b"small")
    fingerprint(file, kept_in)
    assert not kept_in.exists()


@pytest.mark.parametrize("change", ["date", "size", "inode", "path"])
def test_a_file_in_another_state_is_read_again(file: Path, kept_in: Path, change: str) -> None:
    before = fingerprint(file, kept_in)
    if change == "inode":
        status = file.stat()
        file.rename(file.with_name("old"))
        file.write_bytes(bytes(SIZE))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    spoil(file)
    if change == "date":
        os.utime(file)
    if change == "size":
        with file.open("ab") as there:
            there.write(b"x")
    if change == "path":
        file = file.rename(file.with_name("other.pt"))
    assert again(file, kept_in) == again(file, None) != before


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"fingerprint": "ab"}', b"[" * 5000])
def test_a_damaged_record_is_replaced(file: Path, kept_in: Path, content: bytes) -> None:
    before = fingerprint(file, kept_in)
    [record] = kept_in.iterdir()
    whole = record.read_bytes()
    record.write_bytes(content)
    assert again(file, kept_in) == before and record.read_bytes() == whole


def test_no_store_is_made_for_it_and_one_that_cannot_be_written_is_no_error(file: Path, tmp_path: Path) -> None:
    assert fingerprint(file, tmp_path / "none" / "fingerprints") == fingerprint(file)
    assert not (tmp_path / "none").exists()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "fingerprints").write_text("a file")
    assert again(file, tmp_path / "store" / "fingerprints") == fingerprint(file)


def test_a_file_that_changes_while_it_is_read_has_none(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = hashlib.sha256

    def changing(*arguments: bytes):  # type: ignore[no-untyped-def]
        os.utime(file, ns=(1, 1))
        return real(*arguments)

    monkeypatch.setattr(module.hashlib, "sha256", changing)
    with pytest.raises(OSError, match=r"ofa.pt changes while it is read"):
        fingerprint(file)


def test_how_far_it_is_goes_to_stderr(
    file: Path, kept_in: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "QUIET", 0.0)
    fingerprint(file, kept_in)
    said = capsys.readouterr()
    assert f"{file}: 33 % read for its fingerprint" in said.err and "100 %" in said.err and not said.out


def test_two_processes_at_once_keep_one(file: Path, kept_in: Path) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(fingerprint(file, kept_in))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(list(kept_in.iterdir())) == 1
    assert fingerprints([file, file], kept_in) != fingerprints([file], kept_in)
    assert time.time() - next(kept_in.iterdir()).stat().st_mtime < 60
