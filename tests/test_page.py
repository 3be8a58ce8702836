"""The report page: its numbers are those of the CSV, it needs no network, and a person can use it, in a real Chromium."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import whole_store
from groups import some

from analysis.__main__ import main
from analysis.page.content import content
from analysis.page.render import packed, page, write_page
from analysis.page.svg import compact
from analysis.records.manifest import read_manifest
from analysis.records.sources import in_store
from analysis.reports.report import read_report, texts
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.failures import from_text
from mmprompt.runs.store import Store

HOSTILE = "<script>document.title = 'taken'</script>&amp;\"'</script><img src=x onerror=\"document.title='taken'\">"
CELL = re.compile(r'<td(?: data-value="([^"]*)")?(?: class="[^"]*")? data-cell="([^"]*)"')
WIDTHS = (360, 1200)
SWEEPS = ("main", "length", "robustness", "convergence")  # one of each kind


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("store")
    whole_store.filled(root, SWEEPS)
    return whole_store.searched(root)


@pytest.fixture(scope="module")
def text(store: Store) -> str:
    assert main(["report", "--runs", str(store.root)]) == 0
    return (store.root / "report.html").read_text()


def csv_of(store: Store, name: str) -> pd.DataFrame:
    from io import StringIO

    return pd.read_csv(StringIO(texts(read_report(store, read_manifest(store, name), in_store))[".csv"]))


def part(text: str, name: str) -> str:
    """The section of a sweep."""
    (found,) = re.findall(rf'<section class="sweep" id="sweep-{name}".*?</section>', text, re.DOTALL)
    return str(found)


@pytest.mark.parametrize("name", some(SWEEPS, "length", "robustness"))
def test_every_number_of_a_cell_is_in_the_csv(name: str, store: Store, text: str) -> None:
    rows = csv_of(store, name).dropna(subset="cell")
    of_cell = {cell: set() for cell in rows["cell"]}
    for row in rows.to_dict("records"):
        of_cell[row["cell"]] |= {row[key] for key in ("value", "difference", "kept", "kept_difference") if key in row}
    found = CELL.findall(part(text, name))
    assert found
    for value, cell in found:
        assert not value or float(value) in of_cell[unescape(cell)], (value, cell)
    shown = rows[rows["split"] == "test"]
    values = {float(value) for value, _ in found if value}
    wanted = "kept" if name == "robustness" else "value"
    assert set(shown[wanted].dropna()) <= values


def test_the_runs_behind_a_cell_are_those_that_the_csv_names(store: Store, text: str) -> None:
    data = unpacked(text)
    for name in SWEEPS:
        for row in csv_of(store, name).dropna(subset="cell").to_dict("records"):
            behind = data["sections"][name]["cells"][row["cell"]]
            assert " ".join(run for run, _, value in behind if value is not None) == row["runs"]
    run, known = next(iter(data["runs"].items()))
    assert known["command"].startswith("git checkout 0123456789abcdef && ") and known["attempts"][0]["work"] == "train"
    whole = data["common"] | known["settings"]
    assert whole["seed"] in (11, 12) and whole["model.name"] == "micro" and "seed" not in data["common"]
    assert store.run(run).result() is not None


def test_the_page_is_one_file_that_can_load_no_other(text: str) -> None:
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None and policy[1].startswith("default-src 'none'; ") and "http" not in policy[1]
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert addresses and all(address.startswith(("#", "data:image/")) for address in addresses)
    assert len(text.encode()) < 1_000_000


def test_every_sweep_and_search_of_the_store_is_on_the_page_with_its_claim_command_and_figure(
    store: Store, text: str
) -> None:
    for name in SWEEPS:
        manifest = read_manifest(store, name)
        assert manifest["claim"] in unescape(part(text, name)) and manifest["command"] in unescape(part(text, name))
    figures = unpacked(text)["figures"]
    assert set(figures) == {"search-learning_rate", *(f"sweep-{name}" for name in SWEEPS)}
    assert all(figure.startswith("<svg") for figure in figures.values())
    assert 0 < text.count("data:image/jpeg;base64,") <= 50
    assert 'id="search-learning_rate"' in text and "Claims" in text


def test_coordinates_are_rounded_and_text_is_not() -> None:
    long = """<?xml?><svg><metadata>a date</metadata><g  id="line2d_1"/><g id="pf1a">
 <path d="M 1.23456 -0.00012\nL 3 4" style="fill: none; stroke: #000000"/>
<text transform="rotate(-0 1 2)">0.00512 ± 0.12512; a: b</text></g></svg>"""
    assert compact(long) == (
        '<svg><g id="pf1a"><path d="M 1.235 -0.00012 L 3 4" style="fill:none;stroke:#000000"/>'
        "<text>0.00512 ± 0.12512; a: b</text></g></svg>"
    )


def unpacked(text: str) -> Any:
    """The data of a page."""
    (data,) = re.findall(r'id="data">([A-Za-z0-9+/=]*)</script>', text)
    return json.loads(gzip.decompress(base64.b64decode(data)))


def test_data_cannot_end_its_element() -> None:
    made = packed({"a": HOSTILE, "b": [float("nan"), float("inf"), 1.5]})
    assert unpacked(f'id="data">{made}</script>') == {"a": HOSTILE, "b": [None, None, 1.5]}


def hostile(root: Path) -> Store:
    """A sweep in its middle: two runs have not run, one failed, one diverged, one is damaged; and its words are hostile."""
    from whole_store import JOB

    from mmprompt.runs.failures import OLD_DIVERGED as DIVERGED

    store = whole_store.filled(root, ("length",), skipped=4)
    file = store.manifest("length")
    manifest = json.loads(file.read_text())
    manifest |= {"claim": HOSTILE, "command": f"make sweep-length ARGS='{HOSTILE}'"}
    file.write_text(json.dumps(manifest))
    runs = list(dict.fromkeys(point["run"] for point in manifest["points"]))
    for run, error in ((runs[-1], f"RuntimeError: {HOSTILE}"), (runs[-2], f"{DIVERGED}the loss is nan at step 3")):
        folder = store.run(run)
        folder.path.mkdir(parents=True, exist_ok=True)
        attempt = folder.claim(1, JOB)
        assert attempt is not None
        attempt.fail(from_text(error))
    store.run(runs[0]).result_file.write_text("{")
    return store


def test_a_sweep_in_its_middle_says_what_is_missing_and_why(tmp_path: Path) -> None:
    store = hostile(tmp_path)
    text = page(content(store))
    assert (
        "5 runs are missing" in text and "RuntimeError: &lt;script&gt;" in text and "the loss is nan at step 3" in text
    )
    assert "result.json is cut off or damaged" in text and 'role="alert"' in text
    assert HOSTILE not in text


def test_a_store_without_a_result_and_a_damaged_manifest_make_a_page(tmp_path: Path) -> None:
    store = whole_store.filled(tmp_path, ("length",), skipped=24)
    store.manifest("wrong").write_text("{")
    text = page(content(store))
    assert "There is no result in this store yet." in text and "none of its runs is done yet" in text
    assert "wrong.json" in text and 'role="alert"' in text


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """In a process of its own: Matplotlib makes a folder when it is first imported."""
    command = [sys.executable, "-m", "analysis", "report", "--runs", str(tmp_path / "none")]
    environment = {key: value for key, value in os.environ.items() if key != "MPLCONFIGDIR"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "there is no store" in done.stderr and not (tmp_path / "none").exists()


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright; `pip install '.[browser]'` brings it")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium, which is not installed")
    with api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield made
        made.close()


def opened(browser: Any, store: Store, width: int = 1200, scheme: str = "light", at: str = "") -> tuple[Any, list[str]]:
    """The page, and what went wrong in it: errors, refused loads, requests to anywhere."""
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    wrong: list[str] = []
    tab.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else wrong.append(request.url))
    tab.goto(f"file://{store.root / 'report.html'}{at}")
    return tab, wrong


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_needs_no_sideways_scrolling_and_its_text_contrasts_with_its_background(
    browser: Any, store: Store, text: str, width: int, scheme: str
) -> None:
    tab, wrong = opened(browser, store, width, scheme)
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    ink, paper = tab.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (bright[0] > bright[1] + 400) if scheme == "dark" else (bright[1] > bright[0] + 400)
    tab.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert tab.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert wrong == []
    tab.close()


def test_a_click_on_a_head_sorts_by_number_and_the_next_turns_it_round(browser: Any, store: Store, text: str) -> None:
    tab, wrong = opened(browser, store)
    table = tab.locator("#sweep-length .view:not([hidden]) table").first
    head = table.locator("thead tr").last.locator("th").nth(1)

    def values() -> list[float]:
        cells = table.locator("tbody tr td:nth-child(2)").evaluate_all(
            "(all) => all.map((cell) => +cell.dataset.value)"
        )
        return [float(value) for value in cells]

    head.locator("button").click()
    assert values() == sorted(values()) and head.get_attribute("aria-sort") == "ascending"
    head.locator("button").click()
    assert values() == sorted(values(), reverse=True) and head.get_attribute("aria-sort") == "descending"
    first = table.locator("thead tr").last.locator("th").first
    first.locator("button").focus()
    tab.keyboard.press("Enter")
    lengths = table.locator("tbody th").all_inner_texts()
    assert lengths == ["10", "16", "30", "64", "100", "120"] and head.get_attribute("aria-sort") is None and wrong == []
    tab.close()


def test_each_cell_opens_the_runs_that_the_csv_names_and_each_run_its_settings(
    browser: Any, store: Store, text: str
) -> None:
    tab, wrong = opened(browser, store)
    rows = csv_of(store, "length")
    buttons = tab.locator("#sweep-length .view:not([hidden]) table").first.locator("td[data-cell] button")
    assert buttons.count() == 12
    for at in range(buttons.count()):
        cell = buttons.nth(at).locator("..").get_attribute("data-cell")
        buttons.nth(at).click()
        tab.locator("#detail h2").wait_for(state="visible")
        shown = tab.locator("#detail a").all_inner_texts()
        (wanted,) = rows.loc[rows["cell"] == cell, "runs"]
        assert " ".join(shown) == wanted and cell in tab.locator("#detail h2").inner_text()
        tab.keyboard.press("Escape")
        tab.locator("#detail").wait_for(state="hidden")
        tab.wait_for_url(re.compile(r"report\.html$"))
    buttons.first.focus()
    tab.keyboard.press("Enter")
    tab.locator("#detail h2").wait_for(state="visible")
    run = tab.locator("#detail a").first.inner_text()
    tab.locator("#detail a").first.click()
    detail = tab.locator("#detail")
    detail.locator("h4").first.wait_for(state="visible")  # of a run
    assert tab.url.endswith(f"#run-{run}") and f"run {run}" in detail.locator("h2").inner_text()
    assert "prompt.length" in detail.inner_text() and "git checkout" in detail.inner_text()
    again, more = opened(browser, store, at=f"#run-{run[:8]}")
    again.locator("#detail h2").wait_for(state="visible")
    assert again.locator("#detail h2").inner_text().startswith(f"run {run}")
    assert wrong == more == []
    tab.close()
    again.close()


def test_the_switch_shows_validation(browser: Any, store: Store, text: str) -> None:
    tab, wrong = opened(browser, store)
    section = tab.locator("#sweep-main")
    before = section.locator(".view:not([hidden]) td[data-cell]").first.get_attribute("data-cell")
    section.get_by_role("radio", name="validation").check()
    after = section.locator(".view:not([hidden]) td[data-cell]").first.get_attribute("data-cell")
    assert before is not None and "split=test" in before and after == before.replace("split=test", "split=val")
    assert wrong == []
    tab.close()


def test_curves_have_a_line_per_seed_and_a_mean_and_what_is_switched_off_goes(
    browser: Any, store: Store, text: str
) -> None:
    tab, wrong = opened(browser, store)
    box = tab.locator("#sweep-convergence .curves")
    seeds, lines = box.locator(".plot polyline title"), box.locator(".plot polyline")
    assert (seeds.count(), lines.count()) == (4, 6)  # two methods, two seeds each, and their means
    box.locator(".legend button").first.click()
    assert (seeds.count(), lines.count()) == (2, 3)
    box.locator(".legend button").first.click()
    box.get_by_label("single seeds").uncheck()
    assert (seeds.count(), lines.count()) == (0, 2)
    box.locator("select.x").select_option("epochs")
    assert "score on validation against epochs" in str(box.locator(".plot svg").get_attribute("aria-label"))
    costs = tab.locator("#sweep-main .costs")
    costs.locator("summary").click()
    assert costs.locator("circle").count() == 2 and wrong == []
    tab.close()


def test_markup_in_names_and_claims_is_shown_as_text(browser: Any, tmp_path: Path) -> None:
    store = hostile(tmp_path)
    write_page(store)
    tab, wrong = opened(browser, store)
    assert tab.title() == "mmprompt report" and HOSTILE in tab.locator("p.claim").inner_text()
    tab.locator("#sweep-length td.lacking button, #sweep-length td.bad button").first.click()
    tab.locator("#detail a").last.click()
    tab.locator("#detail h4").first.wait_for(state="visible")
    assert tab.title() == "mmprompt report" and tab.locator("#detail h2").count() == 1 and wrong == []
    tab.close()


def test_the_page_can_be_printed_to_a_pdf(browser: Any, store: Store, text: str, tmp_path: Path) -> None:
    tab, wrong = opened(browser, store)
    tab.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").stat().st_size > 50_000 and wrong == []
    tab.close()
