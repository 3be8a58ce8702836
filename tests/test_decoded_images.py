"""Images are decoded once: whatever happens to the file that keeps them, they have the same bits as without it."""

from __future__ import annotations

import base64
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ofa_files
import pytest
import torch
from attempts import error_of
from ofa_files import image
from patience import printed_by
from test_files import settings
from tiny import JOB, job_settings
from torch import Tensor

from mmprompt.data.line_index import scan
from mmprompt.data.splits import FileImages, Lines
from mmprompt.data.tsv import Table
from mmprompt.execution.execute import execute
from mmprompt.runs.cache import Cache
from mmprompt.runs.identity import run_id
from mmprompt.runs.store import Store
from mmprompt.settings.deployment import Caching

SIDE, COUNT, DIFFERENT = 24, 20, 5
BYTES = 3 * SIDE**2
COLUMNS = {"text": 0, "image": 1}
ALL = torch.arange(COUNT)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """20 lines with 5 different images; the last of these is cut off."""
    pictures = [image((20 + i, 30), ["JPEG", "PNG"][i % 2], seed=i) for i in range(DIFFERENT)]
    content = base64.urlsafe_b64decode(image((300, 300)))
    pictures[-1] = base64.urlsafe_b64encode(content[: len(content) // 2]).decode()
    ofa_files.write(tmp_path / "file.tsv", [[str(i), pictures[i * i % DIFFERENT - 1]] for i in range(COUNT)])
    return tmp_path / "file.tsv"


def images_of(file: Path, max_gb: float = 1.0, keep: bool = True) -> FileImages:
    table = Table(file, COLUMNS, scan(file, COLUMNS, lambda texts, size: None))
    images = FileImages(Lines([table]), SIDE, "images", Cache(file.parent / "cache", max_gb))
    if keep:
        images.keep()
    return images


def decoded(file: Path) -> Tensor:
    return images_of(file, keep=False)[ALL]


def kept_file(file: Path) -> Path:
    [found] = (file.parent / "cache").iterdir()
    return found


def test_an_image_that_is_kept_is_not_decoded_again(file: Path) -> None:
    expected, first, other = decoded(file), images_of(file), images_of(file)
    assert torch.equal(first[ALL], expected)
    os.truncate(file, 0)
    assert torch.equal(first[ALL], expected) and torch.equal(other[ALL.flip(0)], expected.flip(0))


def test_lines_with_the_same_image_share_a_place(file: Path) -> None:
    images = images_of(file)
    different = set(images.lines.digests())
    _ = images[ALL]
    assert kept_file(file).stat().st_size == len(different) * (4 + BYTES)
    assert 1 < len(different) < DIFFERENT


def test_nothing_is_kept_unless_it_is_asked_for(file: Path) -> None:
    decoded(file)
    assert not (file.parent / "cache").exists()


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def cut_to_nothing(data: bytes) -> bytes:
    return b""


def cut_inside_the_checksums(data: bytes) -> bytes:
    return data[:7]


def flip(data: bytes) -> bytes:
    return data[:-70] + bytes([data[-70] ^ 1]) + data[-69:]


def flip_a_checksum(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


DAMAGES = [truncate, cut_to_nothing, cut_inside_the_checksums, flip, flip_a_checksum]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("under_a_reader", [False, True])
def test_a_damaged_file_is_never_trusted_and_made_whole(
    damage: Callable[[bytes], bytes], under_a_reader: bool, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, images = decoded(file), images_of(file)
    _ = images[ALL]
    kept = kept_file(file)
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    capsys.readouterr()
    later = images if under_a_reader else images_of(file)
    assert torch.equal(later[ALL], expected)
    assert kept.read_bytes() == whole
    said = capsys.readouterr().out
    noticed = damage is not cut_to_nothing  # this looks as if nothing was there yet
    assert said == (f"{kept} (images) is damaged; each damaged image is decoded again\n" if noticed else "")


def test_an_image_without_its_checksum_is_decoded(file: Path) -> None:
    """So it is left by a process that is killed between the two."""
    expected, images = decoded(file), images_of(file)
    assert images.kept is not None
    with kept_file(file).open("r+b") as kept:
        kept.seek(images.kept.first)
        kept.write(bytes(range(256)) * 3)
    assert torch.equal(images[ALL], expected)


def test_deleting_the_cache_folder_harms_no_reader(file: Path) -> None:
    expected, images = decoded(file), images_of(file)
    assert torch.equal(images[ALL[:3]], expected[:3])
    shutil.rmtree(file.parent / "cache")
    assert torch.equal(images[ALL], expected) and torch.equal(images_of(file)[ALL], expected)


def test_images_that_exceed_the_cache_limit_are_reported_once_and_decoded_each_time(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = images_of(file, max_gb=1e-6)
    images.keep()
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "GB, the cache has 0 of 1e-06 GB and its disk" in said
    assert "raise cache.max_gb" in said and said.endswith("are decoded each time they are needed\n")
    assert torch.equal(images[ALL], decoded(file)) and not list((file.parent / "cache").iterdir())


@pytest.mark.parametrize("limit", [BYTES, 2 * BYTES + 100])
def test_a_disk_that_is_full_stops_no_run(limit: int, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit on the size of a file stands for the full disk."""
    expected, limits = decoded(file), resource.getrlimit(resource.RLIMIT_FSIZE)
    images = images_of(file)
    capsys.readouterr()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        assert torch.equal(images[ALL], expected) and torch.equal(images[ALL], expected)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().out
    assert (
        said
        == (
            f"{kept_file(file)} cannot be used (File too large); images that are not in it are decoded each time they are needed\n"
        )
        or "(No space left on device)" in said
    )
    assert torch.equal(images_of(file)[ALL], expected)


def test_a_store_that_cannot_be_written_stops_no_run(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file.parent / "cache").write_text("")  # a file where the folder should be; root may write into any folder
    assert torch.equal(images_of(file)[ALL], decoded(file))
    assert "cannot be used (" in capsys.readouterr().out


def test_the_file_has_the_folders_permissions(file: Path) -> None:
    file.parent.chmod(0o775)
    _ = images_of(file)[ALL]
    assert kept_file(file).stat().st_mode & 0o777 == 0o664


AT_ONCE = """
import sys
from pathlib import Path
import numpy as np
from mmprompt.data.decoded_images import DecodedImages
from mmprompt.runs.cache import Cache
random, side, count = np.random.default_rng(int(sys.argv[2])), 200, 10
images, known = DecodedImages("images", [bytes([i]) for i in range(count)], side, Cache(Path(sys.argv[1]), 1.0)), 0
sys.stdin.readline()
images.open()
for number in random.integers(0, count, 2000).tolist():
    image, expected = np.zeros((side, side, 3), np.uint8), np.full((side, side, 3), number + 1, np.uint8)
    if not images.read(number, image):
        images.write(number, expected)
    else:
        known += 1
        assert np.array_equal(image, expected)
print(known)
"""


def test_processes_that_decode_at_once_read_only_whole_images(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", AT_ONCE, str(tmp_path / "cache"), str(seed)] for seed in range(2)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for command in commands
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go on\n")
        process.stdin.flush()
    known = [
        printed_by(process).splitlines()[-1] for process in processes
    ]  # the last line: others may tell of the cache
    assert all(int(count) >= 1980 for count in known), known


@pytest.mark.parametrize(("mode", "kinds"), [("eval", {".lines", ".rows"}), ("train", {".lines", ".images"})])
def test_images_are_kept_where_features_are_not_and_change_no_bit(mode: str, kinds: set[str], tmp_path: Path) -> None:
    ofa_files.make(tmp_path / "ofa", "snli_ve")
    given = [f"paths.data={tmp_path / 'ofa'}", f"backbone.mode={mode}", "optim.steps=2"]
    backbone = ofa_files.backbone(settings("snli_ve", *given)[0].model, tmp_path / "backbone.safetensors")
    config, _ = settings("snli_ve", *given, f"paths.backbone={backbone}")
    weights = []
    for limit in (0.0, 20.0):
        store = Store(tmp_path / f"runs{limit}")
        folder = store.run(run_id(config))
        folder.create(config)
        known = {"cache": Caching(frozen="auto", max_gb=limit)}
        execute(store, [folder.id], job_settings(backbone=str(backbone), data=str(tmp_path / "ofa"), **known), JOB)
        assert folder.result() is not None, [error_of(attempt) for attempt in folder.attempts()]
        weights.append(folder.weights_file.read_bytes())
        assert {found.suffix for found in store.cache.glob("*")} == (kinds if limit else set())
    assert weights[0] == weights[1]
