import numpy as np
import pytest

from mmprompt.families.caption import cider_d
from mmprompt.families.grounding import hits, iou
from mmprompt.families.short_answers import constant_answer, credits


def once_each(answers: list[str]) -> list[dict[str, float]]:
    return [{answer: 1.0} for answer in answers]


def test_iou_of_a_shifted_square_is_a_third() -> None:
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)


def test_boxes_that_only_touch_do_not_overlap() -> None:
    assert iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0


def test_a_box_with_swapped_corners_is_no_hit() -> None:
    assert hits([(2, 2, 0, 0)], [(0, 0, 2, 2)]) == [0]


def test_an_answer_that_is_no_box_is_a_miss() -> None:
    assert hits([None, (0, 0, 2, 2)], [(0, 0, 2, 2)] * 2) == [0, 100]


def test_a_perfect_caption_scores_ten_and_a_wrong_one_nothing() -> None:
    truth = ["a red three in the corner", "five blue digits here now", "nothing to see at all"]
    scores = cider_d([truth[0], "zebra crossing ahead of us", truth[2]], once_each(truth))
    assert scores == pytest.approx([1000, 0, 1000])


def test_cider_d_equals_the_formula_worked_out_by_hand() -> None:
    # Two references share no n-gram, so each has idf log 2; unigrams only are shared, two of three, lengths equal.
    truth = ["a b c", "d e f"]
    score = cider_d(["a x b", "d e f"], once_each(truth))[0]
    # The guess's x is in no reference: document frequency 0 counts as 1, idf log 2 as well. Cosine: 2 / 3.
    assert score == pytest.approx(100 * 10 / 4 * (2 / 3))


def test_repeating_a_right_word_does_not_help() -> None:
    truth = ["red three above blue five", "green one"]
    once = cider_d(["red three", "green one"], once_each(truth))[0]
    often = cider_d(["red red red three", "green one"], once_each(truth))[0]
    assert often < once


def test_scores_keep_the_order_of_the_examples() -> None:
    assert np.array_equal(credits(["yes", "no", "maybe"], once_each(["yes", "yes", "maybe"])), [100, 0, 100])


def test_an_answer_earns_what_people_gave_it() -> None:
    right = [{"yes": 1.0, "no": 0.3}] * 3
    assert credits(["no", "yes", "maybe"], right) == [30, 100, 0]


def test_with_several_captions_cider_d_is_the_mean_over_them() -> None:
    # n-grams of one image's captions are of one document: "a b c" and "d e f" of it, "g h i" of the other; idf is log 2 again.
    right = [{"a b c": 1.0, "d e f": 1.0}, {"g h i": 1.0}]
    score = cider_d(["a x b", "g h i"], right)[0]
    assert score == pytest.approx((100 * 10 / 4 * (2 / 3) + 0) / 2)


def test_a_caption_given_twice_counts_twice() -> None:
    once, twice = {"a b c": 1.0, "d e f": 1.0}, {"a b c": 2.0, "d e f": 1.0}
    first, second = (cider_d(["a b c", "g"], [right, {"g": 1.0}])[0] for right in (once, twice))
    assert second == pytest.approx(first * 4 / 3)


def test_the_constant_answer_is_the_one_with_the_highest_mean_credit_not_the_one_that_is_right_most_often() -> None:
    right = [{"two": 1.0, "three": 0.6}, {"four": 1.0, "three": 0.6}, {"two": 0.3, "three": 0.9}]
    assert constant_answer(right) == pytest.approx(100 * 2.1 / 3)
    for answer in ("two", "three", "four"):
        assert np.mean(credits([answer] * 3, right)) <= constant_answer(right) + 1e-9
    assert constant_answer(once_each(["yes", "no", "yes", "maybe"])) == 50
