"""Float16 by the compiler and in whole numbers (for compilers without it): every value, both ways, as NumPy has it."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.merging.native import library
from evomerge.merging.native.build import _compiler, compile_kernels
from evomerge.merging.native.structs import OperandStruct, OutputStruct

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler on this machine")

F32, F16 = 0, 2
Numbers = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(scope="module", params=["the compiler's", "whole numbers"])
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if request.param == "the compiler's":
        found = library()
        assert found is not None
        return found
    compiler, file = _compiler(), tmp_path_factory.mktemp("soft") / "kernels.so"
    assert compiler is not None
    compile_kernels(compiler, Path(file), ["-DEVOMERGE_SOFT_FLOAT16"])
    return ctypes.CDLL(str(file))


def converted(kernels: ctypes.CDLL, values: Numbers, dtype: type) -> tuple[Numbers, int]:
    """Values in another type, by the weighted sum of one of them; and whether it saw some that are not finite."""
    types = {np.dtype(np.float32): F32, np.dtype(np.float16): F16}
    out: Numbers = np.empty(len(values), dtype=dtype)
    operand = OperandStruct(values.ctypes.data, types[values.dtype], 0)
    output = OutputStruct(out.ctypes.data, types[out.dtype], types[out.dtype])
    bad = kernels.evomerge_sum(
        1, ctypes.byref(operand), (ctypes.c_float * 1)(1.0), None, ctypes.c_int64(len(values)), ctypes.byref(output)
    )
    return out, bad


def test_every_value_is_read(kernels: ctypes.CDLL) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    found, bad = converted(kernels, every, np.float32)
    expected = every.astype(np.float32)
    numbers = ~np.isnan(expected)
    assert bad and np.array_equal(np.isnan(found), ~numbers)
    assert np.array_equal(found[numbers].view(np.uint32), expected[numbers].view(np.uint32))


def test_every_value_is_written_and_what_lies_between_goes_to_the_nearest_even(kernels: ctypes.CDLL) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    exact = every[np.isfinite(every)].astype(np.float32)
    with np.errstate(over="ignore"):
        steps = np.spacing(np.abs(exact.astype(np.float16))).astype(np.float32)
    halfway = exact + np.copysign(steps / 2, exact)
    ends = np.array([65519.996, 65520.0, 1e30, -1e30, 1e-45, -1e-30], dtype=np.float32)
    above, below = np.nextafter(halfway, np.float32(np.inf)), np.nextafter(halfway, np.float32(-np.inf))
    values = np.concatenate([every.astype(np.float32), halfway, above, below, ends])
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    found, bad = converted(kernels, values, np.float16)
    numbers = ~np.isnan(expected)
    assert bad and np.array_equal(np.isnan(found), ~numbers)
    assert np.array_equal(found[numbers].view(np.uint16), expected[numbers].view(np.uint16))
    finite = every[np.isfinite(every)].astype(np.float32)
    assert converted(kernels, finite, np.float16)[1] == 0
