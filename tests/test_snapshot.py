"""Snapshots: the copies of our packages that a launch's jobs import."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from mmprompt.runs.files import StoreError
from mmprompt.runs.store import Store
from sweeps.jobs import snapshot


def tree(folder: Path) -> Path:
    for package in snapshot.PACKAGES:
        (folder / package / "sub").mkdir(parents=True)
        (folder / package / "sub" / "module.py").write_text(package)
    return folder


def test_all_users_of_the_store_can_read_a_copy_even_of_a_private_clone(tmp_path: Path) -> None:
    root = tree(tmp_path / "clone")
    for path in [root, *root.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
    (tmp_path / "group").mkdir()
    (tmp_path / "group").chmod(0o2775)
    copy = snapshot.take(root, Store(tmp_path / "group" / "runs"))
    paths = [copy, *copy.rglob("*")]
    assert len(paths) == 7
    assert all(stat.S_IMODE(path.stat().st_mode) == (0o2775 if path.is_dir() else 0o664) for path in paths)


@pytest.mark.parametrize("damage", ["a file is gone", "a file is empty", "the folder is empty"])
def test_a_copy_from_which_the_scratch_file_system_removed_files_is_made_again(tmp_path: Path, damage: str) -> None:
    root, store = tree(tmp_path / "clone"), Store(tmp_path / "runs")
    copy = snapshot.take(root, store)
    for file in copy.rglob("*.py"):
        if damage == "a file is empty":
            file.write_text("")
        else:
            file.unlink()
        if damage == "a file is gone":
            break
    assert snapshot.take(root, store) == copy and snapshot.identity(copy) == copy.name
    assert list(store.code.iterdir()) == [copy]


def test_a_copy_that_clean_moves_away_and_back_while_a_launch_reads_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, store = tree(tmp_path / "clone"), Store(tmp_path / "runs")
    copy, read = snapshot.take(root, store), snapshot.fingerprint

    def away(file: Path) -> str:
        if not file.is_relative_to(copy):
            return read(file)
        monkeypatch.setattr(snapshot, "fingerprint", read)  # once
        moved = copy.rename(copy.with_name(".moved"))
        try:
            return read(file)
        finally:
            moved.rename(copy)

    monkeypatch.setattr(snapshot, "fingerprint", away)
    assert snapshot.take(root, store) == copy and snapshot.identity(copy) == copy.name
    assert list(store.code.iterdir()) == [copy]


def test_a_store_in_which_no_copy_can_be_made_is_named_in_the_error(tmp_path: Path) -> None:
    root, store = tree(tmp_path / "clone"), Store(tmp_path / "runs")
    store.root.mkdir()
    store.code.write_text("a file in the way")
    with pytest.raises(StoreError, match=r"no copy of the packages can be made in .*runs/code: Not a directory"):
        snapshot.take(root, store)
