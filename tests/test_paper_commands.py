"""docs/paper.md: its commands as they are printed, on small files in the official formats, and its numbers."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import ofa_files
import pytest
import tiny

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.store import Store
from mmprompt.settings.model import Model
from mmprompt.settings.parsing import parse
from sweeps import __main__ as sweeps

PAGE = (ROOT / "docs/paper.md").read_text()
TASKS = list(ofa_files.FILES)
ONE_OF_EACH = ["refcoco", "snli_ve", "coco_caption", "vqa"]  # families
SIZES = ["base", "large"]
PIECES, LINES = 50_257, 50_260  # of GPT-2's encoder.json and OFA's dict.txt (facts 4.2)
HERE = ["cluster=local", "cluster.gpus=0", "cluster.max_parallel=1", "tracking=disabled"]
SHORT = ["model=ofa_tiny", "task.image_size=64", "optim.steps=2", "optim.batch_size=4", "optim.micro_batch=2"]
SHORT += ["optim.validate_every=2", "optim.validate_examples=2"]

Command = tuple[str, ...]


@cache
def commands(size: str) -> dict[str, list[Command]]:
    """By section of the page: the words of each mmprompt command, as bash makes them after the block that chooses this size."""
    script = ['set -eu; mmprompt() { printf "%s\\0" "$@"; echo; }']
    for part in PAGE.split("\n## "):
        script.append(f"echo {shlex.quote(part.splitlines()[0])}")
        for block in re.findall(r"```bash\n(.*?)```", part, re.DOTALL):
            if not block.startswith("# OFA-") or block.startswith(f"# OFA-{size}\n"):
                script.append(block)
    environment = {"USER": "someone", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], env=environment, capture_output=True, text=True, check=True
    )
    by_section: dict[str, list[Command]] = {}
    section = ""
    for line in done.stdout.splitlines():
        if "\0" in line:
            by_section[section].append(tuple(line.rstrip("\0").split("\0")))
        else:
            section = line
            by_section[section] = []
    return {section: printed for section, printed in by_section.items() if printed}


@cache
def model(size: str) -> Model:
    return parse(Model, tiny.composed(f"model=ofa_{size}")["model"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of OFA with every data set in small and a vocabulary of the official size."""
    folder = tmp_path_factory.mktemp("OFA")
    for task in TASKS:
        ofa_files.make(folder, task, 4, PIECES, LINES)
    return folder


def rows(head: str) -> Iterator[list[str]]:
    """The cells of each row of the page's table whose head begins so."""
    [table] = [part for part in PAGE.split("\n\n") if part.startswith(f"| {head} |")]
    yield from ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:])


# ------------------------------------------------------------------------------------------------------------ what it says


def test_the_page_names_every_file_that_a_task_reads() -> None:
    [layout] = [part for part in PAGE.split("```") if "utils/BPE" in part and "vqa_train" in part]
    for task in TASKS:
        settings = tiny.composed(f"task={task}")["task"]
        files = [file for files in settings["data"]["files"].values() for file in files]
        files += [settings["data"][key] for key in ("encoder", "merges", "dictionary")]
        files += [settings["answers"]] if isinstance(settings["answers"], str) else []
        for folder, name in (file.rsplit("/", 1) for file in files):
            [line] = [line for line in layout.splitlines() if line.startswith(f"  {folder}/")]
            assert name in line


def test_the_commands_of_both_sizes_differ_in_the_model_and_its_checkpoint_alone() -> None:
    base, large = (commands(size) for size in SIZES)
    assert repr(base).replace("ofa_base", "ofa_large") == repr(large)


def hours(task: str, method: str) -> tuple[str, list[float]]:
    """A row of the page's hours, by the page's formula and the settings that a run of the page's commands has."""

    def settings(size: str) -> tuple[dict[str, Any], int]:
        composed = tiny.composed(f"task={task}", f"method={method}", f"model=ofa_{size}")
        return composed, composed["optim"]["batch_size"] // composed["optim"]["micro_batch"]

    def milliseconds(examples: int) -> float:  # of an update of prompts
        return 146 + (examples - 16) * (407 - 146) / (64 - 16)

    composed, parts = settings("large")
    optim, side = composed["optim"], composed["task"]["image_size"]
    micro, image = optim["micro_batch"], 1000 / 845
    training = optim["steps"] * parts * milliseconds(micro) * (275 / 146 if method == "finetune" else 1)
    images = optim["steps"] * optim["batch_size"] * image
    examples = dict(zip(TASKS, (10_800, 10_800, 4_900, 17_900, 5_000, 10_000), strict=True))[task]
    passes = {"grounding": 5, "caption": 17, "entailment": 2, "vqa": 14}[composed["task"]["family"]]
    size = max(micro, 250 * 96**2 // side**2)  # of a batch that is answered (`mmprompt.evaluation.answers`)
    answering = examples / size * (milliseconds(size) / 3 + passes * (32 if composed["task"]["beam"] else 38))
    validation = math.ceil(optim["steps"] / optim["validate_every"]) * (answering + examples * image)
    small, small_parts = settings("base")
    base = small["optim"]["steps"] * (small_parts * 64 + small["optim"]["batch_size"] * image)
    sums = [training, images, validation, training + images + validation, base]
    return f"{optim['steps']:,} x {parts}", [one / 3.6e6 for one in sums]


def test_the_gpu_hours_follow_from_the_measured_times_and_from_the_settings() -> None:
    names = dict(zip(("RefCOCO", "RefCOCO+", "RefCOCOg", "SNLI-VE", "captions", "VQA"), TASKS, strict=True))
    sums = {"prompt": [0.0, 0.0], "finetune": [0.0, 0.0]}
    for task, method, updates, *printed in rows("one run"):
        if task == "sum":
            assert [float(cell) for cell in printed[3:5]] == pytest.approx(sums[method], abs=0.7)
            continue
        expected_updates, expected = hours(names[task], method)
        assert updates == expected_updates
        assert [float(cell) for cell in printed[:5]] == pytest.approx(expected, abs=0.11)
        sums[method] = [total + one for total, one in zip(sums[method], expected[3:], strict=True)]
    prompt, finetune = sums["prompt"][0], sums["finetune"][0]
    printed_hours = {cells[1]: cells[4].replace(",", "") for cells in rows("paper")}
    for sweep, expected_hours in {
        "`main`": prompt + finetune,
        "`methods`": 2 * prompt,
        "`depth`": 2 * prompt,
        "`reparameterization`": prompt,
        "`length`": 5 * prompt,
    }.items():
        assert float(printed_hours[sweep]) == pytest.approx(expected_hours, abs=1)
    assert float(printed_hours[""].split()[0]) == pytest.approx(11 * prompt + finetune, abs=10)
    assert f"takes at least {sums['prompt'][1] + sums['finetune'][1]:.0f} GPU-hours" in " ".join(PAGE.split())


# ------------------------------------------------------------------------------------------------------ what its commands do


@pytest.mark.long
@pytest.mark.parametrize("size", SIZES)
def test_every_command_is_accepted_with_the_names_and_shapes_of_the_official_checkpoint(
    size: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = ofa_files.checkpoint(model(size), tmp_path / f"ofa_{size}.pt", random=False)
    (tmp_path / "runs").mkdir()  # what fits is kept there
    places = [f"paths.backbone={checkpoint}", f"paths.data={data}", f"paths.runs={tmp_path / 'runs'}"]
    stated = {cells[1].strip("`"): (int(cells[2]), int(cells[3])) for cells in rows("paper") if cells[1]}
    known: set[str] = set()
    counted: dict[str, tuple[int, int]] = {}
    for section, printed_commands in commands(size).items():
        for verb, *words in printed_commands:
            if verb == "checkpoint":
                assert f"fits model=ofa_{size}" in typed("checkpoint", *words, *places, *HERE)
            elif (verb, *words) != ("tables",):  # the next test writes them
                assert verb in ("launch", "plan")
                code = sweeps.main(["plan", *words, *places, *HERE, "--json"])
                printed = capsys.readouterr()
                assert (code, printed.err) == (0, ""), f"{shlex.join(words)}: {printed.err}"
                [sweep] = json.loads(printed.out)["sweeps"]
                runs = {run["run"] for run in sweep["runs"]}
                if section == "Commands":
                    counted[sweep["sweep"]] = len(runs), len(runs - known)
                    known |= runs
    assert counted == stated


def typed(*words: str) -> str:
    """What `mmprompt WORDS` prints; it must succeed."""
    command = [sys.executable, "-m", "sweeps.console", *words]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.long
def test_the_commands_train_every_family_attack_and_write_tables_on_small_files_in_the_official_formats(
    data: Path, tmp_path: Path
) -> None:
    checkpoint = ofa_files.checkpoint(model("tiny"), tmp_path / "ofa_tiny.pt", random=True)
    places = [f"paths.backbone={checkpoint}", f"paths.data={data}", f"paths.runs={tmp_path / 'runs'}", *HERE]
    families = f"task={','.join(ONE_OF_EACH)}"
    once, main_table, robustness = (
        next(command for command in commands("large")[section] if name in command)
        for section, name in (("Once", "checkpoint"), ("Commands", "main"), ("Commands", "robustness"))
    )
    assert "fits model=ofa_tiny" in typed(*once, *places, *SHORT)
    typed(*main_table, *places, *SHORT, families)
    store = Store(tmp_path / "runs")
    points = json.loads(store.manifest("main").read_text())["points"]
    assert len(points) == 2 * len(ONE_OF_EACH)
    for point in points:
        result = store.run(point["run"]).result()
        assert result is not None and result["steps"] == 2
        assert set(result["evaluations"]) == set(point["evaluations"])
    few = ["task=refcoco", "attack.epsilon=0,0.1", "evaluation.examples=2"]
    typed(*robustness, *places, *SHORT, *few)
    typed("tables", "--runs", str(store.root))
    tables = [(store.root / f"tables/{name}.md").read_text() for name in ("main", "robustness")]
    assert "The paper's Table 1" in tables[0] and "FGSM" in tables[1]
    assert len(store.runs()) == 2 * len(ONE_OF_EACH)  # attacks train nothing
