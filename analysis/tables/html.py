"""Tables as HTML, for notebooks and the report page. The text of cells and notes is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby

from analysis.tables.layout import Table

CODE = re.compile(r"`([^`]+)`")


def html(tables: Iterable[Table], notes: Sequence[str] = ()) -> str:
    """Returns each table with its caption and its notes; at the end their origin, and `notes` on all of them."""
    all_tables = list(tables)
    parts = [_table(table) for table in all_tables]
    origins = list(dict.fromkeys(line for table in all_tables for line in table.about))
    parts += [f"<p>{sentence(line)}</p>" for line in origins]
    parts += [note_list(notes)] if notes else []
    return "\n".join(parts)


def note_list(notes: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{sentence(note)}</li>' for note in notes)}</ul>"


def _table(table: Table) -> str:
    rows = zip(table.rows, table.texts, strict=True)
    body = "\n".join(
        f"<tr>{''.join(f'<th>{escape(label)}</th>' for label in row.labels)}"
        f"{''.join(f'<td>{escape(cell.plain)}</td>' for cell in cells)}</tr>"
        for row, cells in rows
    )
    caption = f"<p>{sentence(table.caption)}</p>\n" if table.caption else ""
    notes = [f"[{letter}] {note}" if letter else note for letter, note in table.lettered_notes]
    made = f"{caption}<table>\n<thead>{head_lines(table)}</thead>\n<tbody>\n{body}\n</tbody></table>"
    return f"{made}\n{note_list(notes)}" if notes else made


def sentence(text: str) -> str:
    """A sentence as HTML, with commands between backticks set as code."""
    return CODE.sub(r"<code>\1</code>", escape(text))


def head_lines(table: Table) -> str:
    """The lines of a table's head: one, or two where columns have groups."""
    stubs, groups = len(table.stubs), [column.group for column in table.columns]
    group_heads = "".join(
        f'<th colspan="{len(list(columns))}">{escape(group)}</th>' for group, columns in groupby(groups)
    )
    first_line = f'<tr><th colspan="{stubs}"></th>{group_heads}</tr>' if any(groups) else ""
    names = "".join(f"<th>{escape(name)}</th>" for name in (*table.stubs, *(column.head for column in table.columns)))
    return f"{first_line}<tr>{names}</tr>"
