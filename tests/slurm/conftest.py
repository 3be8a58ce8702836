"""The fixtures `slurm` and `together`: tests that use one of them run against a real test cluster of cluster.py.

Each test process has a cluster of its own: the first of a few that no other process uses, whether of this checkout or another. It
is stopped at the end unless it was up before the tests. If SLURM's daemons are not installed, such tests are skipped; with
MMPROMPT_REQUIRE_SLURM=1 they fail.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import DEFAULT_FOLDER, FIRST_PORT_BASE, Cluster, ClusterError
from groups import group_of
from lab import Together, stories_of

CLUSTERS = [(DEFAULT_FOLDER, None)]  # folder, and first of 1000 ports
CLUSTERS += [
    (DEFAULT_FOLDER.with_name(f"{DEFAULT_FOLDER.name}-{number}"), FIRST_PORT_BASE + 1000 * (number + 1))
    for number in (2, 3, 4)
]
OURS = "the tests started it"


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[Path]:
    """The folder of a running cluster (log/, pids/NAME with pid and start time), for fixtures of a wider scope."""
    with contextlib.ExitStack() as stack:
        for folder, ports in CLUSTERS:
            lock = stack.enter_context(folder.with_suffix(".tests").open("a+"))
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                cluster = Cluster(folder, ports)
                lock.seek(0)
                if not cluster.running():
                    lock.write(OURS)
                    lock.flush()
                up(cluster)
                yield folder
                lock.seek(0)
                if OURS in lock.read():
                    cluster.down()
                    lock.truncate(0)
                return
    pytest.fail(f"all {len(CLUSTERS)} test clusters are in use", pytrace=False)


def up(cluster: Cluster) -> None:
    try:
        cluster.up()
    except ClusterError as error:
        if os.environ.get("MMPROMPT_REQUIRE_SLURM") == "1":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


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
    """Starts the stories of the selected tests that this test process runs; each test waits for its own."""
    is_one_of_several = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1
    group = group_of(os.environ["PYTEST_CURRENT_TEST"]) if is_one_of_several else None
    selected = [item for item in request.session.items if not item.get_closest_marker("skip")]
    stories = stories_of(item for item in selected if group in (None, group_of(item.nodeid)))
    together = Together(tmp_path_factory.mktemp("together"), Cluster(slurm_cluster), stories)
    yield together
    together.close()
