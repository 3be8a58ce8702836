"""Tables for a terminal: as wide as it is, numbers lined up at the decimal marker, no row broken.

A table that is too wide becomes several, each with the labels and with as many columns as fit.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from analysis.layout import Table, Text, filled, split

UNKNOWN_WIDTH = 100  # columns of a terminal that does not tell its width
GAP = "  "  # between columns
RULE = "─"
WIDEST_LABEL = 0.45  # of the width, for all labels of a row together; longer ones are wrapped


def terminal(tables: Iterable[Table], notes: Sequence[str] = (), width: int | None = None) -> str:
    """`width`: in characters; that of the terminal unless given."""
    wide = width or shutil.get_terminal_size((UNKNOWN_WIDTH, 24)).columns
    made = list(tables)
    parts = ["\n".join(_table(table, wide)) for table in made]
    about = list(dict.fromkeys(line for table in made for line in table.about))
    if about:
        parts.append("\n".join(filled(line, wide, "  ") for line in about))
    if notes:
        parts.append("\n".join(["Notes:", *(filled(f"- {note}", wide, "  ") for note in notes)]))
    return "\n\n".join(parts) + "\n"


def _table(table: Table, width: int) -> Iterator[str]:
    yield filled(table.caption, width)
    for part in split(table, lambda part: max(map(len, _lines(part, width)), default=0), width):
        yield ""
        yield from _lines(part, width)
    if table.said:
        yield ""
    for letter, note in table.said:
        yield filled(f"[{letter}] {note}" if letter else note, width, "  ")


def _lines(part: Table, width: int) -> list[str]:
    """Heads, a rule and rows. Rows that share their first label stand under it."""
    cells, blocks = part.texts, list(part.blocks())
    inner = slice(1 if part.grouped else 0, None)
    labels = [_wrapped(row.labels[inner], int(width * WIDEST_LABEL)) for row in part.rows]
    heads = list(part.stubs[inner])
    widths = [
        max(len(line) for line in [head, *(line for label in labels for line in label[at])])
        for at, head in enumerate(heads)
    ]
    columns = [_column(column) for column in zip(*cells, strict=True)]
    bodies = [max(map(len, column), default=0) for column in columns]
    bodies, top, bottom = _heads(part, bodies)
    stub = GAP.join(head.ljust(wide) for head, wide in zip(heads, widths, strict=True))
    lines = [f"{' ' * len(stub)}{GAP}{top}".rstrip()] if top.strip() else []
    lines += [f"{stub}{GAP}{bottom}".rstrip()]
    rule = RULE * max(map(len, [*lines, *(stub + GAP + GAP.join(" " * wide for wide in bodies),)]))
    lines.append(rule)
    for title, rows in blocks:
        lines += [title] if title else []
        for at in rows:
            values = GAP.join(column[at].center(wide) for column, wide in zip(columns, bodies, strict=True))
            for number in range(max(map(len, labels[at]), default=1)):
                pieces = [label[number] if number < len(label) else "" for label in labels[at]]
                left = GAP.join(piece.ljust(wide) for piece, wide in zip(pieces, widths, strict=True))
                lines.append(f"{left}{GAP}{values if number == 0 else ''}".rstrip())
    return lines


def _column(texts: Sequence[Text]) -> list[str]:
    """One width for all: values and half-widths are lined up at the decimal marker, what follows to the left."""
    values = _at_marker([one.value for one in texts])
    halves = _at_marker([one.half for one in texts])
    made = []
    for one, value, half in zip(texts, values, halves, strict=True):
        if one.word:
            after, number = "", one.word.rjust(len(value) + (3 + len(half) if half.strip() else 0))
        elif one.limits:
            after, number = "", f"{value} ({one.limits})"
        else:
            after, number = "", f"{value} ± {half}" if one.half else value + " " * (3 + len(half) if len(half) else 0)
        after = " ".join(filter(None, [one.n and f"({one.n})", one.mark, one.letter and f"[{one.letter}]"]))
        made.append(f"{number} {after}" if after else number)
    wide = max(map(len, made), default=0)
    return [text.ljust(wide) for text in made]


def _at_marker(numbers: Sequence[str]) -> list[str]:
    """Padded on both sides, the decimal markers (or the ends of whole numbers) below one another."""
    parts = [number.partition(".") for number in numbers]
    before, after = (max((len(part[at]) for part in parts), default=0) for at in (0, 2))
    after += 1 if after else 0
    return [first.rjust(before) + (marker + last).ljust(after) for first, marker, last in parts]


def _heads(part: Table, bodies: Sequence[int]) -> tuple[list[int], str, str]:
    """Widths that also hold the heads, the line of groups, and the line of heads."""
    widths = [max(body, len(column.head)) for body, column in zip(bodies, part.columns, strict=True)]
    spans: list[tuple[str, list[int]]] = []
    for at, column in enumerate(part.columns):
        if spans and column.group and spans[-1][0] == column.group:
            spans[-1][1].append(at)
        else:
            spans.append((column.group, [at]))
    for group, those in spans:
        lacking = len(group) - sum(widths[at] for at in those) - len(GAP) * (len(those) - 1)
        widths[those[-1]] += max(0, lacking)
    tops = [group.center(sum(widths[at] for at in those) + len(GAP) * (len(those) - 1)) for group, those in spans]
    heads = [column.head.center(wide) for column, wide in zip(part.columns, widths, strict=True)]
    return widths, GAP.join(tops), GAP.join(heads)


def _wrapped(labels: Sequence[str], width: int) -> list[list[str]]:
    """Each label as lines; where all together are too wide, the widest is broken at its spaces."""
    total = sum(map(len, labels)) + len(GAP) * (len(labels) - 1)
    if total <= width:
        return [[label] for label in labels]
    widest = max(range(len(labels)), key=lambda at: len(labels[at]))
    room = max(12, width - (total - len(labels[widest])))
    return [textwrap.wrap(label, room) if at == widest else [label] for at, label in enumerate(labels)]
