"""Losses against dense and hand-written ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evomerge.fusion import losses

B, T, V, K = 2, 5, 11, 3


@pytest.fixture
def logprobs():
    logits = torch.randn(B, T, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.log_softmax(logits, -1).requires_grad_()


@pytest.fixture
def sparse():
    rng = np.random.default_rng(1)
    ids = np.stack([[rng.choice(V, K, replace=False) for _ in range(T)] for _ in range(B)])
    p = rng.dirichlet(np.ones(K + 1), (B, T))[..., :K]
    p[0, 1] = 0  # nothing to learn there
    ids[1, 2, 2], p[1, 2, 2] = -1, 0  # about two tokens alone
    return torch.tensor(ids), torch.tensor(p)


def dense(ids, p):
    found = torch.zeros(B, T, V, dtype=p.dtype)
    for b, t, k in np.ndindex(B, T, K):
        if ids[b, t, k] >= 0:
            found[b, t, ids[b, t, k]] += p[b, t, k]
    return found


def test_clm_is_cross_entropy_over_what_is_learned(logprobs):
    labels = torch.tensor([[1, 2, -100, 4, 5], [-100, -100, 0, 1, 2]])
    expected = torch.nn.functional.cross_entropy(logprobs.flatten(0, 1), labels.flatten(), reduction="sum")
    assert torch.allclose(losses.clm(logprobs, labels), expected)


def test_sparse_cross_entropy_is_the_dense_one(logprobs, sparse):
    ids, p = sparse
    whole = dense(ids, p)
    total = whole.sum(-1, keepdim=True)
    expected = -(whole / total.clamp(min=1e-9) * logprobs).sum()
    assert torch.allclose(losses.sparse_cross_entropy(logprobs, ids, p, renormalize=True), expected)


def test_what_is_left_is_one_more_outcome(logprobs, sparse):
    """Against the distributions with all other tokens lumped together."""
    ids, p = sparse
    expected = 0.0
    for b, t in np.ndindex(B, T):
        if p[b, t].sum() == 0:
            continue
        named = [int(i) for i in ids[b, t] if i >= 0]
        q = logprobs[b, t].exp()
        rest = 1 - q[named].sum()
        expected = expected - sum(p[b, t, k] * logprobs[b, t, i] for k, i in enumerate(ids[b, t].tolist()) if i >= 0)
        expected = expected - (1 - p[b, t].sum()) * rest.log()
    assert torch.allclose(losses.sparse_cross_entropy(logprobs, ids, p), expected)


@pytest.mark.parametrize("renormalize", [False, True])
def test_divergence_is_cross_entropy_less_entropy_and_has_its_gradient(logprobs, sparse, renormalize):
    ids, p = sparse
    ce = losses.sparse_cross_entropy(logprobs, ids, p, renormalize=renormalize)
    kl = losses.sparse_divergence(logprobs, ids, p, renormalize=renormalize)
    assert 0 < kl < ce
    (one,) = torch.autograd.grad(ce, logprobs, retain_graph=True)
    (other,) = torch.autograd.grad(kl, logprobs)
    assert torch.allclose(one, other)


@pytest.mark.parametrize("renormalize", [False, True])
def test_divergence_from_itself_is_nothing(logprobs, renormalize):
    own, ids = logprobs.detach().exp().topk(V if renormalize else K, -1)
    assert abs(losses.sparse_divergence(logprobs, ids, own, renormalize=renormalize).item()) < 1e-6


def test_masked_positions_have_no_gradient(logprobs, sparse):
    ids, p = sparse
    loss = losses.sparse_cross_entropy(logprobs, ids, torch.zeros_like(p))
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert loss.item() == 0 and not gradient.any()


def test_likelihood_matching_by_hand(logprobs):
    labels = torch.tensor([[1, 2, 3, 4, -100], [5, 6, -100, -100, -100]])
    chunks = torch.tensor([[0, 0, 1, -1, -1], [0, 0, -1, -1, -1]])
    theirs = torch.tensor([[-1.5, -0.25], [-4.0, 0.0]], dtype=torch.float64)  # the last chunk is nobody's
    tau = 10.0

    def coin(x, y):
        p, q = np.exp(x / tau), np.exp(y / tau)
        return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))

    q = logprobs.detach().numpy()
    expected = coin(-1.5, q[0, 0, 1] + q[0, 1, 2]) + coin(-0.25, q[0, 2, 3]) + coin(-4.0, q[1, 0, 5] + q[1, 1, 6])
    found = losses.likelihood_matching(logprobs, labels, chunks, theirs, tau)
    assert found.item() == pytest.approx(tau * expected, rel=1e-9)
    (gradient,) = torch.autograd.grad(found, logprobs)
    assert gradient[0, 0, 1] != 0 and not gradient[0, 3].any() and torch.isfinite(gradient).all()


def test_likelihood_matching_pulls_as_hard_at_any_temperature(logprobs):
    """As the text does, by order of magnitude: with the published form a hundredth of it at a temperature of 100."""
    labels = torch.tensor([[1, 2, 3, 4, -100], [5, 6, -100, -100, -100]])
    chunks = torch.tensor([[0, 0, 1, -1, -1], [0, 0, -1, -1, -1]])
    theirs = torch.tensor([[-1.5, -0.25], [-0.5, 0.0]], dtype=torch.float64)
    (text,) = torch.autograd.grad(losses.clm(logprobs, labels), logprobs, retain_graph=True)
    for tau in (1.0, 10.0, 100.0, 1000.0):
        loss = losses.likelihood_matching(logprobs, labels, chunks, theirs, tau)
        (pull,) = torch.autograd.grad(loss, logprobs, retain_graph=True)
        assert 0.2 < float(pull.norm() / text.norm()) < 3.0


def test_likelihood_matching_is_nothing_where_likelihoods_agree(logprobs):
    labels, chunks = torch.tensor([[1, 2, 3, 4, 5]] * B), torch.tensor([[0, 0, 1, 1, 1]] * B)
    own = logprobs.detach().gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    theirs = torch.stack([own[:, :2].sum(-1), own[:, 2:].sum(-1)], -1)
    assert abs(losses.likelihood_matching(logprobs, labels, chunks, theirs, 100.0).item()) < 1e-9


def test_sorted_distance_over_whole_distributions(logprobs):
    """ULD: sort both, no matter which token is where; with all of a distribution kept nothing is approximated."""
    rng = np.random.default_rng(2)
    theirs = np.sort(rng.dirichlet(np.ones(V), (B, T)), -1)[..., ::-1].copy()
    theirs[1, 4] = 0
    q = np.sort(logprobs.detach().exp().numpy(), -1)[..., ::-1]
    expected = sum(np.abs(theirs[b, t] - q[b, t]).sum() for b, t in np.ndindex(B, T) if theirs[b, t].sum())
    assert float(losses.sorted_distance(logprobs, torch.tensor(theirs))) == pytest.approx(expected, rel=1e-6)


def test_sorted_distance_of_a_part_is_a_lower_bound(logprobs):
    rng = np.random.default_rng(3)
    theirs = torch.tensor(np.sort(rng.dirichlet(np.ones(V), (B, T)), -1)[..., ::-1].copy())
    whole = float(losses.sorted_distance(logprobs, theirs))
    part = float(losses.sorted_distance(logprobs, theirs[..., :K]))
    assert 0 < part <= whole + 1e-9
