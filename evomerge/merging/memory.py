"""How much memory of its own a merge needs: what `evomerge check` says before anything is spent. Loads no torch."""

from __future__ import annotations

import os

from evomerge.merging.plan import Plan, TensorPlan

# Python with torch and NumPy loaded: 150 MB measured, and room for what differs between builds.
PROGRAM = 220 << 20
# Elements that a thread works on at a time, and how many float64 copies of them it may hold for each input.
PIECE = 1 << 18
COPIES = 3
# Of float64, which the kernels do not know, torch holds whole chains of operations (measured, with room).
COPIES_DOUBLE = 10
# From this size on the threads share one tensor; below it each takes a tensor of its own.
SHARED_ELEMENTS = 1 << 24
# Where the largest elements of a tensor are asked for, those near the cut are listed: at most this share of all, with
# so many bytes for each in every list, and so many more in the one that is being sorted (measured, with room).
LISTED, IN_LIST, SORTED = 1 / 32, 40, 60
# Merges of singular vectors: float64 matrices of the layer's size beside its inputs, with what the allocator keeps of
# them between two tensors (measured on two threads: up to 10).
SINGULAR = 12
# RegMean: float64 matrices of the Gram matrices' size that live at once (their sum, one of them, its factors or
# eigenvectors and what LAPACK works with), and of the layer's.
GRAMS, MATRICES = 7, 8


def peak_bytes(plan: Plan, threads: int | None = None) -> int:
    """Upper estimate of a merge's private memory (RssAnon) on a CPU.

    Sources and output are mapped files, whose pages belong to the system. What is left are the program, a few pieces
    for each thread, rows that must be whole, elements near a cut, and for methods of matrices whole tensors in float64.
    """
    workers = threads or usable_cores()
    inputs = max((len(t.reads) for t in plan.tensors), default=1) + 2
    by_row = [t for t in plan.tensors if len(t.shape) > 1]
    row = max((t.elements // max(t.shape[0], 1) for t in by_row), default=0)
    copies = COPIES_DOUBLE if any(_in_double(plan, t) for t in plan.tensors) else COPIES
    pieces = workers * inputs * copies * 8 * max(PIECE, row)
    whole = 0
    if plan.recipe.method.whole:
        large = max((_whole_bytes(plan, t) for t in by_row), default=0)
        # Those below the size that threads share are merged side by side.
        small = sorted((_whole_bytes(plan, t) for t in by_row if t.elements < SHARED_ELEMENTS), reverse=True)
        whole = max(large, sum(small[:workers]))
    listed = max((_listed_bytes(plan, t) for t in plan.tensors), default=0) if not plan.recipe.method.random else 0
    return PROGRAM + pieces + listed + whole


def _whole_bytes(plan: Plan, t: TensorPlan) -> int:
    """What a method of matrices needs for a tensor: several float64 copies of it, and of what it knows of its inputs.

    Singular vectors are taken of maps from one space to another; tables (embeddings, heads) are averaged in pieces.
    RegMean's Gram matrices are [in, in], which may be much more than the layer itself; it averages the tensors that
    have none piece by piece.
    """
    if not plan.recipe.method.statistics:
        if plan.by_token(t) or len(t.shape) != 2:
            return 0
        return 8 * (len(t.reads) + SINGULAR) * t.elements
    of = [plan.statistics[i.model].tensors.get(i.tensor) for i in t.inputs if i.model in plan.statistics]
    found = [info.elements for info in of if info is not None]
    if len(found) < len(t.inputs) or len(t.shape) != 2:
        return 0
    return 8 * (GRAMS * max(found) + MATRICES * t.elements)


def _listed_bytes(plan: Plan, t: TensorPlan) -> int:
    """What ranking by magnitude (ties, breadcrumbs) or by variance (sce) needs for a tensor.

    In float64 the kernels are not used, and nothing is listed.
    """
    if _in_double(plan, t):
        return 0
    densities = t.parameters.get("density", ())
    assert isinstance(densities, tuple)
    ends = 2 if "gamma" in t.parameters else 1
    lists = ends * sum(0.0 < d < 1.0 for d in densities) + (0.0 < float(t.parameters.get("select_topk", 1.0)) < 1.0)  # type: ignore[arg-type]
    return int(t.elements * LISTED * (IN_LIST * lists + SORTED)) if lists else 0


def _in_double(plan: Plan, t: TensorPlan) -> bool:
    return plan.recipe.dtype == "float64" or any(plan.info(i).dtype == "F64" for i in t.reads)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_words(number: float) -> str:
    """A number of bytes: "1.23 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
