"""Two ordinary Unix users with a group folder, on a test cluster that root runs.

Missing users are created, and removed again by the process that created them. They run the code of this checkout with the packages
of this interpreter; files that only root can read (a checkout or a pyenv under /root) are copied for them.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import pwd
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster import Cluster
from patience import printed_by, until

from mmprompt.runs.deployment import ROOT

GROUP, NAMES = "mmprompt-test", ("mmprompt-ada", "mmprompt-bob")
PARTS = ("mmprompt", "sweeps", "analysis", "conf")  # folders of the checkout


@dataclass(frozen=True)
class Person:
    name: str
    home: Path
    group_folder: Path
    code: Path
    python: Path
    environment: dict[str, str]

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """Starts a command as the user's login shell would: with the user's ids and home, and Debian's umask."""
        ids = pwd.getpwnam(self.name)
        return subprocess.Popen(
            command,
            cwd=self.home,
            env=self.environment | {"HOME": str(self.home), "USER": self.name, "LOGNAME": self.name} | environment,
            user=ids.pw_uid,
            group=ids.pw_gid,
            extra_groups=[grp.getgrnam(GROUP).gr_gid],
            umask=0o022,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str, **environment: str) -> tuple[int, str]:
        process = self.start(*command, **environment)
        printed = printed_by(process)
        return process.returncode, printed

    def sweeps(self, *arguments: str) -> list[str]:
        return [str(self.python), "-m", "sweeps", *arguments]


@contextlib.contextmanager
def people(folder: Path, cluster: Cluster) -> Iterator[list[Person]]:
    """The two users, for as long as the context lasts. `folder` belongs to root, and every user may enter it.

    The machine has one of each, so the next process waits for them: it would lose them when this one removes them.
    """
    with Path(tempfile.gettempdir(), "mmprompt-people.tests").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield from added(folder, cluster)


def added(folder: Path, cluster: Cluster) -> Iterator[list[Person]]:
    made = []
    before = os.umask(0o022)  # both must be able to read what is written there
    try:
        if GROUP not in {group.gr_name for group in grp.getgrall()}:
            change("groupadd", "--system", GROUP)
            made.append(["groupdel", GROUP])
        group_folder = folder / "group"
        group_folder.mkdir()
        os.chown(group_folder, -1, grp.getgrnam(GROUP).gr_gid)
        group_folder.chmod(0o2775)
        environment, python, code = surroundings(folder, cluster)
        found = []
        for name in NAMES:
            home = folder / name
            if name not in {user.pw_name for user in pwd.getpwall()}:
                add = ["useradd", "--user-group", "--groups", GROUP, "--home-dir", str(home), "--create-home", name]
                change(*add, "--shell", "/bin/bash")
                made.append(["userdel", "--force", name])
                cluster.remove_user(
                    name
                )  # left by a test that was killed; slurmctld learns the user's id with a new one
            elif not home.exists():  # the user was left by a test that was killed
                home.mkdir()
                shutil.chown(home, name, name)
            cluster.add_user(name)
            found.append(Person(name, home, group_folder, code, python, environment))
        yield found
    finally:
        os.umask(before)
        for command in reversed(made):
            if command[0] == "userdel":
                cluster.remove_user(command[-1])
            change(*command)


def change(*command: str) -> None:
    """Runs a program that changes /etc/passwd or the like; waits while another process has these files locked."""

    def done() -> bool:
        tried = subprocess.run(command, capture_output=True, text=True)
        if tried.returncode != 0 and "lock" not in tried.stderr:
            raise RuntimeError(f"{' '.join(command)}: {tried.stderr}")
        return tried.returncode == 0

    until(done, f"the files that {command[0]} changes are not locked")


def surroundings(folder: Path, cluster: Cluster) -> tuple[dict[str, str], Path, Path]:
    """An environment, an interpreter and a checkout that every user can read."""
    environment = {"SLURM_CONF": str(cluster.conf), "MMPROMPT_FAKE_GPUS": "1", "LANG": "C.UTF-8"}
    environment["PATH"] = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    code = folder / "code"  # like a fresh clone, without conf/cluster/mine.yaml
    for part in PARTS:
        shutil.copytree(ROOT / part, code / part, ignore=shutil.ignore_patterns("__pycache__", "mine.yaml"))
    packages = Path(sysconfig.get_path("purelib"))
    everything = [code, packages if is_open(packages) else linked(packages, folder / "packages")]
    environment["PYTHONPATH"] = os.pathsep.join(map(str, everything))
    python = Path(sys.executable)
    if not is_open(python.resolve()):
        base, version = Path(sys.base_prefix), f"python{sysconfig.get_python_version()}"
        for library in (base / "lib").glob("libpython*.so*"):
            linked(library, folder / "python/lib" / library.name)
        linked(base / "lib" / version, folder / "python/lib" / version)
        python = linked(base / "bin" / version, folder / "python/bin" / version)
        environment["LD_LIBRARY_PATH"] = str(folder / "python/lib")
    return environment, python, code


def is_open(path: Path) -> bool:
    """Whether every user can reach the path."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in [path, *path.parents] if folder.is_dir())


def linked(source: Path, target: Path) -> Path:
    """A copy, made of hard links if the file system is the same, without Python's own tests and packages that are not needed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    copy = shutil.copy2 if source.stat().st_dev != target.parent.stat().st_dev else os.link
    if source.is_file():
        copy(source, target)
    else:
        ignored: Sequence[str] = ("site-packages", "test", "__pycache__", "idlelib", "ensurepip")
        left_out = shutil.ignore_patterns(*(ignored if source.name.startswith("python") else ()))
        shutil.copytree(source, target, symlinks=True, ignore=left_out, copy_function=copy)
    return target
