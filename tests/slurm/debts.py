"""What a fault took and has to come back, and when."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

AGAIN = 3.0  # seconds after which what could not be given back is tried again


@dataclass(order=True)
class Debt:
    due: float
    what: str = field(compare=False)
    how: Callable[[], object] = field(compare=False)


class Debts:
    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.open: list[Debt] = []

    def owe(self, seconds: float, what: str, how: Callable[[], object]) -> None:
        self.open.append(Debt(time.monotonic() + seconds, what, how))

    def owes(self, what: str) -> bool:
        return any(what in debt.what for debt in self.open)

    def pay(self, until: float | None = None) -> None:
        """What is due now, or will be by then."""
        moment = time.monotonic() if until is None else until
        for debt in sorted(debt for debt in self.open if debt.due <= moment):
            self.open.remove(debt)
            try:
                debt.how()
            except OSError as error:  # nobody may write there now
                self.owe(AGAIN, debt.what, debt.how)
                self.say(f"not yet: {debt.what} ({error.strerror})")
            else:
                self.say(debt.what)
