"""Writes a finished run's weights to a file for the published code: `python -m mmprompt.export RUN FILE`.

The file has the format of an official checkpoint, `{"model": {NAME: TENSOR}}`. It holds what the run's method trained, under the
official names: the prompts (as tables of keys and values, even if an MLP computed them), the adapters, the biases, or all weights.
The frozen backbone is not in it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from mmprompt.execution.evaluations import WeightsError, published_weights
from mmprompt.models.ofa_checkpoint import official_state
from mmprompt.runs.config import RunConfig
from mmprompt.runs.deployment import default_store, store_folder
from mmprompt.runs.files import StoreError
from mmprompt.runs.identity import read_config
from mmprompt.runs.store import Store
from mmprompt.settings.parsing import ConfigError
from mmprompt.settings.prompt import Prompt


def export(store: Store, run: str, file: Path) -> int:
    """Writes the weights of the run whose id begins with `run`. Returns the number of tensors.

    Raises StoreError if there is no such run, it is not finished, or its weights are damaged; ConfigError if the published
    code has no such tensors.
    """
    folder = store.find(run)
    result = folder.result()
    if result is None:
        raise StoreError(f"run {folder.id} is not finished; `python -m sweeps launch` resumes it")
    check(read_config(folder.config_file))
    state = official_state(published_weights(folder, result))
    torch.save({"model": state}, file)
    return len(state)


def check(config: RunConfig) -> None:
    """Raises ConfigError if the published code has no tensors like those that this run trained."""
    if not config.method_settings.is_published:
        raise ConfigError(
            f"method={config.method}: the published code does not have it, so its tensors have no official names"
        )
    prompt = config.settings_of(Prompt)
    if prompt is not None and prompt.layers is not None:
        layers = max(config.model.encoder_layers, config.model.decoder_layers)
        if len(prompt.layers) < layers:
            raise ConfigError(
                f"prompt.layers={prompt.layers} prompts {len(prompt.layers)} of {layers} layers; the official "
                "format has a prompt in every layer"
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mmprompt.export", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="the beginning of its id")
    parser.add_argument("file", metavar="FILE", type=Path, help="a .pt file, which is written")
    store = "the store; default: MMPROMPT_RUNS, or runs/ in the clone"
    parser.add_argument("--runs", type=store_folder, default=default_store(), help=store)
    arguments = parser.parse_args()
    try:
        count = export(Store(arguments.runs), arguments.run, arguments.file)
    except (ConfigError, StoreError, WeightsError) as error:
        sys.exit(f"mmprompt: {error}")
    print(f"{count} tensors under official names in {arguments.file}")


if __name__ == "__main__":
    main()
