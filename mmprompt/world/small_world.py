"""The tasks of the small world: the pretraining tasks of the backbone, and the four downstream tasks.

`PRETRAINING` and `DOWNSTREAM` have the same words and pixels, and differ in phrasing, relations, labels and style. This is the
shift that tuning has to bridge. Everything is a function of a `numpy.random.Generator`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from numpy.random import Generator, default_rng

from mmprompt.settings.task import Digits
from mmprompt.world.digits import COLOURS, DIGITS, SIZES, Object, S, Scenes, sample_scenes

T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """One example about one scene: the texts for a template, and the answer: text, or a box in pixels."""

    scene: int
    fields: dict[str, str]
    answer: str
    box: tuple[float, float, float, float] | None = None  # x0 y0 x1 y1
    extent = (float(S), float(S))  # width and height in pixels that location tokens span
    weight = 1.0  # of the example's loss

    @property
    def right(self) -> dict[str, float]:
        """The right answers and the score of each."""
        return {self.answer: 1.0}


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
    """One of the options, drawn uniformly."""
    return options[int(rng.integers(len(options)))]


def referring(rng: Generator, objects: list[Object], target: Object, hidden: str = "") -> str | None:
    """A phrase that describes only the target and does not mention the attributes in `hidden`; None if there is none."""
    fits = [a for a in ATTRIBUTES if not set(a) & set(hidden) and sum(target.like(o, a) for o in objects) == 1]
    return target.words(pick(rng, fits)) if fits else None


def superlative(rng: Generator, objects: list[Object], target: Object) -> str | None:
    """A phrase such as "leftmost digit" that is true of the target by a clear margin; None if there is none."""
    others = [o for o in objects if o is not target]
    fits = [word for word, key in EXTREMES.items() if others and all(key(target) + MARGIN < key(o) for o in others)]
    return f"{pick(rng, fits)} digit" if fits else None


def relation(rng: Generator, objects: list[Object], target: Object) -> str | None:
    """A phrase such as "digit left of the red three" that is true of the target only; None if there is none."""
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
    """An object that is not in the scene: one of the scene's objects with one or all of these attributes drawn anew."""
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
# Each maker returns the fields of its template and the answer, or None if this scene does not allow them.

Made = tuple[dict[str, str], str, "Object | None"]  # fields, answer, the object whose box is the answer or the region
Maker = Callable[[Generator, list[Object]], "Made | None"]


def ground(rng: Generator, objects: list[Object]) -> Made | None:
    target = pick(rng, objects)
    phrase = referring(rng, objects, target)
    return ({"phrase": phrase}, "", target) if phrase else None


def match(rng: Generator, objects: list[Object]) -> Made | None:
    """A phrase for one or two objects, and whether they are in the scene. A wrong object may differ from one of the scene's in a
    single attribute."""
    attributes = pick(rng, ["cd", "cd", "scd"])
    truth = bool(rng.integers(2))
    pair = len(objects) > 1 and rng.random() < 0.5
    chosen = [objects[i] for i in rng.permutation(len(objects))[: 1 + pair]]
    if not truth:
        for i in [int(rng.integers(len(chosen)))] if rng.random() < 0.7 else range(len(chosen)):
            chosen[i] = absent(rng, objects, attributes)
    return {"phrase": " and ".join(o.words(attributes) for o in chosen)}, "yes" if truth else "no", None


def ask(rng: Generator, objects: list[Object]) -> Made | None:
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


def caption(rng: Generator, objects: list[Object]) -> Made | None:
    return {}, " and ".join(o.words("scd") for o in sorted(objects, key=lambda o: o.x)), None


def name_region(rng: Generator, objects: list[Object]) -> Made | None:
    """Grounding the other way round: names the object in a region; {region} stands for the target's location tokens."""
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


def find(rng: Generator, objects: list[Object]) -> Made | None:
    """Grounding. Shift: another instruction (in conf/task), and three in ten phrases name the position, not the attributes."""
    target = pick(rng, objects)
    phrase = superlative(rng, objects, target) if rng.random() < 0.3 else referring(rng, objects, target)
    return ({"phrase": phrase}, "", target) if phrase else None


def entail(rng: Generator, objects: list[Object]) -> Made | None:
    """Entailment. Shift: always two objects, and a third label: maybe, if one of them is in the scene and the other is not."""
    if len(objects) < 2:
        return None
    label = pick(rng, ["yes", "no", "maybe"])
    here = [objects[i] for i in rng.permutation(len(objects))[:2]]
    wrong = {"yes": [], "no": [0, 1], "maybe": [int(rng.integers(2))]}[label]
    for i in wrong:
        here[i] = absent(rng, objects, "cd")
    return {"hypothesis": " and ".join(o.words("cd") for o in here)}, label, None


def question(rng: Generator, objects: list[Object]) -> Made | None:
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


def describe(rng: Generator, objects: list[Object]) -> Made | None:
    """Captioning. Shift: another style and order: from top to bottom, the value before the colour, the size only if it is large."""
    parts = [
        f"a {'large ' * o.size}{DIGITS[o.digit]} in {COLOURS[o.colour]}" for o in sorted(objects, key=lambda o: o.y)
    ]
    return {}, " above ".join(parts), None


DOWNSTREAM: dict[str, Maker] = {"grounding": find, "entailment": entail, "vqa": question, "caption": describe}


def make_item(rng: Generator, scenes: Scenes, scene: int, maker: Maker) -> Item | None:
    """The item that this maker makes of this scene; None if the scene does not allow it."""
    parts = maker(rng, scenes.objects(scene))
    if not parts:
        return None
    fields, answer, target = parts
    return Item(scene, fields, answer, target.box if target else None)


def split_of(data: Digits, family: str, split: str) -> tuple[Scenes, list[Item]]:
    """The scenes and items of a split of a downstream task, always the same. The splits share neither scenes nor handwriting."""
    rng = default_rng((data.seed, data.splits.index(split)))
    return sample_items(rng, getattr(data, split), split, DOWNSTREAM[family], data.pixels)


def sample_items(
    rng: Generator, n: int, split: str, maker: Maker, pixels: Literal["plain", "texture"]
) -> tuple[Scenes, list[Item]]:
    """n scenes, and one item about each. Scenes that do not allow an item are drawn again."""
    scenes = sample_scenes(rng, n, split, pixels)
    items: dict[int, Item] = {}
    for scene in range(n):
        for _ in range(4):  # another draw may succeed where one failed
            item = make_item(rng, scenes, scene, maker)
            if item is not None:
                items[scene] = item
                break
    missing = [scene for scene in range(n) if scene not in items]
    if missing:
        new_scenes, new_items = sample_items(rng, len(missing), split, maker, pixels)
        for array, new_array in zip(vars(scenes).values(), vars(new_scenes).values(), strict=True):
            array[missing] = new_array
        for scene, item in zip(missing, new_items, strict=True):
            items[scene] = replace(item, scene=scene)
    return scenes, [items[scene] for scene in range(n)]
