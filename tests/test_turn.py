"""One process makes what takes long, the others wait for it; and none waits for ever, whatever becomes of that process."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from patience import LAST_RESORT, until

from mmprompt.runs import turn
from mmprompt.runs.processes import this_process
from mmprompt.runs.turn import Tell, in_turn

HOLDING = """
import sys
from pathlib import Path
from mmprompt.runs.turn import in_turn
def make(tell):
    print("begun", flush=True)
    sys.stdin.readline()
    Path(sys.argv[1]).write_text("theirs")
    return "theirs"
print(in_turn(Path(sys.argv[1]), "the file is made", lambda: None, make))
"""


def found(file: Path) -> str | None:
    return file.read_text() if file.exists() else None


def asked(file: Path) -> str:
    def make(tell: Tell) -> str:
        tell(0.5)
        file.write_text("mine")
        return "mine"

    return in_turn(file, "the file is made", lambda: found(file), make)


def holder(file: Path) -> subprocess.Popen[str]:
    """Another process whose turn it is. It makes the file once it is sent a line."""
    command = [sys.executable, "-c", HOLDING, str(file)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


def note_of(file: Path, **changes: object) -> Path:
    note = file.with_name(f".{file.name}.turn")
    note.write_text(json.dumps({"process": this_process() | changes, "share": 0.25, "at": 1}))
    return note


def test_what_another_process_is_making_is_waited_for_and_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    with holder(file) as process, ThreadPoolExecutor(1) as pool:
        mine = pool.submit(asked, file)
        said: list[str] = []
        until(lambda: said.append(capsys.readouterr().out) or "".join(said), "the waiting is told", process)
        assert not mine.done() and not file.exists()
        process.communicate("go on\n", LAST_RESORT)
        assert mine.result(LAST_RESORT) == "theirs"
    assert "".join(said).startswith(f"the file is made by process {process.pid} on ")
    assert "".join(said).endswith(", 0% so far; waiting for it\n")
    assert [left.name for left in tmp_path.iterdir()] == ["file"]


def test_a_process_that_is_killed_keeps_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    with holder(file) as process:
        process.kill()
    assert asked(file) == "mine"
    assert "which has ended; it is begun again" in capsys.readouterr().out
    assert [left.name for left in tmp_path.iterdir()] == ["file"]


def test_a_process_elsewhere_that_says_nothing_any_more_keeps_nobody_for_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "PATIENCE", 0.1)
    note_of(tmp_path / "file", host="elsewhere")
    assert asked(tmp_path / "file") == "mine"
    assert "on elsewhere, which has said nothing for 0.1 s; it is begun again" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "{", '{"process": {"host": 3}}', '{"process": 1, "share": 2}'])
def test_a_damaged_note_keeps_nobody_for_ever(tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "PATIENCE", 0.1)
    note_of(tmp_path / "file").write_text(content)
    assert asked(tmp_path / "file") == "mine"


def test_a_process_elsewhere_that_goes_on_is_waited_for_longer_than_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock of its own: no process can be relied on to write a note each second, whatever the machine is doing."""
    file, now = tmp_path / "file", 0.0
    note = note_of(file, host="elsewhere")

    def sleep(seconds: float) -> None:
        """What the other process does while this one sleeps: it writes its note anew, and in the end the file."""
        nonlocal now
        now += seconds
        if now < 3 * turn.PATIENCE:
            note_of(file, host="elsewhere", moment=now)
        else:
            file.write_text("theirs")
            note.unlink()

    monkeypatch.setattr(turn, "LOOK", 0.4 * turn.PATIENCE)
    monkeypatch.setattr(turn, "time", SimpleNamespace(monotonic=lambda: now, monotonic_ns=lambda: 0, sleep=sleep))
    assert asked(file) == "theirs" and now >= 3 * turn.PATIENCE


def test_of_many_at_once_one_makes_it(tmp_path: Path) -> None:
    begin, made = threading.Barrier(6), []

    def one(number: int) -> str:
        def make(tell: Tell) -> str:
            made.append(number)
            threading.Event().wait(0.3)
            (tmp_path / "file").write_text("made")
            return "made"

        begin.wait(LAST_RESORT)
        return in_turn(tmp_path / "file", "the file is made", lambda: found(tmp_path / "file"), make)

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(one, range(6))) == {"made"}
    assert len(made) == 1


def test_an_error_ends_the_turn(tmp_path: Path) -> None:
    def fail(tell: Tell) -> str:
        raise ValueError("line 7")

    with pytest.raises(ValueError, match="line 7"):
        in_turn(tmp_path / "file", "the file is made", lambda: None, fail)
    assert not list(tmp_path.iterdir())
    assert asked(tmp_path / "file") == "mine"


def test_where_no_note_can_be_written_each_process_makes_it(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")  # a file where the folder should be; root may write into any folder
    assert (
        in_turn(tmp_path / "cache/file", "the file is made", lambda: None, lambda tell: tell(0.5) or "mine") == "mine"
    )


def test_a_note_is_written_anew_with_how_far_the_work_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "AGAIN", 0.0)
    file, seen = tmp_path / "file", []

    def make(tell: Tell) -> str:
        for share in (0.25, 0.5):
            tell(share)
            seen.append(json.loads((tmp_path / ".file.turn").read_bytes())["share"])
        return "mine"

    assert in_turn(file, "the file is made", lambda: None, make) == "mine" and seen == [0.25, 0.5]
