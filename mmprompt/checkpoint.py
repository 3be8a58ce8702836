"""Says whether a checkpoint fits a model: `mmprompt checkpoint model=ofa_large paths.backbone=/data/ofa_large.pt`.

It reads every byte and checks the file's own checksums, the names and shapes of all tensors, and that all numbers are finite. Then
a run can load the file. `plan`, `launch` and `search` call it with `--shapes` and JSON on stdin: then it looks at names and shapes
alone, and answers in JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from mmprompt.command_line import check_overrides, run_program
from mmprompt.models.ofa_checkpoint import CheckpointError, check_fit
from mmprompt.runs.deployment import backbone_file, deployment_of
from mmprompt.runs.identity import config_as_written
from mmprompt.settings.model import Model
from mmprompt.settings.parsing import ConfigError


def show(values: dict[str, Any]) -> None:
    """Prints what is in the checkpoint of these settings. Raises ConfigError if it does not fit their model."""
    model, file, began = config_as_written(values, "none").model, backbone_file(deployment_of(values)), time.monotonic()
    try:
        state = check_fit(file, model, whole=True)
    except (CheckpointError, OSError) as error:
        raise ConfigError(f"paths.backbone={file} and model={model.name}: {error}") from None
    kinds = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()}))
    size = file.stat().st_size / 1e6
    print(f"{file} fits model={model.name}: {len(state)} tensors ({kinds}), {size:,.0f} MB, read in ", end="")
    print(f"{time.monotonic() - began:.1f} s")


def shapes(request: dict[str, Any]) -> None:
    """Prints `{"differs": TEXT}`: in which way the tensors of `file` are not those of `model`; null if they are."""
    differs = None
    try:
        check_fit(Path(request["file"]), Model.model_validate(request["model"]))
    except CheckpointError as error:
        differs = str(error)
    print(json.dumps({"differs": differs}))


if __name__ == "__main__":
    if sys.argv[1:] == ["--shapes"]:
        shapes(json.load(sys.stdin))
    else:
        check_overrides()
        run_program(show, "config")
