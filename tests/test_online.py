"""Records that go to a W&B server: live, later, and when the server is not what it should be. The real client, a real run.

The server is ours (`wandb_server`), on this machine. Every fault is met by a process of its own, several at the same time, with
the time-outs that users have; they are forks of one that has done once what takes time, and most of what they do is waiting: the
tests that need none of them come first. How long they take is not asserted, as this depends on who else is at work here; that they
end is, and that a server that could not be used is asked only once.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from groups import LONG, some
from patience import LAST_RESORT, ended, until
from synthetic_store import OFFLINE
from tiny import frozen_run
from wandb_server import KEY, Upload, WandbServer

from analysis.records.histories import history_frame, read_history
from mmprompt.runs import wandb_client
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.runs.wandb_client import CLIENT
from mmprompt.runs.wandb_record import WandbRecord, read_record
from mmprompt.runs.wandb_writer import RecordWriter
from mmprompt.settings.deployment import Tracking
from sweeps.verbs.sync import sync

ONLINE = Tracking(mode="online", project="mmprompt", entity=None)
STEPS = 12
AT_ONCE = (
    4  # on a machine with other work: a client that is not served soon enough takes that for a fault of the server
)
PROGRAM = """
import json, os, signal, sys, threading, time
from pathlib import Path
sys.path.insert(0, str(Path("tests").absolute()))
import wandb
from tiny import JOB, frozen_run, job_settings
from mmprompt.execution.execute import execute
from mmprompt.runs.store import Store

def end_with_the_tests():
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)

def work(store, runs):
    def watch(state):
        if state.step == 6 and not (store / "half way").exists():
            (store / "half way").touch()
            while not (store / "go on").exists():
                time.sleep(0.02)
    (store / "ends.json").write_text(json.dumps(list(execute(Store(store), runs, place, JOB, watch).values())))

at_once, warm, cases = int(sys.argv[1]), Path(sys.argv[2]), {}
execute(Store(warm), [frozen_run(warm, "optim.steps=1").id], job_settings(), JOB)
place, waiting = job_settings("online"), json.loads(sys.argv[3])
threading.Thread(target=end_with_the_tests, daemon=True).start()
while waiting or cases:
    while waiting and len(cases) < at_once:
        store, runs, environment = waiting.pop(0)
        child = os.fork()
        if not child:
            os.environ.update(environment)
            with open(Path(store) / "said.txt", "w") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
            sys.exit(work(Path(store), runs))
        cases[child] = Path(store)
    child, _ = os.wait()
    (cases.pop(child) / "ended").touch()
"""


def nothing(server: WandbServer) -> None:
    pass


@dataclass
class Case:
    """What is wrong from the start, what goes wrong half way through the first of two runs, and what is made of it."""

    live: int  # how many of the two runs the server has whole before any upload
    start: Callable[[WandbServer], object] = nothing
    half_way: Callable[[WandbServer], object] = nothing
    environment: dict[str, str] = field(default_factory=dict)
    warning: str = ""


def failing(status: int) -> Callable[[WandbServer], object]:
    return lambda server: server.fail(status)


def slow(seconds: float) -> Callable[[WandbServer], object]:
    def become(server: WandbServer) -> None:
        server.delay = seconds

    return become


def for_a_while(fault: Callable[[WandbServer], object]) -> Callable[[WandbServer], object]:
    def become(server: WandbServer) -> None:
        fault(server)
        threading.Timer(6, server.heal).start()

    return become


BEGIN = wandb_client.SETTINGS["init_timeout"]
CANNOT, LATE, FATAL = "W&B cannot be reached (", "W&B did not take the end of", "Fatal error while uploading"
CASES = {  # begun in this order: those that wait longest first
    "dies half way": Case(0, half_way=WandbServer.refuse, warning=LATE),
    "slow": Case(2, slow(1.5)),
    "too slow": Case(0, slow(BEGIN + 5), warning=CANNOT),
    "500": Case(0, failing(500), warning=CANNOT),
    "refused": Case(0, WandbServer.refuse, warning=CANNOT),
    "well": Case(2),
    "no key": Case(0, environment={"WANDB_API_KEY": ""}, warning=CANNOT),
    "401": Case(0, environment={"WANDB_API_KEY": "local" + 40 * "1"}, warning=CANNOT),
    "403": Case(0, failing(403), warning=CANNOT),
    "401 from half way": Case(0, half_way=failing(401), warning=FATAL),
    "429 for a while": Case(2, half_way=for_a_while(failing(429))),
    "gone for a while": Case(2, half_way=for_a_while(WandbServer.refuse)),
}
USUAL = ("refused", "well", "401 from half way")
HERE = list(CASES) if LONG else USUAL


@dataclass
class Met:
    """What a case came to."""

    server: WandbServer
    store: Store
    runs: list[str]
    ends: list[str]
    said: str
    whole: int  # runs that the server had whole before any upload

    @staticmethod
    def of(server: WandbServer, store: Path, runs: list[str]) -> Met:
        server.heal()
        whole = sum(run.state == "finished" and len(run.rows) == STEPS for run in server.runs.values())
        ends = json.loads((store / "ends.json").read_text())
        return Met(server, Store(store), runs, ends, (store / "said.txt").read_text(), whole)

    def record(self, run: str) -> WandbRecord:
        return record_of(self.store.run(run))

    def sync(self, monkeypatch: pytest.MonkeyPatch) -> int:
        use(self.server, monkeypatch)
        return sync([], self.store.root)


def record_of(folder: RunFolder) -> WandbRecord:
    result = folder.result()
    assert result is not None
    return read_record(folder.path / result["wandb"], history=True)


def on_server(server: WandbServer, id: str) -> Upload:
    return server.runs[f"somebody/mmprompt/{id}"]


def start(folder: Path, cases: list[tuple[Path, list[str], dict[str, str]]]) -> subprocess.Popen[bytes]:
    """A process that forks one for each case, with an empty home. All of them end when its standard input does."""
    usual = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    told = [(str(store), runs, {"HOME": str(store / "home")} | environment) for store, runs, environment in cases]
    command = [sys.executable, "-c", PROGRAM, str(AT_ONCE), str(folder), json.dumps(told)]
    environment = usual | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, start_new_session=True)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Two runs as a launch leaves them."""
    store = tmp_path_factory.mktemp("template")
    (store / "home").mkdir()
    sizes = ("task.data.train=16", "task.data.val=8", "task.data.test=8", "optim.batch_size=2", "optim.micro_batch=2")
    short = (f"optim.steps={STEPS}", "optim.validate_every=6", *sizes)
    return store, [frozen_run(store, *short, f"seed={seed}").id for seed in (1, 2)]


@pytest.fixture(scope="module", autouse=True)
def meeting(
    request: pytest.FixtureRequest, template: tuple[Path, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], dict[str, Met]]]:
    """Every case, in a process of its own, begun now. Called, it waits for their ends."""
    if not any(
        "met" in getattr(item, "fixturenames", ()) for item in request.session.items if item.path == request.path
    ):
        yield dict
        return
    servers = {name: WandbServer() for name in HERE}
    stores = {name: tmp_path_factory.mktemp("store") for name in HERE}
    with ExitStack() as stack:
        told = []
        for name in HERE:
            case = CASES[name]
            shutil.copytree(template[0], stores[name], dirs_exist_ok=True)
            stack.enter_context(servers[name])
            case.start(servers[name])
            environment = servers[name].environment | case.environment
            told.append((stores[name], template[1], {key: value for key, value in environment.items() if value}))
        process = start(tmp_path_factory.mktemp("warm"), told)
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdin is not None
        stack.callback(process.stdin.close)

        def break_half_way() -> None:
            waiting = {name: CASES[name] for name in HERE}
            while waiting and process.poll() is None:
                for name in [name for name in waiting if (stores[name] / "half way").exists()]:
                    waiting.pop(name).half_way(servers[name])
                    (stores[name] / "go on").touch()
                time.sleep(0.02)

        threading.Thread(target=break_half_way, daemon=True).start()

        def come_to() -> dict[str, Met]:
            assert ended(process) == 0, [name for name in HERE if not (stores[name] / "ended").exists()]
            return {name: Met.of(servers[name], stores[name], template[1]) for name in HERE}

        yield come_to


@pytest.fixture(scope="module")
def met(meeting: Callable[[], dict[str, Met]]) -> dict[str, Met]:
    """What every case came to."""
    return meeting()


def use(server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in server.environment.items():
        monkeypatch.setenv(key, value)


@pytest.fixture
def no_outage(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No server was found to be out of order before, and none will be after."""
    monkeypatch.setattr(CLIENT, "offline_until", 0.0)
    monkeypatch.setitem(wandb_client.SETTINGS, "init_timeout", 3)
    yield


def recorded(folder: Path, number: int, place: Tracking = ONLINE) -> WandbRecord:
    record = RecordWriter(folder / str(number), f"r{number}-1", "name", "group", {"seed": number}, place)
    record.log(1, {"train/loss": 1.0})
    record.finish({"test/accuracy": 50.0}, 0)
    assert record.file is not None
    return read_record(record.file, history=True)


def is_offline(record: WandbRecord) -> bool:
    return record.path.parent.name.startswith("offline-")


@pytest.mark.usefixtures("no_outage")
def test_a_server_that_was_out_of_order_is_asked_again_after_a_while_and_no_other_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client remembers what it read when it went offline, which is W&B's own server: it would send the key there."""
    with WandbServer() as server, WandbServer() as another:
        use(server, monkeypatch)
        server.fail(500)
        with pytest.warns(UserWarning, match="W&B cannot be reached"):
            assert is_offline(recorded(tmp_path, 1))
        server.heal()
        monkeypatch.setitem(wandb_client.SETTINGS, "init_timeout", LAST_RESORT)  # for one that answers, however late
        assert is_offline(recorded(tmp_path, 2)) and not server.calls
        monkeypatch.setattr(CLIENT, "offline_until", time.monotonic())
        assert not is_offline(recorded(tmp_path, 3))
        assert is_offline(recorded(tmp_path, 4, OFFLINE))
        assert not is_offline(recorded(tmp_path, 5))
        use(another, monkeypatch)
        assert not is_offline(recorded(tmp_path, 6))
        assert [list(one.runs) for one in (server, another)] == [
            ["somebody/mmprompt/r3-1", "somebody/mmprompt/r5-1"],
            ["somebody/mmprompt/r6-1"],
        ]


@pytest.mark.usefixtures("no_outage")
@pytest.mark.parametrize(("name", "value"), [("WANDB_API_KEY", "short"), ("WANDB_BASE_URL", "no address")])
def test_a_setting_that_makes_no_sense_stops_no_training(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv(name, value)
    with pytest.warns(
        UserWarning, match=r"^W&B cannot be reached \([^\n]+\): records are offline ones for 10 minutes; [^\n]+$"
    ):
        record = recorded(tmp_path, 1)
    assert is_offline(record) and (record.state, len(history_frame(record))) == ("finished", 1)


@pytest.mark.long
@pytest.mark.usefixtures("no_outage")
def test_a_killed_run_that_goes_on_is_a_run_of_its_own_on_the_server_with_the_whole_history(
    template: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, run = tmp_path / "store", template[1][0]
    shutil.copytree(template[0], store)
    with WandbServer() as server:
        use(server, monkeypatch)
        first = start(tmp_path / "warm", [(store, [run], server.environment)])
        until((store / "half way").exists, "the run is half way", first)
        child = Store(store).run(run).attempts()[0].job["pid"]
        rows = lambda: len(read_history(record_in(store, run, 1)))  # noqa: E731
        until(lambda: rows() >= 5, "what was logged is on disk, which takes a second", first)
        os.kill(child, signal.SIGKILL)
        ended(first)
        assert ended(start(tmp_path / "again", [(store, [run], server.environment)])) == 0
        assert json.loads((store / "ends.json").read_text()) == ["done"]
        sync([], store)
        killed, done = on_server(server, f"{run}-1"), on_server(server, f"{run}-2")
        assert (killed.state, done.state) == ("failed", "finished")
        assert [row["_step"] for row in done.rows] == list(range(1, STEPS + 1))
        assert len(killed.rows) == len(read_history(record_in(store, run, 1)))
        assert len(killed.rows) >= 5
        assert [row["train/loss"] for row in killed.rows] == [
            row["train/loss"] for row in done.rows[: len(killed.rows)]
        ]


def record_in(store: Path, run: str, attempt: int) -> Path:
    folder = Store(store).run(run)
    file = folder.attempts()[attempt - 1].wandb
    assert file is not None
    return folder.path / file


def test_an_operation_that_our_server_does_not_know_is_refused_and_remembered() -> None:
    server = WandbServer()
    assert server.answer("/graphql", {"query": "query Unheard($id: ID!) { of }"})[0] == 400
    assert server.answer("/nowhere", None)[0] == 404
    assert server.unknown == ["Unheard", "/nowhere"]


# What every case came to


@pytest.mark.parametrize("name", some(list(CASES), *USUAL))
def test_training_goes_on_and_the_record_on_disk_is_whole(met: dict[str, Met], name: str) -> None:
    found = met[name]
    assert found.ends == ["done", "done"]
    for run in found.runs:
        record = found.record(run)
        assert (record.state, record.damage, record.id) == ("finished", (), f"{run}-1")
        assert list(history_frame(record)["_step"]) == list(range(1, STEPS + 1))
        result = found.store.run(run).result()
        assert result is not None
        assert {key: record.summary[key] for key in result["metrics"]} == result["metrics"]


@pytest.mark.parametrize("name", some(list(CASES), *USUAL))
def test_the_server_is_given_up_once_and_one_sentence_says_what_is_wrong_and_what_to_do(
    met: dict[str, Met], name: str
) -> None:
    warning, said = CASES[name].warning, met[name].said
    if warning in (CANNOT, LATE):
        assert said.count("`make sync` uploads") == 1
    assert warning in said
    assert met[name].whole == CASES[name].live
    assert KEY not in said


@pytest.mark.parametrize("name", some(list(CASES), *USUAL))
def test_sync_brings_the_server_every_row_once_and_finds_nothing_to_do_the_next_time(
    met: dict[str, Met], name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = met[name]
    assert found.sync(monkeypatch) == 0
    assert f"{2 - CASES[name].live} sent" in capsys.readouterr().out
    for run in found.runs:
        upload, record = on_server(found.server, f"{run}-1"), found.record(run)
        assert [row["_step"] for row in upload.rows] == list(range(1, STEPS + 1))
        assert [row["train/loss"] for row in upload.rows] == list(history_frame(record)["train/loss"])
        assert (upload.state, upload.exit_code) == ("finished", 0)
        assert {key: upload.summary[key] for key in record.summary} == record.summary
        assert {key: value["value"] for key, value in upload.config.items() if key != "_wandb"} == record.config
    calls = found.server.calls.copy()
    assert found.sync(monkeypatch) == 0
    assert found.server.calls == calls  # it knows by itself
    assert capsys.readouterr().out.startswith("2 records: 2 are on the server")
    assert found.server.unknown == []


def test_no_file_of_the_store_holds_the_key_and_a_run_has_at_most_15(met: dict[str, Met]) -> None:
    for found in met.values():
        files = [path for path in found.store.root.rglob("*") if path.is_file()]
        assert not [path for path in files if KEY.encode() in path.read_bytes()]
        for run in found.runs:
            assert len([path for path in files if found.store.run(run).path in path.parents]) <= 15
        assert not list((found.store.root / "home").rglob("*"))
