"""Mixing what adapters say instead of what they are: the logits of each, weighed.

logits = logits_0 + sum_i alpha_i (logits_i - logits_0): linear in the same weights as W_0 + sum_i alpha_i B_i A_i, and
exact routing where one weight is 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import skills_task as task
import torch
from skills_score import decoded
from torch import Tensor

from evomerge.skills import GatedModel
from evomerge.skills.gate import Gate
from evomerge.skills.training import GateTraining


class Outputs:
    """A base with two adapters, each run by itself.

    Args:
        model: Gives base, adapters and what a gate reads; its own gate is not used.
    """

    def __init__(self, model: GatedModel) -> None:
        self._model = model
        self._gate = Gate(model.gate.inner.in_features, 2)
        ones = torch.eye(2)
        alone = torch.cat([torch.zeros(1, 2), ones])
        self._runs = alone.unsqueeze(1).expand(3, model.gate.groups, 2)

    def train(self, found: Sequence[task.Item], seed: int, training: GateTraining) -> None:
        """Train the gate over logits, as a gate over parameters is trained: same steps, rate, batch and loss."""
        model = self._model
        self._gate = Gate(model.gate.inner.in_features, 2, width=training.width,
                          generator=torch.Generator().manual_seed(seed))  # fmt: skip
        whole = model.tokenizer([f"{i.prompt} {i.answer} {task.EOS}" for i in found], return_tensors="pt")["input_ids"]
        prompts = whole[:, : task.LENGTH + 2]
        pooled = model.pooled(prompts, torch.ones_like(prompts))
        with torch.no_grad():
            logits = self._logits(whole)[:, :, task.LENGTH + 1 : -1]
        wanted = whole[:, task.LENGTH + 2 :]
        optimizer = torch.optim.AdamW(self._gate.parameters(), lr=training.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(training.steps):
            some = torch.randperm(len(found), generator=generator)[: training.batch_size]
            mixed = _mixed(logits[:, some], self._gate(pooled[some]))
            loss = torch.nn.functional.cross_entropy(mixed.flatten(0, 1), wanted[some].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def answers(self, found: Sequence[task.Item], weights: Tensor | None = None) -> list[str]:
        """Greedy answers.

        Args:
            weights: Instead of the gate's: [1, 1, skills], or [1, tokens, skills] for each token of the answer.
        """
        model = self._model
        ids = model.tokenizer([i.prompt for i in found], return_tensors="pt")["input_ids"]
        start = ids.shape[1]
        own = (
            self._gate(model.pooled(ids, torch.ones_like(ids))) if weights is None else weights.expand(len(ids), -1, 2)
        )
        ended = torch.zeros(len(ids), dtype=torch.bool)
        eos, pad = task.WORDS.index(task.EOS), task.WORDS.index(task.PAD)
        for turn in range(task.LENGTH + 2):
            now = min(turn, own.shape[1] - 1)
            logits = self._logits(ids)[:, :, -1:]
            new = torch.where(ended, pad, _mixed(logits, own[:, now : now + 1])[:, 0].argmax(-1))
            ended |= new == eos
            ids = torch.cat([ids, new.unsqueeze(1)], dim=1)
        return decoded(model.tokenizer, ids[:, start:])

    def _logits(self, ids: Tensor) -> Tensor:
        """What the base and each adapter say: [3, rows, tokens, words]; one pass, with other weights for each third."""
        whole = ids.repeat(3, 1)
        with self._model.held(self._runs.repeat_interleave(len(ids), dim=0)):
            found = self._model.base(input_ids=whole, attention_mask=torch.ones_like(whole)).logits
        return found.view(3, *ids.shape, -1)


def _mixed(logits: Tensor, weights: Tensor) -> Tensor:
    """logits: [1 + skills, rows, tokens, words]; weights: [rows, 1, skills]."""
    base, others = logits[0], logits[1:]
    return base + torch.einsum("sbtv,bs->btv", others - base, weights[:, 0])
