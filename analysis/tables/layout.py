"""The data structure of tables, independent of any format: cells with numbers, labelled rows, columns in groups, notes.

`analysis.tables.markdown`, `analysis.tables.latex`, `analysis.tables.html` and `analysis.tables.terminal` format it. The
interval determines the digits: its half-width has two significant digits, and the value ends at the same decimal place (the
rule of the GUM, 7.2.6). An interval that
is cut off at the end of a metric's range is not symmetric, and is given by its limits: 99.0 (97.9 to 100).
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

NOTHING = "-"  # stands for a value that was not planned, was not recorded, or cannot exist
SIGNIFICANT = 2  # significant digits of a half-width
TOGETHER = "\N{NO-BREAK SPACE}"
SAME = 1e-6  # relative difference up to which the two halves of an interval count as equal


@dataclass(frozen=True)
class Cell:
    """A number with its interval, or a word in place of both."""

    value: float = math.nan
    lower: float = math.nan
    upper: float = math.nan
    n: int | None = None  # number of values behind it; None if there is nothing to count
    planned: int | None = None
    digits: int = 1  # after the decimal marker, if there is no interval to determine them
    signed: bool = False
    is_range: bool = False  # whether lower and upper are the lowest and the highest value instead of an interval
    mark: str = ""  # *, = or ~
    note: str = ""  # a note on this cell
    word: str = ""  # missing, failed, conflict, -
    key: str = ""  # its name for `analysis trace`; empty if no runs are behind it


class Column(NamedTuple):
    head: str
    group: str = ""  # a data set, over the heads of its splits


class Row(NamedTuple):
    labels: tuple[str, ...]  # one per label column
    cells: tuple[Cell, ...]  # one per column


class Text(NamedTuple):
    """A cell as text, in parts, as each format arranges them differently."""

    word: str = ""  # if it is not empty, all other parts but the letter are
    value: str = ""
    half: str = ""
    limits: str = ""
    n: str = ""  # empty if it is the n of the whole table
    mark: str = ""
    letter: str = ""  # refers to a note

    @property
    def plain(self) -> str:
        """All parts in one text: `83.1 ± 1.2 (2 of 3) * [a]`."""
        interval = f" ± {self.half}" if self.half else f" ({self.limits})" if self.limits else ""
        parts = [self.word or f"{self.value}{interval}", self.n and f"({self.n})", self.mark]
        return " ".join(filter(None, [*parts, self.letter and f"[{self.letter}]"]))


@dataclass(frozen=True)
class Table:
    """A table with its caption and notes."""

    caption: str  # one or two sentences
    stubs: tuple[str, ...]  # the heads of the label columns
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    name: str = ""  # distinguishes the tables of one sweep
    notes: tuple[str, ...] = ()  # below it, in every format
    about: tuple[str, ...] = ()  # its origin: accompanies it, but is no part of it in a paper
    n: int | None = None  # the n of all cells that do not show another
    grouped: bool = False  # whether the first label is a title above the rows that share it
    whole: Table | None = None  # the table of which this is a part

    @property
    def letters(self) -> dict[str, str]:
        """The letter of each cell's note; an empty one if the note applies to every number of the table."""
        cells = (self.whole or self).cells
        noted = list(dict.fromkeys(cell.note for cell in cells if cell.note))
        numbers = [cell.note for cell in cells if cell.n and not cell.word]
        lettered = [note for note in noted if len(numbers) < 2 or set(numbers) != {note}]
        return dict.fromkeys(noted, "") | {note: _letter(at) for at, note in enumerate(lettered)}

    @property
    def lettered_notes(self) -> list[tuple[str, str]]:
        """Every note after its letter; the letter is empty for notes on the whole table."""
        return [*(("", note) for note in self.notes), *((letter, note) for note, letter in self.letters.items())]

    @property
    def cells(self) -> list[Cell]:
        return [cell for row in self.rows for cell in row.cells]

    @property
    def texts(self) -> list[list[Text]]:
        """The texts of all cells, row by row."""
        letters = self.letters
        return [[cell_text(cell, self.n, letters) for cell in row.cells] for row in self.rows]

    @property
    def frame(self) -> pd.DataFrame:
        """The cells as text, for a notebook: labels are the index, group and head the columns."""
        columns = [" ".join(filter(None, (column.group, column.head))) for column in self.columns]
        index = pd.MultiIndex.from_tuples([row.labels for row in self.rows], names=self.stubs)
        plain = [[one.plain for one in row] for row in self.texts]
        return pd.DataFrame(plain, index=index if len(self.stubs) > 1 else index.get_level_values(0), columns=columns)

    def blocks(self) -> Iterator[tuple[str, list[int]]]:
        """Yields each title with the indices of its rows; in a table that is not grouped, an empty title with all rows."""
        if not self.grouped:
            yield "", list(range(len(self.rows)))
            return
        for title, rows in groupby(range(len(self.rows)), key=lambda at: self.rows[at].labels[0]):
            yield title, list(rows)

    def select_columns(self, indices: Sequence[int]) -> Table:
        """The part of the table with these columns."""
        rows = tuple(Row(row.labels, tuple(row.cells[at] for at in indices)) for row in self.rows)
        columns = tuple(self.columns[at] for at in indices)
        return replace(self, columns=columns, rows=rows, whole=self.whole or self)

    def select_rows(self, indices: Sequence[int]) -> Table:
        """The part of the table with these rows."""
        return replace(self, rows=tuple(self.rows[at] for at in indices), whole=self.whole or self)


def table(
    caption: str,
    stubs: Sequence[str],
    entries: Iterable[tuple[tuple[str, ...], Column, Cell]],
    columns: Sequence[Column] | None = None,
    **more: object,
) -> Table:
    """Builds a table from cells with their labels and column.

    Rows are in the order of their first cell, and so are columns, unless `columns` gives their order. A place without a cell
    becomes `NOTHING`. Two cells for one place are an error of the caller.
    """
    placed: dict[tuple[str, ...], dict[Column, Cell]] = {}
    for labels, column, cell in entries:
        row = placed.setdefault(labels, {})
        assert column not in row, f"two cells at {labels}, {column}"
        row[column] = cell
    all_columns = list(columns if columns is not None else dict.fromkeys(one for row in placed.values() for one in row))
    rows = [
        Row(labels, tuple(row.get(one, Cell(word=NOTHING)) for one in all_columns)) for labels, row in placed.items()
    ]
    return Table(caption, tuple(stubs), tuple(all_columns), tuple(rows), n=_common_n(rows), **more)  # type: ignore[arg-type]


def table_of_frame(caption: str, frame: pd.DataFrame, name: str = "", notes: Sequence[str] = ()) -> Table:
    """Builds a table from a frame of cells and words whose index has the labels."""
    labels = [row if isinstance(row, tuple) else (row,) for row in frame.index]
    rows = tuple(
        Row(
            tuple(map(str, label)),
            tuple(cell if isinstance(cell, Cell) else Cell(word=str(cell)) for cell in cells),
        )
        for label, cells in zip(labels, frame.itertuples(index=False, name=None), strict=True)
    )
    stubs, columns = (tuple(map(str, names)) for names in (frame.index.names, frame.columns))
    return Table(caption, stubs, tuple(map(Column, columns)), rows, name, tuple(notes), n=_common_n(rows))


def _common_n(rows: Iterable[Row]) -> int | None:
    """The most frequent n, among cells that have all their planned values if there are any."""
    cells = [cell for row in rows for cell in row.cells if cell.n]
    counts = Counter(cell.n for cell in cells if cell.n == cell.planned) or Counter(cell.n for cell in cells)
    return counts.most_common(1)[0][0] if counts else None


def transposed(table: Table, stub: str) -> Table:
    """Exchanges rows and columns of a table with one label column and without groups. `stub`: the head of the new labels."""
    (head,) = table.stubs
    columns = tuple(Column(row.labels[0], head) for row in table.rows)
    rows = (Row((column.head,), tuple(row.cells[at] for row in table.rows)) for at, column in enumerate(table.columns))
    return replace(table, stubs=(stub,), columns=columns, rows=tuple(rows))


def split(table: Table, width: Callable[[Table], float], limit: float) -> list[Table]:
    """Splits a table that is too wide into parts, each with all rows and as many columns as fit.

    Columns of one group stay together if they fit. `width`: the function that measures a table; `limit`: in its unit.
    """
    if width(table) <= limit:
        return [table]
    groups = [[at for at, _ in members] for _, members in groupby(enumerate(table.columns), key=lambda it: it[1].group)]
    pieces = []
    for group in groups:
        fits = width(table.select_columns(group)) <= limit
        pieces += [group] if fits else [[at] for at in group]
    fewest = len(_filled_parts(table, pieces, width, limit, len(table.columns)))
    caps = range(-(-len(table.columns) // fewest), len(table.columns) + 1)  # the smallest cap gives the most even parts
    possible_splits = (_filled_parts(table, pieces, width, limit, cap) for cap in caps)
    return next([table.select_columns(part) for part in parts] for parts in possible_splits if len(parts) == fewest)


def _filled_parts(
    table: Table, pieces: Sequence[Sequence[int]], width: Callable[[Table], float], limit: float, cap: int
) -> list[list[int]]:
    """Fills parts with these pieces in order, each as full as the limit and `cap`, a number of columns, allow."""
    parts: list[list[int]] = []
    for piece in pieces:
        extended = [*parts[-1], *piece] if parts else []
        if extended and len(extended) <= cap and width(table.select_columns(extended)) <= limit:
            parts[-1] = extended
        else:
            parts.append(list(piece))
    return parts


def cell_text(cell: Cell, common: int | None, letters: Mapping[str, str]) -> Text:
    """The text of a cell. `common`: the n that need not be shown. `letters`: the letter of each note."""
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
    digits = digits_for_half(half)
    value = number(cell.value, digits, cell.signed)
    asymmetry = cell.upper + cell.lower - 2 * cell.value
    if not cell.is_range and abs(asymmetry) <= SAME * max(half, abs(cell.value), SAME):
        return Text(value=value, half=number(half, digits), **rest)
    cut = [
        not cell.is_range and end for end in (asymmetry > 0, asymmetry < 0)
    ]  # the end nearer to the value was cut off
    ends = [_end(end, digits, cell.signed, is_cut) for end, is_cut in zip((cell.lower, cell.upper), cut, strict=True)]
    return Text(value=value, limits=" to ".join(ends), **rest)


def digits_for_half(half: float) -> int:
    """The digits after the decimal marker that give this half-width its significant digits; negative: tens, hundreds."""
    if half <= 0 or math.isinf(half):
        return 1
    digits = SIGNIFICANT - 1 - math.floor(math.log10(half))
    return digits if round(half, digits) < 10 ** (SIGNIFICANT - digits) else digits - 1  # 0.0996 is 0.10


def digits_for_three(value: float) -> int:
    """The digits after the decimal marker that give a value three significant digits."""
    return max(0, 2 - math.floor(math.log10(abs(value)))) if value else 1


def number(value: float, digits: int, signed: bool = False) -> str:
    """A number rounded to this many digits after the decimal marker; zero never has a minus sign."""
    rounded = round(value, digits) + 0.0  # -0.0 + 0.0 is 0.0
    return f"{rounded:{'+' if signed and rounded else ''},.{max(digits, 0)}f}"


def _end(value: float, digits: int, signed: bool, cut: bool) -> str:
    """The end of an interval; where it was cut off at an integer, it is shown as one: 100, not 100.0."""
    return number(value, 0 if cut and value == round(value) else digits, signed)


def wrapped(text: str, width: int, indent: str = "") -> str:
    """Wraps a text into lines of at most this width. `indent`: of all lines but the first. A number and its unit stay together."""
    unbreakable = text.replace(" %", f"{TOGETHER}%").replace(" = ", f"{TOGETHER}={TOGETHER}")
    lines = textwrap.wrap(unbreakable, width, subsequent_indent=indent, break_long_words=False)
    return "\n".join(lines).replace(TOGETHER, " ")


def _letter(at: int) -> str:
    """The letter of the note with this index: a, b, ..., z, aa, ab, ..."""
    return (_letter(at // 26 - 1) if at >= 26 else "") + ascii_lowercase[at % 26]
