"""Looks into the checkpoints of a launch before anything is submitted: one that does not fit its model fails on every node.

The core does that in a process of its own, because it needs torch. What fits is kept in the store, and is not looked at again.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.files import StoreError, write_over
from mmprompt.runs.identity import canonical, digest
from mmprompt.runs.store import Store
from mmprompt.settings.model import Model
from mmprompt.settings.parsing import ConfigError

OURS = ROOT / "mmprompt" / "backbones"  # those that the repository brings


def check_checkpoints(used: Iterable[tuple[Path, str, Model]], store: Store) -> None:
    """`used`: each backbone's file, its fingerprint and its model. Raises ConfigError for the first that does not fit."""
    foreign = [one for one in used if not one[0].is_relative_to(OURS)]
    for file, checksum, model in {
        (file, model.model_dump_json()): (file, checksum, model) for file, checksum, model in foreign
    }.values():
        settings = model.model_dump(mode="json")
        known = store.fingerprints / f"fits-{digest(canonical({'checksum': checksum, 'model': settings}))}"
        if known.exists():
            continue
        done = subprocess.run(
            [sys.executable, "-m", "mmprompt.checkpoint", "--shapes"],
            input=json.dumps({"file": str(file), "model": settings}),
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode == 0 and (differs := json.loads(done.stdout)["differs"]) is not None:
            raise ConfigError(f"paths.backbone={file} does not fit model={model.name}: {differs}")
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            print(f"whether {file} fits model={model.name} cannot be said here ({last})", file=sys.stderr)
        elif store.root.is_dir():
            with contextlib.suppress(OSError, StoreError):  # then it is looked at again
                write_over(known, "")
