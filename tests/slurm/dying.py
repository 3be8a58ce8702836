"""`python dying.py MOMENT STORE VERB ...`: executes `python -m sweeps VERB ...` and kills it with SIGKILL at a given moment.

Its moments are its operations on files and folders of the store and its starts of programs, counted from 1; it is killed before
the one of that number. `program:N` means the N-th start of a program, as in `sbatch:1`. With 0 it is not killed, and the file
STORE.moments lists all moments.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "tempfile.mkstemp"}


def main(moment: str, store: str, *arguments: str) -> None:
    count, programs, noting = 0, Counter[str](), False
    list_file = Path(f"{store}.moments")

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal count, noting
        if noting:
            return
        name = what(event, given, store)
        if name is None:
            return
        count += 1
        programs[name] += 1
        if moment in (str(count), f"{name}:{programs[name]}"):
            os.kill(os.getpid(), signal.SIGKILL)
        if moment == "0":
            noting = True
            with list_file.open("a") as file:
                file.write(f"{count} {name}\n")
            noting = False

    sys.addaudithook(hook)
    sys.argv = ["sweeps", *arguments]
    runpy.run_module("sweeps", run_name="__main__", alter_sys=True)


def what(event: str, given: tuple[Any, ...], store: str) -> str | None:
    """The name of the moment; None if the event is none."""
    if event == "subprocess.Popen":
        return Path(os.fspath(given[0])).name
    paths = [os.fspath(path) for path in given[:2] if isinstance(path, str | os.PathLike)]
    writes = event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)
    if (writes or event in CHANGES) and any(path.startswith(store) for path in paths):
        return f"{event} {paths[-1]}".replace(" ", "_")
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
