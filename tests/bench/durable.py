"""What it costs that a published file outlives a crash of the machine: it and its folder are written to the disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from measure import Section, interleaved

from mmprompt.runs.files import write_over

ROUNDS, WRITES = 15, 20
SIZES = {  # bytes, about
    "a record (1 kB), as a run's progress is written": 1 << 10,
    "the weights of a prompt of the small world (1 MB)": 1 << 20,
    "a checkpoint of a prompt of OFA-base (40 MB)": 40 << 20,
}


def sections() -> Iterator[Section]:
    store = Path(os.environ.get("MMPROMPT_RUNS", "runs"))
    with tempfile.TemporaryDirectory(dir=store if store.is_dir() else None) as folder:
        for name, size in SIZES.items():
            file, content = Path(folder) / "file", os.urandom(size)
            writes = WRITES if size < 1 << 20 else 1
            rows: dict[str, Callable[[], object]] = {
                "in one step": partial(written, file, content, writes, durable=False),
                "in one step, and on the disk": partial(written, file, content, writes, durable=True),
            }
            setting = f"The disk of MMPROMPT_RUNS, else that of temporary files; {writes} in a row"
            yield Section(
                f"A durable file: {name}", setting, interleaved(rows, ROUNDS), per=writes, unit="file", by_wall=True
            )


def written(file: Path, content: bytes, writes: int, durable: bool) -> None:
    for _ in range(writes):
        write_over(file, content, durable=durable)
