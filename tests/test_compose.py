"""Composing once per choice of groups equals composing every point with Hydra. MMPROMPT_LONG=1 tries ten times as many points."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from groups import LONG
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.identity import freeze, run_id
from mmprompt.runs.overrides import as_text
from mmprompt.settings.parsing import ConfigError
from sweeps.grid.compose import Composer, read_by, references_in
from sweeps.grid.manifest import expand


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A copy of conf/ with more interpolations, and a learning rate that was chosen for one task."""
    copy = tmp_path / "conf"
    shutil.copytree(ROOT / "conf", copy)
    prompt = (copy / "method" / "prompt.yaml").read_text()
    (copy / "method" / "prompt.yaml").write_text(prompt.replace("mlp_dim: null", "mlp_dim: ${model.dim}"))
    shutil.rmtree(copy / "tuned", ignore_errors=True)
    (copy / "tuned").mkdir()
    (copy / "tuned" / "micro_prompt_micro_vqa.yaml").write_text("# @package _global_\noptim: {lr: 0.77}\n")
    return copy


def by_hydra(conf: Path, overrides: list[str]) -> Any:
    with initialize_config_dir(str(conf), version_base="1.3"):
        return OmegaConf.to_container(compose("config", overrides), resolve=True)


@pytest.mark.long
def test_leaves_set_on_a_composed_choice_equal_a_full_compose_at_every_point(conf: Path) -> None:
    axes: dict[str, dict[str, Any]] = {  # by key: from the text that Hydra reads to our value
        "task": {"micro_vqa": "micro_vqa", "micro_grounding": "micro_grounding"},
        "prompt.length": {"10": 10, "16": 16},
        "prompt.layers": {"[0,1]": [0, 1], "null": None},
        "model.dim": {"96": 96, "48": 48},
        "prompt.decoder_length": {"${prompt.length}": "${prompt.length}"},
        "tracking.project": {"'${model.name}, ${task.name}'": "${model.name}, ${task.name}", "x": "x"},
        "optim.lr": {"1e-3": 0.001},
    }
    composer = Composer(conf)
    for texts in itertools.product(*axes.values()):
        overrides = {key: axes[key][text] for key, text in zip(axes, texts, strict=True)}
        whole = by_hydra(conf, [f"{key}={text}" for key, text in zip(axes, texts, strict=True)])
        assert composer.compose(overrides) == whole
    assert composer.compose({"prompt": {"length": 3}, "seed": 2}) == by_hydra(conf, ["prompt={length: 3}", "seed=2"])


# Settings that refer to each other in every way that OmegaConf allows, and a group whose files refer to the other settings.
WEB = """
defaults: [_self_, {size: small}]
a: 1
b: x
list: [1, "${a}", "${s.x}"]
s: {x: 2, y: x, z: "${t.y}", deep: {x: "${..y}", y: "${.x}"}}
t: {x: "${s.x}-${b}", y: "${list.0}", z: "${s.${b}}"}
"""
SIZES = {"small": "{x: '${oc.env:NO_SUCH_NAME,${t.z}}', y: '${s.deep}'}", "large": "{x: '${a}', y: '${oc.select:s.x}'}"}
LEAVES = ("a", "b", "list", "s.x", "s.y", "s.z", "s.deep.x", "t.x", "t.y", "t.z", "size.x", "size.y")
REFERENCES = [
    "${a}",
    "${s.x}",
    "${s.z}",
    "${size.x}",
    "${t.${b}}",
    "${t.${s.${b}}}",
    "${${b}.x}",
    "${list.0}",
    "${list[1]}",
]
REFERENCES += [
    "${s}",
    "${.x}",
    "${..a}",
    "a ${a} and ${list}",
    "${oc.env:NO_SUCH_NAME,${s.y}}",
    "${oc.select:s.y}",
    "${no}",
]
REFERENCES += [r"\${a}", r"\\${a}", "${oc.decode:'1${a}'}", "${oc.dict.values:t}", "${s.'x'}", "${ s.x }"]
plain = st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from([0.5, 1.0, "x", "y", "s", "1", ""])
values = plain | st.sampled_from(REFERENCES) | st.lists(plain | st.sampled_from(REFERENCES), max_size=2)
sections = st.fixed_dictionaries({"x": values}, optional={"z": values})
axes = st.dictionaries(st.sampled_from(LEAVES), st.lists(values, min_size=1, max_size=3), min_size=1, max_size=3)


def in_hydras_grammar(value: Any) -> str:
    match value:
        case str():
            return f"'{value}'" if "'" not in value else f'"{value}"'
        case list():
            return f"[{','.join(map(in_hydras_grammar, value))}]"
        case dict():
            return f"{{{','.join(f'{key}: {in_hydras_grammar(item)}' for key, item in value.items())}}}"
    return json.dumps(value)


def outcome(compose: Callable[[], Any]) -> str:
    """The composed configuration as JSON, or "refused". JSON keeps types: 1, 1.0 and true are three different settings."""
    try:
        return json.dumps(compose(), sort_keys=True)
    except (ConfigError, HydraException, OmegaConfBaseException):
        return "refused"


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    conf = tmp_path_factory.mktemp("web")
    (conf / "size").mkdir()
    (conf / "config.yaml").write_text(WEB)
    for name, text in SIZES.items():
        (conf / "size" / f"{name}.yaml").write_text(text)
    return conf


@pytest.mark.long
@settings(max_examples=100 if LONG else 5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example([{"a": [1, "1", 1.0, True]}], [], False)
@example([{"t.x": [["${a}"], "['${a}']"]}], [], False)
@example([{"list": [[5], [6], [True]], "s.y": ["${t.y}"]}], [], False)
@given(st.lists(axes, min_size=1, max_size=2), st.lists(sections, max_size=2), st.booleans())
def test_any_points_compose_as_hydra_composes_each_by_itself(
    web: Path, blocks: list[dict[str, list[Any]]], parts: list[dict[str, Any]], both_sizes: bool
) -> None:
    composer = Composer(web)
    blocks = blocks + [{"s": [*parts]}] * bool(parts)
    for block, size in itertools.product(blocks, ["small", "large"] if both_sizes else ["small"]):
        rows = list(itertools.product(*block.values()))
        for row in rows[:: 1 + len(rows) // 5]:
            point = {"size": size} | dict(zip(block, row, strict=True))
            texts = [f"size={size}", *(f"{k}={in_hydras_grammar(v)}" for k, v in point.items() if k != "size")]
            by_itself = outcome(lambda texts=texts: by_hydra(web, texts))  # type: ignore[misc]
            assert outcome(lambda point=point: composer.compose(point)) == by_itself, texts  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "references"),
    [
        ("${a.b}", {"a.b"}),
        ("x${a.b}y${c}", {"a.b", "c"}),
        ("${a.${b.c}}", {"b.c", "a"}),
        ("${a.b${c}.d}", {"c", "a"}),
        ("${oc.env:HOME,${a}}", {"a"}),
        ("${a.${oc.env:HOME}}", {"a"}),
        (r"\${a}", {"a"}),  # escaped, so not read; one reference too many does no harm
        *(
            (text, None)
            for text in ("${.a}", "${${a}}", "${a[0]}", "${oc.select:a}", "${ a}", "${oc.env:A,'}'}${", "${")
        ),
    ],
)
def test_the_keys_that_an_interpolation_can_read_are_found_in_its_text(text: str, references: set[str] | None) -> None:
    assert references_in(text) == references


def test_an_interpolation_reads_through_other_interpolations_sections_and_lists() -> None:
    texts = {
        "optim.lr": "${tuned.${kind}}",
        "tuned.mlp": "${base}",
        "first": "${list.0}",
        "near": "${.x}",
        "far": "${optim}",
    }
    leaves = ["kind", "base", "list", "seed", "optim.steps"]
    read = {key: read_by(key, texts, leaves) for key in texts}
    assert read == {
        "optim.lr": ["base", "kind"],
        "tuned.mlp": ["base"],
        "first": ["list"],
        "near": leaves,
        "far": ["base", "kind", "optim.steps"],
    }


def test_an_interpolation_is_resolved_once_for_all_points_that_agree_on_the_leaves_it_reads(
    conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composer, resolved, select = Composer(conf), [], OmegaConf.select
    monkeypatch.setattr(OmegaConf, "select", lambda config, key: resolved.append(key) or select(config, key))
    for seed, mlp, dim in itertools.product(range(20), ("none", "mlp"), (96, 48)):
        composer.compose({"task": "micro_grounding", "seed": seed, "prompt.reparameterization": mlp, "model.dim": dim})
    counts = Counter(key for key in resolved if key.split(".")[0] in ("paths", "prompt", "optim"))  # not Hydra's own
    assert counts == {"paths.backbone": 1, "prompt.mlp_dim": 2}


def test_a_point_does_not_see_the_values_of_earlier_points(conf: Path) -> None:
    composer = Composer(conf)
    alone = Composer(conf).compose({"seed": 3})
    composer.compose({"seed": 3, "prompt.length": 99, "optim.lr": 0.5})
    composer.compose({"task": "micro_vqa", "seed": 4})
    assert composer.compose({"seed": 3}) == alone
    first = composer.compose({"seed": 3, "prompt.length": 7})
    composer.compose({"seed": 5, "prompt.length": 9})
    assert (first["seed"], first["prompt"]["length"]) == (3, 7)


def test_a_tuned_learning_rate_is_its_tasks_default_and_an_override_replaces_it(conf: Path) -> None:
    composer = Composer(conf)
    assert composer.compose({"task": "micro_vqa"})["optim"]["lr"] == 0.77
    assert composer.compose({"task": "micro_vqa", "optim.lr": 0.5})["optim"]["lr"] == 0.5
    assert composer.compose({"task": "micro_grounding"})["optim"]["lr"] != 0.77


def test_overrides_that_cannot_be_composed_are_refused_with_one_sentence(conf: Path) -> None:
    wrong: list[dict[str, Any]] = [{"prompt.lenght": 3}, {"prompt": 3}, {"tracking.project": "${no.such.key}"}]
    for overrides in wrong:
        with pytest.raises(ConfigError) as caught:
            Composer(conf).compose(overrides)
        assert "\n" not in str(caught.value)


def test_a_run_by_hand_has_the_id_of_the_same_point_of_a_sweep() -> None:
    expanded = expand("length", ["prompt.length=10,16", "seed=1"], ROOT / "conf")
    for run, point in expanded.points:
        config, _ = freeze(by_hydra(ROOT / "conf", [f"{key}={value}" for key, value in point.values.items()]))
        assert run_id(config) == run


def test_points_whose_settings_mean_the_same_share_one_run() -> None:
    expanded = expand(
        "length", ["task=micro_vqa", "seed=1", "prompt.length=8", "prompt.decoder_length=null,8"], ROOT / "conf"
    )
    assert len(expanded.points) == 2 and len(expanded.configs) == 1


def test_blocks_that_make_different_runs_for_one_point_are_refused(conf: Path) -> None:
    text = (conf / "sweep" / "length.yaml").read_text()
    block = "  - product: {task: [micro_grounding], prompt.length: [10], seed: [11]}\n    fixed: {optim.steps: 7}\nbaseline:"
    (conf / "sweep" / "length.yaml").write_text(text.replace("baseline:", block))
    with pytest.raises(ConfigError, match=r"two blocks make different runs of .*make an axis of it"):
        expand("length", [], conf)


def test_no_two_runs_of_a_sweep_have_the_same_label(conf: Path) -> None:
    grid = """grid:
  - product: {prompt.length: [10, 16], seed: [1]}
  - product: {prompt.length: [10, 16], seed: [1], optim.lr: [0.1]}
  - product: {prompt.length: [10], seed: [1], prompt.layers: [null, [0], [0, 1]], task.template: ["a seed=1", "null"]}
"""
    text = (conf / "sweep" / "length.yaml").read_text()
    (conf / "sweep" / "length.yaml").write_text(text[: text.index("grid:")] + grid)
    labels = expand("length", [], conf).labels
    assert len(set(labels.values())) == len(labels) == 10
    assert list(labels.values())[1:3] == ["prompt.length=16", "prompt.length=10 optim.lr=0.1"]  # all runs have seed=1
    assert list(labels.values())[-1] == 'prompt.length=10 prompt.layers=[0,1] task.template="null"'


@example(None, "null")
@example(True, "true")
@example(1, "1")
@example([1], "[1]")
@given(values, values)
def test_texts_of_different_values_differ(one: Any, other: Any) -> None:
    assert (as_text(one) == as_text(other)) == (json.dumps(one) == json.dumps(other))


def test_a_sweep_with_two_deployments_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cluster.kind is local and slurm; all runs of a launch need the same value"):
        expand("length", ["cluster=local,slurm"], ROOT / "conf")
