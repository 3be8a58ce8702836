"""Notebooks: the rules that their sources keep, and every one of them executed on a store."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import pytest
import whole_store

from analysis.__main__ import main
from analysis.reports import notebook_files
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.files import StoreError
from mmprompt.runs.store import Store

SOURCES = notebook_files.sources()
NAMES = ["convergence", "depth", "length", "methods", "paper", "reparameterization", "robustness", "search", "tour"]
SETTINGS = {"64"}  # numbers that prose may name: of the paper's claim, and of what a sweep fixes
WHY = "needs jupytext, nbclient and ipykernel; `pip install '.[notebook]'` brings them"


def cells(file: Path) -> list[tuple[str, str]]:
    """Kind and text of each cell, by the percent format."""
    parts = re.split(r"^# %%(.*)\n", file.read_text(), flags=re.MULTILINE)
    assert parts[0] == ""
    return [
        ("markdown" if "[markdown]" in head else "code", text.strip())
        for head, text in zip(parts[1::2], parts[2::2], strict=True)
    ]


def prose(text: str) -> str:
    return " ".join(line.removeprefix("#").strip() for line in text.splitlines())


def test_every_question_of_the_paper_has_a_notebook() -> None:
    assert list(SOURCES) == NAMES
    with pytest.raises(StoreError, match="there is no notebook lenght; did you mean length"):
        notebook_files.sources(["lenght"])


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_asks_computes_and_says_what_it_does_not_show(name: str) -> None:
    found = cells(SOURCES[name])
    first, last = prose(found[0][1]), prose(found[-1][1])
    assert found[0][0] == found[-1][0] == "markdown"
    assert "?" in first and "`make " in first and re.search(r"paper", first)
    assert last.startswith("## What this does not show")
    code = "\n".join(text for kind, text in found if kind == "code")
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    tree = ast.parse(code)
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda)]
    modules = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]  # type: ignore[union-attr]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert modules <= {"analysis", "pandas", "matplotlib"}
    for kind, text in found:
        if kind == "markdown":
            plain = re.sub(r"`[^`]*`|(Tables?|Figure|section) [\d.]+( and \d+)?|, (Table|Figure) \d+", "", prose(text))
            assert set(re.findall(r"\d+", plain)) <= SETTINGS, plain


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("store")
    whole_store.filled(root)
    return whole_store.searched(root)


@pytest.fixture
def jupyter() -> None:
    for module in notebook_files.NEEDED:
        pytest.importorskip(module, reason=WHY)


FEW = ["length", "search"]


@pytest.mark.usefixtures("jupyter")
@pytest.mark.parametrize("chosen", [FEW, pytest.param([], marks=pytest.mark.long)], ids=["few", "all"])
def test_notebooks_run_and_give_the_same_bytes_each_time(
    chosen: list[str], store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    executed = chosen or NAMES
    assert main(["notebooks", *chosen, "--runs", str(store.root), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / f"{name}.ipynb") for name in executed]
    for name in executed:
        content = json.loads((tmp_path / f"{name}.ipynb").read_text())
        outputs = [output for cell in content["cells"] for output in cell.get("outputs", [])]
        assert len(outputs) >= 3 and not [one for one in outputs if one["output_type"] in ("error", "stream")]
        assert str(store.root) not in json.dumps(content)  # nothing of the machine
    kept = (tmp_path / "length.ipynb").read_bytes()
    assert main(["notebooks", "length", "--runs", str(store.root), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "length.ipynb").read_bytes() == kept


@pytest.mark.usefixtures("jupyter")
def test_a_notebook_without_its_sweep_is_skipped_with_a_message_and_one_that_fails_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = whole_store.filled(tmp_path / "runs", ("length",))
    arguments = ["--runs", str(store.root), "--out", str(tmp_path)]
    assert main(["notebooks", "methods", "length", *arguments]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("methods: not made, no sweep methods in ") and second == str(tmp_path / "length.ipynb")
    assert not (tmp_path / "methods.ipynb").exists()
    (tmp_path / "wrong.py").write_text("# %%\n1 / 0\n")
    monkeypatch.setattr(notebook_files, "SOURCES", tmp_path)
    assert main(["notebooks", "wrong", *arguments]) == 1
    assert capsys.readouterr().out.startswith("wrong: ZeroDivisionError: division by zero")


def test_without_jupyter_it_says_what_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jupytext", None)
    assert main(["notebooks", "length", "--runs", str(tmp_path)]) == 2
    assert "`pip install '.[notebook]'` brings them" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_with_outputs_is_that_of_its_source(name: str) -> None:
    content = json.loads((ROOT / "docs" / "notebooks" / f"{name}.ipynb").read_text())
    there = [(cell["cell_type"], "".join(cell["source"])) for cell in content["cells"]]
    wanted = [(kind, _unquoted(text) if kind == "markdown" else text) for kind, text in cells(SOURCES[name])]
    assert there == wanted, f"make notebooks ARGS={name}"


def _unquoted(text: str) -> str:
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in text.splitlines())
