"""The users of the subject's store, who launch and follow its works and repair what a fault broke."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from calls import Call, Calls
from repairs import Repairs
from subject import Subject, Work

from mmprompt.runs.attempt import Attempt

AGAIN = 3.0  # seconds after which a work is followed again
LOOK = 10.0  # seconds between two looks at the cluster


class FaultContext:
    def __init__(self, subject: Subject, calls: Calls, say: Callable[[str], None]) -> None:
        self.subject, self.calls, self.say = subject, calls, say
        self.repairs = Repairs(say)
        self.chance = random.Random(0)  # the random numbers of the next fault
        self.following: dict[Work, Call] = {}
        self._looked = 0.0
        self._followed: dict[Work, float] = {}
        self.refused: dict[Work, list[Call]] = {}  # launches in a row that were refused
        self.lost: dict[str, list[tuple[float, float | None]]] = {}  # when each run's result was away: from, until

    # Launches

    def launch(
        self, work: Work, *arguments: str, waits: bool = False, then: Callable[[Call], None] | None = None
    ) -> Call:
        far_away = self.chance.random() < 0.3
        return self.calls.start(self.subject.asked(work, work.verb, *arguments), far_away, waits=waits, then=then)

    def launch_all(self) -> None:
        for work in self.subject.works:
            self.launch(work)

    def relaunch(self, seconds: float) -> None:
        """Plans a launch of all works: a launch that waits does not submit cancelled jobs again, so their canceller has to."""
        if not self.repairs.expects("launched again"):
            self.repairs.add(seconds, "launched again", self.launch_all)

    def follow(self) -> None:
        """Sees that a `--wait` follows each work; one that has ended is started again."""
        for work in self.subject.works:
            call = self.following.get(work)
            is_late = time.monotonic() - self._followed.get(work, -AGAIN) > AGAIN
            if is_late and (call is None or call.code is not None):
                self._followed[work] = time.monotonic()
                self.refused[work] = [*self.refused.get(work, []), call] if call and call.code == 2 else []
                self.following[work] = self.launch(work, "--wait", waits=True)

    def attend(self, seconds: float, follow: bool = True) -> None:
        """Lets time pass: due repairs are carried out, ended commands are checked, and all works are followed."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.keep_up()
            self.repairs.carry_out()
            self.calls.attend()
            if follow:
                self.follow()
            time.sleep(0.2)

    def keep_up(self) -> None:
        """Acts as the cluster's administrator and as the jobs' owner: starts daemons that have ended without a fault, resumes nodes
        that SLURM has drained, and releases jobs that SLURM holds, as `status` advises."""
        running = self.subject.cluster.running()
        for daemon in (one.name for stage in self.subject.cluster.stages for one in stage):
            if daemon not in running and not self.repairs.expects(f"{daemon} is back"):
                self.say(f"{daemon} has ended by itself, and is started again")
                self.subject.cluster.start(daemon)
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        for node in self.subject.drained():
            self.say(f"SLURM has drained {node}, and it is resumed")
            self.subject.control("scontrol", "update", f"NodeName={node}", "State=RESUME")
        if held := self.subject.held():
            self.say(f"SLURM holds {' '.join(held)}, and they are released")
            self.subject.control("scontrol", "release", *held)

    def ask_and_obey(self) -> None:
        """Calls `status` for all works, and the commands that it advises for runs that may hang."""

        def obey(call: Call) -> None:
            for line in call.printed.splitlines():
                words = line.split()
                if words[:4] == ["python", "-m", "sweeps", "cancel"]:
                    self.say(f"no word from some runs: {' '.join(words[2:])}")
                    self.calls.start(words[2:])
                    self.relaunch(5.0)

        self.calls.start(["sweeps", "status", *(work.name for work in self.subject.works)], then=obey)

    # What a fault can hit

    def victim(self, with_checkpoint: bool = False) -> Attempt | None:
        there = [one for one in self.subject.at_work() if one.checkpoint_steps or not with_checkpoint]
        return self.chance.choice(there) if there else None

    def is_away(self, run: str, since: float) -> None:
        """Notes that the run's result was taken away, so that the run may be trained again."""
        self.lost.setdefault(run, []).append((since, None))

    def is_back(self, run: str) -> None:
        if run in self.lost:
            self.lost[run] = [(since, till or time.time()) for since, till in self.lost[run]]
