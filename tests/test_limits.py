"""Sweeps and files that are too large or cannot be read are refused with one sentence, within seconds, before they are built."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmprompt.runs.deployment import ROOT
from mmprompt.settings.parsing import ConfigError
from sweeps.grid import sweep_file
from sweeps.grid.manifest import expand
from sweeps.search import definition, search_file

SECONDS = 60.0  # of CPU time, at most, for each refusal, also on a loaded machine; to expand would take many minutes
ABOUT = {"commit": None, "dirty": False}
HEAD = "claim: A claim.\npaper: {}\ncommand: make sweep-it\ncompare: seed\n"
SEARCH = (ROOT / "conf" / "search" / "learning_rate.yaml").read_text()
BOMB = "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)
BEGINNINGS = {"sweep": "conf/sweep/it.yaml: ", "search": "conf/search/it.yaml: "}


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("limits") / "conf"
    shutil.copytree(ROOT / "conf", copy)
    return copy


@pytest.fixture(params=sorted(BEGINNINGS))
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@contextmanager
def within_seconds() -> Iterator[None]:
    began = time.process_time()
    yield
    assert time.process_time() - began < SECONDS


def refused(conf: Path, kind: str, content: bytes | str) -> str:
    """Writes this content into a sweep's or a search's file, and returns the reason why it is refused, without the file's name."""
    (conf / kind / "it.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    return refused_as_is(conf, kind)


def refused_as_is(conf: Path, kind: str) -> str:
    """Returns the reason why the file as it stands is refused."""
    with within_seconds(), pytest.raises(ConfigError) as caught:
        read(conf, kind)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(BEGINNINGS[kind])
    return str(caught.value).removeprefix(BEGINNINGS[kind])


def read(conf: Path, kind: str) -> None:
    if kind == "sweep":
        sweep_file.read("it", conf, 20_000)
    else:
        search_file.read("it", {}, conf)


# Points


def axis(key: str, count: int) -> str:
    return f"{key}: {[*range(1, count + 1)]}"


@pytest.mark.parametrize(
    ("text", "points"),
    [
        (
            f"grid: [{{product: {{{axis('seed', 300)}, {axis('prompt.length', 200)}, {axis('optim.steps', 200)}}}}}]",
            "12,000,000",
        ),
        (f"grid: [{{product: {{{axis('seed', 150)}}}, zip: {{{axis('prompt.length', 150)}}}}}]", "22,500"),
        pytest.param(
            f"grid: [{{product: {{{axis('seed', 15000)}}}}}, {{zip: {{{axis('seed', 15000)}}}}}]",
            "30,000",
            marks=pytest.mark.long,
        ),
        pytest.param(
            f"grid: [{{product: {{{axis('seed', 30000)}}}}}]\nexclude: [{{seed: 7}}]", "30,000", marks=pytest.mark.long
        ),
    ],
    ids=["product", "zip", "blocks", "excluded"],
)
def test_a_grid_with_too_many_points_is_refused_with_their_number(conf: Path, text: str, points: str) -> None:
    message = f"grid has {points} points; limit is 20,000 (limits.points); narrow an axis or raise limits.points"
    assert refused(conf, "sweep", HEAD + text) == message


def test_an_axis_of_a_hundred_million_values_is_refused_before_its_values_are_made(conf: Path) -> None:
    for values in ("range(1,100000001)", "shuffle(range(100000000))", "range(0,1,1e-8)", "float(range(1,100000001))"):
        with within_seconds(), pytest.raises(ConfigError) as caught:
            expand("length", [f"seed={values}"], conf)
        assert f"{values}' has 100,000,000 points; limit is 20,000 (limits.points)" in str(caught.value)
    for endless in ("range(0,inf)", "range(0,1,0)", "range(0,1,0.0)", "range(0,nan)"):
        with within_seconds(), pytest.raises(ConfigError, match="has no end; wanted"):
            expand("length", [f"seed={endless}"], conf)


def test_overrides_that_multiply_to_too_many_points_are_refused_with_the_sweeps_name(conf: Path) -> None:
    with within_seconds(), pytest.raises(ConfigError) as caught:
        expand("length", ["prompt.length=range(1,1001)", "seed=range(1,6001)"], conf)
    message = (
        "sweep length has 12,000,000 points; limit is 20,000 (limits.points); narrow an axis or raise limits.points"
    )
    assert str(caught.value) == message


def test_an_override_changes_the_limit_and_a_sweeps_file_cannot(conf: Path) -> None:
    with pytest.raises(ConfigError, match=r"sweep length has 84 points; limit is 83 "):
        expand("length", ["seed=range(1,8)", "limits.points=83"], conf)
    narrowed = expand("length", ["seed=range(1,7)", "limits.points=72"], conf)
    assert len(narrowed.points) == 72
    for wrong in ("0", "-1", "many", "1,2", "null", "1.5", "٣", "9" * 5000):
        with pytest.raises(
            ConfigError, match=r"limits\.points=.* is not allowed; wanted: a whole number of at least 1"
        ):
            expand("length", [f"limits.points={wrong}"], conf)
    for place in ("fixed: {limits.points: 9}\n", "fixed: {limits: {points: 9}}\n", ""):
        axes = "{seed: [1]}" if place else "{seed: [1], limits.points: [9]}"
        why = refused(conf, "sweep", f"{HEAD}{place}grid: [{{product: {axes}}}]")
        assert why.startswith("limits.points is not a setting of a sweep; give it on the command line")


def test_the_limit_does_not_change_the_id_of_a_run(conf: Path) -> None:
    assert expand("length", ["limits.points=99"], conf).configs.keys() == expand("length", [], conf).configs.keys()


@pytest.mark.parametrize(
    "override",
    ["seeds=1000000000", "confirm.seeds=1000000000", "confirm.top=1000000000", "budget.trials=10000000", "workers=1000000000"],
)  # fmt: skip
def test_a_search_of_too_many_runs_or_workers_is_refused(conf: Path, override: str) -> None:
    with (
        within_seconds(),
        pytest.raises(ConfigError, match=r"has \d+,[\d,]+ runs or workers; limit is 20,000 \(limits.points\)"),
    ):
        definition.compose_search("prompt", "prompt", [override], conf, ABOUT)


def test_a_search_for_each_of_too_many_groups_is_refused(conf: Path) -> None:
    groups = f"each: {{optim.steps: {[*range(1, 3001)]}, threads: {[*range(1, 3001)]}}}\n"
    (conf / "search" / "it.yaml").write_text(SEARCH.split("\neach:")[0].split("\nfixed:")[0] + "\n" + groups + TAIL)
    with (
        within_seconds(),
        pytest.raises(ConfigError, match=r"search it: the search has [\d,]+ runs or workers; limit is 20,000"),
    ):
        definition.compose_search("it", "it", [], conf, ABOUT)


TAIL = "space: {optim.lr: {log: [0.001, 3.0]}}\nbudget: {trials: 4}\n"


# Files


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (BOMB, "it has 490,329,064 values with its aliases expanded; limit is 100,000"),
        ("a: &a {x: 1, y: 2}\nb: {<<: [" + "*a, " * 50_000 + "]}", "it has 250,011 values with its aliases expanded"),
        ("a: [" + "1, " * 200_000 + "]", "it has 200,003 values"),
        ("a: &a [*a]", "the alias *a refers to no anchor that is complete before it"),
        ("[" * 100_000, "it has lists or sections nested more than 20 deep"),
        ("- " * 100_000, "it has lists or sections nested more than 20 deep"),
        ("{a: " * 100_000, "it has lists or sections nested more than 20 deep"),
        ("a: '" + "${a:" * 500 + "}" * 500 + "'", "it has 500 interpolations in one text; limit is 20"),
        ("a: [" + "'${a}', " * 5_000 + "]", "it has 505,003 values"),
        ("# " + "x" * 3_000_000, "it has 3,000,002 bytes; limit is 2,000,000"),
        (
            "claim: Überlänge".encode("latin-1"),
            "it is not UTF-8: invalid continuation byte at byte 7; save it as UTF-8",
        ),
        ("claim: it".encode("utf-16"), "it is not UTF-8: invalid start byte at byte 0; save it as UTF-8"),
        (bytes(range(256)), "it is not UTF-8"),
        ("claim: 0b_", "invalid literal for int"),
        ("claim: " + "9" * 5_000, "Exceeds the limit (4300 digits)"),
        ("claim: !!timestamp x", "the tag !!timestamp is not allowed; quotes make a text"),
        ("claim: !!python/object/apply:os.system [ls]", "the tag !!python/object/apply:os.system is not allowed"),
        ("claim: 1\nclaim: 2", "found duplicate key claim"),
        ("\tclaim: 1", "found character that cannot start any token"),
        ("? [a]\n: 1", "found unhashable key"),
        ("a: 1\n---\nb: 2", "expected a single document in the stream"),
        ("[[]]", "is a list of KEY: VALUE lines"),
        ("claim", "it is a single text; wanted: KEY: VALUE lines"),
        ("'[[[[[[' ", "it is a single text; wanted: KEY: VALUE lines"),
        ("", ("compare is missing", "budget=None is not allowed")),
        ("# nothing", ("compare is missing", "budget=None is not allowed")),
        ("null: 1", "Incompatible key type"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_a_file_that_is_too_large_or_not_valid_is_refused(
    conf: Path, kind: str, content: bytes | str, why: str | tuple[str, str]
) -> None:
    assert (why if isinstance(why, str) else why[kind == "search"]) in refused(conf, kind, content)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ("seed: [1, .nan]", "seed=nan"),
        ("seed: [1, .inf]", "seed=inf"),
        ("seed: [-1]", "seed=-1"),
        ("seed: [٣, 1]", "seed='٣'"),
        ("seed: [1], optim.lr: ['${oc.env:HOME}']", "optim.lr="),
        ("seed: [1], optim.lr: [-0.1]", "optim.lr=-0.1"),
    ],
)
def test_a_value_that_no_run_can_have_is_refused_with_its_key(conf: Path, values: str, why: str) -> None:
    (conf / "sweep" / "it.yaml").write_text(f"{HEAD}grid: [{{product: {{{values}}}}}]")
    with pytest.raises(ConfigError, match=why) as caught:
        expand("it", [], conf)
    assert "\n" not in str(caught.value)


def test_a_sweep_may_have_a_name_with_spaces_and_umlauts(conf: Path) -> None:
    text = HEAD + "grid: [{product: {seed: [1]}}]"
    for name in ("my sweep", "Prüfung", "it's (1)"):
        (conf / "sweep" / f"{name}.yaml").write_text(text)
        assert len(expand(name, [], conf).points) == 1
        (conf / "sweep" / f"{name}.yaml").unlink()


def test_a_folder_a_pipe_and_an_unreadable_file_are_refused(conf: Path, kind: str) -> None:
    file = conf / kind / "it.yaml"
    file.unlink(missing_ok=True)
    file.mkdir()
    assert refused_as_is(conf, kind) == "it is a folder; wanted: a file"
    file.rmdir()
    os.mkfifo(file)
    assert refused_as_is(conf, kind) == "it is not a file"
    file.unlink()
    file.symlink_to("it.yaml")
    assert refused_as_is(conf, kind).startswith("it ")
    file.unlink()
    if os.geteuid():
        file.write_text("claim: it")
        file.chmod(0)
        assert refused_as_is(conf, kind) == "it cannot be read: Permission denied"
        file.unlink()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (BOMB, "it has 490,329,064 values with its aliases expanded; limit is 100,000"),
        ("&a [*a]", "the alias *a refers to no anchor"),
        ("partition: [", "while parsing a flow node"),
        ("partition: \xe9".encode("latin-1"), "it is not UTF-8"),
        ("partition: a\npartition: b", "found duplicate key partition"),
        ("setup: 0b_", "invalid literal for int"),
        ("- partition", "it is a list; wanted: KEY: VALUE lines"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_a_broken_mine_yaml_is_refused_in_one_sentence(conf: Path, content: bytes | str, why: str) -> None:
    file = conf / "cluster" / "mine.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with within_seconds(), pytest.raises(ConfigError) as caught:
        expand("length", [], conf)
    file.unlink()
    assert why in str(caught.value) and "\n" not in str(caught.value)
    assert "cluster/mine.yaml" in str(caught.value)


# Any content is read, or refused with one sentence, in little time


def check_read_or_refused(conf: Path, kind: str, content: bytes) -> None:
    (conf / kind / "it.yaml").write_bytes(content)
    with within_seconds():
        try:
            read(conf, kind)
        except ConfigError as error:
            assert str(error).startswith(BEGINNINGS[kind]) and "\n" not in str(error)


FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PIECES = [
    *(b"${", b"${oc.env:HOME}", b"&a ", b"*a", b"<<: ", b"!!int ", b"!!python/name:os ", b"[", b"]", b"{", b"}", b": "),
    *(b"- ", b"? ", b"\t", b"\n", b"\0", b"\xff", b"|", b">", b'"', b"'", b"#", b"%YAML 1.1\n", b"---\n", b"...", b"@"),
    *(b".nan", b"-.inf", b"0x_", b"0b_", b"1:2:3", b"2001-01-01", b"null", b"~", b"=", b"9" * 400, b"\xef\xbb\xbf"),
]
REAL = {
    kind: [file.read_bytes() for file in sorted((ROOT / "conf" / kind).glob("*.yaml"))] for kind in ("sweep", "search")
}


@FUZZ
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_read_or_refused(conf: Path, kind: str, content: bytes) -> None:
    check_read_or_refused(conf, kind, content)


@FUZZ
@given(content=st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join))
def test_any_mixture_of_yaml_syntax_is_read_or_refused(conf: Path, kind: str, content: bytes) -> None:
    check_read_or_refused(conf, kind, content)


@FUZZ
@given(data=st.data())
def test_any_damage_to_a_real_file_is_read_or_refused(conf: Path, kind: str, data: st.DataObject) -> None:
    content = data.draw(st.sampled_from(REAL[kind]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        removed = data.draw(st.sampled_from([0, 0, 1, 2, 10, 100]))
        inserted = data.draw(st.sampled_from(PIECES) | st.binary(max_size=4) | st.just(content[at : at + 60]))
        content = content[:at] + inserted + content[at + removed :]
    check_read_or_refused(conf, kind, content)
