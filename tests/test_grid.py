"""Sweep files and overrides become points, or are refused with one sentence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmprompt.runs.deployment import ROOT
from mmprompt.settings.parsing import ConfigError
from sweeps.grid.compose import parse
from sweeps.grid.sweep_file import Sweep, names, read, with_overrides

SWEEP = """
claim: A claim.
paper: {table: "6"}
command: make sweep-it
compare: prompt.length
"""
MOST = 20_000  # points
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Returns a function that writes a sweep file `it` with this grid into a copy of conf/, and returns the copy."""

    def put(grid: str) -> Path:
        shutil.copytree(ROOT / "conf", tmp_path / "conf", dirs_exist_ok=True)
        (tmp_path / "conf" / "sweep" / "it.yaml").write_text(SWEEP + grid)
        return tmp_path / "conf"

    return put


def points(sweep: Sweep) -> list[dict[str, Any]]:
    return [point.values for point in sweep.points()]


def changed(conf: Path, *overrides: str) -> Sweep:
    return with_overrides(read("it", conf, MOST), dict(parse(text, conf, MOST) for text in overrides), MOST)


def test_a_grid_is_a_union_of_products_times_zip_rows_minus_the_exclusions(write: Write) -> None:
    conf = write("""
grid:
  - product: {prompt.length: [10, 16], seed: [1, 2]}
    zip: {optim.lr: [0.1, 0.2], optim.steps: [5, 6]}
  - product: {prompt.length: [30]}
exclude: [{prompt.length: 16, optim.lr: 0.2}]
baseline: {prompt.length: 10}
""")
    rows = [(0.1, 5), (0.2, 6)]
    product = [(length, seed, *row) for length in (10, 16) for seed in (1, 2) for row in rows]
    keys = ("prompt.length", "seed", "optim.lr", "optim.steps")
    expected = [dict(zip(keys, values, strict=True)) for values in product if values[0] == 10 or values[2] == 0.1]
    assert points(read("it", conf, MOST)) == [*expected, {"prompt.length": 30}]


def test_a_fixed_value_is_an_override_of_every_point_and_not_an_axis(write: Write) -> None:
    conf = write("""
fixed: {optim.steps: 5, optim.lr: 0.1}
grid:
  - product: {prompt.length: [10]}
  - product: {prompt.length: [16]}
    fixed: {optim.lr: 0.2}
""")
    first, second = read("it", conf, MOST).points()
    assert first.values == {"prompt.length": 10} and second.values == {"prompt.length": 16}
    assert first.overrides == {"optim.steps": 5, "optim.lr": 0.1, "prompt.length": 10}
    assert second.overrides == {"optim.steps": 5, "optim.lr": 0.2, "prompt.length": 16}


@pytest.mark.parametrize("name", names(ROOT / "conf"))
def test_every_sweep_file_opens_with_its_claim_its_paper_its_cost_and_its_command(name: str) -> None:
    opening, _, _ = (ROOT / "conf" / "sweep" / f"{name}.yaml").read_text().partition("\ncompare:")
    for line in ("claim: ", "paper: ", f"command: make sweep-{name}", "# Cost: "):
        assert f"\n{line}" in f"\n{opening}"


def test_the_length_sweep_is_six_lengths_on_two_tasks_with_three_seeds() -> None:
    sweep = read("length", ROOT / "conf", MOST)
    assert len(sweep.points()) == 36
    assert sweep.axes["prompt.length"] == [10, 16, 30, 64, 100, 120]


GRID = """
grid:
  - product: {prompt.length: [10, 16], seed: [1, 2]}
  - product: {prompt.length: [30], seed: [1, 2]}
    fixed: {optim.lr: 0.5}
baseline: {prompt.length: 10}
exclude: [{prompt.length: 16, seed: 2}]
"""


def test_an_override_of_an_axis_replaces_its_values_in_every_block(write: Write) -> None:
    sweep = changed(write(GRID), "seed=7")
    assert points(sweep) == [{"prompt.length": length, "seed": 7} for length in (10, 16, 30)]


BY_METHOD = """
grid:
  - product: {method: [bitfit], bitfit.rule: [published, all], prompt.length: [10]}
  - product: {method: [prompt, lora], prompt.length: [10]}
  - zip: {method: [finetune, adapter], prompt.length: [10, 16]}
  - product: {prompt.length: [10]}
    fixed: {method: lora, optim.steps: 5}
"""


def test_an_override_with_existing_values_of_an_axis_on_which_blocks_differ_selects_points(write: Write) -> None:
    conf = write(BY_METHOD)
    prompt, adapter = {"method": "prompt", "prompt.length": 10}, {"method": "adapter", "prompt.length": 16}
    assert points(changed(conf, "method=prompt,adapter")) == [prompt, adapter]
    bitfit = {"method": "bitfit", "bitfit.rule": "all", "prompt.length": 10}
    assert points(changed(conf, "method=bitfit", "bitfit.rule=all")) == [bitfit]
    assert len(points(changed(conf, "bitfit.rule=all"))) == len(points(read("it", conf, MOST))) - 1
    with pytest.raises(ConfigError, match="sweep it: with these overrides no point of the grid is left"):
        changed(conf, "method=finetune", "prompt.length=16")
    assert points(changed(conf, "method=lora"))[-1] == {"prompt.length": 10}  # from the block that fixes method=lora


def test_a_new_key_with_several_values_is_an_axis_of_every_block_even_where_it_was_fixed(write: Write) -> None:
    sweep = changed(write(GRID), "optim.lr=0.1,0.2", "seed=1")
    assert points(sweep) == [
        {"prompt.length": length, "seed": 1, "optim.lr": lr} for length in (10, 16, 30) for lr in (0.1, 0.2)
    ]


def test_a_new_key_with_one_value_is_fixed_and_overrides_the_value_that_a_block_fixes(write: Write) -> None:
    sweep = changed(write(GRID), "optim.lr=0.1", "seed=1")
    assert [point.overrides["optim.lr"] for point in sweep.points()] == [0.1, 0.1, 0.1]
    assert "optim.lr" not in sweep.axes


def test_one_value_for_an_axis_of_a_zip_keeps_the_other_axes_of_the_zip(write: Write) -> None:
    conf = write("grid: [{product: {prompt.length: [10]}, zip: {optim.lr: [0.1, 0.2], optim.steps: [5, 6]}}]")
    assert [(p["optim.lr"], p["optim.steps"]) for p in points(changed(conf, "optim.lr=0.3"))] == [(0.3, 5), (0.3, 6)]
    with pytest.raises(ConfigError, match=r"zip need equally many values: optim.lr has 3 values, optim.steps has 2"):
        changed(conf, "optim.lr=1,2,3")


def test_an_axis_that_only_a_dropped_block_had_is_no_longer_shown() -> None:
    def narrowed(name: str, override: str) -> Sweep:
        return with_overrides(read(name, ROOT / "conf", MOST), dict([parse(override, ROOT / "conf", MOST)]), MOST)

    assert narrowed("learning_rate", "method=adapter,lora").each == ["method"]
    assert narrowed("learning_rate", "method=prompt").each == ["method", "prompt.reparameterization"]
    assert narrowed("methods", "method=prompt,finetune").compare == ["method"]
    assert narrowed("methods", "method=bitfit").compare == ["method", "bitfit.rule"]


def test_a_sweep_without_the_axis_that_it_compares_is_refused(write: Write) -> None:
    conf = write("""
grid:
  - product: {method: [prompt], prompt.length: [10, 16]}
  - product: {method: [bitfit], seed: [1]}
""")
    with pytest.raises(ConfigError, match=r"no point has prompt\.length, which it compares"):
        changed(conf, "method=bitfit")


def test_an_axis_has_each_value_once_in_order_even_values_that_cannot_be_hashed(write: Write) -> None:
    lists = "grid: [{product: {prompt.length: [3, 1], prompt.layers: [[0, 1], null, [0]]}}, "
    axes = changed(write(lists + "{product: {prompt.length: [1, 2], prompt.layers: [[0], [1]]}}]")).axes
    assert axes == {"prompt.length": [3, 1, 2], "prompt.layers": [[0, 1], None, [0], [1]]}


def test_exclusions_and_baseline_that_an_override_removed_are_dropped(write: Write) -> None:
    sweep = changed(write(GRID), "prompt.length=64,100")
    assert sweep.baseline is None and sweep.exclude == []
    assert changed(write(GRID), "seed=1,2,3").baseline == {"prompt.length": 10}


def test_kept_from_is_dropped_if_an_override_removes_its_value(write: Write) -> None:
    conf = write(f"{ATTACKED}\nkept_from: 0.0")
    assert read("it", conf, MOST).kept_from == 0.0
    assert changed(conf, "attack.epsilon=0.1,0.3").kept_from is None
    assert changed(conf, "attack.epsilon=0.0,0.3").kept_from == 0.0


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("seed=1,2,3", "seed", [1, 2, 3]),
        ("seed=range(0,5)", "seed", [0, 1, 2, 3, 4]),
        ("seed=range(5)", "seed", [0, 1, 2, 3, 4]),
        ("optim.lr=1e-3,0.5", "optim.lr", [0.001, 0.5]),
        ("prompt.layers=[0,1]", "prompt.layers", [[0, 1]]),
        ("prompt.layers=[0,1],null", "prompt.layers", [[0, 1], None]),
        ("prompt.decoder_length=null", "prompt.decoder_length", [None]),
        ("prompt={length: 3, depth: both}", "prompt", [{"length": 3, "depth": "both"}]),
        ("task.template='which {phrase}, please'", "task.template", ["which {phrase}, please"]),
        ('task.template="a","b,c"', "task.template", ["a", "b,c"]),
        ("tracking.project=${task.name}", "tracking.project", ["${task.name}"]),
        ("prompt.depth=choice(both,encoder)", "prompt.depth", ["both", "encoder"]),
        ("task=micro_vqa,micro_grounding", "task", ["micro_vqa", "micro_grounding"]),
    ],
)
def test_an_override_is_read_in_hydras_grammar(text: str, key: str, values: list[Any]) -> None:
    assert parse(text, ROOT / "conf", MOST) == (key, values)


def test_a_glob_chooses_the_files_of_a_group() -> None:
    _, tasks = parse("task=glob(micro_*)", ROOT / "conf", MOST)
    assert tasks == sorted(file.stem for file in (ROOT / "conf" / "task").glob("micro_*.yaml"))
    assert len(tasks) >= 4


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("prompt.lenght=3", "there is no key prompt.lenght; did you mean prompt.length"),
        ("task=micro_vqq", "task=micro_vqq does not exist; did you mean micro_vqa"),
        ("tasks=micro_vqa", "there is no key tasks; did you mean task"),
        ("sweep=length", "there is no key sweep"),
        ("task=glob(mikro_*)", r"'task=glob\(mikro_\*\)' matches nothing; allowed: .*micro_caption"),
        ("seed=glob(1*)", "glob chooses among the files of a group"),
        ("seed=interval(0,1)", "an interval has no list of values"),
        ("seed=[1", r"'seed=\[1' cannot be read \("),
        ("seed=a=b", "'seed=a=b' cannot be read"),
        ("seed", "'seed' cannot be read"),
        ("+seed=1", r"'\+seed=1' is not KEY=VALUE"),
        ("~seed", "'~seed' is not KEY=VALUE"),
    ],
)
def test_a_wrong_override_gets_one_sentence(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        parse(text, ROOT / "conf", MOST)
    assert "\n" not in str(caught.value)


ONE_POINT = "grid: [{product: {prompt.length: [10], seed: [1]}}]"
ATTACKED = "grid: [{product: {prompt.length: [10], attack.epsilon: [0.0, 0.1]}}]\nover: attack.epsilon"


@pytest.mark.parametrize(
    ("grid", "complaint"),
    [
        ("grid: []", "grid has no blocks"),
        ("grid: [{}]", "a block of the grid has no axes"),
        ("grid: [{product: {prompt.length: []}}]", "axis prompt.length has no values"),
        ("grid: [{product: {prompt.length: [10, 10]}}]", "axis prompt.length has the value 10 twice"),
        ("grid: [{product: {prompt.layers: [[0], null, [0]]}}]", r"axis prompt.layers has the value \[0\] twice"),
        ("grid: [{product: {task: [micro_vqa, x]}}]", "task=x does not exist"),
        ("grid: [{product: {prompt.length: [10]}, zip: {seed: [1], optim.steps: [1, 2]}}]", "zip need equally many"),
        ("grid: [{product: {seed: [1], prompt.length: [10]}, zip: {seed: [1]}}]", "seed is in product and in zip"),
        ("grid: [{product: {seed: [1]}}]", "compare=prompt.length is not an axis of the grid"),
        ("grid: [{product: {prompt.length: [10]}}]\nexclude: [{seed: 3}]", "exclude seed=3 matches no point"),
        ("grid: [{product: {prompt.length: [10]}}]\nexclude: [{prompt.length: 10}]", "exclude leaves no point"),
        ("grid: [{product: {prompt.length: [10]}}]\nbaseline: {prompt.length: 9}", "prompt.length=9 matches no point"),
        ("grid: [{product: {prompt.lenght: [10]}}]", "there is no key prompt.lenght; did you mean prompt.length"),
        ("grid: [{product: {prompt.length: [10], task: [x]}}]", "task=x does not exist"),
        ("grid: [{product: {prompt.length: [10]}}]\nfixed: {metod: prompt}", "there is no key metod"),
        ("grid: [{product: {prompt.length: 10}}]", r"product.prompt.length=10 \(int\) is not allowed; wanted: list"),
        ("grid: [{prodct: {prompt.length: [10]}}]", "prodct is not a key of a block of the grid; did you mean product"),
        ("grid: [{product: {prompt.length: [10]}}]\nbasline: {}", "basline is not a key of a sweep; did you mean base"),
        ("fixed: {method: prompt}", "grid is missing"),
        ("grid: [", "while parsing"),
        (f"{ONE_POINT}\nover: seed", "over=seed is not allowed: seed is always averaged over"),
        (f"{ONE_POINT}\neach: [prompt.length]", "each=prompt.length is not allowed: prompt.length is in compare"),
        (
            f"{ONE_POINT}\neach: [prompt.lenght]",
            "each=prompt.lenght is not an axis of the grid; did you mean prompt.length",
        ),
        (f"{ONE_POINT}\nover: attack.epsilon", "over=attack.epsilon is not an axis of the grid"),
        (f"{ONE_POINT}\nkept_from: 0.0", "kept_from=0.0 is a value of `over`, which is missing"),
        (f"{ATTACKED}\nkept_from: 0.2", "kept_from=0.2 is not a value of attack.epsilon"),
        (f"{ATTACKED}\ncurves: true", "both want the figure; there is one per sweep"),
        (f"{ONE_POINT}\nfacts: [device_huors]", "facts.*device_huors"),
    ],
)
def test_a_wrong_sweep_file_gets_one_sentence_that_names_the_file(write: Write, grid: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        read("it", write(grid), MOST)
    assert str(caught.value).startswith("conf/sweep/it.yaml: ") and "\n" not in str(caught.value)


def test_an_unknown_sweep_names_the_nearest_ones() -> None:
    with pytest.raises(ConfigError, match=r"there is no sweep lenth; did you mean length"):
        read("lenth", ROOT / "conf", MOST)
