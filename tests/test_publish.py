"""Documents whose results are written from the records, and the published data, from which all of them can be recomputed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_cells import Scores, stored
from test_claims import claim

from analysis.__main__ import main
from analysis.reports.publish import publish
from analysis.statistics import families, inference
from analysis.statistics.inference import Sample
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.files import StoreError
from mmprompt.runs.store import Store

DOCUMENT = """# What came out

Prose before.

<!-- results: verdicts made -->
what stood here
<!-- end of results -->

Prose between.

<!-- results: claims made -->
<!-- end of results -->
<!-- results: table made differences -->
<!-- end of results -->
<!-- results: made made -->
<!-- end of results -->
Prose after.
"""
PUBLISHED = ("README.md", "docs/results-micro.md")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    scores: Scores = {("micro_grounding", 10): [60.0, 61.0, 62.5], ("micro_grounding", 64): [80.0, 81.2, 79.0]}
    asked = [claim(claim="64 is better", row={"prompt.length": 64}, than={"prompt.length": 10})]
    made, _ = stored(tmp_path / "store", scores, claims=asked, margin={"percent": 2.0})
    (tmp_path / "page.md").write_text(DOCUMENT)
    return made


def test_blocks_are_rewritten_and_the_prose_is_kept(store: Store, tmp_path: Path) -> None:
    page, docs = tmp_path / "page.md", tmp_path / "docs"
    publish(store, [page], docs)
    text = page.read_text()
    assert "what stood here" not in text and "| 64 is better | -     |  holds | 3 |" in text
    assert all(f"Prose {where}" in text for where in ("before.", "between.", "after."))
    assert "* made: 6 of 6 runs, seeds 11 12 13, `make sweep-made`; cpu: a core. Commit: 0123456789." in text
    assert "| 10            |" in text  # the row of the differences
    names = ("made.md", "made.csv", "made.runs.csv", "made.claims.csv", "configs.jsonl", "examples.npz")
    assert all((docs / "results" / name).is_file() for name in names) and (docs / "figures" / "made.png").is_file()
    publish(store, [page], docs)
    assert page.read_text() == text


def test_a_claim_can_be_recomputed_from_the_published_files_alone(store: Store, tmp_path: Path) -> None:
    publish(store, [tmp_path / "page.md"], tmp_path / "docs")
    results = tmp_path / "docs" / "results"
    runs = pd.read_csv(results / "made.runs.csv")
    examples = np.load(results / "examples.npz")
    shown = runs[runs["split"] == "test"]
    samples = [
        Sample(rows["value"].to_numpy(), np.mean([examples[one].astype(float) for one in rows["evaluation"]], axis=0))
        for _, rows in shown.groupby("prompt.length")
    ]
    estimate = inference.contrast([-1.0, 1.0], samples, pooled=True)
    (seen,) = families.contrasts([estimate], 0.05, [2.0])
    row = pd.read_csv(results / "made.claims.csv").iloc[0]
    assert (row["value"], row["lower"], row["upper"]) == pytest.approx((seen.value, seen.lower, seen.upper), rel=1e-6)
    assert row["p_corrected"] == pytest.approx(seen.p_corrected) and row["verdict"] == "holds"
    for line in (results / "configs.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert hashlib.sha256(record["config"].encode()).hexdigest().startswith(record["run"])
    assert {json.loads(line)["run"] for line in (results / "configs.jsonl").read_text().splitlines()} == set(
        runs["run"]
    )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "<!-- results: claims made -->\n",
            "a block that begins with <!-- results: WHAT --> has no <!-- end of results -->",
        ),
        (
            "<!-- results: numbers made -->\n<!-- end of results -->\n",
            "numbers made --> is none of claims SWEEP, verdicts SWEEP",
        ),
        (
            "<!-- results: table made diferences -->\n<!-- end of results -->\n",
            "has no table diferences; did you mean differences",
        ),
        ("<!-- results: claims lenght -->\n<!-- end of results -->\n", "no sweep lenght in "),
    ],
)
def test_a_block_that_cannot_be_written_is_an_error_and_no_file_changes(
    text: str, wanted: str, store: Store, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(StoreError, match=r".*") as error:
        publish(store, [page], tmp_path / "docs")
    assert wanted in str(error.value) and page.read_text() == text and not (tmp_path / "docs").exists()


def test_a_sweep_with_a_conflict_is_not_published(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = next((store.root / "run").glob("*/result.json"))
    result = json.loads(file.read_text())
    file.write_text(json.dumps(result | {"metrics": dict.fromkeys(result["metrics"], 99.0)}))
    page = tmp_path / "page.md"
    assert main(["publish", "--runs", str(store.root), "--docs", str(tmp_path / "docs"), str(page)]) == 2
    assert "sweep made is not published: run " in capsys.readouterr().err and page.read_text() == DOCUMENT


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_number_in_our_documents_is_in_their_results(name: str) -> None:
    """Every number in a block is in the published tables, so none was typed by hand."""
    from analysis.reports.publish import BLOCK

    text = (ROOT / name).read_text()
    tables = "\n".join(file.read_text() for file in (ROOT / "docs" / "results").glob("*.md"))
    rows = [
        line
        for block in BLOCK.finditer(text)
        if block[2].split()[0] in ("table", "claims", "verdicts")
        for line in block[0].splitlines()
        if line.startswith("|") and "±" in line
    ]
    kinds = {words[0] for block in BLOCK.finditer(text) if (words := block[2].split())}
    assert "verdicts" in kinds
    assert name == "README.md" or (rows and "table" in kinds)
    cells = {cell.strip() for row in rows for cell in row.split("|") if "±" in cell}
    missing = {cell for cell in cells if cell not in tables}
    assert not missing
