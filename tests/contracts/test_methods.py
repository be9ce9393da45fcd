"""What every merge method keeps, whatever it does. A new line in METHODS is tested here without a change."""

from __future__ import annotations

import hashlib
import inspect
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.merging.group import Group
from evomerge.merging.methods import function
from evomerge.methods import METHODS, Method

SHAPES = [(), (7,), (33, 5), (2, 3, 4), (0, 3)]
DELTAS = [n for n, m in METHODS.items() if m.deltas]


def parameters(method: Method, count: int, **given: Any) -> dict[str, Any]:
    """The table's defaults, with weights 1 / count and density .6, or what is given."""
    values: dict[str, Any] = {"weight": 1 / max(count, 1), "density": 0.6, "t": 0.3} | given
    out: dict[str, Any] = {}
    for p in method.parameters:
        value = values.get(p.name, p.default)
        name = "lambda_" if p.name == "lambda" else p.name
        out[name] = tuple([value] * count) if p.per_source and not isinstance(value, tuple) else value
    return out


def count_of(method: Method, wanted: int = 3) -> int:
    """Number of sources without the base."""
    return wanted if method.models is None else method.models - (method.base == "required")


def run(name: str, tensors: list[Tensor], base: Tensor, resident: bool = False, **given: Any) -> Tensor:
    method = METHODS[name]
    group = Group(
        tensors, base if method.base == "required" else None, keys=range(11, 11 + len(tensors)), resident=resident
    )
    return function(name)(group, **parameters(method, len(tensors), **given))


def inputs(
    count: int, shape: tuple[int, ...] = (33, 5), dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(shape, generator=generator)
    return [(base + 0.1 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(count)], base.to(dtype)


@pytest.mark.parametrize("name", METHODS)
def test_the_table_and_the_function_agree(name: str) -> None:
    names = {"lambda_" if p.name == "lambda" else p.name for p in METHODS[name].parameters}
    assert set(inspect.signature(function(name)).parameters) == {"group", *names}


@pytest.mark.parametrize("name", METHODS)
def test_merging_equal_models_changes_nothing(name: str) -> None:
    _, base = inputs(1)
    merged = run(name, [base.clone() for _ in range(count_of(METHODS[name]))], base)
    torch.testing.assert_close(merged, base, rtol=1e-6, atol=1e-7)
    if METHODS[name].deltas:
        assert torch.equal(merged, base)


@pytest.mark.parametrize("name", DELTAS)
def test_zero_weight_is_the_base(name: str) -> None:
    tensors, base = inputs(3)
    assert torch.equal(run(name, tensors, base, weight=0.0), base)
    assert torch.equal(run(name, [], base), base)


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].parameter("weight")])
def test_a_source_of_zero_weight_leaves_no_trace(name: str) -> None:
    tensors, base = inputs(3)
    with_it = run(name, tensors, base, weight=(0.5, 0.2, 0.0))
    assert torch.equal(with_it, run(name, tensors[:2], base, weight=(0.5, 0.2)))
    assert not torch.equal(with_it, run(name, tensors, base, weight=(0.5, 0.2, 0.3)))


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].parameter("density")])
def test_zero_density_is_the_base_and_full_density_drops_nothing(name: str) -> None:
    tensors, base = inputs(2)
    assert torch.equal(run(name, tensors, base, density=0.0), base)
    one = run(name, tensors[:1], base, density=1.0, weight=1.0)
    torch.testing.assert_close(one, tensors[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_one_source_alone_at_full_weight_is_that_source(name: str) -> None:
    tensors, base = inputs(1)
    merged = run(name, tensors, base, weight=1.0, density=1.0, t=1.0)
    torch.testing.assert_close(merged, tensors[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].models is None])
def test_the_order_of_sources_does_not_matter(name: str) -> None:
    tensors, base = inputs(3)
    weights, densities, order = (0.5, 0.3, -0.2), (0.9, 0.5, 0.7), (2, 0, 1)
    method = METHODS[name]

    def merged(places: tuple[int, ...]) -> Tensor:
        group = Group(
            [tensors[i] for i in places], base if method.base == "required" else None, keys=[40 + i for i in places]
        )
        given = {"weight": tuple(weights[i] for i in places), "density": tuple(densities[i] for i in places)}
        return function(name)(group, **parameters(method, 3, **given))

    torch.testing.assert_close(merged((0, 1, 2)), merged(order), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_not_hidden(name: str, bad: float) -> None:
    tensors, base = inputs(count_of(METHODS[name]))
    tensors[0][4, 2] = bad
    assert not torch.isfinite(run(name, tensors, base)[4, 2])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_shape_and_type(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensors, base = inputs(count_of(METHODS[name]), shape, dtype)
    before = [t.clone() for t in (*tensors, base)]
    merged = run(name, tensors, base)
    assert merged.shape == shape
    assert merged.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(before, (*tensors, base), strict=True)), "an input was changed"
    merged.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, (*tensors, base), strict=True)), "the output is an input"


@pytest.mark.parametrize("name", METHODS)
def test_a_kept_group_gives_the_same_bits_each_time(name: str) -> None:
    tensors, base = inputs(count_of(METHODS[name]), dtype=torch.bfloat16)  # many equal magnitudes
    method = METHODS[name]
    kept = Group(tensors, base if method.base == "required" else None, keys=range(11, 11 + len(tensors)), resident=True)
    given = parameters(method, len(tensors))
    first, second = function(name)(kept, **given), function(name)(kept, **given)
    assert torch.equal(first, second)
    assert torch.equal(first, run(name, tensors, base))


def digest() -> str:
    """A hash of what every method makes of 70,001 elements: enough for several threads and chunks."""
    found = hashlib.sha256()
    for name, method in METHODS.items():
        tensors, base = inputs(count_of(method), (70_001,), torch.bfloat16)
        found.update(run(name, tensors, base).numpy().tobytes())
    return found.hexdigest()


def test_the_same_bits_in_a_fresh_process_with_other_threads() -> None:
    code = (
        "import importlib.util, sys, torch; torch.set_num_threads(int(sys.argv[2]))\n"
        "spec = importlib.util.spec_from_file_location('contract', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module); print(module.digest())"
    )
    env = os.environ | {"PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "3"}
    fresh = subprocess.run(
        [sys.executable, "-c", code, __file__, "3"], env=env, capture_output=True, text=True, check=True
    )
    assert fresh.stdout.strip() == digest()


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
def test_a_gpu_agrees_to_one_unit_in_the_last_place(name: str) -> None:
    tensors, base = inputs(count_of(METHODS[name]), (70_001,), torch.bfloat16)
    here = run(name, tensors, base)
    there = run(name, [t.cuda() for t in tensors], base.cuda()).cpu()
    assert int((here.view(torch.int32) - there.view(torch.int32)).abs().max()) <= 1
