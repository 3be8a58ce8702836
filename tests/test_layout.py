"""Digits, notes and widths of all tables: on a page, in two columns, on a terminal, in Markdown."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from full_sweeps import costs_of, sweep_of
from groups import some
from hypothesis import given
from hypothesis import strategies as st
from printed import formatted, words_of
from synthetic_store import manifest

from analysis import names
from analysis.paper_values import published
from analysis.records.frame import Sweep
from analysis.statistics.cell_statistics import cells, facts
from analysis.statistics.claims import claims
from analysis.statistics.summaries import averages, detectable, trends
from analysis.tables import sweep_tables
from analysis.tables.claim_tables import claim_table
from analysis.tables.cost_tables import cost_tables
from analysis.tables.latex import TEXT, latex
from analysis.tables.layout import Cell, Column, Row, Table, cell_text, split, transposed
from analysis.tables.markdown import markdown
from analysis.tables.terminal import terminal
from mmprompt.families.registry import PRIMARY_METRIC
from mmprompt.runs.deployment import ROOT
from sweeps.grid.sweep_file import Fact
from sweeps.grid.sweep_file import names as sweep_names

SWEEPS = sweep_names(ROOT / "conf")


@cache
def all_of(name: str) -> tuple[Sweep, list[Table]]:
    """Every table that a sweep of conf/ can have, with all of its runs."""
    sweep = sweep_of(name)
    extra = [*cost_tables(sweep, costs_of(sweep)), *([claim_table(found)] if len(found := claims(sweep)) else [])]
    frames = shown_trends(sweep), averages(sweep), detectable(sweep)
    return sweep, sweep_tables.ours(sweep, cells(sweep), facts(sweep), *frames, extra)


def shown_trends(sweep: Sweep) -> pd.DataFrame:
    all_trends = trends(sweep)
    return all_trends[[pair in sweep.shown for pair in zip(all_trends["task"], all_trends["split"], strict=True)]]


def noted(frame: pd.DataFrame, at: Sequence[int], note: str, **changes: Any) -> pd.DataFrame:
    """The frame with a note, and other changes, in these rows."""
    return frame.assign(
        **{
            column: [value if row in at else old for row, old in enumerate(frame[column])]
            for column, value in ({"note": note} | changes).items()
        }
    )


# Digits


def shown(*cell: float, **more: Any) -> str:
    return cell_text(Cell(*cell, **more), None, {}).plain


@pytest.mark.parametrize(
    ("value", "half", "wanted"),
    [
        (66.123, 3.412, "66.1 ± 3.4"),
        (89.0567, 0.4519, "89.06 ± 0.45"),
        (52.96, 10.14, "53 ± 10"),
        (713.1, 415.4, "710 ± 420"),
        (0.0056712, 0.00425, "0.0057 ± 0.0043"),
        (50.0, 0.0996, "50.00 ± 0.10"),
        (50.0, 9.96, "50 ± 10"),
        (80.0, 0.0, "80.0 ± 0.0"),
        (12345.6, 1234.5, "12,300 ± 1,200"),
    ],
)
def test_the_half_width_has_two_digits_and_the_value_ends_where_it_does(value: float, half: float, wanted: str) -> None:
    assert shown(value, value - half, value + half) == wanted


def test_an_interval_that_was_cut_off_is_given_by_its_limits() -> None:
    assert shown(99.0, 97.9, 100.0) == "99.0 (97.9 to 100)"
    assert shown(1.23, 0.0, 2.9) == "1.2 (0 to 2.9)"
    assert shown(812.0, 409.0, 1000.0) == "810 (410 to 1,000)"


@given(st.floats(-1000, 1000), st.floats(1e-6, 500))
def test_a_printed_interval_equals_the_real_one_up_to_its_digits(value: float, half: float) -> None:
    first, _, second = shown(value, value - half, value + half).replace(",", "").partition(" ± ")
    assert float(second) == pytest.approx(half, rel=0.051)
    assert abs(float(first) - value) <= 0.051 * half + 1e-9
    assert not re.match(r"-0(\.0*)?$", first)


@given(st.floats(-1, 1), st.booleans())
def test_no_zero_has_a_sign(value: float, signed: bool) -> None:
    printed = shown(value / 100, value / 100 - 3, value / 100 + 3, signed=signed).partition(" ")[0]
    assert printed in ("0.0", "0") or signed


def test_a_number_without_an_interval_has_the_digits_it_is_given() -> None:
    assert [shown(1.25), shown(1234.5, digits=0), shown(1.3, signed=True, mark="~")] == ["1.2", "1,234", "+1.3 ~"]


# n and notes


def test_the_tables_n_is_that_of_complete_cells_and_other_cells_show_their_own() -> None:
    cells = [Cell(1.0, 0.0, 2.0, n, planned) for n, planned in ((5, 5), (2, 5), (2, 5), (2, 5), (3, 3))]
    made = sweep_tables.table("", ["a"], [((str(at),), Column("b"), cell) for at, cell in enumerate(cells)])
    assert made.n == 5
    assert list(made.frame["b"]) == ["1.0 ± 1.0", *["1.0 ± 1.0 (2 of 5)"] * 3, "1.0 ± 1.0 (3)"]


def test_notes_of_cells_have_letters_in_every_format_and_equal_notes_share_a_letter() -> None:
    sweep = sweep_of("main")
    frame = noted(noted(cells(sweep), [1, 3], "Seeds 1 2; of the baseline 1 2 3."), [5], "Zero spread: 5 % of it.")
    table = sweep_tables.comparison(sweep, frame, facts(sweep))
    lettered = [
        label for label in frame.loc[[1, 3, 5], ["task", "split"]].itertuples(index=False) if label.split == "test"
    ]
    assert len(lettered) == 3
    plain = [cell for row in table.texts for cell in row]
    assert [cell.letter for cell in plain if cell.letter] == sorted(cell.letter for cell in plain if cell.letter)
    notes = [("a", "Seeds 1 2; of the baseline 1 2 3."), ("b", "Zero spread: 5 % of it.")]
    assert table.lettered_notes[-2:] == notes and sum(cell.letter == "a" for cell in plain) == 2
    assert "- [a] Seeds 1 2" in markdown([table]) and "\n[b] Zero spread" in terminal([table], width=100)
    written = latex([table], "main")
    assert written.count("$^{a}$") == 2 and r"\textsuperscript{b}\,Zero spread: 5\,\% of it." in written
    caption = next(line for line in written.splitlines() if line.startswith(r"\caption"))
    assert "Zero spread" not in caption
    assert "Zero spread" in sweep_tables.csv(frame, facts(sweep), costs_of(sweep))


def test_a_note_on_every_number_appears_once_without_a_letter() -> None:
    sweep = sweep_of("main")
    table = sweep_tables.comparison(
        sweep, cells(sweep).assign(note="Rates were chosen with these seeds."), facts(sweep)
    )
    letters = {cell.letter for row in table.texts for cell in row}
    assert ("", "Rates were chosen with these seeds.") in table.lettered_notes and letters == {""}


def test_a_conflict_is_a_word_and_no_number() -> None:
    sweep = sweep_of("main")
    frame = noted(cells(sweep), [1], "run x: its record says 3 and its result 4", conflict=1)
    table = sweep_tables.comparison(sweep, frame, facts(sweep))
    (cell,) = [cell for cell in table.frame.to_numpy().flat if str(cell).startswith("conflict")]
    assert cell == "conflict [a]"


# Arrangement


def real() -> Sweep:
    """A sweep over the paper's data sets."""
    splits = {
        "refcoco": ["testA", "testB", "val"],
        "refcoco_plus": ["val", "testA", "testB"],
        "refcocog": ["val", "test"],
        "snli_ve": ["test", "dev"],
        "coco_caption": ["test"],
        "vqa": ["test_dev", "test_std"],
    }
    family = {"refcoco": "grounding", "refcoco_plus": "grounding", "refcocog": "grounding", "snli_ve": "entailment"}
    family |= {"coco_caption": "caption", "vqa": "vqa"}
    axes: dict[str, list[Any]] = {"task": ["micro_vqa"], "method": ["finetune", "prompt"], "seed": [1, 2, 3]}
    about = manifest(
        "main", axes, "method", {"table": "1"}, {"method": "finetune"}, splits=list(chain(*splits.values()))
    )
    about["tasks"] = {
        task: {"family": one, "metric": PRIMARY_METRIC[one], "validation": splits[task][-1]}
        for task, one in family.items()
    }
    rows, points = [], []
    noise = np.random.default_rng(0)
    for task, of in splits.items():
        metric = about["tasks"][task]["metric"]
        for point in about["points"]:
            values = point["values"] | {"task": task}
            points.append({"values": values, "run": point["run"] + task, "evaluations": dict.fromkeys(of, "x")})
            row = values | {"run": point["run"] + task, "state": "done", "metric": metric, "attempt": 1, "commit": "c"}
            scores = {f"{split}/{metric}": float(noise.normal(88, 0.5)) for split in of}
            rows.append(row | {"dirty": False, "device": "cuda"} | scores)
    return Sweep(about | {"points": points}, pd.DataFrame(rows), ())


def test_data_sets_are_columns_in_the_papers_layout_validation_first() -> None:
    sweep = real()
    table = sweep_tables.comparison(sweep, cells(sweep), facts(sweep))
    assert [" ".join((column.group, column.head)) for column in table.columns] == [
        *(f"{one} {split}" for one in ("RefCOCO", "RefCOCO+") for split in ("val", "testA", "testB")),
        *("RefCOCOg val-u", "RefCOCOg test-u", "SNLI-VE dev", "SNLI-VE test"),
        *("COCO Captions CIDEr", "VQA test-dev", "VQA test-std"),
    ]
    assert "small world" not in words_of(table) and "COCO Captions in CIDEr-D times 100" in words_of(table)


def test_a_table_that_is_too_wide_becomes_even_parts_that_keep_groups_together() -> None:
    columns = tuple(Column(f"{at}", "abc"[at // 3]) for at in range(9))
    whole = Table("", ("x",), columns, (Row(("y",), tuple(Cell(float(at)) for at in range(9))),))
    parts = split(whole, lambda part: float(len(part.columns)), 7)
    assert [[column.head for column in part.columns] for part in parts] == [list("012345"), list("678")]
    parts = split(whole, lambda part: float(len(part.columns)), 2)
    assert [len(part.columns) for part in parts] == [2, 2, 2, 2, 1]
    assert split(whole, lambda part: 1.0, 2) == [whole]


def test_two_cells_in_one_place_are_an_error() -> None:
    entry = (("a",), Column("b"), Cell(1.0))
    with pytest.raises(AssertionError, match="two cells at"):
        sweep_tables.table("", ["x"], [entry, entry])


def test_lengths_are_columns_of_the_average_as_in_the_papers_table_6() -> None:
    sweep, made = all_of("length")
    (average,) = [table for table in made if table.name == "average"]
    assert [column.head for column in average.columns] == ["10", "16", "30", "64", "100", "120"]
    assert [row.labels for row in average.rows] == [("Average score",), ("Difference",), ("Better (%)",)]
    assert average.frame["Prompt length 64"].to_list()[1:] == ["-", "-"]
    assert average.caption.startswith("Average over 2 tasks (mean over tasks): mean ± half-width")
    row = averages(sweep).set_index("prompt.length").loc[10]
    shown = [cell.removesuffix(" =").removesuffix(" ~") for cell in average.frame["Prompt length 10"]]
    assert shown[:2] == [
        formatted(row["value"], row["upper"] - row["value"]),
        formatted(row["difference"], row["difference_upper"] - row["difference"], "+"),
    ]
    assert shown[2] == f"{100 * row['better']:.0f}"
    assert transposed(transposed(average, "x"), "").frame.to_numpy().tolist() == average.frame.to_numpy().tolist()


def test_device_hours_have_the_papers_table_5_and_their_ratio() -> None:
    sweep, made = all_of("convergence")
    (hours,) = [table for table in made if table.name == "hours"]
    took = costs_of(sweep).frame.set_index(["quantity", "task", "method"]).loc["device_hours"]
    row = took.loc[("micro_grounding", "prompt")]
    assert hours.frame.loc["Prompt tuning", "Grounding Ratio"] == ranged(row, "ratio", "ratio_lowest", "ratio_highest")
    assert hours.frame.loc["Prompt tuning", "Grounding Hours"] == ranged(row, "median", "lowest", "highest")
    assert hours.frame.loc["Finetuning", "Grounding Ratio"] == "1"
    assert list(dict.fromkeys(column.group for column in hours.columns)) == [names.task(task) for task in sweep.tasks]


def ranged(row: Any, *keys: str) -> str:
    """A value with its range, `1.31 (0.99 to 1.42)`: half of the range has two significant digits."""
    value, low, high = (float(row[key]) for key in keys)
    digits = 1 - int(f"{(high - low) / 2:.1e}".partition("e")[2])
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def test_a_range_is_never_written_as_an_interval() -> None:
    assert shown(2.0, 1.0, 3.0, is_range=True) == "2.0 (1.0 to 3.0)"
    assert shown(2.0, 1.0, 3.0) == "2.0 ± 1.0"


def test_a_quantity_measured_once_has_no_range() -> None:
    sweep, made = all_of("methods")
    (measured,) = [table for table in made if table.name == "measured"]
    memory = costs_of(sweep).frame.query("quantity == 'peak_memory_mb'")
    shown = measured.frame["Peak memory (MB) Median"].to_list()
    assert shown == [f"{value:,.{0 if value >= 100 else 1}f}" for value in memory["median"]]


def test_a_trend_has_slope_p_and_turning_point() -> None:
    sweep, made = all_of("length")
    (trend,) = [table for table in made if table.name == "trend"]
    row = shown_trends(sweep).iloc[0].to_dict()
    known = {"slope_p": 0.0004, "turning_point": 64.2, "lack_of_fit_p": 0.4567}
    first = sweep_tables.trend(sweep, pd.DataFrame([row | known])).frame.iloc[0].to_list()
    ends = [formatted(row[one], row[f"{one}_upper"] - row[one], "+") for one in ("slope", "curvature")]
    assert first == [ends[0], "< 0.001", ends[1], "64", "0.46"]
    assert list(trend.frame.index) == ["Grounding (Acc@0.5)", "Entailment (Accuracy)"]


def test_scores_and_differences_have_a_note_on_the_detectable_difference() -> None:
    sweep, made = all_of("length")
    (first, then), (second, _) = detectable(sweep)[["difference", "with_5_seeds"]].to_numpy().tolist()
    line = f"With 3 seeds, differences of at least {two(first)} points (Grounding), {two(second)} (Entailment) are significant"
    assert [table.name for table in made if line in words_of(table)] == ["", "differences"]
    assert f" with power 0.8; with 5 seeds {two(then)} and " in words_of(made[0])


def two(value: float) -> str:
    """A value with two significant digits."""
    return f"{value:#.2g}".rstrip(".")


def test_with_many_columns_the_note_gives_the_range_of_detectable_differences() -> None:
    sweep = real()
    differences = detectable(sweep)
    now, then = (differences[what].agg(["min", "max"]).to_list() for what in ("difference", "with_5_seeds"))
    table = sweep_tables.comparison(sweep, cells(sweep), facts(sweep), differences)
    line = f"differences of at least {two(now[0])} to {two(now[1])} points, by column, are significant with power 0.8;"
    assert f"With 3 seeds, {line} with 5 seeds {two(then[0])} to {two(then[1])}." in table.notes
    rows = differences.assign(n=5, difference=differences["with_5_seeds"])
    notes = [note for note in sweep_tables.comparison(sweep, cells(sweep), facts(sweep), rows).notes if "0.8" in note]
    assert (
        len(notes) == 1 and notes[0].startswith("With 5 seeds, ") and notes[0].endswith("significant with power 0.8.")
    )


def test_further_metrics_are_beside_the_first_and_a_note_says_what_their_intervals_cover() -> None:
    whole = sweep_of("main")
    frame = whole.frame.assign(**{"test/bleu4": whole.frame["test/cider"] / 20})
    sweep = Sweep(whole.manifest, frame, ())
    scores, differences, *_ = sweep_tables.ours(sweep, cells(sweep), facts(sweep))
    assert ["Captions B@4" in one.frame for one in (scores, differences)] == [True, False]
    note = "Intervals of BLEU-4 cover seeds alone: single examples have no such score."
    assert note in scores.notes and note not in sweep_tables.comparison(whole, cells(whole), facts(whole)).notes


def test_extra_tables_come_last() -> None:
    sweep = sweep_of("main")
    extra = Table("What was measured.", ("a",), (Column("b"),), (Row(("c",), (Cell(1.0),)),), name="measured")
    assert sweep_tables.ours(sweep, cells(sweep), facts(sweep), extra=[extra])[-1] is extra


# Names


def test_every_task_method_metric_and_fact_of_conf_has_a_name() -> None:
    tasks = {path.stem for path in (ROOT / "conf" / "task").glob("*.yaml")}
    methods = {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}
    assert tasks <= names.TASKS.keys() and methods <= names.METHODS.keys()
    assert set(PRIMARY_METRIC.values()) <= names.METRICS.keys() and set(Fact.__args__) <= names.FACTS.keys()  # type: ignore[attr-defined]
    assert names.metric("acc@0.5") == "Acc@0.5 (%)" and names.task("refcoco_plus") == "RefCOCO+"


def test_an_unknown_name_stays_readable() -> None:
    assert names.task("my_task") == "my task" and names.axis("prompt.my_key") == "Prompt my key"
    assert [names.value("method", one) for one in ("bitfit all", "prompt none", "mine")] == [
        "BitFit (all)",
        "Prompt tuning",
        "mine",
    ]
    assert [names.value("optim.lr", one) for one in (0.0, 1e-4, 3)] == ["0", "0.0001", "3"]


# Widths


@pytest.mark.parametrize("width", some([80, 100, 120], 80))
@pytest.mark.parametrize("name", some(SWEEPS, "length", "robustness"))
def test_no_line_is_wider_than_the_terminal_and_no_row_is_broken(name: str, width: int) -> None:
    _, made = all_of(name)
    lines = terminal(made, ["a note of the sweep " * 9], width).splitlines()
    assert max(map(len, lines)) <= width
    for table in made:
        assert sum(line.strip().startswith("─") for line in terminal([table], width=width).splitlines()) >= 1
        for row in table.texts:
            assert all(cell.plain.partition(" ")[0] in "\n".join(lines) for cell in row)


@pytest.mark.parametrize("name", ["length", "main", "methods", "depth"])
def test_a_terminal_of_100_columns_shows_scores_in_one(name: str) -> None:
    _, made = all_of(name)
    printed = terminal(made[:1], width=100)
    assert sum(line.startswith("─") for line in printed.splitlines()) == 1


def test_numbers_line_up_at_the_decimal_marker_on_a_terminal() -> None:
    cells = [Cell(66.123, 62.7, 69.546), Cell(89.0567, 88.6, 89.5134), Cell(713.1, 297.7, 1128.5)]
    made = sweep_tables.table("", ["a"], [((str(at),), Column("b"), cell) for at, cell in enumerate(cells)])
    rows = terminal([made], width=80).splitlines()[-3:]
    assert [row.index("±") for row in rows] == [rows[0].index("±")] * 3
    assert rows[0].index(".") == rows[1].index(".") and rows[0].rindex(".") == rows[1].rindex(".")


def test_a_markdown_table_has_a_line_per_row_and_no_bare_mark() -> None:
    _, made = all_of("methods")
    for table in made:
        lines = [line for line in markdown([table]).splitlines() if line.startswith("|")]
        assert len(lines) == 2 + len(table.rows)
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(table.stubs) + len(table.columns) + 1}
    assert not re.search(r"(?<!\\)\*", markdown(made))


PAGES = {
    "NeurIPS, 5.5 in": r"\documentclass{article}\usepackage[textwidth=5.5in,textheight=9in]{geometry}",
    "two columns of 3.25 in": r"\documentclass[twocolumn]{article}"
    r"\usepackage[textwidth=6.75in,columnsep=0.25in,textheight=9in]{geometry}",
}
FONTS = {"Computer Modern": "", "Times": r"\usepackage{times}"}
no_latex = pytest.mark.skipif(
    shutil.which("pdflatex") is None
    or subprocess.run(["kpsewhich", "siunitx.sty"], capture_output=True).returncode != 0,
    reason="needs pdflatex with siunitx",
)


def complaints(files: list[Path], page: str, font: str) -> list[str]:
    """The complaints of LaTeX about these files, each \\input on a separate page."""
    folder = files[0].parent
    body = "\n".join(rf"\input{{{file.stem}}}\clearpage" for file in files)
    packages = r"\usepackage{booktabs}\usepackage{siunitx}"
    main = folder / "page.tex"
    main.write_text(f"{PAGES[page]}{FONTS[font]}{packages}\\begin{{document}}\n{body}\n\\end{{document}}\n")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", main.name],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    log = (folder / "page.log").read_text(errors="replace")
    assert done.returncode == 0, re.findall(r"^!.*(?:\n.*){4}", log, re.MULTILINE)
    return re.findall(r"^(?:Overfull.*|.*too large.*|.*deprecated.*)$", log, re.MULTILINE)


@pytest.mark.long
@no_latex
@pytest.mark.parametrize("font", FONTS)
@pytest.mark.parametrize("page", PAGES)
def test_every_table_fits_the_page(page: str, font: str, tmp_path: Path) -> None:
    files = []
    for name in SWEEPS:
        sweep, made = all_of(name)
        texts = {name: latex(made, name, ["a note of the sweep"])}
        if papers := sweep_tables.paper(published(sweep.manifest)):
            texts[f"{name}-paper"] = latex(papers, name)
        for stem, written in texts.items():
            files.append(tmp_path / f"{stem}.tex")
            files[-1].write_text(written)
    sweep = real()
    files.append(tmp_path / "real.tex")
    files[-1].write_text(latex(sweep_tables.ours(sweep, cells(sweep), facts(sweep)), "real"))
    assert complaints(files, page, font) == []


@no_latex
def test_a_table_that_does_not_fit_is_noticed(tmp_path: Path) -> None:
    _, made = all_of("methods")
    (tmp_path / "wide.tex").write_text(
        latex(made, "wide", width=2 * TEXT).replace(r"\centering\small", r"\centering\Large")
    )
    assert any("Overfull" in line for line in complaints([tmp_path / "wide.tex"], "NeurIPS, 5.5 in", "Times"))


def test_latex_has_real_minus_signs_and_its_own_marks() -> None:
    cells = [Cell(-3.5, -6.0, -1.0, signed=True), Cell(0.4, -1.1, 1.9, signed=True, mark="~"), Cell(word="-")]
    cells += [Cell(0.1, -0.2, 0.4, signed=True, mark="="), Cell(-1.0, digits=1, word="-1.0 to 2")]
    made = sweep_tables.table("c", ["a"], [((f"x-{at}",), Column("b", "g"), cell) for at, cell in enumerate(cells)])
    lines = [line for line in latex([made], "x").splitlines() if line.startswith("x-")]
    assert lines == [
        r"x-0 & -3.5 & $\pm$ & 2.5 &  \\",
        r"x-1 & +0.4 & $\pm$ & 1.5 & \,$\sim$ \\",
        r"x-2 & \multicolumn{4}{c@{}}{--} \\",
        r"x-3 & +0.10 & $\pm$ & 0.30 & \,$=$ \\",
        r"x-4 & \multicolumn{4}{c@{}}{$-$1.0 to 2} \\",
    ]  # siunitx sets the sign of a number in its column as a minus
    assert math.isnan(cells[2].value)
