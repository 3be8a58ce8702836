"""Tables as text for a terminal: they fit its width, numbers are aligned at the decimal marker, and no row is broken.

A table that is too wide is split into several, each with the labels and as many columns as fit.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from analysis.tables.layout import Table, Text, split, wrapped

UNKNOWN_WIDTH = 100  # assumed width of a terminal that does not report its own
GAP = "  "  # between columns
RULE = "─"
WIDEST_LABEL = 0.45  # share of the width for all labels of a row together; longer labels are wrapped


def terminal(tables: Iterable[Table], notes: Sequence[str] = (), width: int | None = None) -> str:
    """Returns each table with its notes; at the end their origin, and `notes` on all of them.

    `width`: in characters; None: the terminal's.
    """
    wide = width or shutil.get_terminal_size((UNKNOWN_WIDTH, 24)).columns
    all_tables = list(tables)
    parts = ["\n".join(_table(table, wide)) for table in all_tables]
    origins = list(dict.fromkeys(line for table in all_tables for line in table.about))
    if origins:
        parts.append("\n".join(wrapped(line, wide, "  ") for line in origins))
    if notes:
        parts.append("\n".join(["Notes:", *(wrapped(f"- {note}", wide, "  ") for note in notes)]))
    return "\n\n".join(parts) + "\n"


def _table(table: Table, width: int) -> Iterator[str]:
    yield wrapped(table.caption, width)
    for part in split(table, lambda part: max(map(len, _lines(part, width)), default=0), width):
        yield ""
        yield from _lines(part, width)
    if table.lettered_notes:
        yield ""
    for letter, note in table.lettered_notes:
        yield wrapped(f"[{letter}] {note}" if letter else note, width, "  ")


def _lines(part: Table, width: int) -> list[str]:
    """The lines of a table: heads, a rule and rows. In a grouped table, the first label is a line above the rows that share it."""
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
                label_text = GAP.join(piece.ljust(wide) for piece, wide in zip(pieces, widths, strict=True))
                lines.append(f"{label_text}{GAP}{values if number == 0 else ''}".rstrip())
    return lines


def _column(texts: Sequence[Text]) -> list[str]:
    """The texts of a column with equal width: values and half-widths aligned at the decimal marker, the rest to the left."""
    values = _at_marker([text.value for text in texts])
    halves = _at_marker([text.half for text in texts])
    lines = []
    for text, value, half in zip(texts, values, halves, strict=True):
        if text.word:
            after, number = "", text.word.rjust(len(value) + (3 + len(half) if half.strip() else 0))
        elif text.limits:
            after, number = "", f"{value} ({text.limits})"
        else:
            after, number = "", f"{value} ± {half}" if text.half else value + " " * (3 + len(half) if len(half) else 0)
        after = " ".join(filter(None, [text.n and f"({text.n})", text.mark, text.letter and f"[{text.letter}]"]))
        lines.append(f"{number} {after}" if after else number)
    wide = max(map(len, lines), default=0)
    return [padded.ljust(wide) for padded in lines]


def _at_marker(numbers: Sequence[str]) -> list[str]:
    """Numbers padded on both sides so that their decimal markers, or the ends of integers, are aligned."""
    parts = [number.partition(".") for number in numbers]
    before, after = (max((len(part[at]) for part in parts), default=0) for at in (0, 2))
    after += 1 if after else 0
    return [first.rjust(before) + (marker + last).ljust(after) for first, marker, last in parts]


def _heads(part: Table, bodies: Sequence[int]) -> tuple[list[int], str, str]:
    """The widths of columns including their heads, the line of groups, and the line of heads."""
    widths = [max(body, len(column.head)) for body, column in zip(bodies, part.columns, strict=True)]
    spans: list[tuple[str, list[int]]] = []
    for at, column in enumerate(part.columns):
        if spans and column.group and spans[-1][0] == column.group:
            spans[-1][1].append(at)
        else:
            spans.append((column.group, [at]))
    for group, members in spans:
        missing_width = len(group) - sum(widths[at] for at in members) - len(GAP) * (len(members) - 1)
        widths[members[-1]] += max(0, missing_width)
    tops = [group.center(sum(widths[at] for at in members) + len(GAP) * (len(members) - 1)) for group, members in spans]
    heads = [column.head.center(wide) for column, wide in zip(part.columns, widths, strict=True)]
    return widths, GAP.join(tops), GAP.join(heads)


def _wrapped(labels: Sequence[str], width: int) -> list[list[str]]:
    """Each label as lines; if all together are too wide, the widest is wrapped at its spaces."""
    total = sum(map(len, labels)) + len(GAP) * (len(labels) - 1)
    if total <= width:
        return [[label] for label in labels]
    widest = max(range(len(labels)), key=lambda at: len(labels[at]))
    room = max(12, width - (total - len(labels[widest])))
    return [textwrap.wrap(label, room) if at == widest else [label] for at, label in enumerate(labels)]
