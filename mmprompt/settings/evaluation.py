"""The settings of evaluations: they make an evaluation's id, and are in no run's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmprompt.settings.section import NotNegativeFloat, Positive, Section


class Attack(Section):
    """An adversarial attack on an evaluation (paper 4.4.3; `mmprompt.evaluation.attack`)."""

    kind: Literal["fgsm", "pgd"] = Field(
        description="fgsm: one signed step of the gradient, as in the paper; pgd: several, each projected back"
    )
    input: Literal["embeddings", "pixels"] = Field(
        description="what is perturbed: the embeddings of text and image, as in the paper, or the normalised pixels in [-1, 1]"
    )
    epsilon: NotNegativeFloat = Field(description="largest change of any single number; 0: no attack")
    steps: Positive = Field(description="steps of pgd")


class Evaluation(Section):
    """What finished weights are evaluated on."""

    splits: Annotated[list[str], Field(min_length=1)] | None = Field(
        description="splits to evaluate on; null: the task's validation and test splits"
    )
    examples: Positive | None = Field(description="how many examples of each split, from its beginning; null: all")
    beam: Positive | None = Field(description="in place of task.beam; null: the task's")
    no_repeat_ngram: Positive | None = Field(description="in place of task.no_repeat_ngram; null: the task's")
    unscored: dict[str, Annotated[list[str], Field(min_length=1)]] | None = Field(
        description="further splits that are answered without a score, because only a challenge has their right answers: "
        "{SPLIT: [FILE, ...]}, with files in paths.data; null: none"
    )


class Questions(Section):
    """Everything that decides an evaluation of a run."""

    evaluation: Evaluation
    attack: Attack
