"""The doctor without SLURM: what it makes of sinfo's words, what the probe finds, and a pass over local processes."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from patience import LAST_RESORT, printed_by, until

from mmprompt.runs.deployment import ROOT, Cluster
from sweeps.doctor import probe
from sweeps.doctor.probe import MARK, MINE, Finding, bad
from sweeps.doctor.probe_job import Findings, blame
from sweeps.doctor.site import Site, all_nodes, gpus_of, minutes
from sweeps.verbs import doctor

LINE = re.compile(r"^  (PASS|FAIL|NOTE)  (\S+)", re.MULTILINE)
SINFO = """\
cpu*|up|2-00:00:00|40|192000|48|(null)|skylake,ib|mix
cpu*|up|2-00:00:00|2|192000|48|(null)|skylake,ib|down*
gpu|up|12:00:00|10|515000+|64|gpu:a100:4(S:0-1),nvme:1|zen3,ib|alloc
gpu|up|12:00:00|2|1031000|32|gpu:h100:2|zen4|drain
brief|up|30:00|4|64000|16|gpu:2|(null)|idle~
shut|down|infinite|4|64000|16|(null)|(null)|idle
"""
CLUSTER: dict[str, Any] = {
    "kind": "slurm",
    **dict.fromkeys(("partition", "account", "qos", "constraint", "reservation", "exclude", "gres", "python")),
    **{"gpus": 0, "cpus": 1, "mem_gb": 2.0, "time_min": 60, "max_parallel": None, "checkpoint_every": 50},
    **{"runs_per_job": None, "setup": [], "sbatch": {}},
}


def findings(**settings: Any) -> dict[str, Finding]:
    """What does not need to ask anybody."""
    site = Site(Cluster.model_validate(CLUSTER | settings), all_nodes(SINFO))
    asked = Cluster.model_validate(CLUSTER | settings)
    assert asked.reservation is None and asked.account is None
    found = {}
    for finding in site.findings():
        if finding.name == "accounting":
            break
        found[finding.name] = finding
    return found


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SLURM's commands are not found here, be they installed or not."""
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    monkeypatch.delenv("MMPROMPT_FAKE_GPUS", raising=False)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("infinite", math.inf), ("30:00", 30), ("2:30:00", 150), ("1-12:00:00", 2160), ("n/a", math.inf), ("0:30", 0.5)],
)
def test_time_limits_are_read_as_sinfo_writes_them(text: str, wanted: float) -> None:
    assert minutes(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("(null)", {}),
        ("gpu:2", {"": 2}),
        ("gpu:a100:4(S:0-1),nvme:1", {"a100": 4}),
        ("gpu:a100:1,gpu:h100:3", {"a100": 1, "h100": 3}),
        ("gpu:a100", {"a100": 1}),
        ("gpu", {"": 1}),
        ("gpumem:80", {}),
    ],
)
def test_gpus_are_read_as_sinfo_writes_them(text: str, wanted: dict[str, int]) -> None:
    assert gpus_of(text) == wanted


def test_only_nodes_that_are_up_in_a_partition_that_is_up_take_jobs() -> None:
    assert [nodes.take_jobs for nodes in all_nodes(SINFO)] == [True, False, True, False, True, False]


@pytest.mark.parametrize(
    ("settings", "name", "advice"),
    [
        ({"partition": "gpus"}, "partition", "partition: gpu"),
        ({"partition": "shut"}, "partition", "partition: cpu"),
        ({"partition": "brief"}, "time_min", "time_min: 30"),
        ({"partition": "brief"}, "time_min", "or  conf/cluster/mine.yaml:  partition: cpu"),
        ({"time_min": 5000}, "time_min", "time_min: 2880"),
        ({"mem_gb": 500.0}, "mem_gb", "mem_gb: 187.5"),
        ({"mem_gb": 500.0}, "mem_gb", "partition: gpu"),
        ({"cpus": 64}, "cpus", "cpus: 48"),
        ({"gpus": 1}, "gpus", "partition: gpu"),
        ({"gpus": 5, "partition": "gpu"}, "gpus", "gpus: 4"),
        ({"gpus": 1, "gres": "gpu:a10:1", "partition": "gpu"}, "gpus", "gres: gpu:a100:1"),
        ({"gpus": 3, "gres": "gpu:h100:3", "partition": "gpu"}, "gpus", "gres: gpu:h100:2"),
        ({"gpus": 1, "gres": "gpu:h100:1", "partition": "brief", "time_min": 9}, "gpus", "partition: gpu"),
        ({"constraint": "skylakes&ib"}, "constraint", "constraint: skylake"),
        ({"partition": "gpu", "gpus": 4, "mem_gb": 900.0}, "together", "mem_gb: less"),
    ],
)
def test_what_a_partition_does_not_have_is_found_and_the_line_that_mends_it(
    settings: dict[str, Any], name: str, advice: str
) -> None:
    found = findings(**settings)
    assert [one for one, finding in found.items() if finding.grade == "FAIL"] == [name]
    assert any(advice in line for line in found[name].advice), found[name].advice


@pytest.mark.parametrize(
    "settings",
    [
        {"partition": "gpus"},
        {"partition": "brief"},
        {"time_min": 5000},
        {"mem_gb": 500.0},
        {"cpus": 64},
        {"gpus": 1},
        {"gpus": 5, "partition": "gpu"},
        {"gpus": 1, "gres": "gpu:a10:1", "partition": "gpu"},
        {"gpus": 3, "gres": "gpu:h100:3", "partition": "gpu"},
        {"constraint": "skylakes"},
        {"partition": "shut"},
    ],
)
def test_the_lines_that_it_advises_do_mend_it(settings: dict[str, Any]) -> None:
    [broken] = [finding for finding in findings(**settings).values() if finding.grade == "FAIL"]
    lines = [line.removeprefix(f"{MINE}:  ") for line in broken.advice if line.startswith(MINE)]
    first = dict(yaml.safe_load("\n".join(lines)))
    typed = {key: float(value) if key == "mem_gb" else value for key, value in first.items()}
    assert typed and {finding.grade for finding in findings(**settings | typed).values()} == {"PASS"}
    for line in broken.advice:  # another partition mends it alone
        if line.startswith("or  "):
            other = yaml.safe_load(line.removeprefix(f"or  {MINE}:  "))
            assert broken.name not in [f.name for f in findings(**settings | other).values() if f.grade == "FAIL"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"partition": "cpu,gpu", "mem_gb": 500.0},
        {"partition": "gpu", "gpus": 4},
        {"partition": "gpu", "gpus": 2, "gres": "gpu:h100:2", "mem_gb": 900.0},
        {"partition": "brief", "gpus": 2, "time_min": 30},
        {"constraint": "[skylake*2&ib]"},
    ],
)
def test_what_a_partition_has_is_no_failure(settings: dict[str, Any]) -> None:
    assert {finding.grade for finding in findings(**settings).values()} == {"PASS"}


@pytest.mark.parametrize(
    ("reason", "key"),
    [
        ("PartitionTimeLimit", "time_min"),
        ("QOSMaxWallDurationPerJobLimit", "time_min"),
        ("AssocMaxWallDurationPerJobLimit", "time_min"),
        ("AccountNotAllowed", "account"),
        ("QOSNotAllowed", "qos"),
        ("InvalidQOS", "qos"),
        ("BadConstraints", "constraint"),
        ("PartitionDown", "partition"),
        ("QOSMaxMemoryPerJob", "mem_gb"),
        ("QOSMaxCpuPerJobLimit", "cpus"),
        ("QOSMaxGRESPerJob", "gpus"),
        ("JobHeldUser", "sbatch"),
        ("Resources", ""),
        ("Priority", ""),
        ("BeginTime", ""),
        ("QOSMaxJobsPerUserLimit", ""),
        ("AssocGrpCpuLimit", ""),
        ("QOSMaxCpuPerUserLimit", ""),
        ("QOSGrpGRES", ""),
        ("ReqNodeNotAvail, UnavailableNodes:gn1", ""),
    ],
)
def test_a_reason_for_waiting_that_never_passes_is_told_from_one_that_does(reason: str, key: str) -> None:
    assert blame(reason) == key


# The probe


@pytest.fixture
def ask(tmp_path: Path) -> dict[str, Any]:
    settings = doctor.compose(["cluster=local", "task.data.val=8"])
    (tmp_path / "login").write_text("abc")
    return {
        **{"folder": str(tmp_path), "store": str(tmp_path), "code": str(ROOT), "nonce": "abc", "slurm": True},
        **{"python": sys.executable, "host": "login", "offset": 0.0, "packages": probe.versions(), "stage": False},
        "data": None,
        "cluster": settings.deployment.cluster.model_dump(),
        "tracking": settings.deployment.tracking.model_dump(),
        "backbone": str(ROOT / "mmprompt/backbones/micro.safetensors"),
        "checksum": settings.checksum,
        "config": settings.config.model_dump(mode="json"),
    }


def only(found: Iterator[Finding]) -> Finding:
    [finding] = found
    return finding


def said(ask: dict[str, Any], *options: str) -> dict[str, dict[str, Any]]:
    """By an interpreter with these options."""
    command = [sys.executable, *options, "-m", "sweeps.doctor.probe", json.dumps(ask)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LAST_RESORT)
    lines = [json.loads(line.removeprefix(MARK)) for line in done.stdout.splitlines() if line.startswith(MARK)]
    assert lines and lines[-1] == {"end": True}, done.stderr
    return {line["name"]: line for line in lines if "name" in line}


def test_an_interpreter_without_any_package_says_which_it_lacks_and_what_it_could_not_look_at(
    ask: dict[str, Any],
) -> None:
    found = said(ask, "-S", "-E")  # no site-packages
    assert [name for name, line in found.items() if line["grade"] == "FAIL"] == ["packages"]
    assert all(name in found["packages"]["found"] for name in ("torch", "wandb", "pydantic"))
    assert {name for name, line in found.items() if "for want of" in line["found"]} == {
        *("code", "torch", "gpu", "wandb", "data", "backbone")
    }


def test_a_file_system_without_hard_links_cannot_hold_a_store(
    ask: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    assert only(probe.files(ask)).grade == "PASS"
    monkeypatch.setattr(os, "link", no_link)
    assert "link(2) is not possible (Operation not permitted)" in only(probe.files(ask)).found


def test_a_file_system_whose_link_replaces_cannot_hold_a_store(
    ask: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", lambda one, other: Path(other).write_bytes(Path(one).read_bytes()))
    finding = only(probe.files(ask))
    assert (
        finding.grade == "FAIL" and "link(2) replaces a file" in finding.found and "MMPROMPT_RUNS" in finding.advice[0]
    )


@pytest.mark.parametrize(("ahead", "grade"), [(0.0, "PASS"), (10.0, "NOTE"), (-10.0, "NOTE"), (3600.0, "FAIL")])
def test_clocks_that_differ_are_told(ask: dict[str, Any], ahead: float, grade: str) -> None:
    finding = only(probe.clock(ask | {"offset": -ahead}))
    assert finding.grade == grade and f"{abs(ahead):.1f} s" in finding.found


def test_a_store_that_is_another_folder_or_none_is_not_taken_for_the_login_nodes(ask: dict[str, Any]) -> None:
    assert only(probe.store(ask)).grade == "PASS"
    assert "another folder" in only(probe.store(ask | {"nonce": "other"})).found
    container = ask | {"folder": "/no/folder", "cluster": ask["cluster"] | {"python": "apptainer exec image python"}}
    finding = only(probe.store(container))
    assert finding.grade == "FAIL" and any("--bind" in line for line in finding.advice)


def test_a_backbone_that_is_another_file_on_the_node_is_found(ask: dict[str, Any], tmp_path: Path) -> None:
    assert only(probe.backbone(ask)).grade == "PASS"
    assert "another file" in only(probe.backbone(ask | {"checksum": "0" * 64})).found
    assert "cannot be read" in only(probe.backbone(ask | {"backbone": str(tmp_path / "no")})).found
    assert "is no checkpoint of model=" in only(probe.backbone(of_another_model(ask))).found


def of_another_model(ask: dict[str, Any]) -> dict[str, Any]:
    model = ask["config"]["model"] | {"dim": 2 * ask["config"]["model"]["dim"]}
    return ask | {"config": ask["config"] | {"model": model}}


def test_a_torch_without_cuda_and_a_node_without_a_driver_are_told_apart(
    ask: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask["cluster"]["gpus"] = 1
    if torch.version.cuda is None:
        assert "built without CUDA" in only(probe.gpu(ask)).found
    if probe.driver_cuda() is None:
        monkeypatch.setattr(torch.version, "cuda", "12.6")
        finding = only(probe.gpu(ask))
        assert finding.grade == "FAIL" and finding.name == "driver" and "no NVIDIA driver" in finding.found


def test_a_server_that_cannot_be_reached_is_a_note_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    finding = probe.reaches(probe.wandb_host())
    assert finding.grade == "NOTE" and "Connection refused" in finding.found and "make sync" in finding.advice[0]


def test_a_finding_fits_into_80_columns_and_what_is_to_be_copied_stays_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Findings().say(bad("partition", "there are " + ", ".join(f"partition{i}" for i in range(30)), "word " * 40))
    *text, advice = capsys.readouterr().out.splitlines()
    assert len(text) > 3 and max(map(len, text)) <= 80 and advice.count("word") == 40


# A whole pass, in local processes


def visit(folder: Path, *overrides: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        command(*overrides), cwd=folder, env=variables(folder, **environment), **OUTPUT, timeout=LAST_RESORT
    )
    return done.returncode, done.stdout


OUTPUT: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "sweeps", "doctor", "cluster=local", "task.data.val=8", *overrides]


def variables(folder: Path, **more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "MMPROMPT_RUNS": str(folder / "runs")} | more


def failed(output: str) -> list[str]:
    return [name for grade, name in LINE.findall(output) if grade == "FAIL"]


def test_on_local_processes_the_checks_of_a_node_are_made_here_and_nothing_stays(tmp_path: Path) -> None:
    code, output = visit(tmp_path)
    assert code == 0 and failed(output) == [], output
    assert {"python", "store", "files", "torch", "wandb", "data", "backbone"} <= {
        name for _, name in LINE.findall(output)
    }
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_with_this_machine_is_found_in_one_pass(tmp_path: Path) -> None:
    (tmp_path / "half.safetensors").write_bytes((ROOT / "mmprompt/backbones/micro.safetensors").read_bytes()[:99_999])
    settings = [f"paths.backbone={tmp_path}/half.safetensors", "cluster.gpus=99", "cluster.setup=[hostname]"]
    code, output = visit(tmp_path, *settings, TMPDIR=str(tmp_path / "none"))
    assert code == 1 and set(failed(output)) - {"gpu", "driver"} == {"gpus", "scratch", "backbone"}, output
    assert "export TMPDIR=/tmp" in output and "paths.backbone=" in output and "gpus: " in output
    assert "they are not used here" in " ".join(output.split())  # the setup lines
    [folder] = (tmp_path / "runs/doctor").iterdir()
    assert str(folder) in output and sorted(file.name for file in folder.iterdir()) == ["0_log.err", "0_log.out"]


def test_an_interrupted_doctor_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    process = subprocess.Popen(command(), cwd=tmp_path, env=variables(tmp_path), preexec_fn=hear_ctrl_c, **OUTPUT)

    def probes() -> list[psutil.Process]:
        return [one for one in psutil.Process(process.pid).children() if "sweeps.doctor.probe" in one.cmdline()]

    [probe] = until(probes, "the probe runs", process)
    process.send_signal(signal.SIGINT)
    said = printed_by(process)
    assert process.returncode == 130 and "interrupted" in said and "Traceback" not in said, said
    assert not probe.is_running() and list(tmp_path.iterdir()) == []


def hear_ctrl_c() -> None:
    """A shell starts what it puts in the background with Ctrl-C ignored, and that is inherited: not by these."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_backbone_that_is_not_there_is_a_finding_and_the_rest_is_looked_at(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings, report = doctor.compose(["cluster=local", "paths.backbone=/no/backbone.pt"]), Findings()
    doctor.ask_home(settings, report)
    output = capsys.readouterr().out
    assert failed(output) == ["backbone"] and "-> paths.backbone=" in output
    assert settings.config.backbone.checksum == doctor.UNKNOWN  # so that the probe can look at the data


def test_a_setting_that_does_not_exist_or_has_two_values_is_one_sentence(tmp_path: Path) -> None:
    code, output = visit(tmp_path, "cluster.partitoin=main")
    assert code == 2 and "cluster.partition" in output and len(output.splitlines()) == 1
    code, output = visit(tmp_path, "cluster.cpus=1,2")
    assert code == 2 and "give one" in output and len(output.splitlines()) == 1
