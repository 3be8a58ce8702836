"""The live table: what a terminal shows while it is redrawn, and the status lines that a log gets now and then."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from patience import LAST_RESORT, Work

from mmprompt.runs.deployment import ROOT
from sweeps.display.live_table import (
    LOG_INTERVAL,
    MAX_LOG_INTERVAL,
    MIN_CELL_WIDTH,
    LiveTable,
    align_columns,
    shorten_keys,
)

TOKEN = re.compile(r"\x1b\[(?P<number>\d*)(?P<code>[A-Za-z])|(?P<plain>[^\x1b])", re.DOTALL)


@dataclass
class Terminal:
    """A terminal that knows the few control codes that the live table uses, and no others."""

    width: int
    height: int
    lines: list[str] = field(default_factory=lambda: [""])  # lines that scrolled away too
    top: int = 0  # the first line that is still visible
    row: int = 0
    column: int = 0

    def pictures(self, output: str) -> Iterator[list[str]]:
        """The lines of the terminal after each redraw, and at the end."""
        end = 0
        while end < len(output):
            token = TOKEN.match(output, end)
            assert token, f"not a control code that the terminal knows: {output[end : end + 20]!r}"
            end = token.end()
            if token["code"]:
                self.obey(token["code"], int(token["number"] or 1))
            else:
                self.show(token["plain"])
            if token["code"] == "J":
                yield [line.rstrip() for line in self.lines]
        yield [line.rstrip() for line in self.lines]

    def obey(self, code: str, number: int) -> None:
        left_of_cursor = self.lines[self.row][: self.column]
        if code == "A":
            self.row -= number
            assert self.row >= self.top, "the cursor cannot go to lines that scrolled away"
        elif code == "K":
            self.lines[self.row] = left_of_cursor
        else:
            assert code == "J", f"a control code that the live table should not use: {code}"
            self.lines[self.row :] = [left_of_cursor]

    def show(self, character: str) -> None:
        if character == "\n" or self.column == self.width:
            self.row += 1
            self.column = 0
            self.top = max(self.top, self.row - self.height + 1)
            self.lines += [""] * (self.row == len(self.lines))
        if character == "\r":
            self.column = 0
        elif character != "\n":
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
            self.column += 1


def on_a_terminal(
    command: list[str],
    folder: Path,
    size: tuple[int, int] = (80, 24),
    enough: Callable[[str], bool] = lambda output: False,
    **environment: str,
) -> str:
    """The output of a command in a real pseudo-terminal of `size` (columns, rows). The command gets SIGINT once `enough` of its
    output is True."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
    inherited = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    settings = inherited | {"TERM": "xterm", "PYTHONPATH": str(ROOT)} | environment
    process = subprocess.Popen(command, cwd=folder, env=settings, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    output, work, was_enough = b"", Work(process), False
    while True:
        if not select.select([ours], [], [], 5)[0]:
            assert not work.is_stuck(), output
            continue
        try:
            output += os.read(ours, 65536)
        except OSError:  # no process has the terminal open any more
            break
        if not was_enough and enough(output.decode(errors="ignore")):
            was_enough = True
            process.send_signal(signal.SIGINT)
    os.close(ours)
    assert process.wait(timeout=LAST_RESORT) == 0, output
    return output.decode()


LINE = f"[1/21] done   {'a line that is wider than the terminal, ' * 2}the end"
DRAW = f"""
from sweeps.display.live_table import LiveTable, fit_to_terminal
HEAD = "  task              length  state      step  val/accuracy  left"
def rows(step):
    return [f"  micro_entailment  {{i}}       running  {{step}}          61.3   9 s" for i in range(20)]
def show(said, rows, more):
    table.show(lambda width, height: fit_to_terminal([said, HEAD, *rows, *more], width, height), said)
with LiveTable() as table:
    for step in ("1/1000", "1/1000", "1/1000", "1000/1000"):
        show("20 running; about 9 min left", rows(step)[:8], ["  and 12 running"])
    table.print_line("{LINE}")
    show("1 done, 1 running; about 5 s left", rows(step)[:1], [])
print("all 21 runs are done")
"""
COMMAND = [sys.executable, "-c", DRAW]


def test_the_table_is_redrawn_in_place_below_permanent_lines_and_erased_at_the_end(tmp_path: Path) -> None:
    output = on_a_terminal(COMMAND, tmp_path)
    first, later, with_line, smaller, *_, last = Terminal(80, 24).pictures(output)
    assert first == [
        "20 running; about 9 min left",
        "  task              length  state      step  val/accuracy  left",
        *(f"  micro_entailment  {i}       running  1/1000          61.3   9 s" for i in range(8)),
        "  and 12 running",
    ]
    permanent = [LINE[:80].rstrip(), LINE[80:]]
    assert later[2] == "  micro_entailment  0       running  1000/1000          61.3   9 s"
    assert with_line == [*permanent, *later]
    assert smaller == [*permanent, "1 done, 1 running; about 5 s left", *later[1:3]]
    assert last == [*permanent, "all 21 runs are done", ""]


def test_a_table_that_has_not_changed_is_not_redrawn(tmp_path: Path) -> None:
    # It is drawn at first, when steps change, and below the permanent line.
    assert on_a_terminal(COMMAND, tmp_path).count("20 running") == 3


@pytest.mark.parametrize(("width", "height"), [(40, 8), (25, 5), (80, 3), (200, 50)])
def test_a_table_fits_the_terminal_whatever_its_size(tmp_path: Path, width: int, height: int) -> None:
    output = on_a_terminal(COMMAND, tmp_path, (width, height))
    *pictures, last = Terminal(width, height).pictures(output)  # also checks that the cursor stays within the terminal
    assert len(pictures[0]) <= height - 1 and all(len(line) < width for line in pictures[0])
    assert not any("running" in line for line in last) and last[-2] == "all 21 runs are done"


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "dumb", "FORCE_COLOR": "1"}, {"TERM": ""}])
def test_a_terminal_that_cannot_move_its_cursor_gets_permanent_lines_alone(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    output = on_a_terminal(COMMAND, tmp_path, **environment).replace("\r\n", "\n")
    assert output == f"{LINE}\nall 21 runs are done\n"


def test_output_has_no_colours_and_a_pipe_gets_no_control_codes_even_if_colours_are_forced(tmp_path: Path) -> None:
    assert "m" not in re.findall(r"\x1b\[\d*([A-Za-z])", on_a_terminal(COMMAND, tmp_path, NO_COLOR="1"))
    settings = os.environ | {"FORCE_COLOR": "1", "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    output = subprocess.run(COMMAND, cwd=tmp_path, env=settings, capture_output=True, text=True, check=True).stdout
    assert "\x1b" not in output and "\r" not in output and len(output.splitlines()) == 2


def test_a_log_gets_a_status_line_each_minute_and_fewer_and_fewer_while_no_run_finishes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    logged = []
    with LiveTable() as table:
        for second in range(int(60 * LOG_INTERVAL)):
            now = float(second)
            table.show(lambda width, height: [], "1 running")
            if line := capsys.readouterr().out:
                assert line == "1 running\n"
                logged.append(now)
            if second in (50 * LOG_INTERVAL, 50.5 * LOG_INTERVAL):
                table.print_line("a run is done")
                capsys.readouterr()
    assert [second // LOG_INTERVAL for second in logged] == [1, 3, 7, 15, 31, 47, 50, 51, 53, 57]
    assert MAX_LOG_INTERVAL == 16 * LOG_INTERVAL


@pytest.mark.long
def test_a_launch_on_a_terminal_shows_what_differs_state_step_score_and_time_left(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sweeps",
        "launch",
        "length",
        "task=micro_grounding",
        "prompt.length=4",
        "seed=1,2",
    ]
    command += ["optim.steps=250", "optim.batch_size=4", "optim.micro_batch=4", "optim.validate_every=50"]
    command += ["task.data.train=40", "task.data.val=40", "task.data.test=40", "cluster=local", "tracking=disabled"]
    output = on_a_terminal([*command, "cluster.max_parallel=1", f"paths.runs={tmp_path / 'runs'}"], tmp_path)
    pictures = list(Terminal(80, 24).pictures(output))
    tables = [picture[-3:] for picture in pictures if len(picture) > 3 and "state" in picture[-3]]
    assert {tuple(head.split()[:3]) for head, *_ in tables} == {("run", "seed", "state")}  # `seed` is all that differs
    assert all(len(line) < 80 for table in tables for line in table)
    states = {line[head.index("state") :].split("  ")[0] for head, *lines in tables for line in lines}
    assert "running" in states and states <= {"to do", "starting", "running", "scoring", "done"}
    row = r"  [0-9a-f]{4}  1     running +\d+ +1 +\d+/250 +\d+\.\d +\d+ s +(> )?\d+ s"
    assert any(re.fullmatch(row, line) for _, *lines in tables for line in lines)
    assert any(re.search(r"step +val/acc@0\.5 +elapsed +left$", head) for head, *_ in tables)
    lines = [line for line in pictures[-1] if re.match(r"\[[12]/2\] done   seed=[12]  val/acc@0.5 \d", line)]
    assert len(lines) == 2 and pictures[-1][-2] == "all 2 runs are done"
    assert "state" not in "".join(pictures[-1])


@pytest.mark.parametrize(
    ("keys", "ends"),
    [
        (["prompt.length", "seed"], ["length", "seed"]),
        (["task.data.seed", "seed", "prompt.length"], ["data.seed", "seed", "length"]),
        (["model.dropout", "prompt.dropout"], ["model.dropout", "prompt.dropout"]),
    ],
)
def test_the_head_shows_the_shortest_ends_of_keys_that_tell_them_apart(keys: list[str], ends: list[str]) -> None:
    assert shorten_keys(keys) == ends


def test_on_a_narrow_terminal_the_widest_cells_are_cut_and_wide_characters_count_twice() -> None:
    cells = [
        ["template", "seed", "step", "val", "left"],
        ["ein sehr langer Satz", "1", "5/9", "", ""],
        ["図図図図図図図図", "2", "", "", ""],
    ]
    lines = align_columns(cells, [20, 4, 4, 3, 4], 38, right=(2, 3, 4))
    assert lines[0] == "  template       seed  step  val  left"
    assert lines[1] == "  ein sehr lan~  1      5/9"
    assert lines[2] == "  図図図図図図~  2"
    assert align_columns(cells, [20, 4, 4, 3, 4], 5)[1].startswith(f"  {'ein sehr'[: MIN_CELL_WIDTH - 1]}~")
