"""The findings of the doctor: the outcome of each check, with the lines to type, and how they are printed.

The probe imports this module before it has checked the interpreter: it needs only the standard library, of Python 3.7 or later.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field

MINE = "conf/cluster/mine.yaml"
WIDTH, NAMES = 80, 12  # columns of a line; columns of the names of checks


@dataclass(frozen=True)
class Finding:
    """The outcome of a check."""

    grade: str  # PASS, FAIL, NOTE
    name: str  # of the check
    found: str  # one sentence
    advice: tuple[str, ...] = ()  # lines to type as they are


def good(name: str, found: str) -> Finding:
    return Finding("PASS", name, found)


def bad(name: str, found: str, *advice: str) -> Finding:
    return Finding("FAIL", name, found, advice)


def note(name: str, found: str, *advice: str) -> Finding:
    return Finding("NOTE", name, found, advice)


def mine(line: str) -> str:
    """Advice: a line for the user's own cluster settings."""
    return f"{MINE}:  {line}"


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, for the sentence of a finding."""
    return (str(error).strip().splitlines() or ["no reason given"])[0]


@dataclass
class Findings:
    """Prints findings, and remembers the grade of each check."""

    grades: dict[str, str] = field(default_factory=dict)  # by check; FAIL if one of its findings failed

    def heading(self, text: str) -> None:
        print(f"\n{text}", flush=True)

    def remark(self, text: str) -> None:
        print(textwrap.fill(text, WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8), flush=True)

    def say(self, *findings: Finding) -> None:
        for finding in findings:
            if self.grades.get(finding.name) != "FAIL":
                self.grades[finding.name] = finding.grade
            head = f"  {finding.grade}  {finding.name:<{NAMES}}"
            text = textwrap.fill(
                finding.found, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
            )
            advice = [f"        -> {line}" for line in finding.advice]  # not wrapped, so that they can be copied
            print("\n".join([text, *advice]), flush=True)

    @property
    def failed(self) -> list[str]:
        return [name for name, grade in self.grades.items() if grade == "FAIL"]
