"""The doctor on the real test cluster: it passes a healthy setup, and of each planted fault it reports exactly that fault.

Each call of the doctor is a story, and the tests check its result. Its probe runs on nodes that no story breaks.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import patience
import pytest
from cluster import Cluster
from lab import Lab, Together, bare_cluster, beside, looks_at
from patience import ended, printed_by
from people import people

from mmprompt.runs.deployment import ROOT
from sweeps.doctor.findings import MINE

CLINIC = f"clinic{os.getpid()}"  # a partition with a time limit and without preemption; CLINICdown is one that is down
LATER = "cluster.sbatch={begin: now+1hour}"
DOCTOR = ("-m", "sweeps", "doctor")
HURRIED = (
    "from sweeps.doctor import slurm_probe; from sweeps.verbs.doctor import doctor; import sys; "
    "slurm_probe.PATIENCE = 1.0; sys.exit(doctor(sys.argv[1:]))"
)
LINE = re.compile(r"^  (PASS|FAIL|NOTE)  (\S+)", re.MULTILINE)


@dataclass
class Visit:
    """A call of `python -m sweeps doctor` in a folder of its own."""

    folder: Path
    overrides: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    program: Sequence[str] = DOCTOR
    process: subprocess.Popen[str] | None = None

    @property
    def store(self) -> Path:
        return self.folder / "runs"

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text()

    @property
    def words(self) -> str:
        """Its output as one line."""
        return " ".join(self.output.split())

    def start(self, partition: str) -> Visit:
        settings = ["cluster=slurm", f"cluster.partition={partition}", "cluster.mem_gb=1", "task.data.val=8"]
        named = {override.split("=")[0] for override in self.overrides}
        settings = [setting for setting in settings if setting.split("=")[0] not in named]
        with (self.folder / "output").open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, *settings, *self.overrides],
                cwd=self.folder,
                env=os.environ | {"PYTHONPATH": str(ROOT), "MMPROMPT_RUNS": str(self.store)} | self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
        return self

    def code(self) -> int:
        assert self.process is not None
        return ended(self.process)

    def grades(self, grade: str) -> list[str]:
        return [name for found, name in LINE.findall(self.output) if found == grade]

    def advice(self, name: str) -> str:
        """The lines below a failure."""
        failure = re.search(rf"^  FAIL  {name}\b.*?(?=^\S|^  \S|\Z)", self.output, re.MULTILINE | re.DOTALL)
        assert failure, self.output
        return "\n".join(line.strip() for line in failure[0].splitlines() if "->" in line)

    def until(self, text: str) -> None:
        patience.until(lambda: text in self.output, f"the doctor says {text!r}", self.process)


@dataclass(frozen=True)
class Fault:
    """A planted fault, and what the doctor must report."""

    overrides: Callable[[Path], Sequence[str]]  # gets a folder in which the fault may be planted
    finding: str
    advice: str
    reaches_a_node: bool = True  # the probe starts, and all unrelated checks pass
    environment: Callable[[Path, Cluster], dict[str, str]] = lambda folder, cluster: {}
    program: Sequence[str] = DOCTOR
    says: str = ""


def plain(*overrides: str) -> Callable[[Path], Sequence[str]]:
    return lambda folder: overrides


def an_interpreter_without_packages(folder: Path) -> Sequence[str]:
    venv.create(folder / "bare", symlinks=True)
    return [f"cluster.python={folder}/bare/bin/python"]


def a_container_without_the_store(folder: Path) -> Sequence[str]:
    """Like Apptainer without --bind: a mount namespace in which another file system hides the store."""
    wrapper = folder / "container"
    wrapper.write_text(
        f'#!/bin/sh\nexec unshare --mount sh -c \'mount -t tmpfs none {folder}/runs && exec "$@"\' sh {sys.executable} "$@"\n'
    )
    wrapper.chmod(0o755)
    return [f"cluster.python={wrapper}"]


def an_interpreter_that_goes_elsewhere(folder: Path) -> Sequence[str]:
    wrapper = folder / "python"
    wrapper.write_text(f'#!/bin/sh\ncd {ROOT} && exec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    return [f"cluster.python={wrapper}"]


def half_a_backbone(folder: Path) -> Sequence[str]:
    whole = (ROOT / "mmprompt/backbones/micro.safetensors").read_bytes()
    (folder / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    return [f"paths.backbone={folder}/half.safetensors"]


def a_full_disk(folder: Path) -> Sequence[str]:
    (folder / "runs").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", folder / "runs"], check=True)
    return []


def a_store_in_a_file(folder: Path) -> Sequence[str]:
    (folder / "file").write_text("not a folder")
    return [f"paths.runs={folder}/file/runs"]


def a_dead_controller(folder: Path, cluster: Cluster) -> dict[str, str]:
    """A slurm.conf with a port on which no controller listens, and a short timeout."""
    conf = cluster.conf.read_text()
    conf = re.sub(r"^SlurmctldPort=.*", "SlurmctldPort=9", conf, flags=re.MULTILINE)
    (folder / "slurm.conf").write_text(re.sub(r"^MessageTimeout=.*", "MessageTimeout=2", conf, flags=re.MULTILINE))
    return {"SLURM_CONF": str(folder / "slurm.conf")}


SETUP = "setup line"
FAULTS = {
    "partition": Fault(plain("cluster.partition=mian"), "partition", f"{MINE}:  partition: main", False),
    "partition that is down": Fault(
        plain(f"cluster.partition={CLINIC}down"), "partition", "partition: main", False, says="0 of 4 nodes take jobs"
    ),
    "time limit": Fault(plain("cluster.time_min=600"), "time_min", f"{MINE}:  time_min: 90"),
    "GPUs": Fault(plain("cluster.gpus=3"), "gpus", f"{MINE}:  gpus: 2", False),
    "memory": Fault(plain("cluster.mem_gb=64"), "mem_gb", f"{MINE}:  mem_gb: 3.9", False),
    "CPUs": Fault(plain("cluster.cpus=5"), "cpus", f"{MINE}:  cpus: 4", False),
    "account": Fault(plain("cluster.account=nobody"), "account", f"{MINE}:  account: root", False),
    "constraint": Fault(plain("cluster.constraint=a100"), "constraint", f"{MINE}:  constraint: null", False),
    "reservation": Fault(plain("cluster.reservation=mine"), "reservation", f"{MINE}:  reservation: null", False),
    SETUP: Fault(plain('cluster.setup=["true","module load cuda/99"]'), "setup", f'{MINE}:  setup: ["true"]', False),
    "setup line that traps": Fault(
        plain('cluster.setup=["trap true EXIT; module load cuda/99"]'), "setup", f"{MINE}:  setup: ", False
    ),
    "no interpreter": Fault(
        plain("cluster.python=/opt/no/python"), "python", f"{MINE}:  python: {sys.executable}", False
    ),
    "no packages": Fault(an_interpreter_without_packages, "packages", f"{MINE}:  python: {sys.executable}", False),
    "other code": Fault(an_interpreter_that_goes_elsewhere, "code", f"{MINE}:  python: "),
    "container": Fault(a_container_without_the_store, "store", "--bind"),
    "backbone": Fault(half_a_backbone, "backbone", "paths.backbone="),
    "full disk": Fault(a_full_disk, "space", "MMPROMPT_RUNS="),
    "no store": Fault(a_store_in_a_file, "store", "MMPROMPT_RUNS=", False),
    "controller": Fault(plain(), "sinfo", "scontrol ping", False, a_dead_controller),
    "held": Fault(plain("cluster.sbatch={hold: true}"), "queue", 'sbatch: {"hold": true}', False, says="JobHeldUser"),
    "no node in time": Fault(
        plain(LATER), "queue", "sinfo -s", False, program=("-c", HURRIED), says="BeginTime: ask for less"
    ),
    "W&B": Fault(plain('cluster.setup=["export GOMEMLIMIT=lots"]'), "wandb", f"{MINE}:  setup: "),
}
NOT_STARTED = ("held", "no node in time")
NEEDS_ROOT = {"container", "full disk"}  # these mount file systems
DEPENDENT = {"container": {"files", "clock", "code", "backbone"}}
HEALTHY = {
    "setup",
    "python",
    "store",
    "files",
    "clock",
    "cores",
    "scratch",
    "packages",
    "code",
    "torch",
    "gpu",
    "wandb",
}
HEALTHY |= {"data", "backbone", "memory", "back", "squeue", "sacct"}


@contextlib.contextmanager
def clinic(cluster: Cluster) -> Iterator[str]:
    """The partitions for these tests."""

    def run(*words: str) -> int:
        return subprocess.run(words, env=cluster.env, capture_output=True).returncode

    for name, state, nodes in ((CLINIC, "UP", "gn[1-2]"), (f"{CLINIC}down", "DOWN", "ALL")):
        settings = [f"PartitionName={name}", f"Nodes={nodes}", "MaxTime=90", "PreemptMode=OFF", f"State={state}"]
        subprocess.run(["scontrol", "create", *settings], env=cluster.env, check=True)
    yield CLINIC
    for name in (CLINIC, f"{CLINIC}down"):
        run("scancel", "-p", name)
        patience.until(lambda name=name: run("scontrol", "delete", f"PartitionName={name}") == 0, "its jobs have ended")


@contextlib.contextmanager
def visit_of(lab: Lab, overrides: Sequence[str], program: Sequence[str] = DOCTOR, **more: str) -> Iterator[Visit]:
    """A call of the doctor that has been started."""
    lab.folder.mkdir(parents=True, exist_ok=True)
    environment = {"SLURM_CONF": str(lab.cluster.conf), "MMPROMPT_FAKE_GPUS": "1"} | more
    visit = Visit(lab.folder, overrides, environment, program).start(lab.shared.thing(clinic, lab.cluster))
    try:
        yield visit
    finally:
        assert visit.process is not None
        visit.process.kill()
        visit.process.wait()


def nothing(lab: Lab) -> Visit:
    with visit_of(lab, ["cluster.gpus=1", 'cluster.setup=["cd /"]']) as visit:
        visit.code()
    return visit


def planted(name: str, fault: Fault, lab: Lab) -> Visit:
    if name in NEEDS_ROOT and os.geteuid() != 0:
        pytest.skip("only root can plant this fault")
    lab.folder.mkdir(parents=True)
    try:
        overrides, environment = fault.overrides(lab.folder), fault.environment(lab.folder, lab.cluster)
        with visit_of(lab, overrides, fault.program, **environment) as visit:
            visit.code()
        return visit
    finally:
        if (lab.folder / "runs").is_mount():
            subprocess.run(["umount", "--lazy", lab.folder / "runs"], check=True)


NOTHING = {"nothing": nothing}
PLANTED = {name: partial(planted, name, fault) for name, fault in FAULTS.items()}


@looks_at(NOTHING)
def test_on_a_healthy_setup_no_check_fails_and_nothing_is_left_in_the_store(together: Together) -> None:
    visit: Visit = together.result("nothing")
    assert visit.code() == 0, visit.output
    assert visit.grades("FAIL") == [] and set(visit.grades("PASS") + visit.grades("NOTE")) >= HEALTHY
    assert not visit.store.exists()
    assert "All is well" in visit.output and "Traceback" not in visit.output
    assert "arrays of up to 20001 jobs" in " ".join(visit.output.split())  # the size of the arrays that a launch makes
    assert max(len(line) for line in visit.output.splitlines()[1:]) <= 80


@looks_at(NOTHING)
def test_fake_gpus_are_reported_as_a_note_and_not_as_a_failure(together: Together) -> None:
    visit: Visit = together.result("nothing")
    assert visit.code() == 0
    assert "gpu" in visit.grades("NOTE") and "gpus" in visit.grades("PASS")
    assert re.search(r"gpu +CUDA_VISIBLE_DEVICES=[01]; torch\s+sees 0", visit.output)


@pytest.mark.parametrize("name", FAULTS)
@looks_at(PLANTED)
def test_a_planted_fault_is_found_and_no_other_check_fails(together: Together, name: str) -> None:
    fault, visit = FAULTS[name], together.result(name)
    assert visit.code() == 1, visit.output
    assert visit.grades("FAIL") == [fault.finding], visit.output
    assert fault.advice in visit.advice(fault.finding), visit.output
    assert fault.says in visit.words and "Traceback" not in visit.output
    if fault.reaches_a_node:
        rest = HEALTHY - {fault.finding} - DEPENDENT.get(name, set()) - {"back", "gpu", "store"}
        assert set(visit.grades("PASS")) >= rest, visit.output


@looks_at({SETUP: PLANTED[SETUP]})
def test_of_a_probe_that_found_a_fault_only_its_log_and_script_stay(together: Together) -> None:
    visit: Visit = together.result(SETUP)
    assert visit.code() == 1
    [folder] = (visit.store / "doctor").iterdir()
    assert str(folder) in visit.output
    assert sorted(file.name.split("_", 1)[1] for file in folder.iterdir()) == [
        "0_log.err",
        "0_log.out",
        "submission.sh",
    ]
    assert "module" in next(folder.glob("*.err")).read_text()


@pytest.mark.long
@looks_at({name: PLANTED[name] for name in NOT_STARTED})
def test_a_probe_that_does_not_start_is_cancelled(slurm: Path, together: Together) -> None:
    for name in NOT_STARTED:
        visit: Visit = together.result(name)
        assert visit.code() == 1
        [job] = re.findall(r"probe, job (\d+), is cancelled", visit.words)
        assert job not in subprocess.run(["squeue", "-h", "-o", "%i"], capture_output=True, text=True).stdout.split()


def jobs(cluster: Cluster) -> list[str]:
    listed = subprocess.run(["squeue", "-h", "-o", "%i"], env=cluster.env, capture_output=True, text=True, check=True)
    return listed.stdout.split()


@beside
def test_an_interrupted_doctor_cancels_its_probe_and_no_other_job(lab: Lab) -> None:
    submit = ["sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true"]
    submitted = subprocess.run(submit, env=lab.cluster.env, capture_output=True, text=True, check=True)
    other = submitted.stdout.strip()
    try:
        with visit_of(lab, [LATER]) as interrupted:
            interrupted.until("BeginTime")
            job = re.search(r"probe is job (\d+)", interrupted.output)
            assert job and interrupted.process
            interrupted.process.send_signal(signal.SIGINT)
            assert interrupted.code() == 130 and "is cancelled" in interrupted.output
        there = jobs(lab.cluster)
        assert other in there and job[1] not in there
        assert not interrupted.store.exists()
    finally:
        subprocess.run(["scancel", other], env=lab.cluster.env, check=True)


@pytest.mark.long
@beside
def test_a_probe_without_a_log_is_reported_as_a_node_that_does_not_see_the_store(lab: Lab) -> None:
    with visit_of(lab, [LATER]) as lost:
        lost.until("BeginTime")
        lost.store.rename(lost.folder / "elsewhere")
        job = re.search(r"probe is job (\d+)", lost.output)
        assert job
        now = ["scontrol", "update", f"JobId={job[1]}", "StartTime=now"]
        subprocess.run(now, env=lab.cluster.env, check=True)
        assert lost.code() == 1, lost.output
    assert lost.grades("FAIL") == ["store"] and "left no log" in lost.output and "0:53" in lost.output


@beside
def test_a_missing_account_an_unwritable_store_and_a_submit_limit_are_reported(lab: Lab) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can run as another user")
    folder = Path(tempfile.mkdtemp(prefix="mmprompt-doctor-"))
    folder.chmod(0o755)
    cluster = lab.cluster
    try:
        with people(folder, cluster) as (ada, bob):
            cluster.add_user(ada.name, MaxSubmitJobs=10)
            cluster.remove_user(bob.name)
            asked = ["doctor", "cluster=slurm", "cluster.mem_gb=64"]  # no node has so much memory, so no probe runs
            doctors = [ada.start(*ada.sweeps(*asked, f"paths.runs={ada.home}/runs")), bob.start(*bob.sweeps(*asked))]
            adas, bobs = [printed_by(one) for one in doctors]
            cluster.add_user(ada.name, MaxSubmitJobs=-1)
    finally:
        shutil.rmtree(folder)
    assert "10 jobs of yours at once" in adas, adas
    assert [name for grade, name in LINE.findall(adas) if grade == "FAIL"] == ["mem_gb"], adas
    of_bob = [name for grade, name in LINE.findall(bobs) if grade == "FAIL"]
    assert of_bob == ["mem_gb", "account", "store"], bobs  # the default store is in root's folder


@pytest.mark.long
@beside
def test_a_cluster_without_accounting_is_no_failure(lab: Lab) -> None:
    with bare_cluster() as bare:
        lab.folder.mkdir(parents=True)
        environment = {"SLURM_CONF": str(bare.conf)}
        visit = Visit(lab.folder, ["tracking=disabled"], environment).start("main")
        assert visit.code() == 0, visit.output
    assert "accounting" in visit.grades("NOTE") and "sacct" not in visit.output
