"""One run by hand: `python -m mmprompt prompt.length=64 task=micro_grounding seed=1`, an ordinary Hydra program.

The same run in a sweep has the same id: it is trained once, by hand or by the sweep. `attack.epsilon=0.01` or `evaluation.beam=5`
evaluates its finished weights; it is trained only if they are not there.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from mmprompt.command_line import check_overrides, run_program
from mmprompt.execution.progress_bar import progress_bar
from mmprompt.runs.deployment import JobSettings, store_folder
from mmprompt.runs.files import follow_mode
from mmprompt.runs.identity import evaluation_id, evaluations_of, freeze, provenance, run_id
from mmprompt.runs.store import Store


def one_run(values: dict[str, Any]) -> None:
    config, deployment = freeze(values)
    store = Store(store_folder(deployment.paths.runs))
    follow_mode(store.root)
    folder = store.run(run_id(config))
    folder.create(config)
    print(f"run {folder.id}")
    asked = evaluations_of(values, config)
    ids = {split: evaluation_id(folder.id, settings) for split, settings in asked.items()}
    if not folder.is_done(list(ids.values())):
        from mmprompt.execution.execute import execute  # torch only where something is trained or evaluated

        with progress_bar() as progress:
            is_trained = folder.result() is not None
            line = progress.add_task(
                "evaluating" if is_trained else "training", total=None if is_trained else config.optim.steps
            )

            def watch(state: Any) -> None:
                best = (
                    f"best validation {state.best_score:.1f} at step {state.best_step}"
                    if state.validation
                    else "training"
                )
                progress.update(line, completed=state.step, description=best)

            outcome = execute(
                store,
                [folder.id],
                JobSettings.of(deployment),
                by_hand(),
                watch,
                evaluations=list(asked.values()),
            )
        if outcome[folder.id] == "damaged":
            sys.exit(1)  # it has said what is
        if outcome[folder.id] == "open":
            jobs = [attempt.job for attempt in folder.attempts()[-1:]]
            who = f"process {jobs[0]['pid']} on {jobs[0]['host']}" if jobs else "somebody else"
            sys.exit(f"{who} is at this run, or died there; see {folder.path}")
        if outcome[folder.id] == "failed":
            attempt = folder.attempts()[-1]
            reason = attempt.reason
            what = "evaluation" if attempt.evaluates else "run"
            sys.exit(f"the {what} failed: {reason.message if reason else ''}\n  traceback: {attempt.error_text}")
    else:
        print("it is done already; another seed or setting makes another run")
    result = folder.result()
    assert result is not None
    for split, evaluation in ids.items():
        made = folder.evaluation(evaluation)
        for metric, value in made["metrics"].items() if made else ():
            print(f"  {f'{split}/{metric}':24s} {value:7.2f}  {described(asked[split])}".rstrip())
    chosen = f"chosen at step {result.get('best_step')} of {result.get('steps')}"
    print(f"  {chosen}; {result.get('trainable_parameters', 0):,} trained parameters\n  folder: {folder.path}")


def described(settings: dict[str, Any]) -> str:
    """What makes an evaluation another than the clean one of the whole split."""
    attack = " ".join(f"{key}={value}" for key, value in settings.get("attack", {}).items())
    rest = [f"{key}={value}" for key, value in settings.items() if key not in ("split", "attack")]
    return ", ".join([*rest, *([f"attack {attack}"] if attack else [])])


def by_hand() -> dict[str, Any]:
    """The job's facts for an attempt that no sweep launched."""
    return {
        "batch": f"by-hand-{os.getpid()}-{time.time_ns()}",
        "scheduler": "by hand",
        "job": None,
        "log": None,
        "code": None,
        **provenance(),
    }


if __name__ == "__main__":
    check_overrides()
    run_program(one_run, "config")
