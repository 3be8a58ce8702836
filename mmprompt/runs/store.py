"""The store: the folder that everything is written to, and its layout.

    STORE/sweeps/NAME.json       manifest of a sweep
    STORE/searches/NAME/         a study (`mmprompt.studies.study`)
    STORE/run/ID/config.json     the canonical JSON whose sha256 is ID; written once
    STORE/run/ID/attempts/N/     one attempt: checkpoints, weights.safetensors, evaluations/, wandb/
    STORE/run/ID/result.json     the result; it names the attempt that was published
    STORE/run/ID/evaluations/    evaluations that later attempts made: ID.json, each written once
    STORE/answers/               files for challenges, written by `python -m analysis export`
    STORE/costs/NAME/N.json      what the rows of a sweep take, N-th measurement (`execution.measurement`)
    STORE/cache/                 what can be computed again (`cache`); may be deleted at any time
    STORE/fingerprints/          those of large files (`fingerprint`); may be deleted at any time

There are no locks. A process claims an attempt by renaming a prepared folder into place, which only one process can do. It
publishes a result by link(2), which never replaces a file; nothing else is moved. So two processes that execute the same run do
no harm, and a process may die between any two steps. Files whose names begin with a dot are unfinished.

Files may be damaged or removed at any time. A record that cannot be used raises DamagedError and concerns its run alone. Only a
launch and a claim create a run's folder: if it is removed, processes that work on the run end.

Several Unix users may share a store: new files get the group and the permissions of the folder they lie in.
Part of the light half of the package: no torch, no Hydra.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmprompt.runs import fingerprint
from mmprompt.runs.files import StoreError, is_number, write_over
from mmprompt.runs.run_folder import RunFolder
from mmprompt.settings.spelling import nearest

LISTED = 8  # runs in a message that is about several
OF_SEARCH = "search-"  # prefix of the name of a study's manifest
RUN = re.compile(r"[\w-]{1,128}", re.ASCII)  # the name of a run's folder; others do not belong to us


@dataclass(frozen=True)
class Store:
    """The folder that everything is written to. Only this module, `run_folder` and `attempt` know its layout."""

    root: Path

    def run(self, run: str) -> RunFolder:
        return RunFolder(self.root, run)

    def runs(self) -> set[str]:
        """The ids of the runs that have a folder."""
        try:
            with os.scandir(self.root / "run") as entries:
                return {entry.name for entry in entries if RUN.fullmatch(entry.name) and entry.is_dir()}
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def find(self, beginning: str) -> RunFolder:
        """Returns the run whose id begins with `beginning`. Raises NoRunError, or SeveralRunsError."""
        there = self.runs()
        found = sorted(run for run in there if run.startswith(beginning))
        if not found:
            raise NoRunError(f"no run's id begins with {beginning!r} in {self.root}{nearest(beginning, there)}")
        if len(found) > 1:
            raise SeveralRunsError(beginning, found)
        return self.run(found[0])

    def manifest(self, sweep: str) -> Path:
        return self.root / "sweeps" / f"{sweep}.json"

    def put_manifest(self, sweep: str, text: str) -> Path:
        """Writes a manifest in place of an older one, or of a damaged one, even if that has become an empty folder.

        Returns its file. Raises StoreError, also for a folder that holds files.
        """
        file = self.manifest(sweep)
        if file.is_dir():
            try:
                file.rmdir()
            except OSError as error:
                raise StoreError(
                    f"{file} is a folder where a manifest belongs, and it cannot be removed: {error.strerror}; move it away"
                ) from None
        write_over(file, text)
        return file

    def sweeps(self) -> list[str]:
        """The names of all manifests, the last launched first. The manifest of a search is called `search-NAME`."""
        found = []
        for file in (self.root / "sweeps").glob("[!.]*.json"):
            with contextlib.suppress(OSError):  # removed at this moment
                found.append((file.stat().st_mtime, file.stem))
        return [name for _, name in sorted(found, reverse=True)]

    def manifest_name(self, name: str) -> str:
        """Returns the name of the manifest of a sweep, or of the search of that name. Raises NoSweepError."""
        for one in (name, f"{OF_SEARCH}{name}"):
            if os.path.lexists(self.manifest(one)):
                return one
        raise NoSweepError(self, name)

    @property
    def searches(self) -> Path:
        """One folder per study (`mmprompt.studies.study`)."""
        return self.root / "searches"

    def studies(self) -> list[str]:
        """The names of all searches."""
        return sorted(file.parent.name for file in self.searches.glob("*/study.json"))

    def costs(self, sweep: str) -> Path:
        """The folder of a sweep's cost measurements: N.json, each written once; the newest counts."""
        return self.root / "costs" / sweep

    def measured(self) -> list[str]:
        """The names of the sweeps with cost measurements."""
        return sorted(folder.name for folder in (self.root / "costs").glob("[!.]*"))

    def measurements(self, sweep: str) -> dict[int, Path]:
        """The files of a sweep's cost measurements, by number."""
        files = self.costs(sweep).glob("*.json")
        return {int(file.stem): file for file in sorted(files) if is_number(file.stem)}

    @property
    def probes(self) -> Path:
        """One folder for each call of `doctor` that found something wrong."""
        return self.root / "doctor"

    @property
    def cache(self) -> Path:
        """What can be computed again (`mmprompt.runs.cache`). The folder may be deleted at any time."""
        return self.root / "cache"

    @property
    def fingerprints(self) -> Path:
        """Those of large files (`mmprompt.runs.fingerprint`)."""
        return self.root / fingerprint.FOLDER

    @property
    def jobs(self) -> Path:
        """One folder per launch: the batch, its scripts and its logs."""
        return self.root / "jobs"

    @property
    def code(self) -> Path:
        """Copies of our packages as they were at launch, by content hash."""
        return self.root / "code"


class NoSweepError(StoreError):
    """No sweep of that name was launched into this store. The message names the nearest one, or all of them."""

    def __init__(self, store: Store, name: str) -> None:
        there = sorted(store.sweeps())
        known = f"; there are: {', '.join(there)}" if there else "; none was launched into it yet"
        super().__init__(f"no sweep {name} in {store.root}{nearest(name, there) or known}")


class NoRunError(StoreError):
    """No run's id begins like that."""


class SeveralRunsError(StoreError):
    """Several runs have ids that begin like that."""

    def __init__(self, beginning: str, runs: Sequence[str]) -> None:
        more = f" and {len(runs) - LISTED} more" if len(runs) > LISTED else ""
        listed = f"{', '.join(runs[:LISTED])}{more}"
        super().__init__(f"{beginning!r} begins the ids of {len(runs)} runs: {listed}; give more of it")
        self.beginning, self.runs = beginning, runs
