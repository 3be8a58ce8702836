"""The list of settings: `mmprompt settings`, and the page docs/settings.md that it writes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.overrides import SCHEMAS, known_keys
from mmprompt.settings.catalogue import keys_of
from mmprompt.settings.parsing import ConfigError
from mmprompt.settings.section import Positive, Rate, Section
from sweeps.verbs.settings import all_keys, page, settings


def test_every_key_has_a_meaning_and_values() -> None:
    silent = [key.name for schema in SCHEMAS for key in keys_of(schema) if not key.meaning or not key.values]
    assert silent == []


def test_the_list_has_every_key_that_a_user_can_set_and_no_other() -> None:
    listed = {key.name for key in all_keys()}
    sections = {name.rpartition(".")[0] for name in listed} | {"task.data", "task", ""}
    assert listed == {key for key in known_keys() if key not in sections}


def test_the_page_is_what_the_schemas_and_conf_say(tmp_path: Path) -> None:
    own = shutil.ignore_patterns("mine.yaml")  # a user's
    conf = Path(shutil.copytree(ROOT / "conf", tmp_path / "conf", ignore=own))
    written = "write it again: mmprompt settings --markdown >docs/settings.md"
    assert (ROOT / "docs" / "settings.md").read_text() == page(conf), written


def test_a_default_is_one_of_the_values_also_where_null_stands_for_another() -> None:
    rows = [row.split(" | ") for row in page(ROOT / "conf").splitlines() if row.startswith("| `")]
    of_keys = [row for row in rows if len(row) == 4]
    assert [row[0] for row in of_keys if row[1] == "`null`" and "null" not in row[2]] == []


def test_allowed_values_are_described_in_words() -> None:
    class Some(Section):
        """Some settings."""

        count: Positive | None = Field(description="a")
        share: Rate = Field(description="b")
        pair: Annotated[list[int], Field(min_length=2, max_length=2)] = Field(description="c")
        word: Literal["x", "y", "z"] = Field(description="d")
        table: dict[str, int] = Field(description="e")

    assert [key.values for key in keys_of(Some)] == [
        "integer ≥ 1 or null",
        "number from 0 to 1",
        "list of 2 (integer)",
        "x, y or z",
        "table",
    ]


def test_words_choose_keys_and_a_word_that_no_key_contains_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert settings(["prompt.", "time_min"], False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0].partition(".")[0] for line in lines} == {"key", "prompt", "cluster"}
    assert any(line.split()[:2] == ["prompt.length", "64"] for line in lines)
    with pytest.raises(ConfigError, match=r"no key contains prompt\.lenght; did you mean prompt\.length"):
        settings(["prompt.lenght"], False)
