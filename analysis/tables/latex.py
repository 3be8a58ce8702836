r"""Tables as LaTeX, ready for \input: booktabs, numbers aligned by siunitx, notes below the table.

No table is wider than TEXT (a NeurIPS page). Tables wider than COLUMN are `table*`, which spans both columns of a two-column page
and is an ordinary table on a one-column page, so that one file serves both. A table that is too wide is split into several, one
below the other, in one float; a table that is too long into several floats. Widths are estimated from the letters of Computer
Modern; a test compiles tables and measures them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from analysis.tables.layout import NOTHING, Column, Table, Text, split

TEXT, COLUMN = 5.5 * 72.27, 3.25 * 72.27  # pt
MARGIN = 2.0  # pt that an estimate may be wrong by
THIN = 1.6  # pt: width of \\, on one side of a sign
LONGEST = 48  # most lines of a float
WIDEST_LABELS = 0.45  # share of TEXT for all labels of a row together
NEEDS = r"""% Needs \usepackage{booktabs} and \usepackage{siunitx} (version 2 or 3) in the preamble; then \input this file.
% A table* spans both columns where a page has two; where it has one it is an ordinary table.
"""
SETUP = (
    r"\sisetup{group-digits=integer, group-minimum-digits=4, group-separator={,}, retain-explicit-plus=true, "
    r"table-number-alignment=center, mode=text}"
)
ESCAPES = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"$\sim$",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",  # noqa: RUF001
    "ε": r"$\varepsilon$",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
}


@dataclass(frozen=True)
class Fit:
    """A font size in which a table can be set."""

    command: str
    size: float  # pt: width of an em, in proportion to that at 9 pt
    separation: float  # pt: space on either side of a column


FITS = (
    Fit("small", 9.0, 4.0),
    Fit("footnotesize", 8.3, 3.0),
)  # the first in which a table fits is used; if it fits in none, it is split in the first
MARK = {"*": "$^{*}$", "~": r"\,$\sim$", "=": r"\,$=$"}
COUNT = re.compile(r"\bn = (\d+)")
MINUS = re.compile(r"(?<![\w)\]])-(?=\d)")  # a minus sign before a number; not a hyphen within a word
WIDTHS = {  # width in em of Computer Modern at 9 pt -> the characters of this width
    0.285: "!',.:;[]_`il",
    0.314: "fj",
    0.343: "- ",
    0.371: "I",
    0.402: "()trs",
    0.457: "cez",
    0.514: "0123456789$*/ago\\^{}ε",
    0.542: "Jkqvxy?",
    0.571: "Sbdhnpu",
    0.628: "Z",
    0.671: "FL",
    0.728: "BEP",
    0.756: "CRTw",
    0.785: "AHDNUVXY",
    0.806: "&+±×~=<>@GKOQ",  # noqa: RUF001
    0.856: "#%m",
    0.942: "M",
    1.056: "W|",
}
WIDE = {char: wide for wide, chars in WIDTHS.items() for char in chars}
UNKNOWN = 0.8  # em: assumed width of any other character


def latex(tables: Iterable[Table], label: str, notes: Sequence[str] = (), width: float = TEXT) -> str:
    r"""Returns floats labelled tab:LABEL, tab:LABEL-differences, ... `notes`: on all tables, below the first. `width`: in pt."""
    first, *others = tables
    all_tables = [replace(first, notes=(*first.notes, *notes)), *others]
    return "\n".join([NEEDS, *(text for table in all_tables for text in _floats(table, label, width))])


def _floats(table: Table, label: str, width: float) -> Iterator[str]:
    name = f"tab:{label}" + (f"-{table.name}" if table.name else "")
    origin_comment = "".join(f"% {line}\n" for line in table.about)
    fit = next((fit for fit in FITS if _width(table, fit) <= width - MARGIN), FITS[0])
    pages = _pages(table, len(_parts(table, width, fit)), fit)
    for number, page in enumerate(pages, start=1):
        parts = _parts(page, width, fit)
        wide = len(parts) > 1 or _width(page, fit) > COLUMN - MARGIN
        kind = "table*" if wide else "table"
        caption = _escaped(table.caption) + (r" (Continued.)" if number > 1 else "")
        lines = [
            rf"\begin{{{kind}}}[t]" + (r"\addtocounter{table}{-1}" if number > 1 else ""),
            rf"\centering\{fit.command}\setlength{{\tabcolsep}}{{{fit.separation:g}pt}}",
            r"\setlength{\abovecaptionskip}{0pt}\setlength{\belowcaptionskip}{6pt}",
            SETUP,
            rf"\caption{{{caption}}}",
            rf"\label{{{name}{f'-{number}' if number > 1 else ''}}}",
            "\n\\par\\medskip\n".join(_tabular(part, fit) for part in parts),
            *_notes(table if number == len(pages) else replace(table, notes=())),
            rf"\end{{{kind}}}",
        ]
        yield origin_comment + "\n".join(lines) + "\n"


def _parts(table: Table, width: float, fit: Fit) -> list[Table]:
    return split(table, lambda part: _width(part, fit), width - MARGIN)


def _pages(table: Table, parts: int, fit: Fit) -> list[Table]:
    """Distributes rows over floats that fit on a page, as evenly as possible.

    `parts`: the number of parts, one below the other, into which the table is split; each row is set once in each.
    """
    lines = _lines(table, fit)
    for title, rows in table.blocks():
        lines[rows[0]] += bool(title)
    room = max(LONGEST // parts - 3, *lines)  # lines besides heads and rules; at least one row
    row_blocks = [some for _, rows in table.blocks() for some in _cut(rows, lines, room)]
    costs = [sum(lines[at] for at in block) for block in row_blocks]
    fewest = len(_cut(range(len(row_blocks)), costs, room))
    caps = range(max(-(-sum(costs) // fewest), *costs), room + 1)
    pages = next(pages for cap in caps if len(pages := _cut(range(len(row_blocks)), costs, cap)) == fewest)
    return (
        [table.select_rows([at for block in page for at in row_blocks[block]]) for page in pages]
        if fewest > 1
        else [table]
    )


def _cut(things: Sequence[int], costs: Sequence[int], room: int) -> list[list[int]]:
    """Cuts a sequence of indices into groups, each of which costs no more than `room`. `costs`: by index."""
    groups: list[list[int]] = [[]]
    for index in things:
        if groups[-1] and sum(costs[other] for other in groups[-1]) + costs[index] > room:
            groups.append([])
        groups[-1].append(index)
    return groups


def _lines(table: Table, fit: Fit) -> list[int]:
    """The number of lines of each row: more than one if its label is wrapped."""
    broken = [(at, wide) for at, (wide, kind) in enumerate(_stubs(table, fit)) if kind != "l"]
    return [
        max((math.ceil(1.15 * fit.size * _wide(row[at]) / wide) for at, wide in broken), default=1)
        for row in _labels(table)[1]
    ]


# A tabular


@dataclass(frozen=True)
class _Leaf:
    """A column of a table as several columns of a tabular: the value, a sign, the half-width, and the text after them."""

    column: Column
    texts: list[Text]
    edge: str  # ends a cell that spans its columns: @{} in the last column, which has no space after it

    @property
    def has_numbers(self) -> bool:
        return any(one.value for one in self.texts)

    @property
    def has_intervals(self) -> bool:
        return any(one.half or one.limits for one in self.texts)

    @property
    def has_more(self) -> bool:
        """Whether there is a last column of text: for n, marks, letters, and limits, which may be wider than a half-width."""
        return any(not one.word and (one.limits or one.n or one.mark or one.letter) for one in self.texts)

    @property
    def count(self) -> int:
        return 1 + 2 * self.has_intervals + self.has_more

    @property
    def specification(self) -> str:
        if not self.has_numbers:
            return "r" if all(re.match(r"[-+<\d]", text.word) for text in self.texts) else "l"
        values, halves = (_format([getattr(text, name) for text in self.texts]) for name in ("value", "half"))
        interval = rf"@{{\,}}c@{{\,}}S[table-format={halves}]" if self.has_intervals else ""
        return f"S[table-format={values}]{interval}{'@{}l' if self.has_more else ''}"

    def width(self, em: float) -> float:
        """The width in pt, head included, without the space around the column. `em`: in pt."""
        if not self.has_numbers:
            return em * max(map(_wide, [self.column.head, *(one.word for one in self.texts)]))
        values, halves = ([getattr(one, name) for one in self.texts] for name in ("value", "half"))
        interval = em * (_number_width(halves) + _wide("±")) + 2 * THIN if any(halves) else 0.0
        after = max((_wide(f"({one.n})") if one.n else 0) + _wide(one.mark + one.letter) for one in self.texts)
        limits = max(_wide(f"({one.limits})") if one.limits else 0.0 for one in self.texts)
        behind = max(interval + em * after + THIN, em * (limits + after) + 2 * THIN if limits else 0.0)
        words = max(_wide(one.word) for one in self.texts)
        return max(
            em * _number_width(values) + (behind if self.count > 1 else 0.0), em * words, em * _wide(self.column.head)
        )


def _leaves(table: Table) -> list[_Leaf]:
    texts = table.texts
    last = len(table.columns) - 1
    return [
        _Leaf(column, [row[at] for row in texts], "@{}" if at == last else "")
        for at, column in enumerate(table.columns)
    ]


def _labels(table: Table) -> tuple[list[str], list[list[str]]]:
    """The heads of the label columns, and each row's labels; without the first ones of a grouped table, which are titles."""
    inner = slice(1 if table.grouped else 0, None)
    return list(table.stubs[inner]), [list(row.labels[inner]) for row in table.rows]


def _stubs(table: Table, fit: Fit) -> list[tuple[float, str]]:
    """The width in pt and the specification of each label column. Labels that are sentences are wrapped."""
    heads, labels = _labels(table)
    natural = [fit.size * max(map(_wide, [head, *(row[at] for row in labels)])) for at, head in enumerate(heads)]
    room = WIDEST_LABELS * TEXT - sum(natural) + max(natural)
    return [
        (room, rf">{{\raggedright\arraybackslash}}p{{{room:.0f}pt}}")
        if wide == max(natural) and wide > room
        else (wide, "l")
        for wide in natural
    ]


def _width(table: Table, fit: Fit) -> float:
    """The width of an unsplit table in pt."""
    em, spacing = fit.size, 2 * fit.separation
    stubs = [wide for wide, _ in _stubs(table, fit)]
    total = sum(stubs) + spacing * (len(stubs) - 1) + (em if table.grouped else 0.0)
    for group, leaves in groupby(_leaves(table), key=lambda leaf: leaf.column.group):
        widths = [leaf.width(em) for leaf in leaves]
        total += max(sum(widths) + spacing * (len(widths) - 1), em * _wide(group)) + spacing
    return total


def _tabular(table: Table, fit: Fit) -> str:
    heads, labels = _labels(table)
    leaves = _leaves(table)
    columns = len(heads) + sum(leaf.count for leaf in leaves)
    stubs = [specification for _, specification in _stubs(table, fit)]
    lines = [
        rf"\begin{{tabular}}{{@{{}}{''.join(stubs)}{''.join(leaf.specification for leaf in leaves)}@{{}}}}",
        r"\toprule",
        *_heads(heads, leaves),
        r"\midrule",
    ]
    for number, (title, rows) in enumerate(table.blocks()):
        if title:
            lines += [r"\addlinespace"] if number else []
            lines.append(rf"\multicolumn{{{columns}}}{{@{{}}l}}{{\emph{{{_escaped(title)}}}}} \\")
        indent = r"\quad " if title else ""
        for at in rows:
            first, *others = [_escaped(label) for label in labels[at]]
            cells = [_cell(leaf, leaf.texts[at]) for leaf in leaves]
            lines.append(" & ".join([indent + first, *others, *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _heads(stubs: Sequence[str], leaves: Sequence[_Leaf]) -> Iterator[str]:
    """Yields the line of groups, the rules below groups with several columns, and the line of heads."""
    at = len(stubs) + 1
    cells, rules = [""] * len(stubs), []
    for group, leaves_of_group in groupby(leaves, key=lambda leaf: leaf.column.group):
        group_leaves = list(leaves_of_group)
        count = sum(leaf.count for leaf in group_leaves)
        cells.append(rf"\multicolumn{{{count}}}{{c{group_leaves[-1].edge}}}{{{_escaped(group)}}}")
        if group and len(group_leaves) > 1:
            rules.append(rf"\cmidrule(lr){{{at}-{at + count - 1}}}")
        at += count
    if any(leaf.column.group for leaf in leaves):
        yield " & ".join(cells) + r" \\"
        if rules:
            yield " ".join(rules)
    heads = [
        rf"\multicolumn{{{leaf.count}}}{{{'c' if leaf.has_numbers else leaf.specification}{leaf.edge}}}{{{_head(leaf)}}}"
        for leaf in leaves
    ]
    yield " & ".join([*map(_escaped, stubs), *heads]) + r" \\"


def _head(leaf: _Leaf) -> str:
    return "$p$" if leaf.column.head == "p" else _escaped(leaf.column.head)


def _cell(leaf: _Leaf, text: Text) -> str:
    letter = f"$^{{{text.letter}}}$" if text.letter else ""
    if text.word:
        word = ("--" if text.word == NOTHING else _escaped(text.word)) + letter
        if leaf.count > 1:
            return rf"\multicolumn{{{leaf.count}}}{{c{leaf.edge}}}{{{word}}}"
        return f"{{{word}}}" if leaf.has_numbers else word
    after = (rf"\,({_escaped(text.n)})" if text.n else "") + MARK.get(text.mark, text.mark) + letter
    cells = [_plain(text.value)]
    if text.limits:
        ends = _escaped(text.limits)
        return rf"{cells[0]} & \multicolumn{{{leaf.count - 1}}}{{@{{\,}}l{leaf.edge}}}{{({ends}){after}}}"
    if leaf.has_intervals:
        cells += [r"$\pm$", _plain(text.half)] if text.half else ["", ""]
    return " & ".join([*cells, *([after] if leaf.has_more else [])])


def _notes(table: Table) -> list[str]:
    if not table.lettered_notes:
        return []
    notes = " ".join(
        (rf"\textsuperscript{{{letter}}}\," if letter else "") + _noted(note) for letter, note in table.lettered_notes
    )
    return [rf"\par\smallskip\begin{{minipage}}{{\linewidth}}\footnotesize {notes}\end{{minipage}}"]


def _noted(note: str) -> str:
    """A note as a sentence. A note on a mark begins with that mark."""
    note = note if note.endswith(".") else f"{note}."
    mark, _, rest = note.partition(" ")
    if mark == NOTHING:
        return f"--~{_escaped(rest)}"
    return f"{MARK[mark].removeprefix(chr(92) + ',')}~{_escaped(rest)}" if mark in MARK else _escaped(note)


# Numbers and characters


def _format(numbers: Sequence[str]) -> str:
    """The table-format of a column of numbers: `+3.1` has a sign, three digits before and one after the marker."""
    parts = [_plain(number).lstrip("+-").partition(".") for number in numbers if number] or [("1", "", "")]
    sign = "+" if any(number[:1] in ("+", "-") for number in numbers) else ""
    before, after = (max(len(part[at]) for part in parts) for at in (0, 2))
    return f"{sign}{before}.{after}"


def _number_width(numbers: Sequence[str]) -> float:
    integer_digits, digits = _format(numbers).lstrip("+").split(".")
    signed = _wide("+") if any(number[:1] in ("+", "-") for number in numbers) else 0.0
    commas = _wide(",") * ((int(integer_digits) - 1) // 3)
    return _wide("0") * (int(integer_digits) + int(digits)) + commas + (_wide(".") if int(digits) else 0.0) + signed


def _wide(text: str) -> float:
    """The width of a text in em."""
    return sum(WIDE.get(char, UNKNOWN) for char in text)


def _plain(number: str) -> str:
    return number.replace(",", "")


def _escaped(text: str) -> str:
    marked = COUNT.sub("\x02\\1\x03", MINUS.sub("\x00", text.replace(" %", "\x01")))
    escaped = "".join(ESCAPES.get(char, char) for char in marked)
    for mark, code in (("\x00", "$-$"), ("\x01", r"\,\%"), ("\x02", "$n="), ("\x03", "$")):
        escaped = escaped.replace(mark, code)
    return escaped
