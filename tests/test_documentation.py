"""The documentation names what there is: every module, every command, every page, and no file that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmprompt.runs.deployment import ROOT
from sweeps.commands import COMMANDS
from sweeps.console import RESULTS, RUNS

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_every_module_has_a_line_in_the_architecture_under_its_package() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    listed = set()
    for part in text.split("\n### ")[1:]:
        folder, _, rows = part.partition("/\n")
        listed |= {f"{folder}/{name}" for name in re.findall(r"^\| `(\w+\.py)` \|", rows, re.MULTILINE)}
    files = {file for top in ("mmprompt", "sweeps", "analysis") for file in (ROOT / top).rglob("*.py")}
    files = {file for file in files if file.name != "__init__.py" and file.parent.name != "notebooks"}
    assert listed == {str(file.relative_to(ROOT)) for file in files}


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs/commands.md").read_text()
    assert [name for name in (*COMMANDS, *RUNS, *RESULTS) if f"`{name}" not in text] == []


def test_every_page_is_in_the_index() -> None:
    text = (ROOT / "docs/README.md").read_text()
    assert [
        page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md" and page.name not in text
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []
