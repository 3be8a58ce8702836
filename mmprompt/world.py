"""A small world with real pixels: coloured handwritten digits on a dark canvas, and what can be said about them.

A scene has 1 to 3 digits that do not overlap. Each has a value, a colour, a size and a place; the pixels of the digits are the
handwriting that scikit-learn ships, split by sample, so that a test scene shows handwriting nobody trained on. Everything is a
function of a `numpy.random.Generator`.

N scenes, K = 3 object slots, S = 48 pixels, G glyphs.

Two sets of things to say live here: `PRETRAINING` for the backbone and `DOWNSTREAM` for the four tasks. They share words and
pixels and differ in phrasing, relations, labels and style: the shift that tuning has to bridge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np
from numpy.random import Generator
from sklearn.datasets import load_digits

T = TypeVar("T")

S = 48  # canvas side, pixels
K = 3  # most objects in a scene
COLOURS = ("red", "green", "blue", "yellow", "cyan", "magenta")
RGB = np.array(
    [(230, 50, 40), (50, 200, 60), (60, 90, 245), (230, 215, 50), (40, 210, 215), (215, 60, 215)], np.float32
)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZES = ("small", "large")
SIDES = np.array([(13, 14, 15), (19, 20, 21)])  # pixels, by size
SIDE_MAX = 21
# Glyphs by split; no sample of handwriting is in two of them. The rest of the 1,797 is the test split.
GLYPHS = {"pretrain": 1000, "train": 300, "val": 200, "test": 297}
DIGITS_SHA256 = "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"


@dataclass(frozen=True)
class Item:
    """One thing to say about one scene: the words for a template, and the answer: text, or a box in pixels."""

    scene: int
    fields: dict[str, str]
    answer: str
    box: tuple[float, float, float, float] | None = None  # x0 y0 x1 y1


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
        """`words("scd")` is "large red three"; without the d it is "large red digit"."""
        parts = [SIZES[self.size]] * ("s" in attributes) + [COLOURS[self.colour]] * ("c" in attributes)
        return " ".join([*parts, DIGITS[self.digit] if "d" in attributes else "digit"])

    def like(self, other: Object, attributes: str) -> bool:
        return (
            ("s" not in attributes or self.size == other.size)
            and ("c" not in attributes or self.colour == other.colour)
            and ("d" not in attributes or self.digit == other.digit)
        )


# ---------------------------------------------------------------------------------------------------------------- pixels


@lru_cache(maxsize=1)
def handwriting() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Every glyph at every side: bank G 6 21 21 in [0, 1] (top left, zero beyond its side), value G, glyph ids by split."""
    digits = load_digits()
    found = hashlib.sha256(digits.images.astype(np.uint8).tobytes()).hexdigest()
    if found != DIGITS_SHA256:
        raise RuntimeError(f"scikit-learn ships other digits than this world was made of: {found}, not {DIGITS_SHA256}")
    bank = np.zeros((len(digits.images), SIDES.size, SIDE_MAX, SIDE_MAX), np.float32)
    for i, side in enumerate(SIDES.ravel()):
        weights = _bilinear(8, side)  # side 8
        bank[:, i, :side, :side] = weights @ (digits.images.astype(np.float32) / 16) @ weights.T
    order = np.random.default_rng(0).permutation(len(digits.images))
    bounds = np.cumsum(list(GLYPHS.values()))
    return bank, digits.target, dict(zip(GLYPHS, np.split(order, bounds[:-1]), strict=True))


def _bilinear(source: int, target: int) -> np.ndarray:
    """The matrix (target, source) that stretches a line of pixels, half-pixel centres."""
    place = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    low = np.minimum(place.astype(int), source - 2)
    weights = np.zeros((target, source), np.float32)
    weights[np.arange(target), low] = 1 - (place - low)
    weights[np.arange(target), low + 1] = place - low
    return weights


def sample_scenes(rng: Generator, n: int, split: str, pixels: Literal["plain", "texture"]) -> Scenes:
    """n scenes with the handwriting of one split. `texture` hides the digits in bright stripes: a shift of pixels alone."""
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
    """Corners N K 2 (x, y) such that no two objects of a scene overlap: draw again where they do."""
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


# --------------------------------------------------------------------------------------------------------------- phrases

ATTRIBUTES = ("c", "d", "cd", "sc", "sd", "scd")
EXTREMES: dict[str, Callable[[Object], float]] = {
    "leftmost": lambda o: o.x,
    "rightmost": lambda o: -o.x,
    "topmost": lambda o: o.y,
    "bottommost": lambda o: -o.y,
}
MARGIN = 3.0  # pixels by which an extreme or a relation must be clear


def pick(rng: Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def referring(rng: Generator, objects: list[Object], target: Object, hidden: str = "") -> str | None:
    """A phrase that fits the target alone, without the attributes in `hidden`; None if there is none."""
    fits = [a for a in ATTRIBUTES if not set(a) & set(hidden) and sum(target.like(o, a) for o in objects) == 1]
    return target.words(pick(rng, fits)) if fits else None


def superlative(rng: Generator, objects: list[Object], target: Object) -> str | None:
    """ "leftmost digit", if the target is that by a clear margin."""
    others = [o for o in objects if o is not target]
    fits = [word for word, key in EXTREMES.items() if others and all(key(target) + MARGIN < key(o) for o in others)]
    return f"{pick(rng, fits)} digit" if fits else None


def relation(rng: Generator, objects: list[Object], target: Object) -> str | None:
    """ "digit left of the red three", if it is true of the target alone."""
    words: dict[str, Callable[[Object, Object], bool]] = {
        "left of": lambda a, b: a.x + MARGIN < b.x,
        "right of": lambda a, b: a.x > b.x + MARGIN,
        "above": lambda a, b: a.y + MARGIN < b.y,
        "below": lambda a, b: a.y > b.y + MARGIN,
    }
    fits = []
    for anchor in objects:
        name = referring(rng, objects, anchor) if anchor is not target else None
        for word, holds in words.items():
            others = [o for o in objects if o is not anchor]
            if name and holds(target, anchor) and sum(holds(o, anchor) for o in others) == 1:
                fits.append(f"digit {word} the {name}")
    return pick(rng, fits) if fits else None


def absent(rng: Generator, objects: list[Object], attributes: str) -> Object:
    """An object that is not in the scene: one of the scene's with one or two attributes changed, or any other."""
    while True:
        other = pick(rng, objects)
        change = pick(rng, [*attributes, attributes])
        candidate = Object(
            int(rng.integers(len(DIGITS))) if "d" in change else other.digit,
            int(rng.integers(len(COLOURS))) if "c" in change else other.colour,
            int(rng.integers(len(SIZES))) if "s" in change else other.size,
            other.box,
        )
        if not any(candidate.like(o, attributes) for o in objects):
            return candidate


# ----------------------------------------------------------------------------------------------------------- pretraining
# Each maker gives the fields of its template and the answer, or None if this scene does not allow it.

Said = tuple[dict[str, str], str, "Object | None"]  # fields, answer, the object whose box is meant
Maker = Callable[[Generator, list[Object]], "Said | None"]


def ground(rng: Generator, objects: list[Object]) -> Said | None:
    target = pick(rng, objects)
    phrase = referring(rng, objects, target)
    return ({"phrase": phrase}, "", target) if phrase else None


def match(rng: Generator, objects: list[Object]) -> Said | None:
    """One or two objects; the wrong ones differ from what is there by as little as one attribute."""
    attributes = pick(rng, ["cd", "cd", "scd"])
    truth = bool(rng.integers(2))
    pair = len(objects) > 1 and rng.random() < 0.5
    chosen = [objects[i] for i in rng.permutation(len(objects))[: 1 + pair]]
    if not truth:
        for i in [int(rng.integers(len(chosen)))] if rng.random() < 0.7 else range(len(chosen)):
            chosen[i] = absent(rng, objects, attributes)
    return {"phrase": " and ".join(o.words(attributes) for o in chosen)}, "yes" if truth else "no", None


def ask(rng: Generator, objects: list[Object]) -> Said | None:
    target = pick(rng, objects)

    def name(hidden: str) -> str | None:
        if rng.random() < 0.3:
            return superlative(rng, objects, target)
        return referring(rng, objects, target, hidden)

    match pick(rng, ["count", "count_one", "colour", "colour", "digit", "digit", "size", "side", "height"]):
        case "count":
            return {"question": "how many digits are there"}, DIGITS[len(objects)], None
        case "count_one":
            word, key = pick(
                rng, [(COLOURS[target.colour], "c"), (SIZES[target.size], "s"), (pick(rng, list(COLOURS)), "c")]
            )
            words = COLOURS if key == "c" else SIZES
            n = sum((o.colour if key == "c" else o.size) == words.index(word) for o in objects)
            return {"question": f"how many {word} digits are there"}, DIGITS[n], None
        case "colour":
            phrase, answer, question = name("c"), COLOURS[target.colour], "what color is the"
        case "digit":
            phrase, answer, question = name("d"), DIGITS[target.digit], "what number is the"
        case "size":
            phrase, answer, question = name("s"), SIZES[target.size], "what size is the"
        case "side":
            if abs(target.x - S / 2) < MARGIN:
                return None
            phrase, answer, question = name(""), "left" if target.x < S / 2 else "right", "which side is the"
        case _:
            if abs(target.y - S / 2) < MARGIN:
                return None
            phrase, answer, question = name(""), "top" if target.y < S / 2 else "bottom", "how high is the"
    return ({"question": f"{question} {phrase}"}, answer, None) if phrase else None


def caption(rng: Generator, objects: list[Object]) -> Said | None:
    return {}, " and ".join(o.words("scd") for o in sorted(objects, key=lambda o: o.x)), None


def name_region(rng: Generator, objects: list[Object]) -> Said | None:
    """Grounding the other way: {region} stands for the target's location tokens."""
    target = pick(rng, objects)
    return {"region": ""}, target.words("scd"), target


PRETRAINING: dict[str, tuple[str, float, Maker]] = {  # name: template (facts 5.3 and OFA's own), share, maker
    "grounding": (' which region does the text " {phrase} " describe?', 0.26, ground),
    "matching": (' does the image describe " {phrase} "?', 0.32, match),
    "vqa": (" {question}?", 0.26, ask),
    "caption": (" what does the image describe?", 0.10, caption),
    "region": (" what does the region describe? region: {region}", 0.06, name_region),
}


# ------------------------------------------------------------------------------------------------------------ downstream


def find(rng: Generator, objects: list[Object]) -> Said | None:
    """Grounding. Shift: another instruction (in conf/task), three in ten phrases say where and not what."""
    target = pick(rng, objects)
    phrase = superlative(rng, objects, target) if rng.random() < 0.3 else referring(rng, objects, target)
    return ({"phrase": phrase}, "", target) if phrase else None


def entail(rng: Generator, objects: list[Object]) -> Said | None:
    """Entailment. Shift: two objects always, and a third label: maybe, when one of them is there and the other is not."""
    if len(objects) < 2:
        return None
    label = pick(rng, ["yes", "no", "maybe"])
    here = [objects[i] for i in rng.permutation(len(objects))[:2]]
    wrong = {"yes": [], "no": [0, 1], "maybe": [int(rng.integers(2))]}[label]
    for i in wrong:
        here[i] = absent(rng, objects, "cd")
    return {"hypothesis": " and ".join(o.words("cd") for o in here)}, label, None


def question(rng: Generator, objects: list[Object]) -> Said | None:
    """VQA. Shift: relations between two objects, comparisons, counting by exclusion, in imperative form."""
    if len(objects) < 2:
        return None
    match pick(rng, ["relation", "relation", "compare", "count"]):
        case "relation":
            target = pick(rng, objects)
            phrase = relation(rng, objects, target)
            kind, answer = pick(rng, [("color", COLOURS[target.colour]), ("number", DIGITS[target.digit])])
            return ({"question": f"tell the {kind} of the {phrase}"}, answer, None) if phrase else None
        case "compare":
            a, b = (objects[i] for i in rng.permutation(len(objects))[:2])
            names = referring(rng, objects, a, "s"), referring(rng, objects, b, "s")
            if a.size == b.size or a.colour == b.colour or None in names:
                return None
            larger = a if a.size else b
            return (
                {"question": f"tell the color of the larger of the {names[0]} and the {names[1]}"},
                COLOURS[larger.colour],
                None,
            )
        case _:
            colour = pick(rng, objects).colour
            n = sum(o.colour != colour for o in objects)
            return {"question": f"tell how many digits are not {COLOURS[colour]}"}, DIGITS[n], None


def describe(rng: Generator, objects: list[Object]) -> Said | None:
    """Captioning. Shift: another style and order: top to bottom, value first, colour behind it, size only of the large."""
    parts = [
        f"a {'large ' * o.size}{DIGITS[o.digit]} in {COLOURS[o.colour]}" for o in sorted(objects, key=lambda o: o.y)
    ]
    return {}, " above ".join(parts), None


DOWNSTREAM: dict[str, Maker] = {"grounding": find, "entailment": entail, "vqa": question, "caption": describe}


def say(rng: Generator, scenes: Scenes, scene: int, maker: Maker) -> Item | None:
    """What this maker says of this scene, or None if the scene does not allow it."""
    made = maker(rng, scenes.objects(scene))
    if not made:
        return None
    fields, answer, target = made
    return Item(scene, fields, answer, target.box if target else None)


def sample_items(
    rng: Generator, n: int, split: str, maker: Maker, pixels: Literal["plain", "texture"]
) -> tuple[Scenes, list[Item]]:
    """n items, each of a scene of its own (scenes that do not allow one are drawn again)."""
    scenes = sample_scenes(rng, n, split, pixels)
    items: dict[int, Item] = {}
    for scene in range(n):
        for _ in range(4):  # another phrase may succeed where one failed
            item = say(rng, scenes, scene, maker)
            if item is not None:
                items[scene] = item
                break
    missing = [scene for scene in range(n) if scene not in items]
    if missing:
        more, found = sample_items(rng, len(missing), split, maker, pixels)
        for array, extra in zip(vars(scenes).values(), vars(more).values(), strict=True):
            array[missing] = extra
        for scene, item in zip(missing, found, strict=True):
            items[scene] = replace(item, scene=scene)
    return scenes, [items[scene] for scene in range(n)]
