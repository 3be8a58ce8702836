"""Tables as Markdown that is readable both on GitHub and as plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from analysis.tables.layout import Table, wrapped

WIDTH = 120  # of the text


def markdown(tables: Iterable[Table], notes: Sequence[str] = ()) -> str:
    """Returns each table with its caption and its notes; at the end their origin, and `notes` on all of them."""
    all_tables = list(tables)
    parts = [
        part for table in all_tables for part in (wrapped(table.caption, WIDTH), _pipes(table), _notes(table)) if part
    ]
    origins = list(dict.fromkeys(line for table in all_tables for line in table.about))
    parts += [wrapped(line, WIDTH) for line in origins]
    if notes:
        parts.append("\n".join(["Notes:", *(_item(note) for note in notes)]))
    return "\n\n".join(parts) + "\n"


def _pipes(table: Table) -> str:
    """A table whose columns also line up as plain text; labels are left-aligned, cells right-aligned."""
    heads = [*table.stubs, *(" ".join(filter(None, (column.group, column.head))) for column in table.columns)]
    lines = [[*row.labels, *(cell.plain for cell in cells)] for row, cells in zip(table.rows, table.texts, strict=True)]
    lines = [[cell.replace("|", r"\|").replace("*", r"\*") for cell in line] for line in [heads, *lines]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pads = [str.ljust if at < len(table.stubs) else str.rjust for at in range(len(widths))]
    rules = [f"{'-' * (wide + 1)}{'-' if pad is str.ljust else ':'}" for wide, pad in zip(widths, pads, strict=True)]
    texts = [
        f"| {' | '.join(pad(cell, wide) for pad, cell, wide in zip(pads, line, widths, strict=True))} |"
        for line in lines
    ]
    return "\n".join([texts[0], f"|{'|'.join(rules)}|", *texts[1:]])


def _notes(table: Table) -> str:
    return "\n".join(_item(f"[{letter}] {note}" if letter else note) for letter, note in table.lettered_notes)


def _item(note: str) -> str:
    # an unescaped mark at the beginning would start a list or emphasis
    escaped = note.replace("*", r"\*").replace("~", r"\~")
    escaped = rf"\{escaped}" if escaped.startswith("- ") else escaped
    return wrapped(f"- {escaped}", WIDTH, "  ")
