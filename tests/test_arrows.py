"""The direction of the arrows: who may import whom (the layer table of the architecture)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmprompt.place import ROOT

LIGHT = {
    "config",
    "ending",
    "identity",
    "keys",
    "place",
    "secret",
    "processes",
    "files",
    "records",
    "run",
    "intervals",
    "power",
    "study",
    "outcomes",
    "confirmation",
    "sampler",
    "fingerprint",
    "tracking",
    "wandb_file",
    "wandb_online",
    "world",
    "digits",
}  # of mmprompt: what the other packages may use
OURS = {"mmprompt", "sweeps", "analysis"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


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
    for name in LIGHT:
        for imported, at_once in imports(ROOT / "mmprompt" / f"{name}.py"):
            top, *rest = imported.split(".")
            assert top not in {"torch", "hydra", "omegaconf"}, f"{name}: {imported}"
            assert top != "mmprompt" or rest[0] in LIGHT, f"{name}: {imported}"
            assert top != "wandb" or (name in ("tracking", "wandb_online") and not at_once), f"{name}: {imported}"


def test_hydra_is_only_in_the_main_of_the_core() -> None:
    for file in modules("mmprompt"):
        if file.stem != "__main__":
            assert not {name.split(".")[0] for name, _ in imports(file)} & {"hydra", "omegaconf"}, file


def test_sweeps_knows_of_the_core_its_light_part_and_on_the_node_its_job() -> None:
    light = [f"mmprompt.{name}" for name in LIGHT]
    found = wrong("sweeps", *light, never={"torch", "pandas", "matplotlib", "wandb"})
    node = {"sweeps/node.py: mmprompt.job.execute", "sweeps/node.py: mmprompt.costs.measure"}
    node |= {"sweeps/search/worker.py: mmprompt.job.take"}
    probe = {
        f"sweeps/probe.py: {name}"
        for name in ("torch", "mmprompt.loaded.backbone_of", "mmprompt.data.load", "mmprompt.data.locate")
    }
    assert set(found) == node | probe
    for file in ("node.py", "probe.py", "search/worker.py"):
        late = [name for name, at_once in imports(ROOT / "sweeps" / file) if not at_once]
        assert all(line.split(": ")[1] in late for line in found if line.startswith(f"sweeps/{file}"))


def test_optuna_is_in_one_module_alone_which_those_who_search_load_when_they_ask() -> None:
    for file in (file for package in OURS for file in modules(package)):
        names = {name for name, _ in imports(file)}
        assert any(name.split(".")[0] == "optuna" for name in names) == (file == ROOT / "mmprompt/sampler.py"), file
    loading = "import sys, sweeps.node, sweeps.launch, sweeps.status, mmprompt.job; sys.exit('optuna' in sys.modules)"
    subprocess.run([sys.executable, "-c", loading], cwd=ROOT, check=True)


def test_analysis_knows_of_the_core_its_light_part_and_neither_conf_nor_torch() -> None:
    light = [f"mmprompt.{name}" for name in LIGHT]
    assert wrong("analysis", *light, never={"torch", "hydra", "omegaconf", "submitit"}) == []


@pytest.mark.parametrize(
    "arguments", [["--help"], *([verb, "--help"] for verb in ("launch", "plan", "search", "measure"))]
)
def test_help_needs_nothing_that_takes_time_to_load(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "sweeps", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "sweeps" in loaded and ("length" in done.stdout or "learning_rate" in done.stdout)
    assert not loaded & {"torch", "hydra", "omegaconf", "wandb", "submitit", "pandas", "numpy", "pydantic", "psutil"}
