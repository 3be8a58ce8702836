"""Files of conf/search/: they are read and checked, and faults are refused in one sentence before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.identity import run_id
from mmprompt.settings.parsing import ConfigError
from mmprompt.studies.schemas import Definition
from sweeps.grid.manifest import expand
from sweeps.search.definition import CheckedSearch, compose_search, default
from sweeps.search.plan import differences
from sweeps.search.search_file import names

PROVENANCE = {"commit": None, "dirty": False}
SEARCH: dict[str, Any] = {
    "claim": "A claim",
    "command": "make search-mine",
    "objective": {"score": "maximize"},
    "fixed": {"task": "micro_grounding", "method": "prompt"},
    "space": {
        "optim.lr": {"log": [1e-3, 3.0]},
        "prompt.length": {"int": [8, 128], "log": True},
        "prompt.reparameterization": ["none", "mlp"],
        "prompt.mlp_dim": {"int": [32, 256], "when": {"prompt.reparameterization": "mlp"}},
    },
    "budget": {"trials": 4},
}


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("search") / "conf"
    shutil.copytree(ROOT / "conf", copy)
    return copy


def compose(conf: Path, *overrides: str, called: str = "mine", **changes: Any) -> CheckedSearch:
    content = {key: value for key, value in (SEARCH | changes).items() if value is not None}
    (conf / "search" / "mine.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(content)))
    return compose_search("mine", called, overrides, conf, PROVENANCE)


def with_space(**parameters: Any) -> dict[str, Any]:
    return {"space": SEARCH["space"] | {key.replace("__", "."): value for key, value in parameters.items()}}


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("unknown key", with_space(prompt__lenght=[1, 2]), r"no key prompt.lenght; did you mean prompt.length"),
    ("empty range", with_space(optim__lr={"log": [1.0, 1.0]}), r"space.optim.lr.log=\[1.0, 1.0\] is empty; wanted"),
    ("reversed range", with_space(optim__lr={"float": [2.0, 1.0]}), r"space.optim.lr.float=\[2.0, 1.0\] is reversed"),
    ("log with 0", with_space(optim__lr={"log": [0.0, 1.0]}), r"space.optim.lr: a logarithmic range cannot begin at 0"),
    ("int log with 0", with_space(prompt__length={"int": [0, 9], "log": True}), r"cannot begin at 0"),
    ("no pair", with_space(optim__lr={"float": [1.0]}), r"wanted: \[LOW, HIGH\]"),
    (
        "words for numbers",
        with_space(optim__lr={"float": ["a", "b"]}),
        r"space.optim.lr.float=\['a', 'b'\] is not allowed",
    ),
    ("no numbers for int", with_space(prompt__length={"int": [1.5, 3]}), r"wanted: \[LOW, HIGH\], two whole numbers"),
    ("two kinds", with_space(optim__lr={"float": [0.1, 1.0], "int": [1, 2]}), r"space.optim.lr=.* is not allowed"),
    (
        "unknown option",
        with_space(prompt__length={"int": [8, 16], "stepp": 2}),
        r"space.prompt.length.stepp.*did you mean step",
    ),
    (
        "a step that misses",
        with_space(prompt__length={"int": [8, 13], "step": 4}),
        r"step=4 does not lead from 8 to 13",
    ),
    (
        "value twice",
        with_space(prompt__depth=["both", "both"]),
        r"space.prompt.depth=\['both', 'both'\] has a value twice",
    ),
    (
        "value no run can have",
        with_space(prompt__depth=["both", "none"]),
        r"space.prompt.depth: with none, prompt.depth='none' is not",
    ),
    (
        "end no run can have",
        with_space(prompt__dropout={"float": [0.0, 1.5]}),
        r"space.prompt.dropout: with 1.5, prompt.dropout=1.5",
    ),
    ("seed", with_space(seed=[1, 2]), r"space.seed cannot be searched: seeds says"),
    ("task", with_space(task=["micro_vqa"]), r"space.task cannot be searched"),
    ("place", with_space(cluster__gpus=[0, 1]), r"space.cluster.gpus: cluster.gpus says where runs are made"),
    ("evaluation", with_space(attack__epsilon=[0.0, 0.1]), r"attack.epsilon is asked of finished runs"),
    (
        "when of a later key",
        {"space": {"prompt.mlp_dim": {"int": [2, 9], "when": {"optim.lr": 0.1}}, "optim.lr": [0.1]}},
        r"comes later",
    ),
    (
        "when that cannot hold",
        with_space(prompt__mlp_dim={"int": [2, 9], "when": {"prompt.reparameterization": "mpl"}}),
        r"when.*=mpl can never hold",
    ),
    (
        "when against what is fixed",
        with_space(prompt__mlp_dim={"int": [2, 9], "when": {"method": "lora"}}),
        r"method=lora can never hold: method is fixed at prompt",
    ),
    (
        "when of nothing",
        with_space(prompt__mlp_dim={"int": [2, 9], "when": {"prompt.depht": "both"}}),
        r"is neither searched nor fixed",
    ),
    (
        "fixed and searched",
        {"fixed": SEARCH["fixed"] | {"optim.lr": 0.1}},
        r"space.optim.lr is in fixed or in each as well",
    ),
    ("no objective", {"objective": {}}, r"objective names no metric"),
    (
        "metric that nobody logs",
        {"objective": {"bleu": "maximize"}},
        r"objective.bleu is logged by no run; there are score",
    ),
    ("what is measured apart", {"objective": {"seconds_per_100": "minimize"}}, r"seconds_per_100 is logged by no run"),
    ("test as objective", {"objective": {"test/acc@0.5": "maximize"}}, r"not what a search may look at; wanted: score"),
    ("direction", {"objective": {"score": "up"}}, r"objective.score=up is no direction"),
    ("direction of the score", {"objective": {"score": "minimize"}}, r"a higher score is better"),
    ("sampler", {"sampler": "TPESample"}, r"sampler=TPESample does not exist; did you mean TPESampler"),
    (
        "argument of a sampler",
        {"sampler": {"TPESampler": {"n_startup": 3}}},
        r"sampler.TPESampler.n_startup does not exist; did you mean n_startup_trials",
    ),
    ("seed of a sampler", {"sampler": {"TPESampler": {"seed": 3}}}, r"sampler.TPESampler.seed is set by study_seed"),
    ("QMC", {"sampler": "QMCSampler"}, r"sampler=QMCSampler is not used here: .*sobol is the same"),
    (
        "rung that is no validation step",
        {"rungs": [30], "stop": {"halving": {"keep": 0.5}}},
        r"rungs=30 is no step .* multiples of optim.validate_every=25 below 150",
    ),
    ("rung at the end", {"rungs": [150], "stop": {"halving": {"keep": 0.5}}}, r"rungs=150 is no step"),
    ("rungs without stop", {"rungs": [50]}, r"rungs is given without stop"),
    ("stop without rungs", {"stop": "MedianPruner"}, r"stop is given without rungs"),
    (
        "pruner",
        {"rungs": [50], "stop": "MedianPruner2"},
        r"stop=MedianPruner2 does not exist; did you mean MedianPruner",
    ),
    (
        "share",
        {"rungs": [50], "stop": {"halving": {"keep": 3}}},
        r"stop.halving.keep=3 is not allowed; wanted: a share",
    ),
    (
        "pruner with several objectives",
        {"rungs": [50], "stop": "MedianPruner", "objective": {"score": "maximize", "seconds": "minimize"}},
        r"there are several objectives",
    ),
    (
        "steps and rungs",
        with_space(optim__steps=[50, 150]) | {"rungs": [25], "stop": {"halving": {"keep": 0.5}}},
        r"space.optim.steps and rungs do not go together",
    ),
    ("no budget", {"budget": {}}, r"budget has no limit"),
    ("budget", {"budget": {"trails": 3}}, r"budget.trails"),
    ("seeds", {"seeds": {"first": 3, "most": 1}}, r"most must be at least first"),
    ("key of a search", {"samplers": "random"}, r"samplers is not a key of a search; did you mean sampler"),
]


@pytest.mark.parametrize(
    ("changes", "sentence"), [(one, two) for _, one, two in WRONG], ids=[name for name, _, _ in WRONG]
)
def test_every_fault_in_a_search_is_refused_in_one_sentence(conf: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as raised:
        compose(conf, **changes)
    assert "\n" not in str(raised.value)


def test_an_override_of_a_searched_key_is_refused(conf: Path) -> None:
    with pytest.raises(ConfigError, match=r"search mine looks for optim.lr"):
        compose(conf, "optim.lr=0.1")


def test_the_default_has_the_configured_values_and_lies_in_the_space(conf: Path) -> None:
    search = compose(conf)
    settings = default(search.definition, search.composition, 0)
    assert settings == {"optim.lr": 0.3, "prompt.length": 64, "prompt.reparameterization": "none"}
    assert search.definition.contains(settings, 0)


def test_a_trial_has_the_same_run_ids_as_a_sweep_with_its_settings(conf: Path) -> None:
    search = compose(conf)
    sweep = expand("length", ["task=micro_grounding", "seed=1,2", "optim.lr=0.25"], conf)
    for (run, point), config in zip(sweep.points, sweep.configs.values(), strict=True):
        settings = {
            "optim.lr": 0.25,
            "prompt.length": point.values["prompt.length"],
            "prompt.reparameterization": "none",
        }
        assert run_id(search.composition.config(settings, 0, point.values["seed"])) == run == run_id(config)


def test_a_node_composes_the_same_runs_from_study_json_alone(conf: Path, tmp_path: Path) -> None:
    search = compose(
        conf, space={"method": ["prompt", "lora"], "optim.lr": {"log": [1e-3, 1.0]}}, fixed={"task": "micro_vqa"}
    )
    again = Definition.model_validate_json(search.definition.model_dump_json())
    from sweeps.search.settings import Composition

    for method in ("prompt", "lora"):
        settings = {"method": method, "optim.lr": 0.01}
        assert Composition(again).config(settings, 0, 3) == search.composition.config(settings, 0, 3)
        assert Composition(again).config(settings, 0, 3).method == method


def test_an_interpolation_is_resolved_with_the_settings_of_the_trial(conf: Path) -> None:
    search = compose(conf, space={"prompt.reparameterization": ["none", "mlp"]})
    rates = [search.composition.config({"prompt.reparameterization": how}, 0, 1).optim.lr for how in ("none", "mlp")]
    assert rates == [0.3, 0.01]  # conf/tuned/micro_prompt_micro_grounding.yaml


def test_each_makes_a_group_with_its_own_default(conf: Path) -> None:
    space = {"optim.lr": {"log": [1e-4, 3.0]}, "lora.rank": {"int": [2, 64], "when": {"method": "lora"}}}
    search = compose(conf, space=space, each={"method": ["prompt", "lora"]}, fixed={"task": "micro_grounding"})
    assert search.definition.groups == [{"method": "prompt"}, {"method": "lora"}]
    assert [sorted(default(search.definition, search.composition, group)) for group in (0, 1)] == [
        ["optim.lr"],
        ["lora.rank", "optim.lr"],
    ]


def test_settings_of_the_search_itself_can_be_overridden(conf: Path) -> None:
    search = compose(conf, "budget.hours=2", "sampler=sobol", "confirm.seeds=7", "seeds={first: 1, most: 3}")
    assert search.definition.budget.model_dump() == {"trials": None, "device_hours": None, "hours": 2}
    assert (search.definition.sampler.name, search.definition.confirm.seeds, search.definition.seed_values) == (
        "sobol",
        7,
        [1, 2, 3],
    )


def test_another_deployment_is_the_same_study_and_other_settings_are_not(conf: Path) -> None:
    begun = compose(conf).definition
    assert differences(begun, compose(conf, "cluster.mem_gb=7", "tracking=disabled").definition) == {}
    changed = differences(begun, compose(conf, **with_space(optim__lr={"log": [1e-3, 1.0]})).definition)
    assert changed == {"space.optim.lr": ("0.001 to 3 (log)", "0.001 to 1 (log)")}
    assert list(differences(begun, compose(conf, "optim.steps=300").definition)) == ["fixed"]


@pytest.mark.parametrize("name", names(ROOT / "conf"))
def test_every_search_in_conf_is_valid_and_opens_with_claim_cost_and_command(name: str) -> None:
    search = compose_search(name, name, ["cluster=local"], ROOT / "conf", PROVENANCE)
    opening, _, _ = (ROOT / f"conf/search/{name}.yaml").read_text().partition("\nobjective:")
    assert opening.startswith("claim: ") and "\n# Cost: " in opening
    assert search.spec.command == f"make search-{name}"
