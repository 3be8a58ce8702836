"""How a run's settings choose the way its answers are found."""

from __future__ import annotations

import pytest
import torch
from tiny import data_of, settings

from mmprompt.data.tasks import preprocess
from mmprompt.data.tokenizer import Tokenizer
from mmprompt.evaluation.answers import answers, example_scores
from mmprompt.execution.run_context import backbone_of
from mmprompt.methods.tuned_model import Tuned
from mmprompt.models.ofa import EOS, PAD
from mmprompt.runs.config import RunConfig
from mmprompt.runs.deployment import backbone_file
from mmprompt.runs.identity import run_id
from mmprompt.settings.parsing import ConfigError

EXAMPLES = 30


def untrained(*overrides: str) -> tuple[RunConfig, Tuned]:
    """The committed backbone without a prompt: what it learned in pretraining it still answers."""
    config, place = settings("prompt.length=0", *overrides)
    backbone = backbone_of(config, backbone_file(place))
    return config, Tuned(config, backbone, torch.Generator(), data_of(config).answer_ids)


def answered(*overrides: str) -> list[list[int]]:
    config, tuned = untrained(*overrides)
    split = data_of(config).split("val")
    found = answers(
        config,
        tuned,
        split,
        lambda index: tuned.backbone.features(
            preprocess(split.images[torch.from_numpy(index)], config.task.image_size)
        ),
        EXAMPLES,
    )
    return [[token for token in ids if token != PAD] for ids in found]


def test_a_closed_set_is_scored_whole_or_searched_and_one_word_answers_come_out_the_same() -> None:
    config, _ = settings("task=micro_vqa")
    assert config.task.answers is not None
    tokenizer = Tokenizer(config.model.vocab_size, config.model.num_bins)
    scored = answered("task=micro_vqa")
    assert len({tuple(ids) for ids in scored}) > 3
    for beam in (1, 16):
        searched = answered("task=micro_vqa", f"task.beam={beam}")
        assert [tokenizer.decode(ids) for ids in searched] == [tokenizer.decode(ids) for ids in scored]
        assert {tokenizer.decode(ids) for ids in searched} <= set(config.task.answers)


def test_a_box_has_four_tokens_whether_searched_or_not() -> None:
    greedy, beam = answered("task=micro_grounding"), answered("task=micro_grounding", "task.beam=5")
    assert {len(ids) for ids in greedy} == {4}
    assert {len(ids) for ids in beam} == {5} and {ids[4] for ids in beam} == {EOS}


def test_a_caption_repeats_no_words_in_a_row_if_told_so() -> None:
    free = answered("task=micro_caption", "task.max_target_tokens=12")
    for beam in ("null", "3"):
        told = answered(
            "task=micro_caption", "task.max_target_tokens=12", f"task.beam={beam}", "task.no_repeat_ngram=1"
        )
        assert all(len(set(ids)) == len(ids) for ids in told)
    assert any(len(set(ids)) < len(ids) for ids in free)


def test_every_way_of_answering_is_scored() -> None:
    for task, beam in (("micro_vqa", 3), ("micro_grounding", 2), ("micro_caption", 2)):
        config, tuned = untrained(f"task={task}", f"task.beam={beam}")
        split = data_of(config).split("val")
        features = tuned.backbone.features(preprocess(split.images[:EXAMPLES], config.task.image_size))
        scores = example_scores(config, tuned, split, lambda index, of=features: of[index], EXAMPLES)  # type: ignore[misc]
        assert scores.shape == (EXAMPLES,)


def test_a_search_with_one_hypothesis_is_greedy_decoding_and_the_same_run() -> None:
    ids = {beam: run_id(settings("task=micro_caption", f"task.beam={beam}")[0]) for beam in ("null", "1", "5")}
    assert ids["null"] == ids["1"] != ids["5"]
    closed = {beam: run_id(settings("task=micro_vqa", f"task.beam={beam}")[0]) for beam in ("null", "1")}
    assert closed["null"] != closed["1"]  # scoring every answer is another thing


def test_a_rule_of_the_search_without_a_search_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match=r"task\.no_repeat_ngram=3 is a rule of the search, and task\.beam=null"):
        settings("task=micro_vqa", "task.no_repeat_ngram=3")
    settings("task=micro_vqa", "task.no_repeat_ngram=3", "task.beam=2")
    settings("task=micro_caption", "task.no_repeat_ngram=3")
