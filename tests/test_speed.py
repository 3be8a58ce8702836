"""`cluster.speed`: compiled layers make the updates of eager ones but for rounding, and a run says at which speed it was trained.

What needs no C++ compiler and no GPU goes through torch's backend `aot_eager`, which traces and guards like the others.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from attempts import error_of
from safetensors.torch import load_file
from tiny import JOB, SMALL, composed, data_of, frozen_run, job_settings, settings
from torch import Tensor
from torch._dynamo.utils import counters

from mmprompt.data.tasks import collate
from mmprompt.execution.execute import execute, process_facts
from mmprompt.execution.run_context import FAKE_GPUS, backbone_of
from mmprompt.methods.tuned_model import Tuned
from mmprompt.models.ofa import PAD, STEP, Encoded
from mmprompt.runs.attempt import Attempt
from mmprompt.runs.deployment import ROOT, deployment_of
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.runs.wandb_ends import read_ends
from mmprompt.settings.parsing import ConfigError
from mmprompt.training.checkpoints import COMPILING, Checkpoints, State
from mmprompt.training.loader import Loader
from mmprompt.training.speed import EAGER, HOW, Speed
from mmprompt.training.update import optimiser_of, update

CPU, GPU = torch.device("cpu"), torch.device("cuda")  # naming a GPU needs none
LIVE = ("backbone.mode=train", "model.dropout=0.1", "model.encoder_drop_path=0.2", "model.decoder_drop_path=0.2")
UPDATES = [  # speed, and overrides
    ("compile", "prompt.dropout=0.2"),
    pytest.param(
        ("compile", "prompt.depth=decoder", "task=micro_vqa", "optim.smoothing_over=allowed"), marks=pytest.mark.long
    ),
    pytest.param(("graph", "method=lora", "optim.micro_batch=4"), marks=pytest.mark.long),
    pytest.param(("compile", "method=adapter", *LIVE), marks=pytest.mark.long),
    pytest.param(("compile", "precision=bfloat16"), marks=pytest.mark.long),
    pytest.param(
        ("graph", "method=finetune", "task=micro_caption", "optim.drop_worst=0.2", *LIVE), marks=pytest.mark.long
    ),
]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What one test has compiled is not there for the next."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both speeds without code generation."""
    for speed in HOW:
        monkeypatch.setitem(HOW, speed, {"backend": "aot_eager"})


def trained(store: Path, *overrides: str, **place: Any) -> RunFolder:
    folder = frozen_run(store, "optim.lr=0.001", *overrides)
    ended = execute(Store(store), [folder.id], job_settings(**place), JOB)
    assert ended == {folder.id: "done"}, error_of(folder.attempts()[-1])
    return folder


def result_of(folder: RunFolder) -> dict[str, Any]:
    return dict(folder.result() or {})


def gradient(speed: Speed, *overrides: str) -> tuple[float, Tensor]:
    """Loss and gradient of an update."""
    config, deployment = settings(*overrides)
    data = data_of(config)
    backbone = backbone_of(config, ROOT / deployment.paths.backbone)
    tuned = Tuned(config, backbone, torch.Generator().manual_seed(1), data.answer_ids).train()
    split = data.split("train")
    draw = torch.Generator().manual_seed(2)

    def view(index: Any) -> Tensor | Encoded:
        features = torch.randn(len(index), tuned.backbone.encoder.resnet.channels, 6, 6, generator=draw)
        if not tuned.encoder_is_fixed:
            return features
        text = collate([split.samples[i] for i in index])
        with torch.no_grad():
            return tuned.backbone.encode(text.source, features, None, None, text.padded)

    torch.manual_seed(3)
    with Loader(config, split, view, CPU, speed=speed) as loader:
        loss = update(tuned, optimiser_of(tuned, config.optim), config, loader, 0)
    return loss, torch.cat([p.grad.flatten() for p in tuned.trained.values() if p.grad is not None])


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("case", UPDATES, ids=" ".join)
def test_an_update_is_that_of_eager_but_for_rounding(case: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    speed, *overrides = case
    loss_there, found = gradient(Speed(speed, GPU), *overrides)
    stacks = 1 if "prompt.depth=decoder" in overrides else 2  # there the encoder's output is given
    assert counters["stats"]["unique_graphs"] >= 2 * stacks and not counters["graph_break"]
    reference = EAGER
    if "model.dropout=0.1" in overrides:  # as much is drawn as for the padded texts
        monkeypatch.setitem(HOW, "compile", {"disable": True})
        reference = Speed("compile", CPU)
    loss, expected = gradient(reference, *overrides)
    rounding = 2e-2 if "precision=bfloat16" in overrides else 1e-4
    assert loss_there == pytest.approx(loss, rel=rounding)
    assert (found - expected).norm() < rounding * expected.norm()


def test_texts_of_updates_have_few_lengths_and_all_fit_the_positions() -> None:
    config, _ = settings("task=micro_vqa", "optim.micro_batch=1", "optim.steps=20")
    split = data_of(config).split("train")

    def loader(speed: Speed) -> Loader:
        return Loader(config, split, lambda index: torch.zeros(len(index)), CPU, speed=speed)

    def widths(speed: Speed) -> set[tuple[int, ...]]:
        texts = [part.text for step in range(20) for part in loader(speed).read(step)]
        assert all(text.padded == bool((text.source == PAD).any()) for text in texts)
        return {(text.source.shape[1], text.decoder.shape[1], text.answers.columns.shape[1]) for text in texts}

    few, exact = widths(Speed("compile", CPU)), widths(EAGER)
    assert len(few) < len(exact) and all(width % STEP == 0 for shape in few for width in shape)
    longest = config.model.max_positions + 2
    found = [loader(EAGER).width(length) for length in (1, STEP, STEP + 1, longest - 1, longest + 1)]
    assert found == [STEP, STEP, 2 * STEP, longest, longest + 1]


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_compiled_run_is_an_eager_one_but_for_rounding_and_says_what_it_was(recompute: bool, tmp_path: Path) -> None:
    eager, states, graphs = trained(tmp_path / "eager"), list[State](), list[int]()

    def watch(state: State) -> None:
        states.append(state)
        graphs.append(counters["stats"]["unique_graphs"])

    compiled = frozen_run(tmp_path / "compiled", "optim.lr=0.001")
    place = job_settings("offline", speed="compile", recompute=recompute)
    assert execute(Store(tmp_path / "compiled"), [compiled.id], place, JOB, watch) == {compiled.id: "done"}
    assert compiled.id == eager.id
    ours, theirs = load_file(compiled.weights_file), load_file(eager.weights_file)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-5, msg=name)
    before, after = result_of(eager), result_of(compiled)
    assert before["speed"] == {"asked": "eager", "used": "eager", "why": ""} and before["compile_seconds"] == 0
    assert after["speed"] == {"asked": "compile", "used": "compile", "why": ""}
    assert compiled.attempts()[0].job["speed"] == "compile" and eager.attempts()[0].job["speed"] == "eager"
    record = read_ends(next(compiled.path.glob("attempts/1/wandb/*/*.wandb")))
    assert record.config["speed"] == after["speed"]
    assert graphs[0] == counters["stats"]["unique_graphs"] >= 4  # none for validations and evaluations
    # The time of compilation is known, and is not that of the steps; the hours have both.
    history = dict(states[-1].history)
    assert COMPILING in history[1] and COMPILING not in history[4]
    assert after["compile_seconds"] == pytest.approx(sum(one.get(COMPILING, 0) for one in history.values()), abs=0.01)
    assert after["device_hours"] * 3600 > after["compile_seconds"] + after["seconds"]


def test_the_time_of_a_compilation_is_not_that_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        time.sleep(0.5)
        return module.forward

    monkeypatch.setitem(HOW, "compile", {"backend": slow})
    began = time.monotonic()
    result = result_of(trained(tmp_path, speed="compile"))
    whole = time.monotonic() - began
    assert result["compile_seconds"] >= 4 * 0.5  # two variants of each layer
    assert result["seconds"] <= whole - result["compile_seconds"]


def test_the_hours_of_a_resumed_run_have_the_compilations_of_its_earlier_attempts(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path)
    config, deployment = settings()
    tuned = Tuned(config, backbone_of(config, ROOT / deployment.paths.backbone), torch.Generator(), [])
    optimiser = optimiser_of(tuned, config.optim)
    attempt = folder.claim(1, dict(JOB) | process_facts())
    assert attempt is not None
    history = [(1, {"train/loss": 1.0, COMPILING: 20.0}), (2, {"train/loss": 1.0}), (3, {COMPILING: 5.0})]
    Checkpoints(attempt, 1).save(State(step=3, history=history, seconds=7.0), tuned, optimiser)
    later = Checkpoints(Attempt(folder, 2), 1)
    state = later.resume(tuned, optimiser)
    assert (state.seconds, state.compile_seconds, later.seconds_before) == (7.0, 25.0, 32.0)


def test_a_graph_without_a_gpu_is_eager_with_its_bits_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eager, graph = trained(tmp_path / "eager"), trained(tmp_path / "graph", speed="graph")
    assert graph.weights_file.read_bytes() == eager.weights_file.read_bytes()
    why = "CUDA graphs need a GPU, and this run is on the CPU"
    assert result_of(graph)["speed"] == {"asked": "graph", "used": "eager", "why": why}
    said = f"cluster.speed=graph: {why}; the run goes on with cluster.speed=eager"
    assert capsys.readouterr().out.splitlines().count(said) == 1


@pytest.mark.parametrize("works_for", [0, 2])
def test_where_compilation_fails_the_run_has_the_bits_of_eager_and_says_so(
    works_for: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if the encoder was compiled and only the decoder cannot be: random numbers and statistics are those of before."""
    graphs = []

    def broken(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(module)
        if len(graphs) > works_for:
            raise OSError("no room for the compiler's files")
        return module.forward

    monkeypatch.setitem(HOW, "compile", {"backend": broken})
    overrides = (*LIVE, "prompt.dropout=0.2", "optim.micro_batch=4")
    eager, fallen = trained(tmp_path / "eager", *overrides), trained(tmp_path / "fallen", *overrides, speed="compile")
    assert len(graphs) == works_for + 1
    assert fallen.weights_file.read_bytes() == eager.weights_file.read_bytes()
    found = result_of(fallen)["speed"]
    assert found["used"] == "eager" and found["asked"] == "compile"
    assert found["why"].startswith("at step 1 compilation failed with BackendCompilerFailed: ")
    assert "no room for the compiler's files" in found["why"]
    assert f"cluster.speed=compile: {found['why']}; the run goes on" in capsys.readouterr().out


def test_a_fault_that_is_not_of_compilation_is_not_hidden() -> None:
    speed = Speed("compile", CPU)
    assert not speed.is_to_blame(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert speed.is_to_blame(
        RuntimeError("Error: accessing tensor output of CUDAGraphs that has been overwritten by a run")
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("cluster.speed=fast",), r"cluster\.speed='fast' is not allowed; choose one of 'eager', 'graph' or 'compile'"),
        (
            ("cluster.speed=graph", "cluster.recompute=true"),
            r"cluster\.speed='graph' and cluster\.recompute=true do not go",
        ),
    ],
)
def test_a_wrong_speed_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        deployment_of(composed(*SMALL, *overrides))


def assert_close(ours: RunFolder, theirs: RunFolder, rtol: float, atol: float) -> None:
    """Asserts that two runs have the same weights, but for such differences."""
    found, wanted = load_file(ours.weights_file), load_file(theirs.weights_file)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol, msg=name)


WITH_A_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (g++) is installed")


@pytest.mark.long
@WITH_A_COMPILER
@pytest.mark.parametrize("recompute", [False, True])
def test_inductors_code_trains_as_eager_does(recompute: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    eager = trained(tmp_path / "eager", "prompt.dropout=0.2")
    compiled = trained(tmp_path / "compiled", "prompt.dropout=0.2", speed="compile", recompute=recompute)
    assert result_of(compiled)["speed"]["used"] == "compile"
    assert_close(compiled, eager, rtol=1e-3, atol=1e-5)


@pytest.mark.long
@WITH_A_COMPILER
def test_what_graphs_replay_computes_the_same_as_eager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU inductor compiles with these arguments too, and leaves the graphs out."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    loss, found = gradient(Speed("graph", GPU), *LIVE)
    assert counters["stats"]["unique_graphs"] >= 4
    monkeypatch.setitem(HOW, "compile", {"disable": True})  # padded as far, so that as much is drawn
    loss_there, expected = gradient(Speed("compile", CPU), *LIVE)
    assert loss == pytest.approx(loss_there, rel=1e-4) and (found - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.long
@WITH_A_COMPILER
def test_each_process_of_a_run_compiles_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAKE_GPUS, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    several = ("optim.micro_batch=2", "prompt.depth=decoder")  # little to compile
    eager, compiled = trained(tmp_path / "one", *several), trained(tmp_path / "two", *several, speed="compile", gpus=2)
    assert result_of(compiled)["speed"]["used"] == "compile"
    assert_close(compiled, eager, rtol=2e-3, atol=2e-5)


@pytest.mark.long
def test_without_a_cpp_compiler_a_run_is_eager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, str(tmp_path / "no-compiler")))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    found = result_of(trained(tmp_path, speed="compile"))["speed"]
    assert found["used"] == "eager" and "compil" in found["why"].lower()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("overrides", [(), ("method=lora", "optim.micro_batch=4"), LIVE])
def test_graphs_on_a_gpu_train_as_eager_does(overrides: tuple[str, ...], tmp_path: Path) -> None:
    eager, graph = (trained(tmp_path / speed, *overrides, speed=speed, gpus=1) for speed in ("eager", "graph"))
    assert result_of(graph)["speed"] == {"asked": "graph", "used": "graph", "why": ""}
    if overrides != LIVE:  # dropout draws other numbers for padded texts
        assert_close(graph, eager, rtol=1e-2, atol=1e-3)
