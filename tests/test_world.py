import hashlib
from collections import Counter

import numpy as np
import pytest

from mmprompt.data.tasks import collate, encode
from mmprompt.data.tokenizer import UNK, Tokenizer
from mmprompt.models.ofa import EOS
from mmprompt.settings.task import WORLD_VERSION
from mmprompt.world import digits, small_world

TOKENIZER = Tokenizer(160, 32)
MAKERS = {**{name: maker for name, (_, _, maker) in small_world.PRETRAINING.items()}, **small_world.DOWNSTREAM}

# What each downstream task's first 50 examples hash to. If this fails, the world has changed: raise WORLD_VERSION.
PINNED = {
    1: {
        "grounding": "bc5799a8da6a4ad2",
        "entailment": "f894ea8645ed40a5",
        "vqa": "53091f3236234c2a",
        "caption": "e3c92de72123b30e",
    }
}


def items(name: str, n: int = 300, split: str = "train", seed: int = 0) -> tuple[digits.Scenes, list[small_world.Item]]:
    return small_world.sample_items(np.random.default_rng(seed), n, split, MAKERS[name], "plain")


def fingerprint(name: str) -> str:
    scenes, said = items(name, 50)
    total = hashlib.sha256(scenes.images.tobytes())
    for item in said:
        box = None if item.box is None else [float(x) for x in item.box]
        total.update(repr((item.fields, item.answer, box)).encode())
    return total.hexdigest()[:16]


@pytest.mark.parametrize("name", small_world.DOWNSTREAM)
def test_the_scenes_of_this_world_version_never_change(name: str) -> None:
    assert fingerprint(name) == PINNED[WORLD_VERSION][name]


def test_no_handwriting_is_in_two_splits() -> None:
    _, _, glyphs = digits.handwriting()
    together = np.concatenate(list(glyphs.values()))
    assert len(set(together)) == len(together) == 1797
    assert {split: len(ids) for split, ids in glyphs.items()} == digits.GLYPHS


def test_digits_lie_on_the_canvas_and_do_not_overlap() -> None:
    scenes = digits.sample_scenes(np.random.default_rng(3), 400, "val", "plain")
    for scene in range(400):
        objects = scenes.objects(scene)
        for i, a in enumerate(objects):
            assert min(a.box) >= 0 and max(a.box) <= digits.S
            for b in objects[:i]:
                width = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
                height = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
                assert width <= 0 or height <= 0


def test_a_digit_shows_its_colour_where_its_box_is() -> None:
    scenes = digits.sample_scenes(np.random.default_rng(3), 200, "val", "plain")
    right = []
    for scene in range(200):
        for o in scenes.objects(scene):
            x0, y0, x1, y1 = (int(c) for c in o.box)
            pixels = scenes.images[scene, y0:y1, x0:x1].reshape(-1, 3).astype(float)
            ink = pixels[pixels.max(1) > 150].mean(0)
            right.append(np.abs(digits.RGB - ink).sum(1).argmin() == o.colour)
    assert np.mean(right) > 0.97


def test_a_referring_phrase_fits_one_object_only() -> None:
    rng = np.random.default_rng(5)
    scenes = digits.sample_scenes(rng, 300, "train", "plain")
    found = 0
    for scene in range(300):
        objects = scenes.objects(scene)
        for target in objects:
            phrase = small_world.referring(rng, objects, target)
            if phrase is None:
                continue
            found += 1
            fits = [
                o
                for o in objects
                if all(
                    word in (digits.DIGITS[o.digit], digits.COLOURS[o.colour], digits.SIZES[o.size], "digit")
                    for word in phrase.split()
                )
            ]
            assert fits == [target]
    assert found > 300


def test_entailment_says_yes_for_two_maybe_for_one_and_no_for_none() -> None:
    scenes, said = items("entailment")
    for item in said:
        words = [part.split() for part in item.fields["hypothesis"].split(" and ")]
        here = {(digits.COLOURS[o.colour], digits.DIGITS[o.digit]) for o in scenes.objects(item.scene)}
        present = sum(tuple(pair) in here for pair in words)
        assert item.answer == {0: "no", 1: "maybe", 2: "yes"}[present]
    assert min(Counter(item.answer for item in said).values()) > 60


def test_matching_is_true_exactly_when_every_object_is_there() -> None:
    scenes, said = items("matching")
    for item in said:
        truths = []
        for part in item.fields["phrase"].split(" and "):
            words = set(part.split())
            truths.append(
                any(
                    words <= {digits.COLOURS[o.colour], digits.DIGITS[o.digit], digits.SIZES[o.size]}
                    for o in scenes.objects(item.scene)
                )
            )
        assert (item.answer == "yes") == all(truths)


@pytest.mark.parametrize("name", MAKERS)
def test_every_word_is_in_the_vocabulary(name: str) -> None:
    _, said = items(name, 200)
    for item in said:
        text = " ".join([*item.fields.values(), item.answer])
        assert UNK not in TOKENIZER.encode(text), text


@pytest.mark.parametrize("name", small_world.DOWNSTREAM)
def test_the_same_seed_gives_the_same_scenes_and_another_seed_others(name: str) -> None:
    (first, a), (second, b), (third, _) = items(name, 40), items(name, 40), items(name, 40, seed=1)
    assert a == b and np.array_equal(first.images, second.images)
    assert not np.array_equal(first.images, third.images)


def test_a_box_survives_its_location_tokens_within_half_a_bin() -> None:
    _, said = items("grounding", 100)
    for item in said:
        sample = encode(item, " find {phrase}", "none", TOKENIZER)
        back = TOKENIZER.coordinates([*sample.answer, EOS], digits.S)
        assert back is not None and item.box is not None
        assert max(abs(x - y) for x, y in zip(back, item.box, strict=True)) <= digits.S / 31 / 2 + 1e-6


def test_the_repeated_instruction_is_read_but_not_trained_on() -> None:
    _, said = items("entailment", 3)
    samples = [encode(item, ' can the image imply " {hypothesis} "?', "prev_output", TOKENIZER) for item in said]
    batch = collate(samples)
    assert batch.answer_tokens == 2 * len(samples)  # the answer and </s>
    for row, sample in enumerate(samples):
        last = len(sample.source) - 2  # the instruction's last token, </s> left out
        assert batch.decoder[row, : last + 1].tolist() == sample.source[:-1]
        assert batch.target[row, last].item() == sample.answer[0]
        assert batch.target[row, last + 1].item() == EOS
