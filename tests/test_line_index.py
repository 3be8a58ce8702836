"""The index of a file of examples: the same for blocks of any size, made by one process, and right about every image's size."""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ofa_files import image
from patience import printed_by
from PIL import Image

from mmprompt.data import encoded_image, line_index
from mmprompt.data.encoded_image import UNREADABLE, opened, size_of
from mmprompt.data.line_index import indexed, scan
from mmprompt.families.lines import DataError, Texts

COLUMNS = {"text": 1, "image": 2}


def valid(texts: Texts, size: tuple[int, int]) -> None:
    if "wrong" in texts["text"]:
        raise DataError("it is wrong")


def file_of(folder: Path, lines: int, ends: bytes = b"\n", last: bytes = b"\n") -> Path:
    images = [image((20 + i % 3, 20), ["JPEG", "PNG"][i % 2], seed=i % 5) for i in range(lines)]
    texts = [f"{i}\tä text {'x' * (i % 40)}\t{picture}\tmore".encode() for i, picture in enumerate(images)]
    (folder / "file.tsv").write_bytes(ends.join(texts) + last)
    return folder / "file.tsv"


@pytest.mark.parametrize("block", [16, 1000, 4096, 1 << 22])
@pytest.mark.parametrize(("ends", "last"), [(b"\n", b"\n"), (b"\r\n", b"\r\n"), (b"\n", b""), (b"\n", b"\r")])
def test_an_index_does_not_depend_on_blocks_and_ends_of_lines(
    block: int, ends: bytes, last: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_index, "BLOCK", block)
    monkeypatch.setattr(encoded_image, "PART", 500)  # so that threads share the hashing
    file = file_of(tmp_path, 60, ends, last)
    content, index = file.read_bytes(), scan(file, COLUMNS, valid)
    assert len(index) == 60
    for i, line in enumerate(content.split(ends)[:60]):
        fields = line.rstrip(b"\r").split(b"\t")
        assert [content[begin:end] for begin, end in index.spans[i]] == [fields[1], fields[2]]
        assert index.digests[i].tobytes() == hashlib.sha256(fields[2]).digest()
        assert tuple(index.sizes[i]) == opened(fields[2]).size


def test_the_first_wrong_line_is_named_whatever_is_wrong_behind_it(tmp_path: Path) -> None:
    file = file_of(tmp_path, 60)
    lines = file.read_bytes().splitlines()
    lines[20], lines[30], lines[40] = b"20\twrong\t" + lines[20].split(b"\t")[2] + b"\t", b"no columns", b"40\t\xff\t\t"
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=r"file.tsv, line 21: it is wrong"):
        scan(file, COLUMNS, valid)


def with_comment(length: int) -> bytes:
    """A JPEG whose header is longer by a comment."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(file, "JPEG", comment=b"x" * length)
    return base64.b64encode(file.getvalue())


@pytest.mark.parametrize("length", [0, 5000, 6100, 6140, 20_000, 60_000])
def test_the_size_of_an_image_is_read_behind_a_header_of_any_length(length: int) -> None:
    assert size_of(with_comment(length)) == (7, 5)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"====",
        with_comment(9)[:-1],
        with_comment(9) + b"=",
        with_comment(9) + b"====",
        with_comment(20_000)[:-40] + b"!" + with_comment(20_000)[-39:],
        with_comment(20_000)[:400],
        base64.b64encode(b"GIF89a nothing else"),
        base64.b64encode(b"\xff\xd8\xff and no more"),
    ],
)
def test_an_image_is_refused_as_it_is_where_it_is_opened(text: bytes) -> None:
    with pytest.raises(UNREADABLE) as expected:
        opened(text)
    with pytest.raises(type(expected.value)) as raised:
        size_of(text)
    assert str(raised.value) == str(expected.value)


SCANNING = """
import sys
from pathlib import Path
from mmprompt.data.line_index import indexed
def check(texts, size):
    Path(sys.argv[3]).open("a").write("1")
print(len(indexed(Path(sys.argv[1]), {"text": 1, "image": 2}, check, Path(sys.argv[2]))))
"""


def test_processes_that_need_an_index_at_once_scan_the_file_once(tmp_path: Path) -> None:
    file, checked = file_of(tmp_path, 60), tmp_path / "checked"
    command = [sys.executable, "-c", SCANNING, str(file), str(tmp_path / "cache/file.lines"), str(checked)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [printed_by(process).splitlines()[-1] for process in processes] == ["60"] * 3
    assert len(checked.read_text()) == 60
    assert [left.name for left in (tmp_path / "cache").iterdir()] == ["file.lines"]


def test_a_file_with_a_wrong_line_is_refused_by_each_process_and_leaves_no_note(tmp_path: Path) -> None:
    file, cache = tmp_path / "file.tsv", tmp_path / "cache"
    file.write_text(f"0\twrong\t{image((3, 3))}\n")
    for _ in range(2):
        with pytest.raises(DataError, match="line 1: it is wrong"):
            indexed(file, COLUMNS, valid, cache / "file.lines")
    assert not list(cache.iterdir())
