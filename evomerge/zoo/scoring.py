"""Exact scores without generating, for the figures that come with the checkpoints.

A prompt has one right answer, so greedy decoding says it exactly when every token of it is the
argmax under teacher forcing: one forward pass instead of one per token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LlamaForCausalLM

from evomerge.zoo.items import Item
from evomerge.zoo.languages import EOS, PAD
from evomerge.zoo.model import token_ids

IGNORED = -100
CHUNK = 250


def encode(pairs: Sequence[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels of prompts with their answers, both (pairs, longest).

    Rows are padded on the right; the labels of prompts and padding are ignored.
    """
    ids = token_ids()
    prompts = [[ids[word] for word in prompt.split()] for prompt, _ in pairs]
    answers = [[ids[word] for word in answer.split()] + [ids[EOS]] for _, answer in pairs]
    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    tokens = torch.full((len(pairs), length), ids[PAD])
    labels = torch.full((len(pairs), length), IGNORED)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        tokens[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return tokens, labels


def accuracy(model: LlamaForCausalLM, items: Sequence[Item], generated: bool) -> float:
    """The share of items answered (generated) or chosen right."""
    right = exact if generated else chosen
    parts = [right(model, items[i : i + CHUNK]) for i in range(0, len(items), CHUNK)]
    return torch.cat(parts).float().mean().item()


@torch.no_grad()
def exact(model: LlamaForCausalLM, items: Sequence[Item]) -> torch.Tensor:
    """Whether greedy decoding gives each item's answer and stops: booleans, (items,)."""
    tokens, labels = encode([(item.prompt, item.answer) for item in items])
    guesses: torch.Tensor = model(input_ids=tokens[:, :-1]).logits.argmax(-1)
    wanted = labels[:, 1:]
    return ((guesses == wanted) | (wanted == IGNORED)).all(-1)


@torch.no_grad()
def chosen(model: LlamaForCausalLM, items: Sequence[Item]) -> torch.Tensor:
    """Whether the right choice is the likeliest of each item's: booleans, (items,).

    All items must have the same number of choices. As lm-eval does, the sum of the choice's
    tokens is compared, without an end of text.
    """
    pairs = [(i.prompt, choice) for i in items for choice in (i.answer, *i.wrong)]
    tokens, labels = encode(pairs)
    labels[labels == token_ids()[EOS]] = IGNORED
    logits = model(input_ids=tokens[:, :-1]).logits
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none"
    )
    return losses.sum(-1).view(len(items), -1).argmin(-1) == 0
