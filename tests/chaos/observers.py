"""Other users at the same time: after each fault one of them calls some verb."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from calls import Call
from fault_context import FaultContext
from file_faults import FileFaults

AT_ONCE = 4  # calls at the same time; on two cores more would only wait for each other


class Observers:
    def __init__(self, context: FaultContext, files: FileFaults, out: Path) -> None:
        self.context, self.files, self.out = context, files, out
        self.verbs: dict[str, Callable[[], Call | None]] = {
            "status": lambda: self.call("sweeps", "status"),
            "status of all": lambda: self.call("sweeps", "status", *self.names),
            "status --json": lambda: self.call("sweeps", "status", "--json"),
            "plan": self.plan,
            "logs": lambda: self.call("sweeps", "logs", self.run(), shows=True),
            "logs of a damaged run": self.logs_of_damaged,
            "diff": lambda: self.call("sweeps", "diff", self.run()),
            "diff of two": lambda: self.call("sweeps", "diff", self.run(), self.run()),
            "clean": lambda: self.call("sweeps", "clean", "--days", "1"),
            "cancel": self.cancel,
            "tables": lambda: self.call("analysis", "tables", *self.name(), "--out", str(self.out / "tables")),
            "report": lambda: self.call("analysis", "report"),
        }
        self.made: list[Call] = []
        self._next: list[str] = []

    @property
    def names(self) -> list[str]:
        return [work.name for work in self.context.subject.works]

    def one(self) -> str:
        """Calls a verb, each about equally often, unless too many calls are still running."""
        self.made = [call for call in self.made if call.code is None]
        if len(self.made) >= AT_ONCE:
            return "no verb is called"
        if not self._next:
            self._next = self.context.chance.sample(list(self.verbs), len(self.verbs))
        name = self._next.pop()
        if (call := self.verbs[name]()) is None:
            return f"nothing to call {name} on"
        self.made.append(call)
        return f"{name}, {call.out.stem}"

    def call(self, *words: str, shows: bool = False) -> Call:
        return self.context.calls.start(words, self.context.chance.random() < 0.3, shows=shows)

    def run(self) -> str:
        return self.context.chance.choice(sorted(self.context.subject.runs))

    def name(self) -> Sequence[str]:
        """The name of one sweep or search, or no name, which means all."""
        chosen = self.context.chance.choice([None, *self.context.subject.works])
        return [chosen.manifest] if chosen else []

    def plan(self) -> Call:
        work = self.context.chance.choice(self.context.subject.works)
        return self.call(*self.context.subject.asked(work, "plan"))

    def logs_of_damaged(self) -> Call | None:
        runs = [run for damage in self.files.damages if (run := self.files.run_of(damage.file))]
        return self.call("sweeps", "logs", self.context.chance.choice(runs), shows=True) if runs else None

    def cancel(self) -> Call | None:
        attempt = self.context.victim()
        if attempt is None:
            return None
        self.context.relaunch(self.context.chance.uniform(5, 15))
        return self.call("sweeps", "cancel", attempt.run.id)
