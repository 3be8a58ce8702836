"""`cluster.deterministic`: only kernels that give the same bits each time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mmprompt.settings.parsing import ConfigError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# The values with which cuBLAS, which reads them when it starts, gives the same bits each time.
REPRODUCIBLE = (":4096:8", ":16:8")
REFUSED = re.compile(r"(\S+) does not have a deterministic implementation")  # torch's words


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """A context in which torch uses deterministic kernels alone, if that is wanted. To be entered before CUDA starts.

    Raises ConfigError where an operation has none.
    """
    if not wanted:
        yield
        return
    if os.environ.get(WORKSPACE) not in REPRODUCIBLE:
        os.environ[WORKSPACE] = REPRODUCIBLE[0]
    cudnn = torch.backends.cudnn
    usual = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if found := REFUSED.search(str(error)):
            raise ConfigError(
                f"cluster.deterministic=true: {found[1]} has no deterministic kernel here; with cluster.deterministic=false the "
                "run goes on from its last checkpoint"
            ) from error
        raise
    finally:
        torch.use_deterministic_algorithms(usual[0])
        cudnn.deterministic, cudnn.benchmark = usual[1:]
