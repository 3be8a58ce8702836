"""`python -m sweeps VERB NAME [KEY=VALUE ...]`: plan a sweep, launch it, send its records to W&B."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

OVERRIDES = """
overrides, in Hydra's grammar; several values make an axis, one value fixes it:
  seed=1,2,3,4,5                other values of an axis of the sweep
  'task=glob(micro_*)'          every file of conf/task that matches
  'optim.lr=0.05,0.1'           one axis more
  prompt.depth=encoder          a setting for every run
  cluster=local                 here; cluster=slurm: SLURM; default: SLURM where sinfo answers
  cluster.max_parallel=2        jobs at once; cluster.runs_per_job=4: runs in a SLURM job
  paths.runs=/scratch/me/runs   the store; also MMPROMPT_RUNS; default: runs/ in this folder
"""
VERBS = {
    "plan": "say what a launch would do; changes nothing",
    "launch": "run what is not done yet",
    "sync": "send the records that the W&B server has not",
}
STORY = {
    "plan": """Says what `launch` would do: which runs are done, failed, running or to do, in how many jobs, and where.
Changes nothing.""",
    "launch": """Runs what a sweep asks for and what is not done yet. Asking twice runs nothing twice; changing a value
runs only what changed; an interrupted sweep goes on where it was. Settings and code are frozen: what is edited while
jobs queue is not in them. On local processes it waits, and Ctrl-C stops them; on SLURM it returns once they are there.
The exit code is 1 if a run failed.""",
    "sync": """Sends the W&B records of the store, or of the sweeps named, to the server that `wandb login` or WANDB_BASE_URL
and WANDB_API_KEY name. What is there is not sent again, what an attempt is still writing waits for its end; interrupted, the
same command goes on. The exit code is 1 if the server cannot be had, or did not take a record.""",
}


def parser(verb: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m sweeps {verb}",
        description=STORY[verb],
        epilog=f"sweeps: {', '.join(sweeps())}\n{OVERRIDES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if verb == "sync":
        parser.epilog = None
        parser.add_argument("names", metavar="NAME", nargs="*", help="sweeps that were launched; none: the whole store")
        store = Path(os.environ.get("MMPROMPT_RUNS", "runs"))
        parser.add_argument(
            "--runs", type=Path, default=store, help="the store; default: MMPROMPT_RUNS, or runs/ in this folder"
        )
        return parser
    parser.add_argument("name", metavar="NAME", help="a sweep: a file of conf/sweep/")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="changes to it, see below")
    parser.add_argument("--retry", action="store_true", help="also runs that failed too often, or that may be lost")
    if verb == "launch":
        parser.add_argument("--wait", action="store_true", help="on SLURM: follow the jobs to their end")
    return parser


def sweeps() -> list[str]:
    conf = Path(__file__).resolve().parent.parent / "conf"
    return sorted(file.stem for file in (conf / "sweep").glob("*.yaml"))


def usage() -> str:
    verbs = "\n".join(f"  {verb:<8} {what}" for verb, what in VERBS.items())
    more = "`python -m sweeps VERB --help` says more."
    return f"usage: python -m sweeps VERB NAME [KEY=VALUE ...]\n\n{verbs}\n\nsweeps: {', '.join(sweeps())}\n{more}"


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb not in VERBS:
        from mmprompt.config import nearest

        print(f"sweeps: there is no verb {verb}{nearest(verb, VERBS)}\n\n{usage()}", file=sys.stderr)
        return 2
    asked = vars(parser(verb).parse_intermixed_args(rest))
    from mmprompt.config import ConfigError  # pydantic, and all that takes time: help does without
    from mmprompt.run import StoreError

    try:
        if verb == "plan":
            from sweeps.outlook import plan

            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `plan | head` ends quietly
            return plan(**asked)
        if verb == "sync":
            from sweeps.sync import sync

            return sync(**asked)
        from sweeps.launch import launch

        return launch(**asked)
    except (ConfigError, StoreError) as error:
        print(f"sweeps: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before anything was submitted
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
