"""`report --wandb` uploads the analysis as one run of the W&B project, with the real client, here to the test server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import whole_store
from wandb_server import WandbServer

from analysis.__main__ import main


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with WandbServer() as server:
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
        yield server


@pytest.mark.long
def test_the_page_the_tables_and_the_figures_are_uploaded_as_one_run(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = whole_store.filled(tmp_path / "runs", ("length", "main"))
    assert main(["report", "--wandb", "--runs", str(store.root), "--project", "us/papers"]) == 0
    assert server.unknown == []
    (run,) = server.runs.values()
    assert (run.entity, run.project, run.state) == ("us", "papers", "finished")
    assert f"{server.url}/us/papers/runs/{run.id}" in capsys.readouterr().out
    assert run.config["sweeps"]["value"] == ["length", "main"]
    (row,) = run.rows
    kinds = {key: row[key]["_type"] for key in ("report", "length/figure", "length/tables", "main/tables")}
    assert kinds == {
        "report": "html-file",
        "length/figure": "image-file",
        "length/tables": "html-file",
        "main/tables": "html-file",
    }
    page = (store.root / "report.html").read_text()
    assert server.files["report.html"].decode()[:200] == page[:200]
    assert {"tables/length.csv", "tables/main.tex", "figures/length.pdf", "figures/length_paper.png"} <= set(
        server.files
    )


@pytest.mark.long
def test_without_a_result_or_without_a_server_the_command_ends_with_the_reason(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = whole_store.filled(tmp_path / "runs", ("length",), skipped=24)
    assert main(["report", "--wandb", "--runs", str(store.root)]) == 2
    assert "has a result yet, so there is nothing to send" in capsys.readouterr().err
    whole_store.filled(tmp_path / "other", ("main",))
    server.refuse()
    assert main(["report", "--wandb", "--runs", str(tmp_path / "other")]) == 2
    assert "the W&B server cannot be used" in capsys.readouterr().err and (tmp_path / "other" / "report.html").exists()
