"""The doctor without SLURM: how it reads sinfo's output, what the probe finds, and a whole pass in local processes."""

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
from patience import LAST_RESORT, children_that_execute, printed_by, until

from mmprompt.runs.deployment import ROOT
from mmprompt.settings.deployment import Cluster
from sweeps.doctor import node_checks, training_checks
from sweeps.doctor.cluster_checks import Site, all_nodes, gpus_of, minutes
from sweeps.doctor.findings import MINE, Finding, Findings, bad
from sweeps.doctor.node_checks import MARK
from sweeps.doctor.slurm_probe import setting_to_blame
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
    **{"gpus": 0, "cpus": 1, "mem_gb": 2.0, "time_min": 60, "max_parallel": None},
    **{
        "recompute": False,
        "speed": "eager",
        "deterministic": False,
        "checkpoint_every": None,
        "checkpoint_seconds": 30,
    },
    **{"runs_per_job": None, "setup": [], "sbatch": {}},
}


def findings(**settings: Any) -> dict[str, Finding]:
    """The findings, by check, for these cluster settings and SINFO; only of checks that call no program of SLURM."""
    site = Site(Cluster.model_validate(CLUSTER | settings), all_nodes(SINFO))
    cluster = Cluster.model_validate(CLUSTER | settings)
    assert cluster.reservation is None and cluster.account is None
    by_check = {}
    for finding in site.findings():
        if finding.name == "accounting":
            break
        by_check[finding.name] = finding
    return by_check


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hides SLURM's commands, whether they are installed or not."""
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
def test_a_setting_that_the_partition_cannot_satisfy_fails_and_the_advice_mends_it(
    settings: dict[str, Any], name: str, advice: str
) -> None:
    by_check = findings(**settings)
    assert [check for check, finding in by_check.items() if finding.grade == "FAIL"] == [name]
    assert any(advice in line for line in by_check[name].advice), by_check[name].advice


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
def test_after_the_advised_lines_are_applied_every_check_passes(settings: dict[str, Any]) -> None:
    [broken] = [finding for finding in findings(**settings).values() if finding.grade == "FAIL"]
    lines = [line.removeprefix(f"{MINE}:  ") for line in broken.advice if line.startswith(MINE)]
    first = dict(yaml.safe_load("\n".join(lines)))
    typed = {key: float(value) if key == "mem_gb" else value for key, value in first.items()}
    assert typed and {finding.grade for finding in findings(**settings | typed).values()} == {"PASS"}
    for line in broken.advice:  # each advice of another partition mends the fault alone
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
def test_settings_that_the_partition_satisfies_pass_every_check(settings: dict[str, Any]) -> None:
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
def test_a_pending_reason_that_never_passes_names_the_setting_and_one_that_passes_names_none(
    reason: str, key: str
) -> None:
    assert setting_to_blame(reason) == key


# The probe


@pytest.fixture
def probe_request(tmp_path: Path) -> dict[str, Any]:
    settings = doctor.compose(["cluster=local", "task.data.val=8"])
    (tmp_path / "login").write_text("abc")
    return {
        **{"folder": str(tmp_path), "store": str(tmp_path), "code": str(ROOT), "nonce": "abc", "slurm": True},
        **{
            "python": sys.executable,
            "host": "login",
            "offset": 0.0,
            "packages": training_checks.versions(),
            "stage": False,
        },
        "data": None,
        "cluster": settings.deployment.cluster.model_dump(),
        "tracking": settings.deployment.tracking.model_dump(),
        "backbone": str(ROOT / "mmprompt/backbones/micro.safetensors"),
        "checksum": settings.checksum,
        "config": settings.config.model_dump(mode="json"),
    }


def only(findings: Iterator[Finding]) -> Finding:
    [finding] = findings
    return finding


def findings_of_probe(probe_request: dict[str, Any], *options: str) -> dict[str, dict[str, Any]]:
    """The probe's findings, by check, when an interpreter with these options runs it."""
    command = [sys.executable, *options, "-m", "sweeps.doctor.node_checks", json.dumps(probe_request)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LAST_RESORT)
    lines = [json.loads(line.removeprefix(MARK)) for line in done.stdout.splitlines() if line.startswith(MARK)]
    assert lines and lines[-1] == {"end": True}, done.stderr
    return {line["name"]: line for line in lines if "name" in line}


def test_an_interpreter_without_packages_names_the_missing_ones_and_the_skipped_checks(
    probe_request: dict[str, Any],
) -> None:
    by_check = findings_of_probe(probe_request, "-S", "-E")  # no site-packages
    assert [name for name, line in by_check.items() if line["grade"] == "FAIL"] == ["packages"]
    assert all(name in by_check["packages"]["found"] for name in ("torch", "wandb", "pydantic"))
    assert {name for name, line in by_check.items() if "not checked, because" in line["found"]} == {
        *("code", "torch", "gpu", "wandb", "data", "backbone")
    }


def test_a_file_system_without_hard_links_cannot_hold_a_store(
    probe_request: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    assert only(node_checks.files(probe_request)).grade == "PASS"
    monkeypatch.setattr(os, "link", no_link)
    assert "link(2) is not possible (Operation not permitted)" in only(node_checks.files(probe_request)).found


def test_a_file_system_whose_link_replaces_cannot_hold_a_store(
    probe_request: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", lambda one, other: Path(other).write_bytes(Path(one).read_bytes()))
    finding = only(node_checks.files(probe_request))
    assert (
        finding.grade == "FAIL" and "link(2) replaces a file" in finding.found and "MMPROMPT_RUNS" in finding.advice[0]
    )


@pytest.mark.parametrize(("ahead", "grade"), [(0.0, "PASS"), (10.0, "NOTE"), (-10.0, "NOTE"), (3600.0, "FAIL")])
def test_clocks_that_differ_get_a_note_or_a_failure(probe_request: dict[str, Any], ahead: float, grade: str) -> None:
    finding = only(node_checks.clock(probe_request | {"offset": -ahead}))
    assert finding.grade == grade and f"{abs(ahead):.1f} s" in finding.found


def test_a_store_that_is_another_folder_or_missing_on_the_node_is_a_failure(probe_request: dict[str, Any]) -> None:
    assert only(node_checks.store(probe_request)).grade == "PASS"
    assert "another folder" in only(node_checks.store(probe_request | {"nonce": "other"})).found
    container = probe_request | {
        "folder": "/no/folder",
        "cluster": probe_request["cluster"] | {"python": "apptainer exec image python"},
    }
    finding = only(node_checks.store(container))
    assert finding.grade == "FAIL" and any("--bind" in line for line in finding.advice)


def test_a_backbone_that_is_missing_or_another_file_on_the_node_is_a_failure(
    probe_request: dict[str, Any], tmp_path: Path
) -> None:
    assert only(training_checks.backbone(probe_request)).grade == "PASS"
    assert "another file" in only(training_checks.backbone(probe_request | {"checksum": "0" * 64})).found
    assert "cannot be read" in only(training_checks.backbone(probe_request | {"backbone": str(tmp_path / "no")})).found
    assert "is no checkpoint of model=" in only(training_checks.backbone(of_another_model(probe_request))).found


def of_another_model(probe_request: dict[str, Any]) -> dict[str, Any]:
    model = probe_request["config"]["model"] | {"dim": 2 * probe_request["config"]["model"]["dim"]}
    return probe_request | {"config": probe_request["config"] | {"model": model}}


def test_a_torch_without_cuda_and_a_node_without_a_driver_are_different_findings(
    probe_request: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    probe_request["cluster"]["gpus"] = 1
    if torch.version.cuda is None:
        assert "built without CUDA" in only(training_checks.gpu(probe_request)).found
    if training_checks.driver_cuda() is None:
        monkeypatch.setattr(torch.version, "cuda", "12.6")
        finding = only(training_checks.gpu(probe_request))
        assert finding.grade == "FAIL" and finding.name == "driver" and "no NVIDIA driver" in finding.found


def test_a_server_that_cannot_be_reached_is_a_note_that_advises_make_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    finding = training_checks.connection(training_checks.wandb_host())
    assert finding.grade == "NOTE" and "Connection refused" in finding.found and "make sync" in finding.advice[0]


def test_a_finding_is_wrapped_at_80_columns_but_its_advice_stays_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Findings().say(bad("partition", "there are " + ", ".join(f"partition{i}" for i in range(30)), "word " * 40))
    *text, advice = capsys.readouterr().out.splitlines()
    assert len(text) > 3 and max(map(len, text)) <= 80 and advice.count("word") == 40


# A whole pass, in local processes


def run_doctor(folder: Path, *overrides: str, **environment: str) -> tuple[int, str]:
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


def test_with_local_processes_the_checks_of_a_node_are_made_here_and_no_file_is_left(tmp_path: Path) -> None:
    code, output = run_doctor(tmp_path)
    assert code == 0 and failed(output) == [], output
    assert {"python", "store", "files", "torch", "wandb", "data", "backbone"} <= {
        name for _, name in LINE.findall(output)
    }
    assert list(tmp_path.iterdir()) == []


def test_all_faults_of_this_machine_are_found_in_one_pass(tmp_path: Path) -> None:
    (tmp_path / "half.safetensors").write_bytes((ROOT / "mmprompt/backbones/micro.safetensors").read_bytes()[:99_999])
    settings = [f"paths.backbone={tmp_path}/half.safetensors", "cluster.gpus=99", "cluster.setup=[hostname]"]
    code, output = run_doctor(tmp_path, *settings, TMPDIR=str(tmp_path / "none"))
    assert code == 1 and set(failed(output)) - {"gpu", "driver"} == {"gpus", "scratch", "backbone"}, output
    assert "export TMPDIR=/tmp" in output and "paths.backbone=" in output and "gpus: " in output
    assert "they are not used here" in " ".join(output.split())  # the setup lines
    [folder] = (tmp_path / "runs/doctor").iterdir()
    assert str(folder) in output and sorted(file.name for file in folder.iterdir()) == ["0_log.err", "0_log.out"]


def test_an_interrupted_doctor_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    process = subprocess.Popen(command(), cwd=tmp_path, env=variables(tmp_path), preexec_fn=accept_ctrl_c, **OUTPUT)

    def probes() -> list[psutil.Process]:
        return children_that_execute("sweeps.doctor.node_checks", psutil.Process(process.pid))

    [probe] = until(probes, "the probe runs", process)
    process.send_signal(signal.SIGINT)
    output = printed_by(process)
    assert process.returncode == 130 and "interrupted" in output and "Traceback" not in output, output
    assert not probe.is_running() and list(tmp_path.iterdir()) == []


def accept_ctrl_c() -> None:
    """Resets SIGINT in a child process: a shell starts background jobs with it ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_missing_backbone_is_a_failure_and_the_other_checks_are_still_made(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings, report = doctor.compose(["cluster=local", "paths.backbone=/no/backbone.pt"]), Findings()
    doctor.check_key_and_backbone(settings, report)
    output = capsys.readouterr().out
    assert failed(output) == ["backbone"] and "-> paths.backbone=" in output
    assert settings.config.backbone.checksum == doctor.UNKNOWN  # so that the probe can check the data


def test_a_setting_that_does_not_exist_or_has_two_values_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    code, output = run_doctor(tmp_path, "cluster.partitoin=main")
    assert code == 2 and "cluster.partition" in output and len(output.splitlines()) == 1
    code, output = run_doctor(tmp_path, "cluster.cpus=1,2")
    assert code == 2 and "give one" in output and len(output.splitlines()) == 1
