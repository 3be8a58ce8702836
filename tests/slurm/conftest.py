"""The fixtures `slurm` and `together`: tests that ask for one run against the real test cluster of cluster.py.

Several test processes (pytest -n) share one cluster, and the last of them stops it, unless it was up before the tests.
Without SLURM's daemons such tests are skipped; with MMPROMPT_REQUIRE_SLURM=1 they fail.
"""

import fcntl
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from lab import Together, stories_of

USERS = Path(tempfile.gettempdir()) / f"mmprompt-slurm-{os.getuid()}.tests"


def cluster(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(__file__).with_name("cluster.py")
    return subprocess.run([sys.executable, str(program), *arguments], capture_output=True, text=True)


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[Path]:
    """The folder of the running cluster (log/, pids/NAME with pid and start time), for fixtures of a wider scope."""
    with USERS.open("a+") as users:
        fcntl.flock(users, fcntl.LOCK_SH)  # held by every test process that uses the cluster
        try:
            status = cluster("status")
            if "pid" not in status.stdout:
                users.write("the tests started it\n")
                users.flush()
            if status.returncode != 0:
                up = cluster("up")
                if up.returncode != 0:
                    if os.environ.get("MMPROMPT_REQUIRE_SLURM") == "1":
                        pytest.fail(up.stderr, pytrace=False)
                    pytest.skip(up.stderr)
            conf = shlex.split(cluster("env").stdout)[1].removeprefix("SLURM_CONF=")
            yield Path(conf).parents[1]
        finally:
            stop_if_last(users.fileno())


def stop_if_last(users: int) -> None:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # another test process goes on
    if USERS.read_text():
        os.ftruncate(users, 0)
        cluster("down")


@pytest.fixture
def slurm(slurm_cluster: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cluster's folder; during the test sbatch, squeue, sacct and submitit find the cluster."""
    monkeypatch.setenv("SLURM_CONF", str(slurm_cluster / "etc/slurm.conf"))
    monkeypatch.setenv("MMPROMPT_FAKE_GPUS", "1")
    return slurm_cluster


@pytest.fixture(scope="session")
def together(
    request: pytest.FixtureRequest, slurm_cluster: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Together]:
    """Starts the stories that were selected; each test asks for the end of its own."""
    stories = stories_of(request.session.items)
    together = Together(tmp_path_factory.mktemp("together"), Cluster(slurm_cluster), stories)
    yield together
    together.close()
