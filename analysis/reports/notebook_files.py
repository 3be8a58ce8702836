"""The execution of notebooks on a store, for `python -m analysis notebooks`: each is run and written with its outputs.

The source of a notebook is `analysis/notebooks/NAME.py`, in jupytext's percent format. The same source, store and versions give
the same bytes: cells are numbered, and neither the time nor the interpreter is recorded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.files import StoreError, write_over
from mmprompt.runs.store import NoSweepError, Store
from mmprompt.settings.spelling import nearest

if TYPE_CHECKING:
    from nbformat import NotebookNode

SOURCES = Path(__file__).parents[1] / "notebooks"
PATIENCE = 600  # seconds that one cell may take
NEEDED = ("jupytext", "nbclient", "ipykernel")


def sources(names: Sequence[str] = ()) -> dict[str, Path]:
    """Returns the source files of these notebooks, or of all, by name. Raises StoreError for a notebook that does not exist."""
    files = {file.stem: file for file in sorted(SOURCES.glob("*.py"))}
    for name in names:
        if name not in files:
            raise StoreError(f"there is no notebook {name}{nearest(name, files)}; there are {', '.join(files)}")
    return {name: files[name] for name in names} if names else files


def write(store: Store, out: Path, names: Sequence[str] = ()) -> Iterator[tuple[str, bool]]:
    """Executes and writes notebooks. Yields a line about each, and False if a cell failed.

    A notebook whose sweep is not in the store is not written. Raises StoreError if Jupyter is not installed.
    """
    for name, file in sources(names).items():
        notebook = read(file)
        error = execute(notebook, store)
        if error is None:
            write_over(out / f"{name}.ipynb", stored_text(notebook))
            yield f"{out / name}.ipynb", True
        elif error[0] in (StoreError.__name__, NoSweepError.__name__):
            yield f"{name}: not made, {error[1]}", True
        else:
            yield f"{name}: {error[0]}: {error[1]}", False


def read(file: Path) -> NotebookNode:
    """Returns a notebook without outputs. Raises StoreError if jupytext is not installed."""
    try:
        import jupytext
    except ImportError:
        raise StoreError(f"notebooks need {', '.join(NEEDED)}; `pip install '.[notebook]'` brings them") from None
    return jupytext.read(file, fmt="py:percent")


def execute(notebook: NotebookNode, store: Store) -> tuple[str, str] | None:
    """Executes a notebook in place, in the clone's folder. Returns name and message of the error that ended it, or None."""
    from jupyter_client.manager import KernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    variables = {"MMPROMPT_RUNS": str(store.root.absolute()), "PYTHONPATH": str(ROOT)}
    previous = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)  # the kernel inherits these
    # ipc opens no port that other users of the machine could reach
    kernel = KernelManager(kernel_name="python3", transport="ipc")
    resources = {"metadata": {"path": str(ROOT)}}
    try:
        NotebookClient(notebook, km=kernel, timeout=PATIENCE, record_timing=False, resources=resources).execute()
    except CellExecutionError as error:
        return error.ename, error.evalue
    finally:
        kernel.shutdown_kernel(now=True)
        for key, value in previous.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
    return None


def stored_text(notebook: NotebookNode) -> str:
    """The notebook as it is stored: cells are numbered, and nothing describes the machine."""
    import nbformat

    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {}
    notebook.metadata = _kernel()
    return nbformat.writes(notebook) + "\n"


def _kernel() -> Any:
    return {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
