"""Frozen features are computed once: whatever happens to the cache files, a run gets the same bits as without a cache."""

from __future__ import annotations

import multiprocessing
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mini import official
from patience import LAST_RESORT
from safetensors.torch import load_file
from tiny import JOB, data_of, frozen_run, job_settings, settings
from torch import Tensor

from mmprompt.execution.execute import execute
from mmprompt.execution.run_context import backbone_of
from mmprompt.methods.tuned_model import Tuned
from mmprompt.models.ofa import OFA, PAD, STEP, Encoded
from mmprompt.runs.cache import Cache
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.identity import run_id
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.settings.deployment import Caching
from mmprompt.settings.parsing import ConfigError
from mmprompt.training.feature_cache import CHECKSUM_BYTES, Cached
from mmprompt.training.frozen_features import FrozenFeatures, open_cache, ready, view

COUNT, SHAPE = 40, (3, 5)
DECODER = ("task=micro_vqa", "prompt.depth=decoder")


def rows(index: np.ndarray) -> Tensor:
    return torch.from_numpy(index).float()[:, None, None] + torch.arange(15.0).view(SHAPE) / 16


def never(index: np.ndarray) -> Tensor:
    raise AssertionError(f"rows {index} are made again")


def cached(folder: Path, make: Callable[[np.ndarray], Tensor] = rows, max_gb: float = 1.0) -> Cached:
    return Cached(make, 1, "rows", SHAPE, "facts", [bytes([i]) for i in range(COUNT)], Cache(folder / "cache", max_gb))


ASKED = np.random.default_rng(0).permutation(COUNT)


def test_rows_in_the_cache_are_read_and_not_computed_again(tmp_path: Path) -> None:
    cached(tmp_path).fill()
    later = cached(tmp_path, never)
    later.fill()
    assert torch.equal(later(ASKED), rows(ASKED))


def test_rows_missing_in_the_cache_are_computed(tmp_path: Path) -> None:
    assert torch.equal(cached(tmp_path)(ASKED), rows(ASKED))
    assert not (tmp_path / "cache").exists()


def test_examples_that_are_computed_from_the_same_share_a_row(tmp_path: Path) -> None:
    made: list[int] = []

    def make(index: np.ndarray) -> Tensor:
        made.extend(index.tolist())
        return rows(index % 10)

    examples = [bytes([i % 10]) for i in range(COUNT)]  # of 40, 10 different ones
    shared = Cached(make, 1, "rows", SHAPE, "facts", examples, Cache(tmp_path / "cache", 1.0))
    shared.fill()
    assert sorted(made) == list(range(10))
    assert torch.equal(shared(ASKED), rows(ASKED % 10)) and len(made) == 10
    assert sum(file.stat().st_size for file in shared.files) == 10 * (4 * 15 + 4)


def test_cache_files_have_the_folders_permissions_and_no_other_file_is_left(tmp_path: Path) -> None:
    tmp_path.chmod(0o775)
    cached(tmp_path).fill()
    files = list((tmp_path / "cache").iterdir())
    assert sorted(files) == sorted(cached(tmp_path).files) and len(files) == 8
    assert {file.stat().st_mode & 0o777 for file in files} == {0o664}
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o775


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    return data[:-70] + bytes([data[-70] ^ 1]) + data[-69:]


@pytest.mark.parametrize("damage", [truncate, flip])
def test_a_damaged_shard_is_made_again(
    damage: Callable[[bytes], bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cached(tmp_path).fill()
    file = cached(tmp_path).files[2]
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    capsys.readouterr()
    assert torch.equal(cached(tmp_path)(ASKED), rows(ASKED))
    assert capsys.readouterr().out == f"{file} (rows) is damaged; it is made again\n"
    assert file.read_bytes() == whole


def test_a_shard_that_is_damaged_under_a_reader_is_made_again(tmp_path: Path) -> None:
    reader = cached(tmp_path)
    reader.fill()
    reader(ASKED)
    with open(reader.files[0], "r+b") as file:
        file.truncate(10)
    assert torch.equal(reader(ASKED), rows(ASKED))


def test_deleting_the_cache_folder_harms_no_reader(tmp_path: Path) -> None:
    reader, other = cached(tmp_path), cached(tmp_path)
    reader.fill()
    reader(ASKED[:20])
    shutil.rmtree(tmp_path / "cache")
    assert torch.equal(reader(ASKED), rows(ASKED)) and torch.equal(other(ASKED), rows(ASKED))


def test_rows_that_exceed_the_cache_limit_are_reported_and_computed_each_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = cached(tmp_path, max_gb=1e-6)  # 1,000 bytes, where 40 rows of 64 are needed
    small.fill()
    said = capsys.readouterr().out
    assert said.startswith("rows: 2.56e-06 GB, the cache has 0 of 1e-06 GB and its disk ") and said.count("\n") == 1
    assert "raise cache.max_gb, or make room in" in said and not list((tmp_path / "cache").iterdir())
    assert torch.equal(small(ASKED), rows(ASKED))


def test_no_cache_is_begun_that_needs_more_than_the_free_disk_space(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Cached(never, 1, "rows", (10**12,), "", [b"a", b"b"], Cache(tmp_path / "cache", 1e9)).fill()
    assert "rows: 8e+03 GB, the cache has 0 of 1e+09 GB and its disk" in capsys.readouterr().out


def test_a_disk_that_fills_up_stops_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit on the size of a file stands for the full disk: the write fails half-way."""
    folder, limits = tmp_path / "cache", resource.getrlimit(resource.RLIMIT_FSIZE)
    facts, examples = "facts", [bytes([i]) for i in range(8)]
    wide = Cached(lambda i: rows(i).repeat(1, 1, 4000), 1, "rows", (3, 20_000), facts, examples, Cache(folder, 1.0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        wide.fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"{folder} cannot be written (File too large); rows that are not in it are computed each time they are needed"
    ]
    assert not list(folder.iterdir())
    assert torch.equal(wide(np.arange(8)), rows(np.arange(8)).repeat(1, 1, 4000))


def test_a_store_that_cannot_be_written_stops_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cache").write_text("")  # a file where the folder should be; root may write into any folder
    wrong = cached(tmp_path)
    wrong.fill()
    assert "cannot be written (" in capsys.readouterr().out
    assert torch.equal(wrong(ASKED), rows(ASKED))


def fill(folder: Path, made: multiprocessing.Queue[int], begin: multiprocessing.Barrier) -> None:  # type: ignore[valid-type]
    def slow(index: np.ndarray) -> Tensor:
        made.put(int(index[0]))
        torch.randn(1000, 1000) @ torch.randn(1000, 1000)
        return rows(index)

    mine = Cached(slow, 1, "rows", SHAPE, "facts", [bytes([i]) for i in range(COUNT)], Cache(folder / "cache", 1.0))
    begin.wait()  # type: ignore[attr-defined]
    mine.fill()
    assert torch.equal(mine(ASKED), rows(ASKED))


@pytest.mark.long
def test_processes_that_fill_at_once_share_the_work(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    made, begin = context.Queue(), context.Barrier(2)
    processes = [context.Process(target=fill, args=(tmp_path, made, begin)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LAST_RESORT)
    assert [process.exitcode for process in processes] == [0, 0]
    shards = [made.get(timeout=LAST_RESORT) for _ in range(made.qsize())]
    assert len(set(shards)) == 8 and len(shards) < 14  # 16, had each made all
    assert torch.equal(cached(tmp_path, never)(ASKED), rows(ASKED))
    assert not list((tmp_path / "cache").glob(".*"))


# ------------------------------------------------------------------------------------------------------ what it holds


def of(
    *overrides: str, cache: Cache | None = None, backbone: OFA | None = None, split: str = "train"
) -> FrozenFeatures:
    config, deployment = settings(*overrides)
    known = config.model_dump_json(include={"training_version", "threads", "precision", "model", "backbone", "task"})
    backbone = backbone or backbone_of(config, ROOT / deployment.paths.backbone)
    backbone = ready(backbone, torch.device("cpu"), config.precision)
    return FrozenFeatures(backbone, known, data_of(config).split(split), cache)


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def company_matters(seen: FrozenFeatures, index: np.ndarray) -> bool:
    """Whether features or outputs of the first three differ when each is asked for alone."""
    features, outputs = seen.features(index), seen.output_rows(index)
    return not all(
        torch.equal(seen.features(index[i : i + 1])[0], features[i])
        and torch.equal(seen.output_rows(index[i : i + 1])[0], outputs[i])
        for i in range(3)
    )


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def test_an_example_has_the_same_bits_in_any_row_and_any_company(threads: int) -> None:
    seen = of("task=micro_vqa")
    assert (seen.source == PAD).any(1).float().mean() > 0.5  # padded texts and others
    assert not company_matters(seen, ASKED)


@pytest.mark.long
@pytest.mark.parametrize("threads", [1], indirect=True)
def test_an_example_has_the_same_bits_in_any_row_at_an_official_size(threads: int) -> None:
    torch.manual_seed(0)
    backbone = OFA(official("tiny")).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    over = ("model=ofa_tiny", f"paths.backbone={ROOT}/mmprompt/backbones/micro.safetensors")
    seen = of(*over, "task.image_size=384", "task.data.train=4", backbone=backbone)
    assert not company_matters(seen, np.array([2, 0, 3]))


def test_outputs_are_those_of_the_encoder_without_the_columns_of_longer_texts() -> None:
    seen = of("task=micro_vqa")
    lengths = (seen.source != PAD).sum(1).numpy()
    index = np.argsort(lengths)[:6]
    longest = int(lengths[index].max())
    assert longest < seen.source.shape[1] and longest % STEP  # else nothing is cut
    ours = seen.outputs(index)
    theirs = seen.backbone.encode(seen.source[index, :longest], seen.features(index), None, None)
    assert ours.states.shape == theirs.states.shape
    real = slice(None) if ours.padding is None else ~ours.padding
    torch.testing.assert_close(ours.states[real], theirs.states[real], rtol=0, atol=2e-5)
    assert torch.equal(ours.positions, theirs.positions)
    assert (ours.padding is None) == (theirs.padding is None)
    assert ours.padding is None or theirs.padding is None or torch.equal(ours.padding, theirs.padding)


def trained(store: Path, *overrides: str, **cache: float | str) -> RunFolder:
    folder, known = frozen_run(store, *overrides), job_settings()
    known = known.model_copy(update={"cache": known.cache.model_copy(update=cache)})
    assert execute(Store(store), [folder.id], known, JOB) == {folder.id: "done"}
    return folder


@pytest.mark.parametrize("overrides", [(), DECODER, (*DECODER, "precision=bfloat16")])
def test_a_run_has_the_same_bits_with_a_cache_and_without(overrides: tuple[str, ...], tmp_path: Path) -> None:
    without = trained(tmp_path / "a", *overrides, max_gb=0)
    assert not (tmp_path / "a/cache").exists()
    filling = trained(tmp_path / "b", *overrides)
    assert list((tmp_path / "b/cache").iterdir())
    shutil.move(tmp_path / "b/cache", tmp_path / "c/cache")
    reading = trained(tmp_path / "c", *overrides)
    weights = load_file(without.weights_file)
    for other in (filling, reading):
        assert all(torch.equal(value, weights[name]) for name, value in load_file(other.weights_file).items())
        assert (other.result() or {})["metrics"] == (without.result() or {})["metrics"]


@pytest.mark.parametrize(("depth", "kind"), [("decoder", Encoded), ("encoder", Tensor), ("both", Tensor)])
def test_the_encoders_output_is_frozen_if_no_prompt_reaches_the_encoder(depth: str, kind: type) -> None:
    config, deployment = settings(f"prompt.depth={depth}")
    backbone = backbone_of(config, ROOT / deployment.paths.backbone)
    tuned, data = Tuned(config, backbone, torch.Generator(), []), data_of(config)
    assert isinstance(view(config, tuned, backbone, data.split("train"), None)(np.arange(3)), kind)


def test_runs_that_differ_in_their_prompts_share_what_is_frozen(tmp_path: Path) -> None:
    trained(tmp_path, *DECODER)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    for override in ("seed=2", "prompt.length=3", "optim.lr=0.001", "prompt.depth=both", "prompt.depth=encoder"):
        trained(tmp_path, *DECODER, override)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()} == before


def test_everything_that_decides_the_bits_is_in_the_name(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1.0)

    def names(seen: FrozenFeatures) -> tuple[set[Path], set[Path]]:
        assert isinstance(seen.feature_rows, Cached) and isinstance(seen.output_rows, Cached)
        return set(seen.feature_rows.files), set(seen.output_rows.files)

    features, outputs = names(of("task=micro_vqa", cache=cache))
    assert not features & outputs
    for change in (
        "precision=bfloat16",
        "threads=2",
        "task.image_size=64",
        "task.data.pixels=texture",
        "model.interpolate_from=6",
    ):
        others = names(of("task=micro_vqa", change, cache=cache))
        assert not (features | outputs) & (others[0] | others[1]), change
    thing, digit = (
        names(of(f"task.template=' find the {word} : {{phrase}} .'", cache=cache)) for word in ("thing", "digit")
    )
    assert thing[0] == digit[0] and not thing[1] & digit[1]
    config, deployment = settings("task=micro_vqa")
    other = config.model_copy(update={"backbone": config.backbone.model_copy(update={"checksum": "0"})})
    known = other.model_dump_json(include={"training_version", "threads", "precision", "model", "backbone", "task"})
    backbone, split = backbone_of(config, ROOT / deployment.paths.backbone), data_of(config).split("train")
    others = names(FrozenFeatures(backbone, known, split, cache))
    assert not (features | outputs) & (others[0] | others[1])


def test_a_live_backbone_caches_nothing_and_refuses_cache_frozen_on(tmp_path: Path) -> None:
    trained(tmp_path, "backbone.mode=train")
    assert not (tmp_path / "cache").exists()
    with pytest.raises(
        ConfigError, match=r"cache.frozen=on does not go with backbone.mode=train, where BatchNorm follows"
    ):
        settings("backbone.mode=train", "cache.frozen=on")


def test_on_a_gpu_nothing_is_cached_unless_cache_frozen_is_on(tmp_path: Path) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert open_cache(Caching(frozen="auto", max_gb=20), tmp_path, gpu) is None
    assert open_cache(Caching(frozen="on", max_gb=20), tmp_path, gpu) == Cache(tmp_path, 20)
    assert open_cache(Caching(frozen="auto", max_gb=20), tmp_path, cpu) == Cache(tmp_path, 20)
    assert open_cache(Caching(frozen="on", max_gb=0), tmp_path, cpu) is None


def test_cache_settings_are_in_no_id_and_precision_is() -> None:
    ids = [run_id(settings(*o)[0]) for o in ((), ("cache.max_gb=1",), ("cache.frozen=on",), ("precision=bfloat16",))]
    assert ids[0] == ids[1] == ids[2] != ids[3]


def test_features_in_bfloat16_take_half_the_room(tmp_path: Path) -> None:
    def size(*overrides: str) -> int:
        folder = tmp_path / str(len(overrides))
        trained(folder, *overrides)
        checksums = CHECKSUM_BYTES * 100  # of 40 + 30 + 30 examples
        return sum(file.stat().st_size for file in (folder / "cache").glob("*.rows")) - checksums

    assert size("precision=bfloat16") * 2 == size()
