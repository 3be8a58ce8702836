"""The rendering of the report page: the template filled with the content of `analysis.page.content`.

All text from a store is escaped.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Iterator
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from analysis import names
from analysis.page.charts import STEPS
from analysis.page.content import Content, content
from analysis.records.frame import WRONG
from analysis.tables.claim_tables import claim_table
from analysis.tables.html import sentence
from analysis.tables.layout import NOTHING, Cell, Table, Text
from mmprompt.runs.files import write_over
from mmprompt.runs.store import Store

HERE = Path(__file__).parent
NAME = "report.html"


def write_page(store: Store, out: Path | None = None) -> str:
    """Writes report.html into `out`, or into the store if it is None; returns a line about the file."""
    file = (out or store.root) / NAME
    text = page(content(store))
    write_over(file, text)
    return f"report   {file} ({len(text.encode()) / 1e3:,.0f} kB)"


def page(shown: Content) -> str:
    """Returns the page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"table": table, "said": marked, "number": number}
    data = shown.data | {"sections": {one.report.name: one.data for one in shown.sections}}
    data["figures"] = {f"sweep-{one.report.name}": one.figure for one in shown.sections}
    data["figures"] |= {f"search-{one.report.name}": one.figure for one in shown.searches}
    return environment.get_template("template.html").render(
        shown=shown,
        names=names,
        claim_table=claim_table,
        steps=STEPS,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        data=packed(data),
    )


def packed(value: Any) -> str:
    """Returns a value as JSON, compressed by gzip, in base64, which the page's script unpacks.

    That is a fifth of the size of JSON, and no text in it can end the script element.
    """
    text = json.dumps(finite(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def finite(value: Any) -> Any:
    """The value with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {str(key): finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def marked(text: str) -> Markup:
    """A sentence as HTML, with commands between backticks set as code."""
    return Markup(sentence(text))


def number(value: Any, digits: int = 3) -> str:
    """A number as text: `1,230`, `0.0123`; empty for NaN."""
    return "" if value is None or math.isnan(value) else f"{value:,.{digits}g}"


def table(one: Table) -> Markup:
    """A table as HTML: a click on a head sorts it, a click on a cell shows its runs."""
    body = "".join(
        _row(row.labels, zip(row.cells, texts, strict=True)) for row, texts in zip(one.rows, one.texts, strict=True)
    )
    notes = "".join(
        f"<li>{marked(f'[{letter}] {note}' if letter else note)}</li>" for letter, note in one.lettered_notes
    )
    caption = f'<p class="caption">{marked(one.caption)}</p>' if one.caption else ""
    return Markup(
        f'{caption}<div class="wide"><table class="sorted"><thead>{_heads(one)}</thead><tbody>{body}</tbody></table></div>'
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )


def _heads(shown_table: Table) -> str:
    over = ""
    if any(column.group for column in shown_table.columns):
        groups = [(group, len(list(those))) for group, those in groupby(column.group for column in shown_table.columns)]
        spans = "".join(f'<th colspan="{count}" scope="colgroup">{escape(group)}</th>' for group, count in groups)
        over = f'<tr><td colspan="{len(shown_table.stubs)}"></td>{spans}</tr>'
    heads = [*shown_table.stubs, *(column.head for column in shown_table.columns)]
    labels = [escape(head) or '<span class="hidden">row</span>' for head in heads]
    sorts = "".join(f'<th scope="col"><button type="button">{label}</button></th>' for label in labels)
    return f"{over}<tr>{sorts}</tr>"


def _row(labels: tuple[str, ...], cells: Iterator[tuple[Cell, Text]]) -> str:
    heads = "".join(f'<th scope="row">{escape(label)}</th>' for label in labels)
    return f"<tr>{heads}{''.join(_cell(*one) for one in cells)}</tr>"


def _cell(cell: Cell, text: Text) -> str:
    value = "" if cell.word or math.isnan(cell.value) else f' data-value="{cell.value!r}"'
    is_lacking = cell.word == NOTHING or (cell.word and cell.key)
    name = "bad" if cell.word in WRONG else "lacking" if is_lacking else "word" if cell.word[:1].isalpha() else ""
    kind = f' class="{name}"' if name else ""
    if not cell.key:
        return f"<td{value}{kind}>{escape(text.plain)}</td>"
    return f'<td{value}{kind} data-cell="{escape(cell.key)}"><button type="button">{escape(text.plain)}</button></td>'
