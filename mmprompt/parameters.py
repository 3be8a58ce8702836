"""Prints which tensors a method trains: `python -m mmprompt.parameters method=bitfit model=ofa_base`. It needs no weights.

There is a row for each tensor, then the number of trained parameters, and their share of all parameters.
"""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from mmprompt.command_line import check_overrides, run_program
from mmprompt.methods.tuned_model import outline
from mmprompt.models.ofa_checkpoint import left_out
from mmprompt.runs.identity import config_as_written


def show(values: dict[str, Any]) -> None:
    """Prints the trained tensors of the run with these settings. Raises ConfigError if a setting is wrong."""
    config = config_as_written(values, checksum="none")
    tuned = outline(config)
    table = Table("tensor", "shape", "numbers", box=None)
    table.columns[2].justify = "right"
    for name, parameter in tuned.trained.items():
        table.add_row(name, " x ".join(map(str, parameter.shape)), f"{parameter.numel():,}")
    Console(width=None if sys.stdout.isatty() else 120, soft_wrap=True).print(table)
    trained = sum(parameter.numel() for parameter in tuned.trained.values())
    ours = sum(
        parameter.numel() for name, parameter in tuned.backbone.named_parameters() if name in tuned.backbone_names
    )
    official = ours + left_out(config.model)
    share = f"{trained / ours:.3%} of the {ours:,} that {config.model.name} has here"
    print(f"method={config.method} trains {trained:,} numbers in {len(tuned.trained)} tensors: {share},")
    print(f"{trained / official:.3%} of the {official:,} with those for generating images")
    if tuned.live:
        count = sum(name.endswith("running_mean") for name, _ in tuned.backbone.named_buffers())
        print(f"the running statistics of {count} BatchNorms change as well (backbone.mode=train)")


if __name__ == "__main__":
    check_overrides()
    run_program(show, "config")
