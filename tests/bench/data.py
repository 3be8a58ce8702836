"""The data path: a file of examples scanned, against reading it; images decoded once and kept, against decoding them each time."""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import Section, Timing, interleaved
from PIL import Image

from mmprompt.data.encoded_image import threads
from mmprompt.data.line_index import Index, indexed, scan
from mmprompt.data.splits import FileImages, Lines
from mmprompt.data.tsv import Table
from mmprompt.families.lines import Texts
from mmprompt.families.registry import FAMILIES
from mmprompt.runs.cache import Cache

LINES = 120_000  # as RefCOCO has for training
SAME = 7  # lines with one image, about as in RefCOCO
SIZE, SIDE = (64, 48), 96  # pixels: of the small images, and of what becomes of them
LARGE_LINES, LARGE_SIZE, LARGE_SIDE = 3000, (480, 360), 512  # a few lines as long as real ones
COLUMNS = {"phrase": 2, "box": 3, "image": 4}
ROUNDS, BATCH, BLOCK = 3, 128, 4 << 20
READ = FAMILIES["grounding"].read


class Extent:
    """What the reader of grounding's lines asks of a task's settings."""

    max_source_words, max_image_size, confidence = 80, 512, False


def check(texts: Texts, size: tuple[int, int]) -> None:
    READ(texts, size, SIDE, Extent(), True)


def sections(lines: int = LINES) -> Iterator[Section]:
    large = max(2 * SAME, LARGE_LINES * lines // LINES)
    with tempfile.TemporaryDirectory() as folder:
        for count, size, side in ((lines, SIZE, SIDE), (large, LARGE_SIZE, LARGE_SIDE)):
            file = Path(folder) / f"{count}.tsv"
            write(file, count, size)
            yield scanned(file, count)
            yield looked_at(file, count, size, side)
            file.unlink()


def write(file: Path, lines: int, size: tuple[int, int]) -> None:
    """Lines of grounding, in random order: SAME lines for each image, which is a JPEG of blurred noise."""
    random = np.random.default_rng(0)
    images = []
    for _ in range(-(-lines // SAME)):
        coarse = Image.fromarray(random.integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8))
        jpeg = io.BytesIO()
        coarse.resize(size, Image.Resampling.BICUBIC).save(jpeg, "JPEG", quality=90)
        images.append(base64.urlsafe_b64encode(jpeg.getvalue()))
    with file.open("wb") as stream:
        for number, line in enumerate(random.permutation(lines).tolist()):
            stream.write(b"%d\ti%d\tthe person on the left\t1,2,30,40\t%b\n" % (number, line, images[line // SAME]))


def read(file: Path, use: Callable[[memoryview], None]) -> None:
    block = bytearray(BLOCK)
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(block):
            use(memoryview(block)[:count])


def scanned(file: Path, lines: int) -> Section:
    size, kept = file.stat().st_size, file.with_suffix(".lines")
    indexed(file, COLUMNS, check, kept)
    timings = interleaved(
        {
            "read": partial(read, file, lambda block: None),
            "read, and sha256 of it": partial(read, file, hashlib.sha256().update),
            "scanned": partial(scan, file, COLUMNS, check),
            "its index read instead": partial(indexed, file, COLUMNS, check, kept),
        },
        ROUNDS,
    )
    rows = {}
    for name, some in timings.items():
        speed = size / 1e6 / median(some)
        rows[f"{name}: {speed:,.0f} MB/s, {median(some) / lines * 1e6:,.1f} µs a line"] = some
    sizes = f"{lines:,} lines, {size / lines / 1e3:.1f} kB each, {size / 1e9:.2f} GB in the page cache"
    setting = f"{sizes}; {threads()} threads; speeds by CPU"
    return Section("A file of examples scanned", setting, rows)


def looked_at(file: Path, lines: int, size: tuple[int, int], side: int) -> Section:
    """Every image once, in batches of random lines."""
    index = scan(file, COLUMNS, check)
    images = -(-lines // SAME)
    order = torch.from_numpy(np.random.default_rng(1).permutation(lines)[:images])
    cache = Cache(file.parent / "cache", 100.0)
    assert torch.equal(images_of(file, index, side, None)[order[:50]], images_of(file, index, side, cache)[order[:50]])

    def first_pass() -> None:
        shutil.rmtree(cache.folder, ignore_errors=True)
        look(images_of(file, index, side, cache), order)

    timings = interleaved(
        {
            "decoded each time": lambda: look(images_of(file, index, side, None), order),
            "first pass: decoded and kept": first_pass,
            "a later pass: read and checked": lambda: look(images_of(file, index, side, cache), order),
        },
        ROUNDS,
        warm_up=False,
    )
    rows = {}
    for name, some in timings.items():
        each = [Timing(t.wall / images, t.cpu / images) for t in some]
        rows[f"{name}: {1 / median(each):,.0f} images/s"] = each
    setting = (
        f"{images:,} lines drawn from {lines:,}, which have {images:,} different images, so some images come twice; JPEGs of "
        f"{size[0]} x {size[1]} pixels to {side} x {side}, batches of {BATCH}, {threads()} threads; speeds by CPU"
    )
    return Section("Images decoded once", setting, rows, unit="image")


def images_of(file: Path, index: Index, side: int, cache: Cache | None) -> FileImages:
    images = FileImages(Lines([Table(file, COLUMNS, index)]), side, "images", cache)
    images.keep()
    return images


def look(images: FileImages, order: torch.Tensor) -> None:
    for batch in order.split(BATCH):
        _ = images[batch]


def median(timings: list[Timing]) -> float:
    """CPU seconds."""
    return sorted(timing.cpu for timing in timings)[len(timings) // 2]
