"""What a fusion's file says of the route by preferences (`preferences:`)."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from evomerge.config import Frozen


class StageConfig(Frozen):
    """One of the two trainings on preferences; names are TRL's and transformers'.

    Attributes:
        learning_rate: Largest learning rate of AdamW.
        num_train_epochs: Passes over the stage's questions.
        per_device_train_batch_size: Answers (of DPO: pairs) in one pass.
        gradient_accumulation_steps: Passes whose gradients make one update.
        beta: Of DPO alone: how far from where it began the target may go.
        arguments: More of TRL's SFTConfig or DPOConfig, by their own names.
    """

    learning_rate: float = Field(gt=0)
    num_train_epochs: float = Field(gt=0)
    per_device_train_batch_size: int = Field(default=16, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    beta: float = Field(default=0.1, gt=0)
    arguments: dict[str, Any] = Field(default_factory=dict)


class PreferenceConfig(Frozen):
    """FuseChat-3.0's route: sources answer, the best answers are learned (SFT), then preferred to the worst (DPO).

    Attributes:
        score: `file.py:function`, relative to the fusion's file, with the arguments (questions, answers, references):
            lists of conversations up to the answer, of answers, and of what the corpus has in their place; it returns a
            number for each, higher is better.
        samples: Answers of each source to each question.
        temperature, top_p, max_new_tokens: How they are drawn.
        batch_size: Questions that are answered at once.
        sft_share: Share of the questions whose best answers are learned; the others make the pairs.
        margin: Both answers of a pair are of one source: its best and its worst, more than so far apart.
        include_target: Whether the target, as it is before, answers too.
        sft: First training: on the best answers.
        dpo: Second training: the best answer of a pair is preferred to the worst.
    """

    score: str
    samples: int = Field(default=4, ge=2)
    temperature: float = Field(default=0.8, gt=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_new_tokens: int = Field(default=512, ge=1)
    batch_size: int = Field(default=16, ge=1)
    sft_share: float = Field(default=0.4, gt=0, lt=1)
    margin: float = Field(default=0.0, ge=0)
    include_target: bool = False
    sft: StageConfig = StageConfig(learning_rate=5e-6, num_train_epochs=3)
    dpo: StageConfig = StageConfig(learning_rate=8e-7, num_train_epochs=1)

    @field_validator("score")
    @classmethod
    def _function(cls, value: str) -> str:
        file, _, name = value.rpartition(":")
        if not file or not name.isidentifier():
            raise ValueError("expected file.py:function")
        return value
