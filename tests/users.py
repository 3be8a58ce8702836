"""Two other Unix users who share a group, without accounts or homes, for tests that run as root."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from patience import printed_by

from mmprompt.runs.deployment import ROOT

GROUP = 61000  # of both users


@dataclass(frozen=True)
class User:
    name: str
    uid: int

    def start(self, home: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """`python ARGUMENTS` as this user, with a umask that denies the group write permission."""
        known = {"HOME": str(home), "USER": self.name, "LOGNAME": self.name, "PATH": os.environ["PATH"]}
        return subprocess.Popen(
            [python(), *arguments],
            cwd=home,
            env=known | paths() | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            umask=0o022,
            **self.identity,
        )

    def run(self, home: Path, *arguments: str, **environment: str) -> tuple[int, str]:
        process = self.start(home, *arguments, **environment)
        printed = printed_by(process)
        return process.returncode, printed

    @property
    def identity(self) -> dict[str, Any]:
        return {"user": self.uid, "group": self.uid, "extra_groups": [GROUP], "start_new_session": True}


ANNA, BORIS = User("anna", 61001), User("boris", 61002)


def paths() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])}


@cache
def python() -> str:
    """A Python that other users may start and that finds our packages. Skips the test if there is none."""
    if os.getuid() != 0:
        pytest.skip("only root can be two other users")
    ours: Sequence[str] = (sys.executable, f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}")
    for program in ours:
        try:
            command = [program, "-c", "import submitit, psutil, pydantic, sweeps"]
            tried = subprocess.run(command, env=paths(), cwd="/", stderr=subprocess.DEVNULL, **ANNA.identity)
        except OSError:
            continue
        if tried.returncode == 0:
            return program
    pytest.skip(f"other users can read neither {ROOT} with {' nor with '.join(ours)}")
