"""transformers' Trainer with the losses of fusion, measuring bits per byte."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction, Trainer

from evomerge.fusion import losses
from evomerge.fusion.config import Loss
from evomerge.fusion.tokenized import BYTE_NATS

# What the Trainer stops by and chooses the best checkpoint by.
METRIC = "bits_per_byte"


@dataclass(frozen=True)
class Learning:
    """What is learned.

    Attributes:
        clm_weight: lambda of lambda * CLM + (1 - lambda) * the loss over what the sources say.
        renormalize: See `evomerge.fusion.losses.sparse_cross_entropy`.
    """

    loss: Loss
    clm_weight: float
    alm_temperature: float
    renormalize: bool


class FusionTrainer(Trainer):
    """Learns from the text and from the sources: sum over tokens / number of tokens to learn in the whole step.

    A position at which no source says anything counts with its lambda * CLM alone.
    """

    # Divided by the tokens of all accumulated batches, not of each.
    loss_is_scaled_for_ga = True

    def __init__(self, learning: Learning, domains: Sequence[str], **kwargs: Any) -> None:
        super().__init__(compute_metrics=_Bits(tuple(domains)), **kwargs)
        self._learning = learning
        # The Trainer counts the tokens to learn where it believes that the model wants to know.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = True

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch; see `Trainer.compute_loss`."""
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
        logprobs = torch.log_softmax(logits[:, :-1].float(), dim=-1)
        labels = inputs["labels"][:, 1:]
        count = num_items_in_batch if num_items_in_batch is not None else (labels != losses.IGNORED).sum()
        loss = self._sum(logprobs, labels, inputs) / torch.as_tensor(count, device=logprobs.device).clamp(min=1)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # The count is that of all devices, whose gradients are averaged.
            loss = loss * self.accelerator.num_processes
        return (loss, {"logits": logits}) if return_outputs else loss

    def _sum(self, logprobs: Tensor, labels: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        own = self._learning
        total = own.clm_weight * losses.clm(logprobs, labels)
        if own.clm_weight == 1.0:
            return total
        return total + (1.0 - own.clm_weight) * self._from_sources(logprobs, labels, inputs)

    def _from_sources(self, logprobs: Tensor, labels: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        own = self._learning
        if own.loss == "alm":
            chunks = inputs["chunks"][:, :-1]
            return losses.likelihood_matching(
                logprobs, labels, chunks, inputs["chunk_likelihoods"], own.alm_temperature
            )
        if own.loss == "uld":
            return losses.sorted_distance(logprobs, inputs["sorted_probabilities"][:, :-1])
        sparse = losses.sparse_cross_entropy if own.loss == "ce" else losses.sparse_divergence
        ids, probabilities = inputs["fused_ids"][:, :-1], inputs["fused_probabilities"][:, :-1]
        return sparse(logprobs, ids, probabilities, renormalize=own.renormalize)

    def prediction_step(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Nats, and bytes and domain, of each held-out document; see `Trainer.prediction_step`."""
        batch = self._prepare_inputs(dict(inputs))
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        logprobs = torch.log_softmax(logits[:, :-1].float(), dim=-1)
        labels = batch["labels"][:, 1:]
        own = logprobs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        nats = -torch.where(labels != losses.IGNORED, own, 0.0).sum(-1)
        nats = nats + batch["unwritable"] * BYTE_NATS
        sizes = batch["scored"].sum(-1) + batch["unwritable"]
        return nats.sum() / sizes.sum().clamp(min=1), nats, torch.stack([sizes, batch["group"]], dim=-1)


@dataclass(frozen=True)
class _Bits:
    """From nats and bytes of documents to bits per byte: of each domain, and their mean."""

    domains: tuple[str, ...]

    def __call__(self, found: EvalPrediction) -> dict[str, float]:
        nats, labels = np.asarray(found.predictions, np.float64), np.asarray(found.label_ids)
        by_domain = bits_per_byte(nats, labels[:, 0], labels[:, 1], self.domains)
        mean = sum(by_domain.values()) / max(len(by_domain), 1)
        return {METRIC: mean, **{f"{METRIC}_{name or 'all'}": value for name, value in by_domain.items()}}


def bits_per_byte(nats: Any, sizes: Any, groups: Any, domains: Sequence[str]) -> dict[str, float]:
    """Bits per byte of each domain that has any bytes.

    Args:
        nats, sizes, groups: Negative log-likelihood, bytes and number of the domain of each document.
    """
    found = {}
    for number, domain in enumerate(domains):
        own = np.asarray(groups) == number
        size = float(np.asarray(sizes)[own].sum())
        if size:
            found[domain] = float(np.asarray(nats)[own].sum()) / size / math.log(2)
    return found
