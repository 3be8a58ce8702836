"""Faults of a store's files, and a user who then does what `status` advises.

Some seconds after a file was damaged, `status` is called and has to name it. Then the file is restored, or the user follows other
advice, if there is any: removes the run's or the attempt's folder, or launches the sweep again.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from calls import Call
from damage import WAYS, Damage, NotPossibleError, damaged, short
from fault_context import FaultContext
from subject import record

from mmprompt.runs.store import OF_SEARCH

Cure = Literal["run", "attempt", "file", "launch", "nothing"]  # besides restoring the file: what is removed, or done
LAUNCHES = 8  # after so many launches of all works, a file that a launch repairs has to be repaired
AGAIN = 5.0  # seconds between two of these launches
UNREADABLE = {"cut in half", "emptied", "{}", "a folder"}  # damage that `status` must name if the file is needed


@dataclass(frozen=True)
class Kind:
    """Files of one kind: where they lie in the store, which cures there are, and which damage `status` has to name."""

    places: tuple[str, ...]
    cures: tuple[Cure, ...]
    seen: frozenset[str] = frozenset()
    ways: tuple[str, ...] = WAYS


# A run whose published attempt has lost an evaluation is trained again; an evaluation that a later attempt made is made again.
KINDS = {
    "result.json": Kind(("run/*/result.json",), ("run",), frozenset(UNREADABLE | {"swapped"})),
    "config.json": Kind(("run/*/config.json",), ("launch",)),
    "job.json": Kind(("run/*/attempts/*/job.json",), ("attempt",), frozenset(UNREADABLE)),
    "progress.json": Kind(("run/*/attempts/*/progress.json",), ("nothing", "file")),
    "error.json": Kind(("run/*/attempts/*/error.json",), ("attempt",), frozenset(UNREADABLE)),
    "error.txt": Kind(("run/*/attempts/*/error.txt",), ("nothing", "file")),
    "checkpoint": Kind(("run/*/attempts/*/checkpoint.*.pt",), ("nothing", "file")),
    "batch.json": Kind(("jobs/*/batch.json",), (), frozenset(UNREADABLE)),
    "submitted.json of an array": Kind(("jobs/*/*/submitted.json",), ()),
    "submitted.json of a batch": Kind(("jobs/*/submitted.json",), ()),
    "manifest": Kind(("sweeps/*.json",), ("launch",), frozenset(UNREADABLE)),
    "evaluation": Kind(("run/*/evaluations/*.json", "run/*/attempts/*/evaluations/*.json"), ("file", "run")),
    "evaluation's scores": Kind(("run/*/evaluations/*.npy", "run/*/attempts/*/evaluations/*.npy"), ("file", "run")),
    "trial": Kind(("searches/*/trials/*.json",), ("file",), frozenset(UNREADABLE | {"swapped"})),
    "decision": Kind(("searches/*/decisions/*.json",), ("file",), frozenset(UNREADABLE | {"swapped"})),
}
ALIKE = (
    "progress.json",
    "error.json",
    "error.txt",
    "result.json",
    "config.json",
    "job.json",
    "checkpoint",
)


class FileFaults:
    def __init__(self, context: FaultContext, kept: Path) -> None:
        self.context, self.subject, self.kept = context, context.subject, kept
        self.damages: list[Damage] = []
        self.wrong: list[str] = []
        self._count = 0
        self._ways: dict[str, list[str]] = {}
        self.kinds: dict[str, Callable[[], str | None]] = {name: self._damage_of(name) for name in KINDS}
        self.kinds |= {"a run's folder is removed": self.remove_run, "strangers' files": self.strangers}

    def _damage_of(self, name: str) -> Callable[[], str | None]:
        return lambda: self.damage(name, KINDS[name])

    # The faults

    def damage(self, name: str, kind: Kind) -> str | None:
        ways = self._ways.get(name) or self.context.chance.sample(kind.ways, len(kind.ways))
        file, others = self.choose(kind)
        if file is None:
            return None
        self._count += 1
        others = [one for one in others if one.name == file.name] if name in ALIKE else others
        for way in ways:
            try:
                damage = damaged(file, way, self.kept / str(self._count), others)
            except NotPossibleError:
                continue
            self._ways[name] = [one for one in ways if one != way]
            self.begin(name, damage)
            return str(damage)
        return None

    def choose(self, kind: Kind) -> tuple[Path | None, list[Path]]:
        """A file of a running, a waiting or a done run, each as likely as the others, and the other files of its kind."""
        store, busy = self.subject.store.root, {damage.file for damage in self.damages}
        files = sorted(file for place in kind.places for file in store.glob(place) if self.is_ours(file))
        free = [file for file in files if file not in busy and not any(damage.other == file for damage in self.damages)]
        at_work = {attempt.run.id for attempt in self.subject.at_work()}
        groups: dict[str, list[Path]] = {}
        for file in free:
            groups.setdefault(self.state(self.run_of(file), at_work), []).append(file)
        if not groups:
            return None, []
        file = self.context.chance.choice(groups[self.context.chance.choice(sorted(groups))])
        return file, self.context.chance.sample(free, len(free))

    def state(self, run: str | None, at_work: set[str]) -> str:
        if run is None:
            return "no run's"
        return "at work" if run in at_work else "waits" if self.subject.result(run) is None else "done"

    def is_ours(self, file: Path) -> bool:
        run = self.run_of(file)
        is_of_batch = file.parts[-2].isdecimal() and file.parts[-2].isascii()
        return (
            run in self.subject.runs
            if run
            else not file.name.startswith(".") and ("jobs" not in file.parts or is_of_batch)
        )

    def run_of(self, file: Path) -> str | None:
        parts = file.relative_to(self.subject.store.root).parts
        return parts[1] if parts[0] == "run" else None

    def begin(self, name: str, damage: Damage) -> None:
        self.damages.append(damage)
        if name == "result.json" and damage.way == "removed":
            self.context.is_away(str(self.run_of(damage.file)), damage.at)
        seconds = self.context.chance.uniform(4, 15)
        mind = self.context.chance.random()
        self.context.repairs.add(
            seconds, f"a user looks at {short(damage.file)}", lambda: self.look(name, damage, mind)
        )

    # The user

    def look(self, name: str, damage: Damage, mind: float) -> None:
        """Calls `status` for every sweep and search by name, so that all rows are shown."""
        was_there = damage.is_there
        names = [work.name for work in self.subject.works]

        def then(call: Call) -> None:
            if was_there and damage.is_there and damage.way in KINDS[name].seen and self.is_looked_at(name, damage):
                self.judge(call, damage)
            self.context.repairs.add(0, f"{short(damage.file)} is mended", lambda: self.mend(name, damage, mind))

        self.context.calls.start(["sweeps", "status", *names], then=then)

    def is_looked_at(self, name: str, damage: Damage) -> bool:
        """Whether `status` reads the file. Files that a search may not need count only if they are a sweep's: results,
        manifests, and the records of the newest attempt of a run that is not done."""
        if name == "result.json":
            return self.run_of(damage.file) in self.subject.of_sweeps
        if name not in ("job.json", "error.json"):
            return not damage.file.name.startswith(OF_SEARCH)
        folder = self.subject.run(str(self.run_of(damage.file)))
        newest = max((int(one.name) for one in folder.path.glob("attempts/[0-9]*")), default=0)
        is_of_sweep = folder.id in self.subject.of_sweeps
        return is_of_sweep and self.subject.result(folder.id) is None and damage.file.parent.name == str(newest)

    def judge(self, call: Call, damage: Damage) -> None:
        # A folder in the store may be the first that cannot be read, if the permissions go while `status` is reading.
        is_shut = f"the store {self.subject.store.root} cannot be read" in call.printed or (
            str(self.subject.store.root) in call.printed and "Permission denied" in call.printed
        )
        names_another = any(is_named(one, call) for one in self.damages)
        is_refused = call.code == 2 and (is_shut or names_another)
        if call.code in (0, 1, 2) and not is_named(damage, call) and not is_refused:
            self.wrong.append(f"{call} does not name {damage}; see {call.out}")

    def mend(self, name: str, damage: Damage, mind: float) -> None:
        cures = ["restore", *self.cures(name, damage)]
        cure = cures[int(mind * len(cures))] if len(cures) > 1 else "restore"
        if cure == "launch":
            self.launch_until_mended(damage, LAUNCHES)
            return
        done = self.cure(cure, damage)  # it raises OSError if the disk cannot be written; then it is tried again later
        if damage in self.damages:
            self.damages.remove(damage)
        if name == "result.json":
            self.context.is_back(str(self.run_of(damage.file)))
        self.context.say(f"         {short(damage.file)}: {done}")
        if cure != "restore":
            self.context.relaunch(self.context.chance.uniform(0, 5))

    def launch_until_mended(self, damage: Damage, launches: int) -> None:
        """Launches all works until the damage is gone. Other faults may make some launches fail, but not so many."""
        waiting = []

        def then(call: Call) -> None:
            waiting.remove(call)
            if waiting:
                return
            if damage.is_there and launches > 1:
                again = f"launched again, for {short(damage.file)}"
                self.context.repairs.add(AGAIN, again, lambda: self.launch_until_mended(damage, launches - 1))
                return
            self.damages = [one for one in self.damages if one is not damage]
            if not damage.is_there:
                self.context.say(f"         {short(damage.file)}: mended by a launch")
                return
            self.wrong.append(f"{LAUNCHES} launches did not mend {damage}; the last: {call}, with {call.code}")
            self.context.repairs.add(0, f"{short(damage.file)} is restored", damage.restore)

        waiting += [self.context.launch(work, then=then) for work in self.subject.works]

    def cures(self, name: str, damage: Damage) -> Sequence[str]:
        """What helps here besides restoring the file."""
        if damage.way == "swapped":
            return ()  # the other file is damaged as well
        cures = KINDS[name].cures
        if name in ("evaluation", "evaluation's scores"):
            return ("run",) if "attempts" in damage.file.parts else ("file",)
        run = self.run_of(damage.file)
        published = record(self.subject.run(run).result_file).get("attempt") if run else None
        if cures == ("attempt",) and damage.file.parent.name == str(published):
            return ("run",)  # the files of the published attempt are the run's
        return cures

    def cure(self, cure: str, damage: Damage) -> str:
        if cure == "restore":
            if damage.restore():
                return "restored"
            if (left := damage.left) is None or left.name != "result.json":
                return "is something else by now"
            self.remove(self.subject.run(str(self.run_of(left))).path)
            self.context.relaunch(self.context.chance.uniform(0, 5))
            return f"{short(left)} is that of another run; its folder is removed"
        if not damage.is_there:
            return "is something else by now"
        match cure:
            case "run":
                self.remove(self.subject.run(str(self.run_of(damage.file))).path)
                return "the run's folder is removed"
            case "attempt":
                self.remove(damage.file.parent)
                return "the attempt's folder is removed"
            case "file":
                self.remove(
                    *damage.file.parent.glob(
                        f"{damage.file.stem}.*" if "evaluations" in damage.file.parts else damage.file.name
                    )
                )
                return "removed"
        return "stays as it is"

    def remove(self, *paths: Path) -> None:
        """Removes paths as `rm -rf` does, again if another process writes there meanwhile. Raises OSError if it cannot now."""
        for path, is_last in itertools.product(paths, (False, False, True)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=not is_last)
            elif path.exists():
                path.unlink()
        self.forget(paths)

    def forget(self, gone: Iterable[Path]) -> None:
        """Forgets the damage to files below these paths, which cannot be restored any more."""
        self.damages = [one for one in self.damages if not any(one.file.is_relative_to(path) for path in gone)]

    # Other faults

    def remove_run(self) -> str | None:
        attempt = self.context.victim()
        if attempt is None or any(damage.file.is_relative_to(attempt.run.path) for damage in self.damages):
            return None
        try:
            self.remove(attempt.run.path)
        except OSError:  # not everything can be removed now
            rest = f"the rest of {short(attempt.run.path)} is removed"
            self.context.repairs.add(0, rest, lambda: self.remove(attempt.run.path))
        self.context.relaunch(self.context.chance.uniform(5, 15))
        return f"{attempt.run.id[:6]}, while attempt {attempt.number} is at work"

    def strangers(self) -> str | None:
        """Adds foreign files and folders; those that `status` may complain about are removed after a while."""
        store, chance = self.subject.store, self.context.chance
        numbers = [int(path.name) for path in store.jobs.glob("*") if path.name.isdecimal() and path.name.isascii()]
        number = 9 if 9 not in numbers else max(numbers) + chance.randint(2, 9)
        stays = [store.root / "run" / "README.txt", store.jobs / "²"]
        goes = [store.jobs / str(number), store.root / "sweeps" / "x.json"]
        try:
            stays[0].write_text("mine\n")
            stays[1].mkdir(exist_ok=True)
            for folder in goes:
                folder.mkdir(exist_ok=True)
        except OSError:
            return None
        self.context.repairs.add(
            chance.uniform(10, 20), "strangers' folders are gone", lambda: [removed(one) for one in goes]
        )
        return ", ".join(short(path) for path in [*stays, *goes])


def removed(folder: Path) -> None:
    """Removes a folder if it is still empty."""
    with contextlib.suppress(FileNotFoundError):
        if not any(folder.iterdir()):
            folder.rmdir()


def is_named(damage: Damage, call: Call) -> bool:
    """Whether the output names the file, by its path from the run, the batch or the sweep on."""
    return any(end_of(file) in call.printed for file in (damage.file, damage.other) if file)


def end_of(file: Path) -> str:
    start = max(at for at, part in enumerate(file.parts) if part == "runs")
    return str(Path(*file.parts[start + 2 :]))
