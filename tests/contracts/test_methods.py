"""What every merge method keeps, whatever it does. A new line in METHODS is tested here without a change."""

from __future__ import annotations

import hashlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.errors import CandidateError
from evomerge.merging.chunks import BLOCK, Chunks
from evomerge.merging.group import Group
from evomerge.merging.methods import function
from evomerge.merging.operand import Gathered, LowRank, Operand, Stored
from evomerge.methods import METHODS, Method

SHAPES = [(), (7,), (33, 5), (2, 3, 4), (0, 3)]
# Several blocks, odd everywhere, one row longer than a block.
LARGE = [(70_001,), (3, 40_001), (1001, 37), (5, 7, 1003)]
TYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
CUDA = pytest.mark.gpu

WITH = {name: [p.name for p in m.parameters] for name, m in METHODS.items()}
DELTAS = [n for n, m in METHODS.items() if m.deltas]
WEIGHTED = [n for n in METHODS if "weight" in WITH[n]]
# What one source at full weight is not, with the reason.
NOT_ITSELF = {
    "model_stock": "needs two sources",
    "nuslerp": "needs two sources",
    "nearswap": "moves no element farther than t",
    "arcee_fusion": "keeps only what stands out",
    "iso_c": "changes the singular values",
}


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
    least, most = method.room
    return max(least, wanted if most is None else min(wanted, most))


def statistics(method: Method, tensors: Sequence[Any]) -> list[Tensor]:
    """What methods need that look at collected statistics: as `evomerge statistics` has it."""
    generator = torch.Generator().manual_seed(8)
    if method.statistics == "fisher":
        return [torch.rand(t.shape, generator=generator) for t in tensors]
    if method.statistics == "gram" and len(tensors[0].shape) == 2:
        rows = [torch.randn(2 * t.shape[1] + 1, t.shape[1], generator=generator) for t in tensors]
        return [r.t() @ r / max(len(r), 1) for r in rows]
    return []


def group_of(name: str, tensors: Sequence[Any], base: Any, **options: Any) -> Group:
    method = METHODS[name]
    options = {"keys": range(11, 11 + len(tensors)), "statistics": statistics(method, tensors)} | options
    return Group(tensors, base if method.apart else None, **options)


def run(name: str, tensors: Sequence[Any], base: Any, options: dict[str, Any] | None = None, **given: Any) -> Tensor:
    group = group_of(name, tensors, base, **(options or {}))
    return function(name)(group, **parameters(METHODS[name], len(tensors), **given))


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
    for p in METHODS[name].parameters:
        assert p.default is None or (p.default in p.choices if p.kind == "choice" else p.within(float(p.default)))
    least, most = METHODS[name].room
    assert 0 <= least <= (least if most is None else most)


@pytest.mark.parametrize("name", METHODS)
def test_merging_equal_models_changes_nothing(name: str) -> None:
    _, base = inputs(1)
    merged = run(name, [base.clone() for _ in range(count_of(METHODS[name]))], base)
    torch.testing.assert_close(merged, base, rtol=1e-6, atol=1e-7)
    if METHODS[name].deltas:
        assert torch.equal(merged, base)


@pytest.mark.parametrize("name", [n for n in DELTAS if METHODS[n].room[0] == 0])
def test_no_source_and_zero_weights_are_the_base(name: str) -> None:
    tensors, base = inputs(3)
    assert torch.equal(run(name, [], base), base)
    if name in WEIGHTED:
        assert torch.equal(run(name, tensors, base, weight=0.0), base)


@pytest.mark.parametrize("name", [n for n in WEIGHTED if METHODS[n].models is None])
def test_a_source_of_zero_weight_leaves_no_trace(name: str) -> None:
    tensors, base = inputs(3)
    with_it = run(name, tensors, base, weight=(0.5, 0.2, 0.0))
    assert not torch.equal(with_it, run(name, tensors, base, weight=(0.5, 0.2, 0.3)))
    tensors[2].fill_(float("nan"))
    given = {"statistics": statistics(METHODS[name], tensors)[:2]}
    without = run(name, tensors[:2], base, given, weight=(0.5, 0.2))
    with_it = run(name, tensors, base, weight=(0.5, 0.2, 0.0))
    assert torch.equal(with_it, without)


@pytest.mark.parametrize("name", [n for n in METHODS if "density" in WITH[n]])
def test_zero_density_is_the_base_and_full_density_drops_nothing(name: str) -> None:
    tensors, base = inputs(2)
    assert torch.equal(run(name, tensors, base, density=0.0), base)
    one = run(name, tensors[:1], base, density=1.0, weight=1.0)
    torch.testing.assert_close(one, tensors[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in METHODS if n not in NOT_ITSELF])
def test_one_source_alone_at_full_weight_is_that_source(name: str) -> None:
    tensors, base = inputs(1)
    merged = run(name, tensors, base, weight=1.0, density=1.0, t=1.0)
    torch.testing.assert_close(merged, tensors[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in METHODS if count_of(METHODS[n]) > 1])
def test_the_order_of_sources_does_not_matter(name: str) -> None:
    method = METHODS[name]
    count = count_of(method)
    tensors, base = inputs(count)
    weights, densities, order = (0.5, 0.3, -0.2), (0.8, 0.5, 0.7), [2, 0, 1][-count:] if count == 3 else [1, 0]
    if method.statistics:
        weights = (0.5, 0.3, 0.2)
    collected = statistics(method, tensors)

    def merged(places: Sequence[int]) -> Tensor:
        options = {"keys": [40 + i for i in places], "statistics": [collected[i] for i in places] if collected else ()}
        given = {"weight": tuple(weights[i] for i in places), "density": tuple(densities[i] for i in places)}
        return run(name, [tensors[i] for i in places], base, options, **given)

    torch.testing.assert_close(merged(range(count)), merged(order), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["source", "base"])
def test_nan_and_infinity_are_not_hidden(name: str, bad: float, where: str) -> None:
    if where == "base" and not METHODS[name].apart:
        return
    tensors, base = inputs(count_of(METHODS[name]))
    (tensors[0] if where == "source" else base)[4, 2] = bad
    group = group_of(name, tensors, base)
    merged = function(name)(group, **parameters(METHODS[name], len(tensors), density=0.6))
    assert not torch.isfinite(merged).all()
    assert not group.finite()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TYPES)
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
def test_inputs_of_several_types_are_as_their_values_in_the_widest(name: str) -> None:
    count = count_of(METHODS[name])
    tensors, base = inputs(count, (33, 5), torch.bfloat16)
    tensors = [t.to(d) for t, d in zip(tensors, (torch.bfloat16, torch.float32, torch.float16), strict=False)]
    wide = run(name, [t.float() for t in tensors], base.float())
    assert torch.equal(run(name, tensors, base), wide)
    double = run(name, [tensors[0].double(), *tensors[1:]], base)
    assert double.dtype == torch.float64
    assert torch.equal(double, run(name, [t.double() for t in tensors], base.double()))


# ---- the same bits


def large(name: str) -> list[tuple[list[Tensor], Tensor]]:
    """Inputs of bfloat16, with many equal magnitudes; matrix methods get small ones."""
    matrix = name in ("tsv", "iso_c") or METHODS[name].statistics == "gram"
    return [inputs(count_of(METHODS[name]), s, torch.bfloat16) for s in ([*LARGE[:1], (301, 127)] if matrix else LARGE)]


@pytest.mark.parametrize("name", METHODS)
def test_chunks_threads_and_kernels_do_not_change_a_bit(name: str) -> None:
    for tensors, base in large(name):
        expected = run(name, tensors, base, {"chunks": Chunks(BLOCK)})
        assert torch.isfinite(expected).all()
        for size in (3 * BLOCK, 1 << 30):
            assert torch.equal(run(name, tensors, base, {"chunks": Chunks(size)}), expected), size
        for threads in (1, 2, 4):
            with ThreadPoolExecutor(threads) as pool:
                assert torch.equal(run(name, tensors, base, {"chunks": Chunks(BLOCK, pool)}), expected), threads
        assert torch.equal(run(name, tensors, base, {"native": False}), expected), "torch's way"


@pytest.mark.parametrize("name", METHODS)
def test_what_is_remembered_gives_the_same_bits(name: str) -> None:
    tensors, base = inputs(count_of(METHODS[name]), dtype=torch.bfloat16)
    group = group_of(name, tensors, base, facts={})
    given = parameters(METHODS[name], len(tensors))
    first = function(name)(group, **given)
    other = parameters(METHODS[name], len(tensors), weight=0.2, density=0.3, t=0.1, epsilon=0.05)
    function(name)(group, **other)
    again = group_of(name, tensors, base, facts=group.facts)
    assert torch.equal(function(name)(again, **given), first)


def digest() -> str:
    """A hash of what every method makes of 70,001 elements: enough for several threads and chunks."""
    found = hashlib.sha256()
    for name in METHODS:
        for tensors, base in large(name)[:2]:
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


# ---- where inputs come from and results go


def as_low_rank(tensor: Tensor, number: int) -> LowRank:
    generator = torch.Generator().manual_seed(number)
    left, right = torch.randn(len(tensor), 2, generator=generator), torch.randn(2, tensor.shape[1], generator=generator)
    return LowRank(tensor, left, right, 0.1)


def as_gathered(tensor: Tensor, number: int) -> Gathered:
    generator = torch.Generator().manual_seed(number)
    order = torch.randperm(len(tensor), generator=generator)
    order[::7] = -1 - torch.arange(len(order[::7]))
    return Gathered(Stored(tensor), order, torch.randn(len(order[::7]), tensor.shape[1], generator=generator))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", [as_low_rank, as_gathered])
def test_inputs_that_are_worked_out_are_as_the_same_values_stored(
    name: str, kind: Callable[[Tensor, int], Operand]
) -> None:
    tensors, base = inputs(count_of(METHODS[name]), (33, 29), torch.bfloat16)
    worked_out = [kind(t, i) for i, t in enumerate(tensors)]
    stored = [o.chunk(0, base.numel()).reshape(base.shape) for o in worked_out]
    over = kind(base, 9) if kind is as_gathered else base
    flat = over.chunk(0, base.numel()).reshape(base.shape) if isinstance(over, Gathered) else base
    assert torch.equal(run(name, worked_out, over), run(name, stored, flat))
    mixed = [worked_out[0], *stored[1:]]
    assert torch.equal(run(name, mixed, over), run(name, stored, flat))


def test_an_adapter_on_the_base_is_its_product_exactly() -> None:
    # In bfloat16's neighbourhood of 1 a change of 1e-9 is lost when it is added to the weight before it is taken off.
    generator = torch.Generator().manual_seed(0)
    base = 1.0 + torch.rand(33, 29, generator=generator)
    left, right = torch.randn(33, 2, generator=generator), torch.randn(2, 29, generator=generator)
    tiny = [LowRank(base, left, right, scale) for scale in (1e-9, -3e-9)]
    product = 1e-9 * left.double() @ right.double()
    for native in (True, False):
        group = Group(tiny, base, native=native)
        assert not group.values(0, 0, base.numel()).sub(base.flatten()).any(), "the sum holds nothing of it"
        torch.testing.assert_close(group.delta(0, 0, base.numel()).double(), product.flatten(), rtol=1e-6, atol=0.0)
        gram = torch.tensor(group.delta_gram())
        norm = float(product.square().sum())
        torch.testing.assert_close(gram, norm * torch.tensor([[1.0, -3.0], [-3.0, 9.0]]), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("name", METHODS)
def test_results_are_written_where_they_are_asked_for(name: str) -> None:
    tensors, base = inputs(count_of(METHODS[name]), (33, 5), torch.bfloat16)
    plain = run(name, tensors, base)
    for stored in (torch.bfloat16, torch.float16, torch.float32):
        assert torch.equal(run(name, tensors, base, {"out_dtype": stored}), plain.to(stored))
        for held in (stored, torch.float32):
            out = torch.full((33, 5), 7.0, dtype=held)
            merged = run(name, tensors, base, {"out": out, "out_dtype": stored})
            assert merged.data_ptr() == out.data_ptr()
            assert torch.equal(out, plain.to(stored).to(held)), "rounded to the type of the checkpoint first"


# ---- through the engine


@pytest.mark.parametrize("name", [n for n in METHODS if not METHODS[n].statistics])
def test_the_engine_names_the_tensor_that_is_not_finite(name: str, broken: list[str]) -> None:
    from evomerge.merging.engine import Engine
    from evomerge.recipe import Recipe
    from evomerge.sources import open_sources

    method = METHODS[name]
    base, *sources = broken
    models = [
        {"model": s, "parameters": {k: v for k, v in {"weight": 0.5, "density": 0.6}.items() if method.parameter(k)}}
        for s in sources[: method.room[1]]
    ]
    shared = {"t": 0.3} if method.parameter("t") else {}
    data = {"merge_method": name, "models": models, "parameters": shared}
    recipe = Recipe.model_validate(data | ({"base_model": base} if method.base == "required" else {}))
    with pytest.raises(CandidateError) as e:
        dict(Engine(open_sources([base, *sources])).tensors(recipe))
    assert '"model.layers.1.mlp.up_proj.weight" of the merge has NaN or infinite values' in str(e.value)
    assert f'of "{sources[0]}" has them already' in str(e.value)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The zoo's base and two of its fine-tunes, the first with one NaN."""
    import shutil

    from safetensors.torch import load_file, save_file

    from evomerge import zoo

    folders = []
    for name in ("base", "maths", "kovesh"):
        folder = Path(shutil.copytree(zoo.path(name), tmp_path_factory.mktemp("broken") / name))
        if name == "maths":
            tensors = load_file(folder / "model.safetensors")
            tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        folders.append(str(folder))
    return folders


@CUDA
@pytest.mark.parametrize("name", METHODS)
def test_a_gpu_agrees_to_one_unit_in_the_last_place(name: str) -> None:
    for tensors, base in large(name):
        collected = statistics(METHODS[name], tensors)
        here = run(name, tensors, base)
        there = run(name, [t.cuda() for t in tensors], base.cuda(), {"statistics": [s.cuda() for s in collected]}).cpu()
        assert int((here.view(torch.int32) - there.view(torch.int32)).abs().max()) <= 1
