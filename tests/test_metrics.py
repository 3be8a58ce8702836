import numpy as np
import pytest

from mmprompt import metrics


def test_iou_of_a_shifted_square_is_a_third() -> None:
    assert metrics.iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)


def test_boxes_that_only_touch_do_not_overlap() -> None:
    assert metrics.iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0


def test_a_box_with_swapped_corners_is_no_hit() -> None:
    assert metrics.hits([(2, 2, 0, 0)], [(0, 0, 2, 2)]).tolist() == [0]


def test_an_answer_that_is_no_box_is_a_miss() -> None:
    assert metrics.hits([None, (0, 0, 2, 2)], [(0, 0, 2, 2)] * 2).tolist() == [0, 100]


def test_a_perfect_caption_scores_ten_and_a_wrong_one_nothing() -> None:
    truth = ["a red three in the corner", "five blue digits here now", "nothing to see at all"]
    scores = metrics.cider_d([truth[0], "zebra crossing ahead of us", truth[2]], truth)
    assert scores == pytest.approx([1000, 0, 1000])


def test_cider_d_equals_the_formula_worked_out_by_hand() -> None:
    # Two references share no n-gram, so each has idf log 2; unigrams only are shared, two of three, lengths equal.
    truth = ["a b c", "d e f"]
    score = metrics.cider_d(["a x b", "d e f"], truth)[0]
    # The guess's x is in no reference: document frequency 0 counts as 1, idf log 2 as well. Cosine: 2 / 3.
    assert score == pytest.approx(100 * 10 / 4 * (2 / 3))


def test_repeating_a_right_word_does_not_help() -> None:
    truth = ["red three above blue five", "green one"]
    once = metrics.cider_d(["red three", "green one"], truth)[0]
    often = metrics.cider_d(["red red red three", "green one"], truth)[0]
    assert often < once


def test_scores_keep_the_order_of_the_examples() -> None:
    assert np.array_equal(metrics.matches(["yes", "no", "maybe"], ["yes", "yes", "maybe"]), [100, 0, 100])
