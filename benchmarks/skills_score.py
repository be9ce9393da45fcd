"""An evaluator's function for the two-marker task: whether each answer is right, and ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

NEW_TOKENS = 6


@torch.no_grad()
def exact(model: Any, tokenizer: Any, items: Sequence[Mapping[str, str]]) -> list[float]:
    """1.0 for each item whose greedy answer is the right one."""
    return [float(a == b) for a, b in _pairs(model, tokenizer, items)]


@torch.no_grad()
def tokens(model: Any, tokenizer: Any, items: Sequence[Mapping[str, str]]) -> list[float]:
    """Of each item's greedy answer the share of tokens that are right at their place."""
    return [share(a, b) for a, b in _pairs(model, tokenizer, items)]


def share(answer: list[str], right: list[str]) -> float:
    """How many tokens are right at their place, of those that there should be."""
    return sum(x == y for x, y in zip(answer, right, strict=False)) / len(right)


def _pairs(model: Any, tokenizer: Any, items: Sequence[Mapping[str, str]]) -> list[tuple[list[str], list[str]]]:
    """The words of each answer, and those of the right one."""
    inputs = tokenizer([i["prompt"] for i in items], return_tensors="pt", padding=True, padding_side="left")
    ids = inputs["input_ids"]
    out = model.generate(
        input_ids=ids, attention_mask=inputs["attention_mask"], max_new_tokens=NEW_TOKENS, do_sample=False
    )
    answers = decoded(tokenizer, out[:, ids.shape[1] :])
    return [(a.split(), i["answer"].split()) for a, i in zip(answers, items, strict=True)]


def decoded(tokenizer: Any, new: torch.Tensor) -> list[str]:
    """Answers as texts."""
    return list(tokenizer.batch_decode(new, skip_special_tokens=True))
