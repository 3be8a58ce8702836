"""Tables as Markdown, for a file that is read on GitHub and as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from analysis.layout import Table, filled

WIDTH = 120  # of the text


def markdown(tables: Iterable[Table], notes: Sequence[str] = ()) -> str:
    """Caption, table and its notes, one after the other; at the end where they come from, and the notes on all."""
    made = list(tables)
    parts = [part for table in made for part in (filled(table.caption, WIDTH), _pipes(table), _notes(table)) if part]
    about = list(dict.fromkeys(line for table in made for line in table.about))
    parts += [filled(line, WIDTH) for line in about]
    if notes:
        parts.append("\n".join(["Notes:", *(_item(note) for note in notes)]))
    return "\n\n".join(parts) + "\n"


def _pipes(table: Table) -> str:
    """Columns line up in the file too; labels to the left, cells to the right."""
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
    return "\n".join(_item(f"[{letter}] {note}" if letter else note) for letter, note in table.said)


def _item(note: str) -> str:
    # a mark at the beginning would make a list of its own, or emphasis
    shown = note.replace("*", r"\*").replace("~", r"\~")
    shown = rf"\{shown}" if shown.startswith("- ") else shown
    return filled(f"- {shown}", WIDTH, "  ")
