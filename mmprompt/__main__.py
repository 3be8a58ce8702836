"""One run by hand: `python -m mmprompt prompt.length=64 task=micro_grounding seed=1`, an ordinary Hydra program.

The same run in a sweep has the same id: whoever comes second finds it done. `attack.epsilon=0.01` or `evaluation.beam=5` asks its
finished weights; they are trained only if they are not there. With `--params` it trains nothing and shows which
tensors would train, for any size and without its weights. With `--config-name pretrain` it makes the small backbone instead
(`make pretrain-micro`).
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmprompt.runs.config import ConfigError, Model, parse
from mmprompt.runs.deployment import ROOT, JobSettings, store_folder
from mmprompt.runs.files import StoreError, follow_mode
from mmprompt.runs.identity import config_as_written, evaluation_id, evaluations_of, freeze, provenance, run_id
from mmprompt.runs.overrides import check_override
from mmprompt.runs.store import Store

CONF = ROOT / "conf"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def program(composed: DictConfig) -> None:
    values: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    try:
        if "recipe" in values:
            pretrain(values)
        else:
            one_run(values)
    except (ConfigError, StoreError) as error:  # an exit, because Hydra adds a line of its own to every exception
        sys.exit(f"mmprompt: {error}")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def parameters(composed: DictConfig) -> None:
    """A row per tensor that trains, and how many numbers that is of how many."""
    from rich.console import Console
    from rich.table import Table

    from mmprompt.methods.tuned_model import outline
    from mmprompt.models.ofa_checkpoint import left_out

    values: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    try:
        config = config_as_written(values, checksum="none")
    except ConfigError as error:
        sys.exit(f"mmprompt: {error}")
    tuned = outline(config)
    table = Table("tensor", "shape", "numbers", box=None)
    table.columns[2].justify = "right"
    for name, parameter in tuned.trained.items():
        table.add_row(name, " x ".join(map(str, parameter.shape)), f"{parameter.numel():,}")
    console = Console(width=None if sys.stdout.isatty() else 120, soft_wrap=True)
    console.print(table)
    trained = sum(parameter.numel() for parameter in tuned.trained.values())
    here = sum(
        parameter.numel() for name, parameter in tuned.backbone.named_parameters() if name in tuned.backbone_names
    )
    whole = here + left_out(config.model)
    share = f"{trained / here:.3%} of the {here:,} that {config.model.name} has here"
    print(f"method={config.method} trains {trained:,} numbers in {len(tuned.trained)} tensors: {share},")
    print(f"{trained / whole:.3%} of the {whole:,} with those for generating images")
    if tuned.live:
        moved = sum(name.endswith("running_mean") for name, _ in tuned.backbone.named_buffers())
        print(f"the running statistics of {moved} BatchNorms move as well (backbone.mode=train)")


def pretrain(values: dict[str, Any]) -> None:
    from mmprompt.training.pretrain import Recipe, make_backbone

    with bar() as progress:
        line = progress.add_task("pretraining", total=values["recipe"]["steps"])

        def watch(step: int, text: str) -> None:
            progress.update(line, completed=step, description=text)

        recipe, model = parse(Recipe, values["recipe"]), parse(Model, values["model"])
        said = make_backbone(recipe, model, Path(values["folder"]), watch)
    print(said)


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

        with bar() as progress:
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


def bar() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def main() -> None:
    """Hydra's program, with one sentence instead of a stack for whoever mistypes a setting."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here
    try:
        for word in sys.argv[1:]:
            if "=" in word and not word.startswith("-") and "pretrain" not in sys.argv:  # that has keys of its own
                key, value = word.lstrip("+~").split("=", 1)
                check_override(key, value, CONF)
        if "--params" in sys.argv:
            sys.argv.remove("--params")
            parameters()
        else:
            program()
    except ConfigError as error:
        sys.exit(f"mmprompt: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"mmprompt: {' '.join(sys.argv[1:])}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
