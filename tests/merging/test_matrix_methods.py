"""fisher, regmean, tsv, iso_c against float64 NumPy, and what makes them right where the textbook is silent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evomerge.errors import CandidateError
from evomerge.merging.engine import Engine
from evomerge.merging.group import Group
from evomerge.merging.methods.fisher import fisher
from evomerge.merging.methods.regmean import regmean
from evomerge.merging.methods.tsv import iso_c, tsv
from evomerge.merging.operand import LowRank, Stored
from evomerge.recipe import parse_recipe
from evomerge.sources import open_sources

Array = NDArray[Any]


def randoms(count: int, *shape: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def family(rows: int, columns: int, count: int = 3) -> tuple[torch.Tensor, list[torch.Tensor]]:
    base, *deltas = randoms(count + 1, rows, columns)
    return base, [base + 0.05 * d for d in deltas]


def arrays(*tensors: torch.Tensor) -> list[Array]:
    return [t.double().numpy() for t in tensors]


def close(found: torch.Tensor, expected: Array, base: torch.Tensor | None = None) -> None:
    """To 1e-6 of the largest element: of the task vector itself, besides one rounding, where a base is given."""
    error = np.abs(found.double().numpy() - expected)
    if base is None:
        assert error.max() <= 1e-6 * np.abs(expected).max()
    else:
        own = np.abs(expected - base.double().numpy()).max()
        assert np.all(error <= 1e-6 * own + 6e-8 * np.abs(expected) * 1.01), error.max()


# ---- fisher


def test_fisher() -> None:
    values = randoms(3, 7, 33)
    information = [x.square() * 10.0**k for k, x in zip((-18, -12, 3), randoms(3, 7, 33, seed=1), strict=True)]
    weight = (0.2, 2.0, 1e-9)
    merged = fisher(Group(values, statistics=information), weight=weight)
    w, f = arrays(*values), arrays(*information)
    total = sum(c * x for c, x in zip(weight, f, strict=True))
    close(merged, sum(c * x * v for c, x, v in zip(weight, f, w, strict=True)) / total)


def test_fisher_where_nobody_knows_anything() -> None:
    values = randoms(2, 4, 5)
    information = [torch.zeros(4, 5) for _ in values]
    information[0][0] = 1e-30
    information[1][1] = 1e-38
    merged = fisher(Group(values, statistics=information), weight=(3.0, 1.0))
    assert torch.equal(merged[0], values[0][0]) and torch.equal(merged[1], values[1][1])
    average = 0.75 * values[0].double() + 0.25 * values[1].double()
    torch.testing.assert_close(merged[2:].double(), average[2:], rtol=1e-6, atol=1e-7)
    assert torch.equal(fisher(Group(values), weight=(3.0, 1.0)), Group(values).combine([0.75, 0.25]))
    with pytest.raises(CandidateError, match="no source is left"):
        fisher(Group(values), weight=(0.0, 0.0))


# ---- regmean


def grams(count: int, size: int, samples: int) -> list[torch.Tensor]:
    """As they are collected: of more inputs than dimensions, or of fewer."""
    inputs = randoms(count, samples, size, seed=2)
    return [x.t() @ x / samples for x in inputs]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
def test_regmean(alpha: float) -> None:
    values, statistics, weight = randoms(3, 9, 6), grams(3, 6, 40), (0.5, 2.0, 1.0)
    found = regmean(Group(values, statistics=statistics), weight=weight, alpha=alpha)
    g = [alpha * x + (1 - alpha) * np.diag(np.diag(x)) for x in arrays(*statistics)]
    left = sum(c * w @ x for c, w, x in zip(weight, arrays(*values), g, strict=True))
    expected = left @ np.linalg.inv(sum(c * x for c, x in zip(weight, g, strict=True)))
    close(found, expected)
    # Conv1D stores [in, out]: the same layers, the same answer.
    turned = Group([v.t().contiguous() for v in values], statistics=[s[None] for s in statistics])
    across = regmean(turned, weight=weight, alpha=alpha)
    close(across.t(), expected)


def test_regmean_answers_as_its_sources_do() -> None:
    """Each source is asked in a subspace of its own: the merge can satisfy both, and an average cannot."""
    values = randoms(2, 5, 8)
    inputs = randoms(2, 30, 8)
    inputs[0][:, 4:] = 0.0
    inputs[1][:, :4] = 0.0
    statistics = [x.t() @ x / 30 for x in inputs]
    merged = regmean(Group(values, statistics=statistics), weight=(1.0, 1.0), alpha=1.0)
    for x, value in zip(inputs, values, strict=True):
        torch.testing.assert_close(x @ merged.t(), x @ value.t(), rtol=1e-5, atol=1e-5)


def test_regmean_where_inputs_never_vary() -> None:
    values, statistics = randoms(2, 5, 8), grams(2, 8, 3)  # six directions of eight
    merged = regmean(Group(values, statistics=statistics), weight=(1.0, 3.0), alpha=1.0)
    assert torch.isfinite(merged).all()
    v, g = arrays(*values), arrays(*statistics)
    total = g[0] + 3 * g[1]
    average = (v[0] + 3 * v[1]) / 4
    left = v[0] @ g[0] + 3 * v[1] @ g[1]
    expected = average + (left - average @ total) @ np.linalg.pinv(total, rcond=1e-6)
    np.testing.assert_allclose(merged.double().numpy(), expected, rtol=1e-5, atol=1e-5)
    nothing = [torch.zeros(8, 8), torch.zeros(8, 8)]
    same = regmean(Group(values, statistics=nothing), weight=(1.0, 3.0), alpha=0.9)
    np.testing.assert_allclose(same.double().numpy(), average, rtol=1e-6, atol=1e-7)


# ---- singular vectors


def tsv_by_hand(base: Array, deltas: list[Array], weight: tuple[float, ...], k: int, lambda_: float) -> Array:
    """As the paper has it: cut, concatenate, and the Procrustes solution by a singular value decomposition."""
    parts = [np.linalg.svd(d, full_matrices=False) for d in deltas]
    u = np.concatenate([p[0][:, :k] for p in parts], axis=1)
    s = np.concatenate([w * p[1][:k] for w, p in zip(weight, parts, strict=True)])
    v = np.concatenate([p[2][:k].T for p in parts], axis=1)
    for_u, for_v = (np.linalg.svd(x, full_matrices=False) for x in (u, v))
    return base + lambda_ * (for_u[0] @ for_u[2]) @ np.diag(s) @ (for_v[0] @ for_v[2]).T


@pytest.mark.parametrize(("rows", "columns"), [(30, 12), (12, 30), (24, 24)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25])
def test_tsv(rows: int, columns: int, share: float) -> None:
    base, sources = family(rows, columns)
    weight, lambda_ = (1.0, -0.5, 2.0), 0.8
    found = tsv(Group(sources, base), weight=weight, share=share, lambda_=lambda_)
    k = max(1, int(min(rows, columns) * share)) if share else min(rows, columns) // 3
    b, *s = arrays(base, *sources)
    # The task vectors are differences in float32, as all methods take them.
    deltas = [x.double().numpy() for x in (source - base for source in sources)]
    close(found, tsv_by_hand(b, deltas, weight, k, lambda_), base)
    assert s


def test_tsv_of_one_source_is_that_source_and_of_equal_ones_their_mean() -> None:
    base, (one, *_) = family(20, 9)
    whole = tsv(Group([one], base), weight=(1.0,), share=0.0, lambda_=1.0)
    torch.testing.assert_close(whole, one, rtol=1e-6, atol=1e-6)
    both = tsv(Group([one, one], base), weight=(0.5, 1.5), share=1.0, lambda_=1.0)
    torch.testing.assert_close(both, one, rtol=1e-6, atol=1e-6)


def test_adapters_bring_no_directions_of_noise() -> None:
    """Two adapters of rank 2: the other singular vectors are rounding, and must not push the real ones aside."""
    base, *_ = randoms(1, 40, 24)
    factors = [(randoms(1, 40, 2, seed=s)[0], randoms(1, 2, 24, seed=s + 9)[0]) for s in (3, 4)]
    group = Group([LowRank(base, b, a, 0.1) for b, a in factors], Stored(base))
    products = [0.1 * b.double().numpy() @ a.double().numpy() for b, a in factors]
    found = tsv(group, weight=(1.0, 1.0), share=0.5, lambda_=1.0)
    close(found, tsv_by_hand(base.double().numpy(), products, (1.0, 1.0), 2, 1.0), base)
    equal = iso_c(group, weight=(1.0, 1.0), lambda_=1.0)
    u, s, vh = np.linalg.svd(sum(products), full_matrices=False)
    close(equal, base.double().numpy() + s[:4].mean() * u[:, :4] @ vh[:4], base)


@pytest.mark.parametrize(("rows", "columns"), [(30, 12), (12, 30), (24, 24)])
def test_iso_c(rows: int, columns: int) -> None:
    base, sources = family(rows, columns)
    weight, lambda_ = (1.0, -0.5, 2.0), 0.8
    found = iso_c(Group(sources, base), weight=weight, lambda_=lambda_)
    deltas = [(source - base).double().numpy() for source in sources]
    u, s, vh = np.linalg.svd(sum(w * d for w, d in zip(weight, deltas, strict=True)), full_matrices=False)
    close(found, base.double().numpy() + lambda_ * s.mean() * (u @ vh), base)


@pytest.mark.parametrize("method", ["tsv", "iso_c"])
def test_what_is_no_matrix_gets_the_mean(method: str) -> None:
    base, sources = family(6, 4, 2)
    options: dict[str, Any] = {"weight": (1.0, 3.0), "lambda_": 0.5} | ({"share": 0.0} if method == "tsv" else {})
    run = {"tsv": tsv, "iso_c": iso_c}[method]
    mean = base.double() + 0.25 * (sources[0] - base).double() + 0.75 * (sources[1] - base).double()
    flat = run(Group([s.reshape(-1) for s in sources], base.reshape(-1)), **options)
    torch.testing.assert_close(flat.double(), mean.reshape(-1), rtol=1e-6, atol=1e-7)
    table = run(Group(sources, base, by_token=True), **options)
    torch.testing.assert_close(table.double(), mean, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(run(Group(sources, base), **options).double(), mean, rtol=1e-3)


@pytest.mark.parametrize("method", ["tsv", "iso_c"])
def test_whole_models(exact_family: tuple[str, str, str], method: str) -> None:
    base, a, b = exact_family
    models = f"[{{model: '{a}'}}, {{model: '{b}'}}]"
    recipe = parse_recipe(f"{{merge_method: {method}, base_model: '{base}', models: {models}, dtype: float32}}")
    sources = open_sources(recipe.references())
    found = [dict(Engine(sources, threads=n, chunk=c).tensors(recipe)) for n, c in ((1, None), (3, 1 << 15))]
    for name, merged in found[0].items():
        assert torch.equal(merged, found[1][name]), name
    tensors = {}
    for reference in (base, a, b):
        engine = Engine({reference: sources[reference]})
        plain = parse_recipe(f"{{merge_method: passthrough, models: [{{model: '{reference}'}}], dtype: float32}}")
        tensors[reference] = dict(engine.tensors(plain))
    matrices = 0
    for name, merged in found[0].items():
        deltas = [tensors[r][name] - tensors[base][name] for r in (a, b)]
        if merged.dim() < 2 or "embed" in name or "head" in name:
            expected = tensors[base][name] + (deltas[0] + deltas[1]) / 2
            torch.testing.assert_close(merged, expected, rtol=1e-6, atol=1e-7, msg=name)
            continue
        matrices += 1
        group = Group([tensors[r][name] for r in (a, b)], tensors[base][name])
        options: dict[str, Any] = {"share": 0.0} if method == "tsv" else {}
        alone = {"tsv": tsv, "iso_c": iso_c}[method](group, weight=(1.0, 1.0), lambda_=1.0, **options)
        assert torch.equal(merged, alone), name
    assert matrices == 21
