"""Tables as HTML, for notebooks and the report page. Whatever a cell or a note says stays text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby

from analysis.layout import Table

CODE = re.compile(r"`([^`]+)`")


def html(tables: Iterable[Table], notes: Sequence[str] = ()) -> str:
    """Caption, table and its notes, one after the other; at the end where they come from, and the notes on all."""
    made = list(tables)
    parts = [_table(table) for table in made]
    about = list(dict.fromkeys(line for table in made for line in table.about))
    parts += [f"<p>{said(line)}</p>" for line in about]
    parts += [listed(notes)] if notes else []
    return "\n".join(parts)


def listed(notes: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{said(note)}</li>' for note in notes)}</ul>"


def _table(table: Table) -> str:
    rows = zip(table.rows, table.texts, strict=True)
    body = "\n".join(
        f"<tr>{''.join(f'<th>{escape(label)}</th>' for label in row.labels)}"
        f"{''.join(f'<td>{escape(cell.plain)}</td>' for cell in cells)}</tr>"
        for row, cells in rows
    )
    caption = f"<p>{said(table.caption)}</p>\n" if table.caption else ""
    notes = [f"[{letter}] {note}" if letter else note for letter, note in table.said]
    made = f"{caption}<table>\n<thead>{heads(table)}</thead>\n<tbody>\n{body}\n</tbody></table>"
    return f"{made}\n{listed(notes)}" if notes else made


def said(text: str) -> str:
    """A sentence, with what is to be typed set apart."""
    return CODE.sub(r"<code>\1</code>", escape(text))


def heads(table: Table) -> str:
    """One line of heads, or two where columns have groups."""
    stubs, groups = len(table.stubs), [column.group for column in table.columns]
    over = "".join(f'<th colspan="{len(list(those))}">{escape(group)}</th>' for group, those in groupby(groups))
    first = f'<tr><th colspan="{stubs}"></th>{over}</tr>' if any(groups) else ""
    names = "".join(f"<th>{escape(name)}</th>" for name in (*table.stubs, *(column.head for column in table.columns)))
    return f"{first}<tr>{names}</tr>"
