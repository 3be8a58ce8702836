"""The direction of imports: which package may import which (the layer table of the architecture)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmprompt.runs.deployment import ROOT

LIGHT = (
    "mmprompt.families",
    "mmprompt.settings",
    "mmprompt.runs",
    "mmprompt.studies",
    "mmprompt.world",
)  # what sweeps and analysis may use, and what needs no torch
WANDB = ("wandb_client", "wandb_messages", "wandb_server", "wandb_writer")  # the modules that use W&B's package
# The packages of the core and of the login node, lowest first: a module imports of its own package and of those before it.
FLOORS = {
    "mmprompt": (
        *("families", "settings", "runs", "world", "studies"),
        *("models", "data", "methods", "evaluation", "training", "execution"),
    ),
    "sweeps": ("grid", "jobs", "states", "planning", "display", "search", "doctor", "verbs", "commands"),
    "analysis": ("records", "statistics", "tables", "figures", "reports", "page"),
}
OURS = {"mmprompt", "sweeps", "analysis"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package.replace(".", "/")).rglob("*.py"))


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """Dotted names of everything a module imports, and whether it does so when it is imported itself."""
    tree = ast.parse(file.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = {id(inner) for function in functions for inner in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name, id(node) not in late) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            yield from ((f"{node.module}.{name.name}", id(node) not in late) for name in node.names)


def wrong(package: str, *allowed: str, never: set[str]) -> list[str]:
    """Imports of the package that go against the arrows: of what is never allowed, and of ours all but `allowed`."""
    found = []
    for file in modules(package):
        for name, _ in imports(file):
            top = name.split(".")[0]
            ours = top in OURS - {package} and not any(f"{name}.".startswith(f"{ok}.") for ok in allowed)
            if top in never or ours:
                found.append(f"{file.relative_to(ROOT)}: {name}")
    return found


def test_each_package_has_modules_to_look_at() -> None:
    assert all(len(modules(package)) > 3 for package in OURS)


def test_the_core_knows_neither_sweeps_nor_analysis() -> None:
    assert wrong("mmprompt", never=set()) == []


def test_the_light_part_of_the_core_needs_neither_torch_nor_hydra_and_wandb_only_inside_functions() -> None:
    for file in (file for package in LIGHT for file in modules(package)):
        for imported, at_once in imports(file):
            top = imported.split(".")[0]
            assert top not in {"torch", "hydra", "omegaconf", "pandas"}, f"{file}: {imported}"
            assert top != "mmprompt" or imported.startswith(LIGHT), f"{file}: {imported}"
            assert top not in {"wandb", "google"} or (file.stem in WANDB and not at_once), f"{file}: {imported}"


@pytest.mark.parametrize("top", FLOORS)
def test_a_package_imports_of_those_below_it_alone(top: str) -> None:
    floors = {f"{top}.{name}": floor for floor, name in enumerate(FLOORS[top])}
    assert {folder.name for folder in (ROOT / top).iterdir() if (folder / "__init__.py").is_file()} == {*FLOORS[top]}
    up = []
    for package, floor in floors.items():
        for file in modules(package):
            for name, _ in imports(file):
                above = floors.get(".".join(name.split(".")[:2]), -1)
                if above > floor:
                    up.append(f"{file.relative_to(ROOT)}: {name}")
    assert up == []


def test_hydra_is_only_in_the_programs_of_the_core() -> None:
    for file in modules("mmprompt"):
        if file.parent != ROOT / "mmprompt":
            assert not {name.split(".")[0] for name, _ in imports(file)} & {"hydra", "omegaconf"}, file


def test_sweeps_knows_of_the_core_its_light_part_and_on_the_node_its_job() -> None:
    found = wrong("sweeps", *LIGHT, never={"torch", "pandas", "matplotlib", "wandb"})
    node = {
        "sweeps/node.py: mmprompt.execution.execute.execute",
        "sweeps/node.py: mmprompt.execution.measurement.measure",
    }
    node |= {"sweeps/search/worker.py: mmprompt.execution.execute.execute_for_search"}
    probe = {
        f"sweeps/doctor/training_checks.py: {name}"
        for name in (
            "torch",
            "mmprompt",  # to say which folder it comes from
            "mmprompt.execution.run_context.backbone_of",
            "mmprompt.data.task_data.TaskData",
            "mmprompt.data.task_files.locate",
        )
    }
    assert set(found) == node | probe
    for file in ("node.py", "doctor/training_checks.py", "search/worker.py"):
        late = [name for name, at_once in imports(ROOT / "sweeps" / file) if not at_once]
        assert all(line.split(": ")[1] in late for line in found if line.startswith(f"sweeps/{file}"))


def test_optuna_is_in_one_module_alone_which_those_who_search_load_when_they_ask() -> None:
    for file in (file for package in OURS for file in modules(package)):
        names = {name for name, _ in imports(file)}
        assert any(name.split(".")[0] == "optuna" for name in names) == (
            file == ROOT / "mmprompt/studies/sampler.py"
        ), file
    loading = "import sys, sweeps.node, sweeps.verbs.launch, sweeps.verbs.status, mmprompt.execution.execute"
    loading += "; sys.exit('optuna' in sys.modules)"
    subprocess.run([sys.executable, "-c", loading], cwd=ROOT, check=True)


def test_analysis_knows_of_the_core_its_light_part_and_neither_conf_nor_torch() -> None:
    assert wrong("analysis", *LIGHT, never={"torch", "hydra", "omegaconf", "submitit"}) == []


@pytest.mark.parametrize(
    "arguments", [["--help"], *([verb, "--help"] for verb in ("launch", "plan", "search", "measure"))]
)
def test_help_needs_nothing_that_takes_time_to_load(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "sweeps", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "sweeps" in loaded and ("length" in done.stdout or "learning_rate" in done.stdout)
    assert not loaded & {"torch", "hydra", "omegaconf", "wandb", "submitit", "pandas", "numpy", "pydantic", "psutil"}
