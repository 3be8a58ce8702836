"""The test cluster is a SLURM that schedules jobs, counts GPUs, keeps accounts and listens only on this machine."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from lab import bare_cluster
from patience import until


def program(verb: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """`python cluster.py VERB`, for the cluster in this folder."""
    command = [sys.executable, str(Path(__file__).with_name("cluster.py")), verb, *more, "--folder", str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


LOOPBACK = {"0100007F", "00000000000000000000000001000000"}  # 127.0.0.1 and ::1 as /proc/net writes them


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def pids(folder: Path) -> dict[str, int]:
    return {path.name: int(path.read_text().split()[0]) for path in (folder / "pids").iterdir()}


def test_a_job_has_the_submitters_environment_and_its_end_is_in_the_accounts(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREETING", "good morning")
    printed = tmp_path / "printed"
    job = output("sbatch", "--parsable", "--wait", f"--output={printed}", "--wrap=echo $SLURMD_NODENAME: $GREETING")
    assert printed.read_text() in {f"gn{i}: good morning\n" for i in (1, 2, 3, 4)}

    def states() -> list[str]:
        return output("sacct", "-X", "-n", "-P", "-o", "State", "-j", job.strip()).split()

    ends = until(
        lambda: (found := states()) and not {"PENDING", "RUNNING", "COMPLETING"} & set(found) and found, "it ends"
    )
    assert ends == ["COMPLETED"]  # the accounts lag behind


@pytest.mark.parametrize(("request_", "seen"), [("--gres=gpu:2", "0,1"), ("--gpus-per-node=1", "0"), ("-n1", "none")])
def test_a_job_sees_the_gpus_it_asked_for_and_no_other(slurm: Path, request_: str, seen: str) -> None:
    assert output("srun", "--exclusive", request_, "sh", "-c", "echo ${CUDA_VISIBLE_DEVICES-none}") == seen + "\n"


@pytest.mark.parametrize("request_", ["--gres=gpu:3", "--cpus-per-task=5", "--mem=4001"])
def test_a_request_that_no_node_can_satisfy_is_refused(slurm: Path, request_: str) -> None:
    refused = subprocess.run(["sbatch", request_, "--wrap=true"], capture_output=True, text=True)
    assert refused.returncode != 0
    assert "Requested node configuration is not available" in refused.stderr


def open_files(pid: int) -> Iterator[str]:
    """The names of what a process has open. It may close any of it at any moment."""
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield path.readlink().name


def test_every_daemon_listens_on_loopback_only(slurm: Path) -> None:
    ours = {name for pid in pids(slurm).values() for name in open_files(pid)}
    tables = [Path("/proc/net") / name for name in ("tcp", "tcp6") if (Path("/proc/net") / name).exists()]
    sockets = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    listening = [fields[1].split(":")[0] for fields in sockets if fields[3] == "0A" and f"socket:[{fields[9]}]" in ours]
    assert len(listening) == 6  # slurmdbd, slurmctld and four slurmd
    assert set(listening) <= LOOPBACK


def test_up_again_starts_nothing_and_fresh_refuses_to_wipe_a_running_cluster(slurm: Path) -> None:
    before = pids(slurm)
    assert program("up", slurm).returncode == 0
    refused = program("up", slurm, "--fresh")
    assert refused.returncode == 1
    assert "down first" in refused.stderr
    assert pids(slurm) == before


def test_a_killed_daemon_is_down_until_it_is_started_and_the_others_keep_running(slurm: Path) -> None:
    before, cluster = pids(slurm), Cluster(slurm)
    cluster.kill("slurmd.gn4")
    assert "slurmd.gn4" not in cluster.running()
    assert program("status", slurm).returncode == 1
    cluster.start("slurmd.gn4")
    after = pids(slurm)
    assert [name for name in before if before[name] != after[name]] == ["slurmd.gn4"]


def test_an_unknown_name_of_a_daemon_is_an_error(slurm: Path) -> None:
    said = program("kill", slurm, "slurmd")
    assert said.returncode == 1 and "there is no daemon slurmd; there are munged, " in said.stderr


def test_a_limit_on_submitted_jobs_takes_effect_at_once_and_can_be_lifted(slurm: Path) -> None:
    cluster = Cluster(slurm)
    submit = ["sbatch", "--parsable", "-A", "two", "--hold", "--wrap=true", "--array=0-2"]
    cluster.add_user(cluster.user, "two", MaxSubmitJobs=2)
    refused = subprocess.run(submit, capture_output=True, text=True)
    assert refused.returncode != 0 and "AssocMaxSubmitJobLimit" in refused.stderr
    cluster.add_user(cluster.user, "two", MaxSubmitJobs=-1)
    output("scancel", output(*submit).strip())


def test_the_bare_cluster_keeps_no_accounts_and_takes_arrays_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    with bare_cluster() as cluster:
        monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
        refused = subprocess.run(["sbatch", "--array=0-4", "--wrap=true"], capture_output=True, text=True)
        assert refused.returncode != 0 and "Invalid job array specification" in refused.stderr
        output("sbatch", "--wait", "--array=0-3", "--output=/dev/null", "--wrap=true")
        sacct = subprocess.run(["sacct"], capture_output=True, text=True)
        assert sacct.returncode != 0 and "accounting storage is disabled" in sacct.stderr
        assert cluster.nodes == ("gn1", "gn2") and not {"slurmdbd", "mariadbd"} & set(cluster.running())
