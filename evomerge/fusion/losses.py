"""What a target learns by: pure functions of its logits.

Each is a sum over positions, to be divided by the number of tokens that are learned, so that batches that are
accumulated or on several devices count by their tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100
# The least probability that is told from 0 (float32's epsilon, about).
_LEAST = 1e-7


def clm(logprobs: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of the text, in nats, summed.

    Args:
        logprobs: log q of the next token, [B, T, V].
        labels: The next token at each position, [B, T]; IGNORED where none is learned.
    """
    return torch.nn.functional.nll_loss(logprobs.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")


def sparse_cross_entropy(logprobs: Tensor, ids: Tensor, probabilities: Tensor, *, renormalize: bool = False) -> Tensor:
    """sum_t -sum_v p_tv log q_tv over a fused distribution that is kept sparse (FuseLLM, arXiv 2401.10491, eq. 4).

    Args:
        logprobs: log q, [B, T, V].
        ids: Tokens that p is about, [B, T, K]; negative ones stand for nothing.
        probabilities: p, [B, T, K]; where all are 0 there is nothing to learn.
        renormalize: Bring each p to a sum of one, as published. Else what is left of it is the probability of all other
            tokens together, which q has to give them.
    """
    p, rest = _whole(probabilities, renormalize)
    own = _gathered(logprobs, ids)
    return -(p * own).sum() - (rest * _log_rest(own, ids)).sum()


def sparse_divergence(logprobs: Tensor, ids: Tensor, probabilities: Tensor, *, renormalize: bool = False) -> Tensor:
    """sum_t KL(p_t || q_t) over a fused distribution that is kept sparse: `sparse_cross_entropy` less p's entropy.

    It is 0 where there is nothing more to learn; the gradients are the same.
    """
    p, rest = _whole(probabilities, renormalize)
    entropy = -torch.xlogy(p, p).sum() - torch.xlogy(rest, rest).sum()
    return sparse_cross_entropy(logprobs, ids, probabilities, renormalize=renormalize) - entropy


def likelihood_matching(
    logprobs: Tensor, labels: Tensor, chunks: Tensor, likelihoods: Tensor, temperature: float
) -> Tensor:
    """Approximate likelihood matching (arXiv 2503.20083, eq. 6): for each chunk of the same bytes the divergence
    between the likelihoods that source and target give it, as those of a coin, both to the power of 1 / temperature.

    It is multiplied by the temperature, without which its gradients fall with it: at 100 they would be a hundredth of
    the text's.

    The published debiasing of chunks whose ends mean different things to two tokenizers needs whole distributions,
    which are not kept, and is left out.

    Args:
        logprobs: log q, [B, T, V].
        labels: The next token at each position, [B, T].
        chunks: Which chunk of its document the next token belongs to, [B, T]; negative: none.
        likelihoods: The source's log-likelihood of each chunk, in nats, [B, C].
    """
    own = logprobs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    inside = (chunks >= 0) & (labels != IGNORED)
    places = chunks.clamp(min=0)
    mine = torch.zeros_like(likelihoods).scatter_add(1, places, torch.where(inside, own, 0.0))
    counted = torch.zeros_like(likelihoods).scatter_add(1, places, inside.to(likelihoods.dtype)) > 0
    p = (likelihoods / temperature).exp().clamp(_LEAST, 1 - _LEAST)
    q = (mine / temperature).exp().clamp(_LEAST, 1 - _LEAST)
    divergence = p * (p.log() - q.log()) + (1 - p) * ((1 - p).log() - (1 - q).log())
    return temperature * torch.where(counted, divergence, 0.0).sum()


def sorted_distance(logprobs: Tensor, probabilities: Tensor) -> Tensor:
    """Universal logit distillation (arXiv 2402.12030, eq. 4): sum_t sum_i |p_t(i) - q_t(i)|, both sorted from the
    greatest, whatever token each is of.

    Of the source only the greatest K are kept; of what is beyond, the difference of the two sums is taken, the least
    that it can come to.

    Args:
        logprobs: log q, [B, T, V].
        probabilities: The source's, sorted, [B, T, K]; where all are 0 there is nothing to learn.
    """
    k = min(probabilities.shape[-1], logprobs.shape[-1])
    theirs = probabilities[..., :k]
    mine = logprobs.exp().topk(k, dim=-1).values
    beyond = (theirs.sum(-1) - mine.sum(-1)).abs()
    distance = (theirs - mine).abs().sum(-1) + beyond
    return torch.where(theirs.sum(-1) > 0, distance, 0.0).sum()


def _whole(probabilities: Tensor, renormalize: bool) -> tuple[Tensor, Tensor]:
    """p, and what is left of it for all other tokens; both 0 where there is nothing to learn."""
    total = probabilities.sum(-1, keepdim=True)
    if renormalize:
        p = torch.where(total > 0, probabilities / total.clamp(min=_LEAST), 0.0)
        return p, torch.zeros_like(total.squeeze(-1))
    # Rounding may bring a sum above one.
    p = probabilities / total.clamp(min=1.0)
    return p, torch.where(total > 0, 1.0 - p.sum(-1, keepdim=True), 0.0).squeeze(-1).clamp(min=0.0)


def _gathered(logprobs: Tensor, ids: Tensor) -> Tensor:
    return torch.where(ids >= 0, logprobs.gather(-1, ids.clamp(min=0)), 0.0)


def _log_rest(own: Tensor, ids: Tensor) -> Tensor:
    """log of what q leaves for the tokens that are not named."""
    named = torch.where(ids >= 0, own.exp(), 0.0).sum(-1)
    return torch.log1p(-named.clamp(max=1.0 - _LEAST))
