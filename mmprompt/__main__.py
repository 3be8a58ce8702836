"""Trains one run by hand: `python -m mmprompt prompt.length=64 task=micro_grounding seed=1`, an ordinary Hydra program.

The same run in a sweep has the same id, so it is trained only once, by hand or by the sweep. With `attack.epsilon=0.01` or
`evaluation.beam=5` the finished run's weights are evaluated; the run is trained only if it is not finished.
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
    """Trains and evaluates the run with these settings if need be, and prints its scores.

    Exits with a sentence if the run or the evaluation failed, or if another process works on the run.
    """
    config, deployment = freeze(values)
    store = Store(store_folder(deployment.paths.runs))
    follow_mode(store.root)
    folder = store.run(run_id(config))
    folder.create(config)
    print(f"run {folder.id}")
    evaluations = evaluations_of(values, config)
    ids = {split: evaluation_id(folder.id, settings) for split, settings in evaluations.items()}
    if not folder.is_done(list(ids.values())):
        from mmprompt.execution.execute import execute  # imported only here, because it imports torch

        with progress_bar() as progress:
            is_trained = folder.result() is not None
            line = progress.add_task(
                "evaluating" if is_trained else "training", total=None if is_trained else config.optim.steps
            )

            def watch(state: Any) -> None:
                text = (
                    f"best validation {state.best_score:.1f} at step {state.best_step}"
                    if state.validation
                    else "training"
                )
                progress.update(line, completed=state.step, description=text)

            outcome = execute(
                store,
                [folder.id],
                JobSettings.of(deployment),
                by_hand(),
                watch,
                evaluations=list(evaluations.values()),
            )
        if outcome[folder.id] == "damaged":
            sys.exit(1)  # a message was printed when the damage was found
        if outcome[folder.id] == "open":
            jobs = [attempt.job for attempt in folder.attempts()[-1:]]
            worker = f"process {jobs[0]['pid']} on {jobs[0]['host']}" if jobs else "another process"
            sys.exit(f"{worker} works on this run, or died while it did; see {folder.path}")
        if outcome[folder.id] == "failed":
            attempt = folder.attempts()[-1]
            reason = attempt.reason
            subject = "evaluation" if attempt.evaluates else "run"
            sys.exit(f"the {subject} failed: {reason.message if reason else ''}\n  traceback: {attempt.error_text}")
    else:
        print("this run is done already; with another seed or setting it is another run")
    result = folder.result()
    assert result is not None
    for split, key in ids.items():
        evaluation = folder.evaluation(key)
        for metric, value in evaluation["metrics"].items() if evaluation else ():
            print(f"  {f'{split}/{metric}':24s} {value:7.2f}  {special_settings(evaluations[split])}".rstrip())
        if evaluation and "unscored" in evaluation["settings"]:
            command = f"`python -m analysis export {folder.id[:8]}` writes them"
            print(f"  {split:24s} no score; {evaluation.get('n', 0):,} answers: {command}")
    chosen = f"chosen at step {result.get('best_step')} of {result.get('steps')}"
    print(f"  {chosen}; {result.get('trainable_parameters', 0):,} trained parameters\n  folder: {folder.path}")


def special_settings(settings: dict[str, Any]) -> str:
    """The settings in which an evaluation differs from the default evaluation of its split; empty if it is that one."""
    attack = " ".join(f"{key}={value}" for key, value in settings.get("attack", {}).items())
    others = [f"{key}={value}" for key, value in settings.items() if key not in ("split", "attack")]
    return ", ".join([*others, *([f"attack {attack}"] if attack else [])])


def by_hand() -> dict[str, Any]:
    """What the records say of the job of a run that no sweep launched."""
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
