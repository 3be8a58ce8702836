"""Families of tasks: each owns its metrics, and what a metric says of itself is what is recorded and shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny import settings

from analysis import names
from mmprompt.families.caption import CAPTION
from mmprompt.families.entailment import ENTAILMENT
from mmprompt.families.family import FurtherMetric
from mmprompt.families.grounding import GROUNDING
from mmprompt.families.registry import ALL, FAMILIES, PRIMARY_METRIC, highest
from mmprompt.settings.parsing import ConfigError
from mmprompt.world.small_world import DOWNSTREAM

YES = {"yes": 1.0}


def test_no_two_metrics_have_one_name_and_no_two_families() -> None:
    shown = [metric.name for family in ALL for metric in family.shown]
    assert len(set(shown)) == len(shown) and len(FAMILIES) == len(ALL) == len(set(PRIMARY_METRIC.values()))


def test_the_small_world_can_say_something_for_every_family() -> None:
    assert DOWNSTREAM.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
def test_tables_use_a_metrics_own_label_and_its_familys_order(family) -> None:  # type: ignore[no-untyped-def]
    for metric in family.shown:
        assert names.metric(metric.name) == metric.label and names.metric(metric.name, short=True) == metric.short
    places = [names.metric_order(metric.name) for metric in family.shown]
    assert places == sorted(places)


def test_only_cider_has_a_scale_of_its_own() -> None:
    assert {name for name in PRIMARY_METRIC.values() if names.has_own_scale(name)} == {"cider"}
    assert highest("cider") == 1000 and highest("acc@0.5") == highest("a metric that nobody knows") == 100


def test_further_metrics_and_references_are_named_and_those_without_a_value_are_left_out() -> None:
    def answered(predicted, right):  # type: ignore[no-untyped-def]
        return 100.0 * sum(map(bool, predicted)) / len(right)

    more = (FurtherMetric("answered", "Answered (%)", "A", answered),)
    more += (FurtherMetric("nowhere", "Nowhere", "N", lambda predicted, right: None),)
    family = replace(ENTAILMENT, further=more)
    assert family.other_metrics(["yes", ""], [YES, YES]) == {"answered": 50.0, "constant_answer": 100.0}
    assert family.other_metric_names == ("answered", "nowhere", "constant_answer")
    assert replace(GROUNDING, further=()).other_metrics([None], [(0, 0, 1, 1)]) == {}


def test_captions_are_compared_without_case_and_punctuation_and_other_answers_as_they_are() -> None:
    assert CAPTION.normalise("A red, three.") == "a red three" and ENTAILMENT.normalise("Yes.") == "Yes."


def test_a_family_that_does_not_exist_is_answered_with_those_that_do() -> None:
    with pytest.raises(ConfigError) as error:
        settings("task.family=groundin")
    assert str(error.value) == (
        "task.family='groundin' is not allowed; choose one of 'grounding', 'entailment', 'vqa' or 'caption'"
    )
