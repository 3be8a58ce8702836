"""The repairs of what faults have broken, each with the time when it is due."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

AGAIN = 3.0  # seconds after which a repair that failed is tried again


@dataclass(order=True)
class Repair:
    due: float
    what: str = field(compare=False)
    how: Callable[[], object] = field(compare=False)


class Repairs:
    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.open: list[Repair] = []

    def add(self, seconds: float, what: str, how: Callable[[], object]) -> None:
        self.open.append(Repair(time.monotonic() + seconds, what, how))

    def expects(self, what: str) -> bool:
        return any(what in repair.what for repair in self.open)

    def carry_out(self, until: float | None = None) -> None:
        """Carries out the repairs that are due now, or by `until`."""
        moment = time.monotonic() if until is None else until
        for repair in sorted(repair for repair in self.open if repair.due <= moment):
            self.open.remove(repair)
            try:
                repair.how()
            except OSError as error:  # it cannot be written now
                self.add(AGAIN, repair.what, repair.how)
                self.say(f"not yet: {repair.what} ({error.strerror})")
            else:
                self.say(repair.what)
