"""The command `mmprompt`: one door to all programs, `mmprompt COMMAND ...`. Each of them is also `python -m MODULE`.

It starts other packages by their names and imports none of them.
"""

from __future__ import annotations

import runpy
import sys
from importlib import import_module

from sweeps.commands import COMMANDS

RUNS = {
    "run": ("mmprompt", "one run by hand, with a progress bar"),
    "parameters": ("mmprompt.parameters", "which tensors a method trains, for any model size, without weights"),
    "export": ("mmprompt.export", "a finished run's weights under the official names"),
    "pretrain": ("mmprompt.pretrain", "make the small backbone again"),
}
RESULTS = {
    "tables": "table and figure of sweeps",
    "claims": "what sweeps claim, and whether their runs show it",
    "compare": "one row less another, whichever two",
    "trace": "from a cell of a table to its runs, files and commands",
    "verify": "whether runs, records and manifest belong together",
    "curves": "every logged step, as CSV",
    "report": "the report page, one file that needs no network",
    "notebooks": "execute the notebooks",
    "publish": "write results into documents",
}


def main() -> None:
    """Exits with the exit code of the program that is called, or 2 if there is no such command."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0 if words else 2)
    if words[0] in RUNS:
        module, words = RUNS[words[0]][0], words[1:]
    elif words[0] in RESULTS:
        module = "analysis"
    else:
        module = "sweeps"  # it also says what is wrong with a word that is no command
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def usage() -> str:
    parts = {
        "Sweeps and searches": {name: import_module(f"sweeps.commands.{name}").SUMMARY for name in COMMANDS},
        "Results": RESULTS,
        "Single runs": {name: summary for name, (_, summary) in RUNS.items()},
    }
    lines = ["usage: mmprompt COMMAND ...; `mmprompt COMMAND --help` says more"]
    for heading, commands in parts.items():
        lines += ["", f"{heading}:", *(f"  {name:<10} {summary}" for name, summary in commands.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
