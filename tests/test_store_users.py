"""A store shared by several Unix users: each can use what another has written, and a private store stays closed to others."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from groups import some
from launcher import TINY
from patience import LAST_RESORT, kill, printed_by
from tiny import JOB, frozen_run
from users import ANNA, BORIS, GROUP, User, paths, python

from mmprompt.runs.deployment import ROOT, default_store, store_folder
from mmprompt.runs.files import StoreError, drafted, follow_mode, write_over
from mmprompt.runs.processes import process_here
from mmprompt.runs.store import Store
from mmprompt.training.feature_cache import Cache
from sweeps.jobs import snapshot


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """The permissions of everything in a folder, by path; symbolic links have none of their own and are left out."""
    found = [path for path in folder.rglob("*") if not path.is_symlink()]
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in found}


def wrong(folder: Path) -> dict[str, str]:
    """Everything in a folder whose permissions differ from the folder's own, with the permissions that it has."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    return {
        name: oct(found)
        for name, found in modes(folder).items()
        if found != (mode if (folder / name).is_dir() else mode & 0o666)
    }


# ------------------------------------------------------------------------------------- permissions of what is written


@pytest.mark.parametrize("mask", [0o022, 0o077])
@pytest.mark.parametrize("mode", [0o2775, 0o2770, 0o755, 0o700])
def test_everything_in_a_store_has_the_permissions_of_the_folder_around_it_whatever_the_umask(
    tmp_path: Path, mode: int, mask: int, umask: None
) -> None:
    for package in snapshot.PACKAGES:
        (tmp_path / "tree" / package).mkdir(parents=True)
        (tmp_path / "tree" / package / "a.py").write_text("")
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(mode)
    os.umask(mask)
    store = Store(place / "deep" / "runs")
    folder = frozen_run(store.root)
    attempt = folder.claim(1, JOB)
    assert attempt is not None
    attempt.report({"step": 1})
    write_over(attempt.evaluation_file("a"), "{}")
    snapshot.take(tmp_path / "tree", store)
    cache = Cache(store.cache, 1.0)
    cache.prepare()
    cache.write(store.cache / "x.rows", [b"1", b"2"])
    with drafted(store.jobs / "1") as draft:
        draft.rename(store.jobs / "1")
    assert len(modes(place)) == 22 and wrong(place) == {}


def test_in_a_world_writable_folder_the_permissions_of_a_store_follow_the_umask(tmp_path: Path, umask: None) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    os.umask(0o027)
    follow_mode(tmp_path / "tmp" / "runs")
    assert os.umask(0o027) == 0o027
    write_over(tmp_path / "tmp" / "runs" / "sub" / "x", "x")
    assert modes(tmp_path / "tmp") == {"runs": 0o750, "runs/sub": 0o750, "runs/sub/x": 0o640}


@pytest.mark.parametrize(("mode", "mask"), [(0o2775, 0o002), (0o2770, 0o007), (0o755, 0o022), (0o700, 0o077)])
def test_the_umask_is_set_so_that_files_written_by_libraries_have_the_permissions_of_the_store(
    tmp_path: Path, mode: int, mask: int, umask: None
) -> None:
    tmp_path.chmod(mode)
    follow_mode(tmp_path / "not" / "there" / "yet")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_text("")
    assert wrong(tmp_path) == {} and os.umask(0) == mask


def test_the_draft_of_a_folder_is_removed_if_another_process_has_created_the_folder_first(tmp_path: Path) -> None:
    for number in range(2):
        try:
            with drafted(tmp_path / "a" / "1") as draft:
                (draft / "file").write_text(f"{number}")
                draft.rename(tmp_path / "a" / "1")
        except OSError:
            assert number == 1
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["1"]
    assert (tmp_path / "a" / "1" / "file").read_text() == "0"


def test_the_store_lies_in_the_clone_unless_the_environment_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MMPROMPT_RUNS", raising=False)
    assert default_store() == ROOT / "runs"
    monkeypatch.setenv("MMPROMPT_RUNS", "here")
    assert default_store() == tmp_path / "here"
    monkeypatch.setenv("MMPROMPT_RUNS", "/scratch/me/runs")
    assert default_store() == Path("/scratch/me/runs")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("MMPROMPT_RUNS", "~/runs")  # in a file that no shell has read
    assert default_store() == store_folder("~/runs") == Path("/home/me/runs")


def test_a_file_in_the_place_of_the_store_is_an_error(tmp_path: Path, umask: None) -> None:
    (tmp_path / "store").touch()
    with pytest.raises(StoreError, match="store is no folder"):
        follow_mode(tmp_path / "store")


# ---------------------------------------------------------------------------------------------------------- two users


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder of a group, with the homes of two users beside it; not in pytest's own folder, which only root may enter."""
    python()  # skips the test if it cannot run as other users
    folder = Path(tempfile.mkdtemp(prefix="mmprompt-users-"))
    folder.chmod(0o755)
    group = folder / "group"
    group.mkdir()
    os.chown(group, 0, GROUP)
    group.chmod(0o2770)
    for user in (ANNA, BORIS):
        (folder / user.name).mkdir(mode=0o700)
        os.chown(folder / user.name, user.uid, user.uid)
    yield folder
    left = [process for process in psutil.process_iter(["uids"]) if is_left(process, folder)]
    kill(left)
    psutil.wait_procs(left, timeout=60)  # they may be writing there
    shutil.rmtree(folder)


def is_left(process: psutil.Process, folder: Path) -> bool:
    """Whether a process is one of the two users' and works in this folder: left by a test that failed. Other tests on this machine
    have users of the same ids."""
    if not process.info["uids"] or process.info["uids"].real not in (ANNA.uid, BORIS.uid):
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        return Path(process.cwd()).is_relative_to(folder)
    return False


SEEDS = ["-m", "sweeps", "{verb}", "length", *TINY, "optim.steps=2", "tracking=offline", "seed=1,2,3,4"]


def sweep(shared: Path, user: User, verb: str, *arguments: str) -> subprocess.Popen[str]:
    words = [word.format(verb=verb) for word in SEEDS]
    return user.start(shared / user.name, *words, *arguments, MMPROMPT_RUNS=str(shared / "group" / "runs"))


def end(process: subprocess.Popen[str]) -> str:
    """What a process prints until it ends; its exit code must be 0."""
    printed: str = printed_by(process)
    assert process.returncode == 0, printed
    return printed


@pytest.mark.long
def test_a_sweep_begun_by_one_user_is_completed_by_another_and_both_see_it_done(shared: Path) -> None:
    end(sweep(shared, ANNA, "launch", "cluster.max_parallel=1", "--limit", "2"))
    assert "all 4 runs are done" in end(sweep(shared, BORIS, "launch", "cluster.max_parallel=1"))
    store = Store(shared / "group" / "runs")
    for user in (ANNA, BORIS):
        assert "4 done" in end(sweep(shared, user, "plan"))
        tables = ("-m", "analysis", "tables", "length")
        assert "(n = 4 seeds)" in end(user.start(shared / user.name, *tables, MMPROMPT_RUNS=str(store.root)))
    points = json.loads(store.manifest("length").read_text())["points"]
    owners = [store.run(point["run"]).result_file.stat().st_uid for point in points]
    assert sorted(owners) == 2 * [ANNA.uid] + 2 * [BORIS.uid]
    assert wrong(shared / "group") == {}
    assert {path.stat().st_gid for path in (shared / "group").rglob("*")} == {GROUP}


@pytest.mark.long
def test_two_users_who_launch_the_same_sweep_at_once_train_each_run_once(shared: Path) -> None:
    launches = [sweep(shared, user, "launch") for user in (ANNA, BORIS)]
    assert all("all 4 runs are done" in end(launch) for launch in launches)
    store = Store(shared / "group" / "runs")
    assert [len(store.run(run).attempts()) for run in sorted(store.runs())] == [1, 1, 1, 1]
    assert wrong(shared / "group") == {}


def test_new_files_get_the_group_of_their_folder_even_if_it_has_no_setgid_bit(shared: Path) -> None:
    (shared / "group").chmod(0o770)  # without setgid, new files have the primary group of their user
    write = "import sys; from pathlib import Path; from mmprompt.runs.files import write_once; write_once(Path(sys.argv[1]), '')"
    code, output = ANNA.run(shared / "anna", "-c", write, str(shared / "group" / "runs" / "sub" / "file"))
    assert code == 0, output
    assert [path.stat().st_gid for path in (shared / "group").rglob("*")] == 3 * [GROUP]


TAKE_OVER = """
import sys
from pathlib import Path
from mmprompt.runs.files import follow_mode
from mmprompt.runs.processes import this_process
from mmprompt.runs.attempt import Attempt
from mmprompt.runs.failures import from_text
from mmprompt.runs.store import Store
follow_mode(Path(sys.argv[1]))
JOB = this_process() | {"batch": "1", "scheduler": "local"}
folder = Store(Path(sys.argv[1])).run("0123456789abcdef")
if sys.argv[2] == "begin":
    attempt = folder.claim(folder.next_number, JOB)
    attempt.checkpoint_file(1).write_text("")
    attempt.evaluations.mkdir()
    (attempt.path / ".half").write_text("")
    (attempt.path / "wandb" / "run-1" / "logs").mkdir(parents=True)
    (attempt.path / "wandb" / "run-1" / "logs" / "debug.log").write_text("")
else:
    Attempt(folder, 1).fail(from_text("its process ended without a word"))
    assert folder.publish(folder.claim(folder.next_number, JOB), {"attempt": 2, "metrics": {}})
"""


def test_an_attempt_left_unfinished_by_one_user_is_declared_failed_and_tidied_up_by_another(shared: Path) -> None:
    store = Store(shared / "group" / "runs")
    for user, act in ((ANNA, "begin"), (BORIS, "end")):
        code, output = user.run(shared / user.name, "-c", TAKE_OVER, str(store.root), act)
        assert code == 0, output
    assert sorted(name for name in modes(store.run("0123456789abcdef").path) if "." in name) == [
        "attempts/1/error.json",
        "attempts/1/error.txt",
        "attempts/1/job.json",
        "attempts/2/job.json",
        "result.json",
    ]


@pytest.mark.parametrize("private", some(["anna/runs", "anna/closed/runs"], "anna/runs"))
def test_a_private_store_cannot_be_read_by_other_users_and_one_sentence_says_so(shared: Path, private: Path) -> None:
    private = shared / private
    (shared / "anna").chmod(0o755)
    closed = private if private.parent.name == "anna" else private.parent
    closed.mkdir(mode=0o700)
    os.chown(closed, ANNA.uid, ANNA.uid)
    place = {"MMPROMPT_RUNS": str(private)}
    launch = ["-m", "sweeps", "launch", "length", *TINY, "optim.steps=2", "seed=1"]
    code, output = ANNA.run(shared / "anna", *launch, **place)
    assert code == 0, output
    assert wrong(closed) == {} and stat.S_IMODE(private.stat().st_mode) == 0o700
    for words in (launch, ["-m", "analysis", "tables"]):
        code, output = BORIS.run(shared / "boris", *words, **place)
        assert code == 2 and f"the store {private} cannot be read: Permission denied" in output, output
        assert output.count("\n") == 1


ASK = """
import json, sys
from mmprompt.runs.processes import is_running
print(is_running(json.loads(sys.argv[1])))
"""


@pytest.mark.parametrize("option", ["hidepid=0", "hidepid=2"])
def test_whether_a_process_hidden_by_proc_is_running_is_unknown(shared: Path, option: str) -> None:
    other = ANNA.start(shared / "anna", "-c", f"import time; time.sleep({LAST_RESORT})")
    facts = process_here(other.pid)
    gone = facts | {"pid": 2**22 - 1}
    mount = ["unshare", "--mount", "sh", "-c", f'mount -t proc -o {option} proc /proc && exec "$@"', "sh"]
    drop = ["setpriv", f"--reuid={BORIS.uid}", f"--regid={BORIS.uid}", "--clear-groups"]
    if subprocess.run([*mount, "true"], capture_output=True).returncode != 0:
        pytest.skip("no /proc can be mounted here")
    said = []
    for process in (facts, gone):
        command = [*mount, *drop, python(), "-c", ASK, json.dumps(process)]
        said.append(subprocess.run(command, capture_output=True, text=True, env=os.environ | paths()).stdout.strip())
    other.kill()
    other.wait()
    assert said == (["True", "False"] if option == "hidepid=0" else ["None", "False"])
