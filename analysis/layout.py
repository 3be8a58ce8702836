"""A table before it is written down: cells with numbers, named rows, columns in groups, notes. It knows no format.

`analysis.markdown`, `analysis.latex` and `analysis.terminal` write it. Digits follow the interval: the half-width has two
significant digits, and the value ends at the same place (the rule of the GUM, 7.2.6). An interval that was cut off at the
end of a metric's range is not symmetric and is given by its limits: 99.0 (97.9 to 100).
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from string import ascii_lowercase
from typing import NamedTuple

import pandas as pd

NOTHING = "-"  # what was not planned, not recorded, or cannot be
SIGNIFICANT = 2  # digits of a half-width
TOGETHER = "\N{NO-BREAK SPACE}"
SAME = 1e-6  # the two halves of an interval, relative to it, are equal up to this


@dataclass(frozen=True)
class Cell:
    """A number with its interval, or a word in its place."""

    value: float = math.nan
    lower: float = math.nan
    upper: float = math.nan
    n: int | None = None  # values behind it; None where there is nothing to count
    planned: int | None = None
    digits: int = 1  # after the decimal marker, where no interval says how many
    signed: bool = False
    is_range: bool = False  # lower and upper are the lowest and the highest value, and no interval
    mark: str = ""  # *, = or ~
    note: str = ""  # what a reader has to know of this cell
    word: str = ""  # missing, failed, conflict, -
    key: str = ""  # what `analysis trace` calls it; empty where it is no cell of runs


class Column(NamedTuple):
    head: str
    group: str = ""  # a data set, over the heads of its splits


class Row(NamedTuple):
    labels: tuple[str, ...]  # one per stub
    cells: tuple[Cell, ...]  # one per column


class Text(NamedTuple):
    """A cell in words: what is to be printed, in parts, as each format sets them differently."""

    word: str = ""  # alone, or none of the others but the letter
    value: str = ""
    half: str = ""
    limits: str = ""
    n: str = ""  # where it is not that of the whole table
    mark: str = ""
    letter: str = ""  # of a note

    @property
    def plain(self) -> str:
        """`83.1 ± 1.2 (2 of 3) * [a]`."""
        interval = f" ± {self.half}" if self.half else f" ({self.limits})" if self.limits else ""
        parts = [self.word or f"{self.value}{interval}", self.n and f"({self.n})", self.mark]
        return " ".join(filter(None, [*parts, self.letter and f"[{self.letter}]"]))


@dataclass(frozen=True)
class Table:
    caption: str  # one or two sentences
    stubs: tuple[str, ...]  # the heads of the labels
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    name: str = ""  # tells the tables of one sweep apart
    notes: tuple[str, ...] = ()  # under it, in every format
    about: tuple[str, ...] = ()  # where it comes from: beside it, and no part of it in a paper
    n: int | None = None  # of all cells that do not say another
    grouped: bool = False  # the first label is a title over the rows that share it
    whole: Table | None = None  # of which this is a part

    @property
    def letters(self) -> dict[str, str]:
        """The notes of cells, each with its letter; with none where it holds of every number of the table."""
        cells = (self.whole or self).cells
        noted = list(dict.fromkeys(cell.note for cell in cells if cell.note))
        numbers = [cell.note for cell in cells if cell.n and not cell.word]
        named = [note for note in noted if len(numbers) < 2 or set(numbers) != {note}]
        return dict.fromkeys(noted, "") | {note: _letter(at) for at, note in enumerate(named)}

    @property
    def said(self) -> list[tuple[str, str]]:
        """Every note, after its letter or none."""
        return [*(("", note) for note in self.notes), *((letter, note) for note, letter in self.letters.items())]

    @property
    def cells(self) -> list[Cell]:
        return [cell for row in self.rows for cell in row.cells]

    @property
    def texts(self) -> list[list[Text]]:
        """Of all cells, row by row."""
        letters = self.letters
        return [[text(cell, self.n, letters) for cell in row.cells] for row in self.rows]

    @property
    def frame(self) -> pd.DataFrame:
        """The cells in plain words, for a notebook: labels in the index, group and head in the columns."""
        columns = [" ".join(filter(None, (column.group, column.head))) for column in self.columns]
        index = pd.MultiIndex.from_tuples([row.labels for row in self.rows], names=self.stubs)
        plain = [[one.plain for one in row] for row in self.texts]
        return pd.DataFrame(plain, index=index if len(self.stubs) > 1 else index.get_level_values(0), columns=columns)

    def blocks(self) -> Iterator[tuple[str, list[int]]]:
        """Rows (their numbers) under a title, where the first label is one; else all, under none."""
        if not self.grouped:
            yield "", list(range(len(self.rows)))
            return
        for title, rows in groupby(range(len(self.rows)), key=lambda at: self.rows[at].labels[0]):
            yield title, list(rows)

    def of_columns(self, kept: Sequence[int]) -> Table:
        rows = tuple(Row(row.labels, tuple(row.cells[at] for at in kept)) for row in self.rows)
        columns = tuple(self.columns[at] for at in kept)
        return replace(self, columns=columns, rows=rows, whole=self.whole or self)

    def of_rows(self, kept: Sequence[int]) -> Table:
        return replace(self, rows=tuple(self.rows[at] for at in kept), whole=self.whole or self)


def table(
    caption: str,
    stubs: Sequence[str],
    entries: Iterable[tuple[tuple[str, ...], Column, Cell]],
    columns: Sequence[Column] | None = None,
    **more: object,
) -> Table:
    """From cells with their row and column, which are in the order in which they come, or of `columns`.

    Where no cell comes, nothing was planned. Two cells for one place are an error of the caller.
    """
    placed: dict[tuple[str, ...], dict[Column, Cell]] = {}
    for labels, column, cell in entries:
        row = placed.setdefault(labels, {})
        assert column not in row, f"two cells at {labels}, {column}"
        row[column] = cell
    found = list(columns if columns is not None else dict.fromkeys(one for row in placed.values() for one in row))
    rows = [Row(labels, tuple(row.get(one, Cell(word=NOTHING)) for one in found)) for labels, row in placed.items()]
    return Table(caption, tuple(stubs), tuple(found), tuple(rows), n=_common(rows), **more)  # type: ignore[arg-type]


def of_frame(caption: str, frame: pd.DataFrame, name: str = "", notes: Sequence[str] = ()) -> Table:
    """Of a frame of cells and words, with its labels in the index."""
    labels = [row if isinstance(row, tuple) else (row,) for row in frame.index]
    rows = tuple(
        Row(
            tuple(map(str, label)),
            tuple(cell if isinstance(cell, Cell) else Cell(word=str(cell)) for cell in cells),
        )
        for label, cells in zip(labels, frame.itertuples(index=False, name=None), strict=True)
    )
    stubs, columns = (tuple(map(str, names)) for names in (frame.index.names, frame.columns))
    return Table(caption, stubs, tuple(map(Column, columns)), rows, name, tuple(notes), n=_common(rows))


def _common(rows: Iterable[Row]) -> int | None:
    """The n of most cells, of those that have all of theirs if there are any."""
    cells = [cell for row in rows for cell in row.cells if cell.n]
    counts = Counter(cell.n for cell in cells if cell.n == cell.planned) or Counter(cell.n for cell in cells)
    return counts.most_common(1)[0][0] if counts else None


def turned(table: Table, stub: str) -> Table:
    """Rows as columns, of a table whose rows have one label and whose columns no groups. `stub`: the head of the new labels."""
    (head,) = table.stubs
    columns = tuple(Column(row.labels[0], head) for row in table.rows)
    rows = (Row((column.head,), tuple(row.cells[at] for row in table.rows)) for at, column in enumerate(table.columns))
    return replace(table, stubs=(stub,), columns=columns, rows=tuple(rows))


def split(table: Table, width: Callable[[Table], float], limit: float) -> list[Table]:
    """Parts of a table that is too wide, side by side no more: each with all rows and with as many columns as fit.

    Columns of one group stay together where they can.
    """
    if width(table) <= limit:
        return [table]
    groups = [[at for at, _ in those] for _, those in groupby(enumerate(table.columns), key=lambda it: it[1].group)]
    pieces = []
    for group in groups:
        fits = width(table.of_columns(group)) <= limit
        pieces += [group] if fits else [[at] for at in group]
    fewest = len(_filled(table, pieces, width, limit, len(table.columns)))
    caps = range(-(-len(table.columns) // fewest), len(table.columns) + 1)  # as even as they can be
    found = (_filled(table, pieces, width, limit, cap) for cap in caps)
    return next([table.of_columns(part) for part in parts] for parts in found if len(parts) == fewest)


def _filled(
    table: Table, pieces: Sequence[Sequence[int]], width: Callable[[Table], float], limit: float, cap: int
) -> list[list[int]]:
    """Pieces one after the other in parts, each as full as its width and `cap`, a number of columns, allow."""
    parts: list[list[int]] = []
    for piece in pieces:
        more = [*parts[-1], *piece] if parts else []
        if more and len(more) <= cap and width(table.of_columns(more)) <= limit:
            parts[-1] = more
        else:
            parts.append(list(piece))
    return parts


def text(cell: Cell, common: int | None, letters: Mapping[str, str]) -> Text:
    """`common`: the n that need not be said."""
    letter = letters.get(cell.note, "")
    if cell.word:
        return Text(word=cell.word, letter=letter)
    n = ""
    if cell.n is not None and cell.planned is not None and cell.n != cell.planned:
        n = f"{cell.n} of {cell.planned}"
    elif cell.n is not None and cell.n != common:
        n = str(cell.n)
    rest = {"n": n, "mark": cell.mark, "letter": letter}
    if math.isnan(cell.lower) or math.isnan(cell.upper):
        return Text(value=number(cell.value, cell.digits, cell.signed), **rest)
    half = (cell.upper - cell.lower) / 2
    digits = places(half)
    value = number(cell.value, digits, cell.signed)
    off = cell.upper + cell.lower - 2 * cell.value
    if not cell.is_range and abs(off) <= SAME * max(half, abs(cell.value), SAME):
        return Text(value=value, half=number(half, digits), **rest)
    cut = [not cell.is_range and end for end in (off > 0, off < 0)]  # the end that is nearer to the value
    ends = [_end(end, digits, cell.signed, there) for end, there in zip((cell.lower, cell.upper), cut, strict=True)]
    return Text(value=value, limits=" to ".join(ends), **rest)


def places(half: float) -> int:
    """Digits after the decimal marker that leave this half-width its significant ones; negative: to tens, hundreds."""
    if half <= 0 or math.isinf(half):
        return 1
    digits = SIGNIFICANT - 1 - math.floor(math.log10(half))
    return digits if round(half, digits) < 10 ** (SIGNIFICANT - digits) else digits - 1  # 0.0996 is 0.10


def three(value: float) -> int:
    """Digits after the decimal marker that leave three significant ones."""
    return max(0, 2 - math.floor(math.log10(abs(value)))) if value else 1


def number(value: float, digits: int, signed: bool = False) -> str:
    """Rounded to this many digits after the decimal marker; never a zero with a minus."""
    rounded = round(value, digits) + 0.0  # -0.0 + 0.0 is 0.0
    return f"{rounded:{'+' if signed and rounded else ''},.{max(digits, 0)}f}"


def _end(value: float, digits: int, signed: bool, cut: bool) -> str:
    """Where an interval is cut off it ends at a whole number: 100, not 100.0."""
    return number(value, 0 if cut and value == round(value) else digits, signed)


def filled(text: str, width: int, indent: str = "") -> str:
    """Lines of at most this width; `indent`: of all but the first. A number and its unit stay together."""
    kept = text.replace(" %", f"{TOGETHER}%").replace(" = ", f"{TOGETHER}={TOGETHER}")
    lines = textwrap.wrap(kept, width, subsequent_indent=indent, break_long_words=False)
    return "\n".join(lines).replace(TOGETHER, " ")


def _letter(at: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    return (_letter(at // 26 - 1) if at >= 26 else "") + ascii_lowercase[at % 26]
