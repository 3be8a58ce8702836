"""`python -m sweeps VERB ...`: plan sweeps, launch them, see how far they are, and what went wrong."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from mmprompt.runs.failures import RETRIED

ROOT = Path(__file__).resolve().parent.parent
OVERRIDES = """
overrides, in Hydra's grammar; several values make an axis, one value fixes it:
  seed=1,2,3,4,5                other values of an axis of the sweep
  'task=glob(micro_*)'          every file of conf/task that matches
  'optim.lr=0.05,0.1'           one axis more
  prompt.depth=encoder          a setting for every run
  cluster=local                 here; cluster=slurm: SLURM; default: SLURM where sinfo answers
  cluster.max_parallel=2        jobs at once; cluster.runs_per_job=4: runs in a SLURM job
  paths.runs=/scratch/me/runs   the store; also MMPROMPT_RUNS; default: runs/ in the clone
"""
VERBS = {
    "plan": "say what a launch would do, and what it costs; changes nothing",
    "launch": "run what is not done yet",
    "search": "look for the best settings, trial by trial, and confirm them",
    "measure": "what the rows of a sweep take, side by side: seconds, memory",
    "status": "how far it is, and what went wrong",
    "logs": "what a run's job printed",
    "cancel": "stop runs or sweeps",
    "diff": "why a run is not the same as another",
    "clean": "free what nobody needs any more",
    "doctor": "find out what a new cluster needs",
    "sync": "send the records that the W&B server has not",
}
STORY = {
    "plan": """Says what `launch` would do: which runs are done, failed, queued or to do, in how many jobs, what they cost,
whether the disk has room, and what sbatch would be asked for. Changes nothing.""",
    "launch": """Runs what sweeps ask for and what is not done yet. Asking twice runs nothing twice; changing a value runs
only what changed; an interrupted sweep goes on where it was. Several sweeps are one launch, and what they
share is done once. Settings and code are frozen: what is edited while jobs queue is not in them. On local
processes it waits, and Ctrl-C stops them; on SLURM it asks once (YES=1: not at all), submits and returns, and
with --wait it follows, and submits again what was killed. The exit code is 1 if a run failed otherwise than by
diverging: that is an outcome, and happens again.""",
    "search": """Begins a search, or goes on with it: workers make one trial after the other, here or as SLURM jobs; when the budget
is spent the best are trained on fresh seeds beside the default. Asked again it goes on, or says that it is
done. `search plan NAME` says what it would do and what it costs, and changes nothing; `search promote NAME`
writes what was confirmed into conf/tuned/. On SLURM it submits the workers and returns; with --wait it follows.
The exit code is 1 if trials failed or something is not done.""",
    "measure": """Measures what the rows of a sweep take, on one finished run of each: seconds per 100 answers and per update of
training, round by round in turns on one device, and peak memory, each in a process of its own; with ratios to the
baseline. Nothing is trained or changed; the result is STORE/costs/NAME/N.json, which the tables show. Measure on a
machine that does nothing else: what it does besides is recorded. On local processes it waits and prints the
result; on SLURM it submits one job and returns, with --wait it follows. The exit code is 1 if a row has no finished
run: it is named, and the others are measured.""",
    "status": """A row for each run: what tells it from the others, state, job, node, attempt, step, score, time. Then the
failures, by cause, with the command to type next. Without a name: the newest sweep that is not done, and a
line for each other one. On a terminal runs that are done or wait are counted where their rows have no place;
elsewhere, and with --json, all are there. The exit code is 1 if a run has stopped: failed, or to do with a
cause.""",
    "logs": """What the job of a run printed, and why its attempt ended. A run is named by the beginning of its id.""",
    "cancel": """Stops runs: by the beginning of their ids, by sweep, or those of a state. Nothing else is touched, and nobody
else's jobs ever. A run that was at work keeps its checkpoint: the next launch goes on from there. It asks
once; YES=1 skips the question.""",
    "diff": """Which setting, checkpoint or data set of a run differs from another run, or from the nearest finished one: why
it runs again. A run is named by the beginning of its id.""",
    "clean": """Says what could be freed: leftovers of killed processes, checkpoints of finished runs, old code and logs; then
asks, and frees it (YES=1 skips the question). Results, their weights and records stay, and whatever a job may
still need.""",
    "doctor": """Tries your cluster settings: asks SLURM on this machine, then sends a probe job of five minutes at most with
exactly these settings. Each thing that is wrong comes with the line for conf/cluster/mine.yaml.
cluster=local: the same checks in a process here.""",
    "sync": """Sends the W&B records of the store, or of the sweeps named, to the server that `wandb login` or WANDB_BASE_URL
and WANDB_API_KEY name. What is there is not sent again, what an attempt is still writing waits for its end;
interrupted, the same command goes on. The exit code is 1 if the server cannot be had, or did not take a
record.""",
}


def parser(verb: str) -> argparse.ArgumentParser:
    composes = verb in ("plan", "launch", "search", "measure", "doctor")
    there = f"searches: {', '.join(searches())}" if verb == "search" else f"sweeps: {', '.join(sweeps())}"
    parser = argparse.ArgumentParser(
        prog=f"python -m sweeps {verb}",
        description=STORY[verb],
        epilog=f"{there}\n{OVERRIDES}" if composes else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    if not composes:
        store = os.environ.get("MMPROMPT_RUNS") or str(ROOT / "runs")
        add("--runs", type=folder, default=store, help="the store; default: MMPROMPT_RUNS, or runs/ in the clone")
    match verb:
        case "plan" | "launch":
            add("names", metavar="NAME", nargs="+", help="sweeps, as one launch: files of conf/sweep/")
            add("overrides", metavar="KEY=VALUE", nargs="*", help="changes to all of them, see below")
            which = f"one of {', '.join(RETRIED)}"
            retry = f"also runs that diverged, failed too often or may be lost; with {which}: of those that ended only these"
            add("--retry", metavar="CAUSE", nargs="?", const="all", help=retry)
            add("--limit", metavar="N", type=positive, help="of the runs to do, the first N")
            if verb == "launch":
                add(
                    "--wait",
                    action="store_true",
                    help="on SLURM: follow the jobs to their end, start killed ones again",
                )
        case "search":
            add("names", metavar="[plan|promote] NAME", nargs="+", help="a file of conf/search/")
            changes = "settings of its runs, or of the search itself (budget.trials=20), see below"
            add("overrides", metavar="KEY=VALUE", nargs="*", help=changes)
            add("--as", dest="called", metavar="NAME", help="the name of the study; default: that of the search")
            add("--wait", action="store_true", help="on SLURM: follow the workers to the end, start killed ones again")
            add("--limit", metavar="N", type=positive, help="at most N new trials now")
            again = "also trials that failed too often; with a cause: only those"
            add("--retry", metavar="CAUSE", nargs="?", const="all", help=again)
            add("--verify", action="store_true", help="ask for each trial again, from what was known; trains nothing")
            journal = "copy the trials into Optuna's storage: a journal file for optuna-dashboard, or a URL"
            add("--journal", metavar="FILE", help=journal)
            add("--force", action="store_true", help="promote what fresh seeds do not tell apart from the default")
        case "measure":
            add("names", metavar="NAME", nargs="+", help="a file of conf/sweep/")
            add("overrides", metavar="KEY=VALUE", nargs="*", help="changes to it, see below")
            add("--rounds", metavar="N", type=positive, default=7, help="that count (%(default)s)")
            add("--wait", action="store_true", help="on SLURM: follow the job to its end")
        case "doctor":
            add("overrides", metavar="KEY=VALUE", nargs="*", help="settings to try, see below")
        case "status":
            add("names", metavar="NAME", nargs="*", help="sweeps that were launched")
            add("--watch", action="store_true", help="again and again, until all are done or Ctrl-C")
            add("--json", action="store_true", help="for programs")
        case "logs":
            add("run", metavar="RUN", help="the beginning of its id")
            add("-f", "--follow", action="store_true", help="go on while it is at work")
            add("--attempt", metavar="N", type=positive, help="not the newest, but this one")
        case "cancel":
            add("what", metavar="RUN|SWEEP", nargs="*", help="the beginning of a run's id, or a sweep")
            add(
                "--state",
                choices=("queued", "running"),
                help="of these only what is in this state; alone: of the store",
            )
        case "diff":
            add("run", metavar="RUN", help="the beginning of its id")
            add("other", metavar="RUN", nargs="?", help="default: the finished run that differs least")
        case "clean":
            add(
                "--days",
                metavar="N",
                type=positive,
                default=30,
                help="logs and code not used for so long (%(default)s)",
            )
            add(
                "--cache",
                action="store_true",
                help="also what frozen backbones made of examples; it is made again when needed",
            )
        case "sync":
            add("names", metavar="NAME", nargs="*", help="sweeps that were launched; none: the whole store")
    return parser


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def sweeps() -> list[str]:
    return sorted(file.stem for file in (ROOT / "conf" / "sweep").glob("*.yaml"))


def searches() -> list[str]:
    return sorted(file.stem for file in (ROOT / "conf" / "search").glob("[!_]*.yaml"))


def folder(text: str) -> Path:
    """`mmprompt.runs.deployment.store_folder`, without all that it brings."""
    return Path(os.path.expanduser(text)).absolute()


def usage() -> str:
    verbs = "\n".join(f"  {verb:<8} {what}" for verb, what in VERBS.items())
    more = "`python -m sweeps VERB --help` says more."
    return f"usage: python -m sweeps VERB ...\n\n{verbs}\n\nsweeps: {', '.join(sweeps())}\n{more}"


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb not in VERBS:
        from mmprompt.runs.config import nearest

        print(f"sweeps: there is no verb {verb}{nearest(verb, VERBS)}\n\n{usage()}", file=sys.stderr)
        return 2
    asked = vars(parser(verb).parse_intermixed_args(rest))
    if verb in ("plan", "launch", "search", "measure"):
        settle_words(asked, verb)
    if "retry" in asked:
        settle_retry(asked)
    from mmprompt.runs.config import ConfigError  # pydantic, and all that takes time: help does without
    from mmprompt.runs.files import StoreError, follow_mode, vanished

    try:
        if "runs" in asked:
            follow_mode(asked["runs"])
        code = function(verb)(**asked)
        sys.stdout.flush()
        return code
    except (ConfigError, StoreError) as error:
        print(f"sweeps: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `plan | head` ends quietly, and what python would still flush goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.filename is None:
            raise
        print(f"sweeps: {vanished(error)}", file=sys.stderr)
        return 2


def settle_words(asked: dict[str, object], verb: str) -> None:
    """Tells the names of sweeps from the overrides, in whatever order they came. Exits if there is no name, or one too many."""
    words: list[str] = [*asked["names"], *asked["overrides"]]  # type: ignore[misc]
    names = [word for word in words if "=" not in word and not word.startswith("~")]
    asked |= {"names": names, "overrides": [word for word in words if word not in names]}
    what, there = ("search", searches()) if verb == "search" else ("sweep", sweeps())
    if not names or (verb == "search" and names in (["plan"], ["promote"])):
        print(f"sweeps: which {what}? there are {', '.join(there)}", file=sys.stderr)
        sys.exit(2)
    if verb == "search" and len(names) > 1 + any(word in ("plan", "promote") for word in names):
        print(f"sweeps: one search at a time; {' '.join(names)} came", file=sys.stderr)
        sys.exit(2)


def settle_retry(asked: dict[str, object]) -> None:
    """`--retry KEY=VALUE` means no cause. Exits for a word that is none."""
    retry = asked["retry"]
    if isinstance(retry, str) and "=" in retry:
        asked["overrides"], asked["retry"] = [retry, *asked["overrides"]], "all"  # type: ignore[misc]
    elif retry not in (None, "all", *RETRIED):
        print(f"sweeps: --retry {retry}: no such cause; wanted one of {', '.join(RETRIED)}", file=sys.stderr)
        sys.exit(2)


def function(verb: str) -> Callable[..., int]:
    """Each verb is a function of its own module; what another verb needs is not imported."""
    from importlib import import_module

    verbs: Callable[..., int] = getattr(import_module(f"sweeps.verbs.{verb}"), verb)
    return verbs


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that lacks a character shows ? instead
    sys.exit(main(sys.argv[1:]))
