"""Scenes of the small world: images of coloured handwritten digits on a dark canvas.

A scene has 1 to 3 digits that do not overlap. Each has a value, a colour, a size and a position. The handwriting is that of
scikit-learn's digits. Its samples are divided among the splits, so that no test scene shows handwriting from training. Everything
is a function of a `numpy.random.Generator`.

N scenes, K = 3 object slots, S = 48 pixels, G glyphs.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.random import Generator

S = 48  # canvas side, pixels
K = 3  # most objects in a scene
COLOURS = ("red", "green", "blue", "yellow", "cyan", "magenta")
RGB = np.array(
    [(230, 50, 40), (50, 200, 60), (60, 90, 245), (230, 215, 50), (40, 210, 215), (215, 60, 215)], np.float32
)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZES = ("small", "large")
SIDES = np.array([(13, 14, 15), (19, 20, 21)])  # possible sides of a glyph in pixels, by size
SIDE_MAX = 21
# Number of glyphs in each split; no sample of handwriting is in two splits. The rest of the 1,797 is the test split.
GLYPHS = {"pretrain": 1000, "train": 300, "val": 200, "test": 297}
DIGITS_SHA256 = "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"


@dataclass(frozen=True)
class Scenes:
    """N scenes. Slots beyond `count` are empty."""

    images: np.ndarray  # N S S 3 uint8
    count: np.ndarray  # N
    digit: np.ndarray  # N K
    colour: np.ndarray  # N K
    size: np.ndarray  # N K
    box: np.ndarray  # N K 4: x0 y0 x1 y1

    def objects(self, scene: int) -> list[Object]:
        return [
            Object(
                int(self.digit[scene, k]),
                int(self.colour[scene, k]),
                int(self.size[scene, k]),
                tuple(self.box[scene, k]),
            )
            for k in range(self.count[scene])
        ]


@dataclass(frozen=True)
class Object:
    """A digit in a scene. `digit`, `colour` and `size` are indices into DIGITS, COLOURS and SIZES; `box`: x0 y0 x1 y1 in pixels."""

    digit: int
    colour: int
    size: int
    box: tuple[float, float, float, float]

    @property
    def x(self) -> float:
        return (self.box[0] + self.box[2]) / 2

    @property
    def y(self) -> float:
        return (self.box[1] + self.box[3]) / 2

    def words(self, attributes: str) -> str:
        """A phrase with these attributes: `words("scd")` is "large red three", `words("sc")` is "large red digit"."""
        parts = [SIZES[self.size]] * ("s" in attributes) + [COLOURS[self.colour]] * ("c" in attributes)
        return " ".join([*parts, DIGITS[self.digit] if "d" in attributes else "digit"])

    def like(self, other: Object, attributes: str) -> bool:
        """Whether both objects agree in these attributes: s size, c colour, d digit."""
        return (
            ("s" not in attributes or self.size == other.size)
            and ("c" not in attributes or self.colour == other.colour)
            and ("d" not in attributes or self.digit == other.digit)
        )


@lru_cache(maxsize=1)
def handwriting() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Returns all glyphs, their values (G), and the indices of each split's glyphs.

    The glyphs are at each of the 6 sides, G 6 21 21 in [0, 1], in the top left corner, with zeros beyond their side. Raises
    RuntimeError if scikit-learn is not installed or has other digits.
    """
    images, values = _digits()
    checksum = hashlib.sha256(images.tobytes()).hexdigest()
    if checksum != DIGITS_SHA256:
        raise RuntimeError(
            f"scikit-learn's digits are not those that the small world is made of: their checksum is {checksum}, wanted: "
            f"{DIGITS_SHA256}"
        )
    bank = np.zeros((len(images), SIDES.size, SIDE_MAX, SIDE_MAX), np.float32)
    for i, side in enumerate(SIDES.ravel()):
        weights = _bilinear(8, side)  # side 8
        bank[:, i, :side, :side] = weights @ (images.astype(np.float32) / 16) @ weights.T
    order = np.random.default_rng(0).permutation(len(images))
    bounds = np.cumsum(list(GLYPHS.values()))
    return bank, values, dict(zip(GLYPHS, np.split(order, bounds[:-1]), strict=True))


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Images G 8 8, from 0 to 16, and values G, as `sklearn.datasets.load_digits` returns them. Its import, which takes a second,
    is avoided."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise RuntimeError("scikit-learn, which ships the handwriting, is not installed")
    with gzip.open(Path(package.origin).with_name("datasets") / "data" / "digits.csv.gz", "rt") as file:
        rows = np.loadtxt(file, int, delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8).astype(np.uint8), rows[:, -1]


def _bilinear(source: int, target: int) -> np.ndarray:
    """The matrix (target, source) that resizes a line of pixels by linear interpolation, with pixel centres at half numbers."""
    position = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    low = np.minimum(position.astype(int), source - 2)
    weights = np.zeros((target, source), np.float32)
    weights[np.arange(target), low] = 1 - (position - low)
    weights[np.arange(target), low + 1] = position - low
    return weights


def sample_scenes(rng: Generator, n: int, split: str, pixels: Literal["plain", "texture"]) -> Scenes:
    """n scenes with the handwriting of one split. `texture` hides the digits in bright stripes: a shift of the pixels only."""
    bank, value, glyphs = handwriting()
    count = rng.choice([1, 2, 3], size=n, p=[0.1, 0.4, 0.5])
    glyph = rng.choice(glyphs[split], size=(n, K))
    colour = rng.integers(len(COLOURS), size=(n, K))
    size = rng.integers(len(SIZES), size=(n, K))
    side_index = rng.integers(SIDES.shape[1], size=(n, K))
    side = SIDES[size, side_index]  # N K
    corner = _place(rng, side, count)  # N K 2: x y
    box = np.concatenate([corner, corner + side[..., None]], axis=-1)
    alpha = bank[glyph, size * SIDES.shape[1] + side_index]  # N K 21 21
    images = _paint(rng, alpha, corner, colour, count, pixels)
    return Scenes(images, count, value[glyph], colour, size, box.astype(np.float32))


def _place(rng: Generator, side: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Draws the top left corner of each object, N K 2 (x, y), and draws again where two objects of a scene overlap."""
    corner = np.zeros((*side.shape, 2), int)
    todo = np.arange(len(side))
    while len(todo):
        draw = (rng.random((len(todo), K, 2)) * (S - side[todo][..., None] + 1)).astype(int)
        corner[todo] = draw
        low, high = draw, draw + side[todo][..., None]
        present = np.arange(K) < count[todo][:, None]
        clash = np.zeros(len(todo), bool)
        for a in range(K):
            for b in range(a):
                overlap = (np.minimum(high[:, a], high[:, b]) > np.maximum(low[:, a], low[:, b])).all(-1)
                clash |= overlap & present[:, a] & present[:, b]
        todo = todo[clash]
    return corner


def _paint(
    rng: Generator, alpha: np.ndarray, corner: np.ndarray, colour: np.ndarray, count: np.ndarray, pixels: str
) -> np.ndarray:
    """Paints the scenes, N S S 3 uint8. alpha: the objects' glyphs N K 21 21, from 0 to 1."""
    n = len(alpha)
    base = rng.uniform(10, 50, size=(n, 1, 1, 3)).astype(np.float32)
    canvas = base + rng.normal(0, 12, size=(n, S, S, 3)).astype(np.float32)
    if pixels == "texture":
        row, column = np.mgrid[:S, :S]
        direction = rng.uniform(0, np.pi, size=(n, 1, 1))
        phase = (row * np.sin(direction) + column * np.cos(direction)) * rng.uniform(0.5, 1.2, size=(n, 1, 1))
        canvas += (70 + 50 * np.sin(phase)).astype(np.float32)[..., None]
    ink = RGB[colour] + rng.normal(0, 12, size=(n, K, 3)).astype(np.float32)  # N K 3
    offset = np.arange(SIDE_MAX)
    scene = np.arange(n)[:, None, None]
    for k in range(K):
        # Beyond a glyph's own side alpha is 0, so a wrapped index paints nothing.
        rows = (corner[:, k, 1, None] + offset)[:, :, None] % S  # N 21 1
        columns = (corner[:, k, 0, None] + offset)[:, None, :] % S  # N 1 21
        cover = (alpha[:, k] * (k < count)[:, None, None])[..., None]  # N 21 21 1
        under = canvas[scene, rows, columns]
        canvas[scene, rows, columns] = under + cover * (ink[:, k, None, None] - under)
    return np.clip(canvas, 0, 255).astype(np.uint8)
