"""What tests of merge methods share: inputs, and formulas in float64 NumPy that share no code with the program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from evomerge.merging.group import Group
from evomerge.merging.methods import function
from evomerge.methods import METHODS

Array = npt.NDArray[np.float64]
Models = tuple[list[Array], Array]
# Of many digits: with .8, .5 and -.3 some sums of bfloat16's coarse task vectors are exactly 0, and a rounding elects.
WEIGHTS, DENSITIES = (0.81372941, 0.49316377, -0.30715093), (0.7, 0.31, 0.5)
KEYS = (7, 2**63 + 5, 12345)
# Odd sizes, one dimension and three, one row and one column; the last is several blocks of a reduction.
SHAPES = [(41, 13), (29,), (5, 3, 7), (1, 37), (37, 1), (3, 40_001)]
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def models(shape: tuple[int, ...], dtype: str = "float32", count: int = 3, scale: float = 0.2) -> Models:
    """Sources and their base, of values that the type holds exactly."""
    random = np.random.default_rng(3)
    base = random.normal(size=shape)
    sources = [base + scale * random.normal(size=shape) for _ in range(count)]

    def stored(x: Array) -> Array:
        return torch.tensor(x).to(TYPES[dtype]).double().numpy()

    return [stored(s) for s in sources], stored(base)


def parameters(method: str, **given: Any) -> dict[str, Any]:
    """What is given, and the table's defaults; lambda as `lambda_`."""
    out: dict[str, Any] = {}
    count = next((len(v) for v in given.values() if isinstance(v, tuple)), 0)
    for p in METHODS[method].parameters:
        name = "lambda_" if p.name == "lambda" else p.name
        out[name] = given.get(name, (p.default,) * count if p.per_source else p.default)
    return out


def merged(
    method: str,
    sources: Sequence[Array],
    base: Array | None,
    dtype: str = "float32",
    out: torch.dtype | None = None,
    **given: Any,
) -> Array:
    """The program's result, for inputs stored in a type; of the type of computation where `out` names no other."""
    tensors = [torch.tensor(s).to(TYPES.get(dtype, torch.float64)) for s in sources]
    start = None if base is None else torch.tensor(base).to(TYPES.get(dtype, torch.float64))
    group = Group(tensors, start, keys=KEYS[: len(sources)], out_dtype=out)
    found = function(method)(group, **parameters(method, **given))
    assert found.shape == tensors[0].shape
    assert group.finite()
    result: Array = found.double().numpy()
    return result


def check(
    method: str, sources: Sequence[Array], base: Array | None, expected: Array, dtype: str = "float32", **given: Any
) -> None:
    """The program's result is the expected one: to 1e-6, and where it is written in bfloat16 to one unit of that.

    An element is compared with the largest of what it is summed from: a sum that nearly cancels cannot be closer.
    """
    size = np.maximum.reduce([np.abs(expected), *map(np.abs, sources), *([] if base is None else [np.abs(base)])])
    got = merged(method, sources, base, dtype, **given)
    worst = (np.abs(got - expected) / np.where(size == 0, 1.0, size)).max(initial=0.0)
    assert worst <= 1e-6, f"{method}: differs by {worst:.2g} of the element's size"
    narrow = merged(method, sources, base, dtype, torch.bfloat16, **given)
    rounded = torch.tensor(expected).to(torch.bfloat16)
    units = np.abs(ordinal(torch.tensor(narrow).to(torch.bfloat16)) - ordinal(rounded))
    near = np.abs(narrow - expected) <= 1e-6 * size  # a sum that cancels: many units of a tiny number
    assert np.where(near, 0, units).max(initial=0) <= 1, f"{method}: more than one unit of bfloat16"


def ordinal(values: torch.Tensor) -> npt.NDArray[np.int64]:
    """Place of each bfloat16 number in the order of all of them."""
    bits = values.view(torch.int16).numpy().astype(np.int64)
    ordered: npt.NDArray[np.int64] = np.where(bits < 0, -(bits & 0x7FFF), bits)
    return ordered


# ---- random numbers


def splitmix64(seed: int, count: int) -> list[int]:
    """Vigna's splitmix64.c, in Python integers."""
    out = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) % 2**64
        z = seed
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        out.append(z ^ (z >> 31))
    return out


def stream(key: int, count: int) -> list[int]:
    """The stream's 31-bit numbers: two of each output, the lower half first, each without its last bit."""
    halves = []
    for value in splitmix64(key, (count + 1) // 2):
        halves += [(value & 0xFFFFFFFF) >> 1, value >> 33]
    return halves[:count]


def uniform(key: int, shape: tuple[int, ...]) -> Array:
    """The same from 0 to 1, as an array."""
    return np.array(stream(key, int(np.prod(shape))), dtype=np.float64).reshape(shape) / 2**31


# ---- masks and election


def order(delta: Array) -> npt.NDArray[np.int64]:
    """Places of the elements by descending magnitude in the type of computation, equal ones by position."""
    return np.argsort(-np.abs(delta).astype(np.float32).ravel(), kind="stable")


def kept(delta: Array, first: int, stop: int) -> Array:
    """Keeps what stands from place `first` up to `stop` in the order of magnitudes."""
    mask = np.zeros(delta.size)
    mask[order(delta)[first:stop]] = 1
    return delta * mask.reshape(delta.shape)


def top(delta: Array, density: float) -> Array:
    """Keeps the int(density n) elements largest by magnitude."""
    return kept(delta, 0, int(density * delta.size))


def as_before(delta: Array, kept: Array) -> Array:
    """What is kept, scaled to the sum of magnitudes that there was."""
    return kept * np.abs(delta).sum() / np.abs(kept).sum() if np.abs(kept).sum() else kept


def linear_end(base: Array, deltas: list[Array], weights: Sequence[float], normalize: bool, lam: float) -> Array:
    """Task arithmetic of masked task vectors."""
    total = sum((w * d for w, d in zip(weights, deltas, strict=True)), np.zeros_like(base))
    return base + lam * total / (sum(weights) if normalize else 1.0)


def election(base: Array, deltas: list[Array], weights: Sequence[float], normalize: bool, lam: float) -> Array:
    """TIES's end: of each masked task vector what has the sign of their weighted sum."""
    weighted = np.stack([w * d for w, d in zip(weights, deltas, strict=True)])
    elected = np.where(weighted.sum(0) >= 0, 1.0, -1.0)
    agree = np.sign(weighted) == elected
    total = (weighted * agree).sum(0)
    if normalize:
        share = (np.array(weights).reshape(-1, *[1] * base.ndim) * agree).sum(0)
        total = total / np.where(share == 0, 1.0, share)
    return np.asarray(base + lam * total)
