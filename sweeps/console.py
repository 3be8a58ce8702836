"""The command `mmprompt`: one door to all programs, `mmprompt COMMAND ...`. Each of them is also `python -m MODULE`.

It starts other packages by their names and imports none of them.
"""

from __future__ import annotations

import runpy
import sys
from importlib import import_module

from sweeps.commands import COMMANDS

RUNS = {
    "run": ("mmprompt", "train one run, with a progress bar"),
    "parameters": ("mmprompt.parameters", "list the tensors that a method trains, for any model size, without weights"),
    "checkpoint": ("mmprompt.checkpoint", "say whether a checkpoint fits a model; read all of it"),
    "fit": ("mmprompt.fit", "find the largest micro-batch that fits, and the time of the run"),
    "export": ("mmprompt.export", "write the weights of a finished run under the official names"),
    "pretrain": ("mmprompt.pretrain", "make the small backbone again (about an hour)"),
}
RESULTS = {
    "tables": "write and print the tables and figures of sweeps",
    "claims": "print the claims of sweeps, and whether their runs support them",
    "compare": "compare any two rows of a sweep, on every task",
    "trace": "list the runs behind a cell of a table, their files and the commands that repeat them",
    "verify": "check that runs, records and manifest agree",
    "curves": "write every logged step of runs as CSV",
    "answers": "write the answers of runs into the files that EvalAI and COCO's server take (analysis export)",
    "report": "write the report page, report.html in the store: one file, no network",
    "notebooks": "execute the notebooks on your runs, and write them with their output",
    "publish": "write results into documents: claims, tables, figures, and the runs behind them",
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
        lines += ["", f"{heading}:", *(f"  {name:<12}{summary}" for name, summary in commands.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
