"""Who is on the scene: people who launch, follow, and owe what a fault took."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from calls import Call, Calls
from debts import Debts
from scene import Scene, Work

from mmprompt.runs.store import Attempt

AGAIN = 3.0  # seconds after which somebody follows again
LOOK = 10.0  # seconds after which somebody looks at the cluster again


class Stage:
    def __init__(self, scene: Scene, calls: Calls, say: Callable[[str], None]) -> None:
        self.scene, self.calls, self.say = scene, calls, say
        self.debts = Debts(say)
        self.chance = random.Random(0)  # of the fault that is next
        self.following: dict[Work, Call] = {}
        self._looked = 0.0
        self._followed: dict[Work, float] = {}
        self.lost: dict[str, list[tuple[float, float | None]]] = {}  # by run: since when, till when its result was away

    # Launches

    def launch(self, work: Work, *arguments: str, waits: bool = False) -> Call:
        far_away = self.chance.random() < 0.3
        return self.calls.start(self.scene.asked(work, work.verb, *arguments), far_away, waits=waits)

    def launch_all(self) -> None:
        for work in self.scene.works:
            self.launch(work)

    def relaunch(self, seconds: float) -> None:
        """Who waits does not submit what was cancelled; whoever cancelled it launches later."""
        if not self.debts.owes("launched again"):
            self.debts.owe(seconds, "launched again", self.launch_all)

    def follow(self) -> None:
        """Everything that is asked for is followed; who had to end comes again."""
        for work in self.scene.works:
            call = self.following.get(work)
            is_late = time.monotonic() - self._followed.get(work, -AGAIN) > AGAIN
            if is_late and (call is None or call.code is not None):
                self._followed[work] = time.monotonic()
                self.following[work] = self.launch(work, "--wait", waits=True)

    def attend(self, seconds: float, follow: bool = True) -> None:
        """Time passes: what is due comes back, what has ended is looked at, and somebody follows."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.keep_up()
            self.debts.pay()
            self.calls.attend()
            if follow:
                self.follow()
            time.sleep(0.2)

    def keep_up(self) -> None:
        """Who runs the cluster starts a daemon again that has ended, and that no fault keeps down, and takes back a node that
        SLURM has drained; whose jobs SLURM holds releases them, as `status` advises."""
        running = self.scene.cluster.running()
        for daemon in (one.name for stage in self.scene.cluster.stages for one in stage):
            if daemon not in running and not self.debts.owes(f"{daemon} is back"):
                self.say(f"{daemon} has ended by itself, and is started again")
                self.scene.cluster.start(daemon)
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        for node in self.scene.drained():
            self.say(f"SLURM has drained {node}, and it is resumed")
            self.scene.control("scontrol", "update", f"NodeName={node}", "State=RESUME")
        if held := self.scene.held():
            self.say(f"SLURM holds {' '.join(held)}, and they are released")
            self.scene.control("scontrol", "release", *held)

    # Whom a fault can hit

    def victim(self, with_checkpoint: bool = False) -> Attempt | None:
        there = [one for one in self.scene.at_work() if one.checkpoint_steps or not with_checkpoint]
        return self.chance.choice(there) if there else None

    def is_away(self, run: str, since: float) -> None:
        """Its result was taken: whoever comes now has to train it again."""
        self.lost.setdefault(run, []).append((since, None))

    def is_back(self, run: str) -> None:
        if run in self.lost:
            self.lost[run] = [(since, till or time.time()) for since, till in self.lost[run]]
