"""`python -m analysis notebooks`: every notebook executed on the store at hand, and written with what it shows.

The source of a notebook is `analysis/notebooks/NAME.py`, in jupytext's percent format. What is written is the same bytes for the
same source, store and versions: cells are numbered, nothing says when it was made or by which interpreter.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprompt.runs.config import nearest
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.files import StoreError, write_over
from mmprompt.runs.store import Store

if TYPE_CHECKING:
    from nbformat import NotebookNode

SOURCES = Path(__file__).with_name("notebooks")
PATIENCE = 600  # seconds that one cell may take
NEEDED = ("jupytext", "nbclient", "ipykernel")


def sources(names: Sequence[str] = ()) -> dict[str, Path]:
    """By name, of all or of those that are named. Raises StoreError for a notebook that does not exist."""
    there = {file.stem: file for file in sorted(SOURCES.glob("*.py"))}
    for name in names:
        if name not in there:
            raise StoreError(f"there is no notebook {name}{nearest(name, there)}; there are {', '.join(there)}")
    return {name: there[name] for name in names} if names else there


def write(store: Store, out: Path, names: Sequence[str] = ()) -> Iterator[tuple[str, bool]]:
    """A line on each notebook, and whether it is well. One whose sweep is not in the store is left as it is.

    Raises StoreError if Jupyter is not installed.
    """
    for name, file in sources(names).items():
        notebook = read(file)
        error = executed(notebook, store)
        if error is None:
            write_over(out / f"{name}.ipynb", text(notebook))
            yield f"{out / name}.ipynb", True
        elif error[0] == StoreError.__name__:
            yield f"{name}: not made, {error[1]}", True
        else:
            yield f"{name}: {error[0]}: {error[1]}", False


def read(file: Path) -> NotebookNode:
    """A notebook without outputs. Raises StoreError if jupytext is not installed."""
    try:
        import jupytext
    except ImportError:
        raise StoreError(f"notebooks need {', '.join(NEEDED)}; `pip install '.[notebook]'` brings them") from None
    return jupytext.read(file, fmt="py:percent")


def executed(notebook: NotebookNode, store: Store) -> tuple[str, str] | None:
    """Executes it in place, in the clone's folder. Returns name and message of the error that ended it, None if none did."""
    from jupyter_client.manager import KernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    own = {"MMPROMPT_RUNS": str(store.root.absolute()), "PYTHONPATH": str(ROOT)}
    there = {key: os.environ.get(key) for key in own}
    os.environ.update(own)  # the kernel inherits it
    kernel = KernelManager(kernel_name="python3", transport="ipc")  # no port that others on this machine could reach
    where = {"metadata": {"path": str(ROOT)}}
    try:
        NotebookClient(notebook, km=kernel, timeout=PATIENCE, record_timing=False, resources=where).execute()
    except CellExecutionError as error:
        return error.ename, error.evalue
    finally:
        kernel.shutdown_kernel(now=True)
        for key, value in there.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
    return None


def text(notebook: NotebookNode) -> str:
    """As it is kept: cells by number, and nothing of the machine."""
    import nbformat

    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {}
    notebook.metadata = _kernel()
    return nbformat.writes(notebook) + "\n"


def _kernel() -> Any:
    return {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
