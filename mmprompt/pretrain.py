"""Pretrains the small backbone: `python -m mmprompt.pretrain`, by the recipe in conf/pretrain.yaml. It resumes if interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmprompt.command_line import run_program
from mmprompt.execution.progress_bar import progress_bar
from mmprompt.settings.model import Model
from mmprompt.settings.parsing import parse
from mmprompt.training.pretrain import Recipe, make_backbone


def pretrain(values: dict[str, Any]) -> None:
    """Pretrains a backbone with these settings, and prints its scores. Raises ConfigError if a setting is wrong."""
    with progress_bar() as progress:
        line = progress.add_task("pretraining", total=values["recipe"]["steps"])

        def watch(step: int, text: str) -> None:
            progress.update(line, completed=step, description=text)

        recipe, model = parse(Recipe, values["recipe"]), parse(Model, values["model"])
        outcome = make_backbone(recipe, model, Path(values["folder"]), watch)
    print(outcome)


if __name__ == "__main__":
    run_program(pretrain, "pretrain")
