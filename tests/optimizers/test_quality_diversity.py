"""MAP-Elites and CMA-ME: the archive over the tasks' values, and what is searched with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from evomerge.errors import EvoMergeError
from evomerge.optimizers import make_optimizer
from evomerge.optimizers.cube import Cube, folded
from evomerge.optimizers.protocol import Behaviour
from evomerge.optimizers.task_archive import Found, TaskArchive
from evomerge.score import Value
from evomerge.space import Categorical, Float, Integer, Parameter
from tests.optimizers.specialists import SPACE, Told, behaviour, elites, search, spread, uniform

BOTH = pytest.mark.parametrize("name", ["map-elites", "cma-me"])
FEW: tuple[Parameter, ...] = (Float("x", 0.0, 1.0, 0.5), Float("y", 0.0, 1.0, 0.5))
NOTHING = np.zeros(3, np.float32)


def found(score: float, *tasks: float) -> Found:
    return Found(np.array([0.5, 0.5]), {"x": score}, score, tasks, 0)


@BOTH
def test_more_is_found_than_by_uniform_draws_at_equal_budget(name: str) -> None:
    logs = [search(make_optimizer(name, SPACE, seed, tasks=2), 300) for seed in range(3)]
    drawn = [uniform(seed, 300) for seed in range(3)]

    def best(log: Told) -> float:
        return max(score or 0.0 for _, score, _ in log)

    assert np.median([spread(log) for log in logs]) > 1.5 * np.median([spread(log) for log in drawn])
    assert np.median([best(log) for log in logs]) > 1.2 * np.median([best(log) for log in drawn])


@BOTH
def test_the_elites_are_the_best_of_each_cell_of_all_that_was_told(name: str) -> None:
    """Against NumPy: the same grid over everything that was told."""
    optimizer: Any = make_optimizer(name, SPACE, 3, tasks=2)
    log = search(optimizer, 200, fails=lambda p: float(p["weight.s0.layer_0"]) > 0.8)
    assert any(score is None for _, score, _ in log)
    values = np.array([known.tasks for _, _, known in log if known is not None])
    scores = np.array([score for _, score, _ in log if score is not None])
    low, high = optimizer.archive.ranges
    assert np.all(low <= values) and np.all(values <= high)
    cells = np.minimum(((values - low) / (high - low) * 10 + 1e-6).astype(int), 9) @ [10, 1]
    expected = {c: scores[cells == c].max() for c in set(cells.tolist())}
    kept = elites(optimizer)
    assert {(10 * e.cell[0] + e.cell[1], e.score) for e in kept if e.cell is not None} == set(expected.items())
    assert all(log[e.told][:2] == (e.params, e.score) for e in kept)
    assert (optimizer.grid.low, optimizer.grid.high) == (tuple(low), tuple(high))
    assert sorted(e.score for e in elites(optimizer)) == sorted(expected.values())
    assert optimizer.coverage == pytest.approx(len(expected) / 100)
    assert optimizer.qd_score == pytest.approx(sum(expected.values()))
    assert optimizer.grid.norm_qd_score == pytest.approx(sum(expected.values()) / 100) and optimizer.grid.offset == 0


def test_a_cell_keeps_the_best_and_the_first_of_equal_ones() -> None:
    archive = TaskArchive(2, 2, 0)
    archive.add([found(0.0, 0.0, 0.0), found(1.0, 1.0, 1.0)])
    assert archive.add([found(0.3, 0.55, 0.05), found(0.4, 0.56, 0.05), found(0.4, 0.57, 0.05)]) == [
        (2, pytest.approx(0.3)), (1, pytest.approx(0.1)), (0, 0.0),
    ]  # fmt: skip
    assert [(e.score, e.tasks) for e in archive.elites()] == [(1.0, (1.0, 1.0)), (0.4, (0.56, 0.05)), (0.0, (0.0, 0.0))]
    assert archive.coverage == pytest.approx(3 / 100)
    assert archive.qd_score == pytest.approx(1.4)


def test_the_grid_spans_what_is_seen_and_is_laid_anew_without_loss() -> None:
    archive = TaskArchive(2, 2, 0)
    archive.add([found(0.30, 0.30, 0.40), found(0.31, 0.31, 0.41), found(0.32, 0.3001, 0.4001)])
    assert archive.ranges == pytest.approx(np.array([[0.299, 0.399], [0.311, 0.411]]))
    assert [e.score for e in archive.elites()] == [0.32, 0.31]  # .3001 lies in the cell of .3
    archive.add([found(-3.0, -9.0, 0.95)])  # the first task's values are no shares any more
    assert archive.ranges == pytest.approx(np.array([[-9.931, 0.345], [0.31 + 0.931, 1.0]]))
    assert [e.score for e in archive.elites()] == [0.32, -3.0]
    # The lowest score stands for nothing: (0.32 + 3) + 0.
    assert archive.qd_score == pytest.approx(3.32)
    assert (archive.offset, archive.grid.norm_qd_score) == (-3.0, pytest.approx(0.0332))
    before = archive.ranges.copy()
    archive.add([found(0.1, -2.0, 0.5)])
    assert np.array_equal(archive.ranges, before)
    assert [e.score for e in archive.elites()] == [0.32, 0.1, -3.0]


def test_shares_stay_shares_and_a_flat_task_has_a_range() -> None:
    archive = TaskArchive(2, 2, 0)
    archive.add([found(0.5, 0.0, 0.5), found(0.5, 1.0, 0.5)])
    ranges = archive.ranges
    assert ranges is not None and ranges[:, 0].tolist() == [0.0, 1.0]
    assert ranges[0, 1] < 0.5 < ranges[1, 1] < 0.51
    assert len(archive.elites()) == 2


@pytest.mark.parametrize(("tasks", "cells"), [(2, 100), (3, 125), (4, 256)])
def test_cells_by_number_of_tasks(tasks: int, cells: int) -> None:
    archive = TaskArchive(2, tasks, 0)
    archive.add([found(0.5, *([0.5] * tasks))])
    assert archive.coverage == pytest.approx(1 / cells)


@BOTH
def test_failed_candidates_are_told_and_never_kept(name: str) -> None:
    optimizer: Any = make_optimizer(name, FEW, 1, tasks=2, population=8)
    asked = optimizer.ask(8)
    scores = [None, float("nan"), 0.5, float("inf"), 0.4, None, 0.3, 0.2]
    known: list[Behaviour | None] = [Behaviour((s or 0.0, 0.5), NOTHING) for s in scores]
    known[7] = Behaviour((float("nan"), 0.5), NOTHING)
    optimizer.tell(asked, scores, known)
    assert [e.params for e in optimizer.elites()] == [asked[2], asked[4], asked[6]]


@BOTH
def test_all_failed_first(name: str) -> None:
    optimizer: Any = make_optimizer(name, FEW, 1, tasks=2)
    n = optimizer.generation
    for _ in range(3):
        optimizer.tell(optimizer.ask(n), [None] * n, [None] * n)
    assert optimizer.elites() == [] and optimizer.coverage == 0 and optimizer.qd_score == 0
    assert len(optimizer.ask(n)) == n


@BOTH
def test_another_number_of_tasks_is_refused(name: str) -> None:
    optimizer = make_optimizer(name, FEW, 1, tasks=2)
    n = optimizer.generation
    with pytest.raises(EvoMergeError, match="told a candidate's values in 3 tasks, expected 2"):
        optimizer.tell(optimizer.ask(n), [0.5] * n, [Behaviour((0.5, 0.5, 0.5), NOTHING)] * n)


def test_cma_me_leaves_where_candidates_fail() -> None:
    """In a valley of new cells on one side; the other side fails."""

    def failed(seed: int) -> list[bool]:
        optimizer = make_optimizer("cma-me", SPACE, seed, tasks=2)
        log = search(optimizer, 10 * optimizer.generation, fails=lambda p: float(p["weight.s0.layer_0"]) < 0.5)
        return [score is None for _, score, _ in log]

    share = np.mean([failed(seed) for seed in range(4)], axis=0).reshape(10, -1).mean(axis=1)
    assert share[0] == pytest.approx(0.5, abs=0.15)
    assert share[5:].mean() < 0.6 * share[0]


def test_cma_me_in_a_corner_of_many_dimensions() -> None:
    """pyribs draws until all coordinates are inside: here never (27 coordinates on their bounds)."""
    corner: dict[str, Value] = {p.name: 1.5 for p in SPACE}
    optimizer = make_optimizer("cma-me", SPACE, 0, tasks=2, initial=corner)
    drawn = np.array([list(p.values()) for p, _, _ in search(optimizer, 4 * optimizer.generation)], dtype=float)
    assert np.all((drawn >= 0.0) & (drawn <= 1.5))
    # Thrown back: |N(0, 1/6)| has mean 1/6 sqrt(2/pi).
    assert 1.5 - drawn[: optimizer.generation].mean() == pytest.approx(1.5 / 6 * np.sqrt(2 / np.pi), rel=0.1)


def test_cma_me_has_three_emitters_or_as_many_as_fit() -> None:
    # 4 + floor(3 ln 27) = 13
    for population, batches in [
        (None, [13, 13, 13]),
        (40, [14, 13, 13]),
        (27, [14, 13]),
        (4, [4]),
        (200, [67, 67, 66]),
    ]:
        optimizer: Any = make_optimizer("cma-me", SPACE, 0, tasks=2, population=population)
        search(optimizer, 2 * optimizer.generation)
        assert [len(e.ask()) for e in optimizer._emitters] == batches


def test_map_elites_children_lie_between_elites() -> None:
    """Iso+LineDD: with no step of its own a child is on the line through two elites."""
    optimizer: Any = make_optimizer("map-elites", FEW, 0, tasks=2, sigma=1e-9, population=64)
    ends: list[dict[str, Value]] = [{"x": 0.3, "y": 0.4}, {"x": 0.7, "y": 0.6}]
    for params in ends:
        optimizer.enqueue(params)
    asked = optimizer.ask(64)
    optimizer.tell(asked, [0.5, 0.5, *[None] * 62], [*[Behaviour((v, 1 - v), NOTHING) for v in (0, 1)], *[None] * 62])
    children = np.array([[p["x"], p["y"]] for p in optimizer.ask(64)], dtype=float)
    assert children[:, 1] == pytest.approx(0.4 + (children[:, 0] - 0.3) / 2, abs=1e-6)
    along = (children[:, 0] - 0.3) / 0.4
    away = np.minimum(np.abs(along), np.abs(along - 1))
    # Half of the pairs are one elite twice; the others' steps are normal, of deviation .2.
    assert 0.3 < np.mean(away < 1e-6) < 0.7
    assert np.std(np.concatenate([away[away > 1e-6], -away[away > 1e-6]])) == pytest.approx(0.2, rel=0.3)


def test_random_keys() -> None:
    parameters: tuple[Parameter, ...] = (
        Integer("k", 1, 4, 2), Categorical("m", ("a", "b", "c"), "b"), Float("w", 0.1, 10.0, 1.0, log=True),
    )  # fmt: skip
    cube = Cube(parameters)
    assert cube.size == 5
    params: Mapping[str, Value] = {"k": 2, "m": "c", "w": 1.0}
    assert cube.point(params).tolist() == pytest.approx([0.375, 0.4, 0.4, 0.6, 0.5])
    assert json.dumps(cube.params(cube.point(params))) == json.dumps(params)
    assert cube.params(np.array([1.0, 0.3, 0.2, 0.1, 0.0])) == {"k": 4, "m": "a", "w": pytest.approx(0.1)}


def test_folded() -> None:
    assert folded(np.array([0.2, 1.0, 1.2, -0.3, 2.1, -1.4])).tolist() == pytest.approx([0.2, 1.0, 0.8, 0.3, 0.1, 0.6])


def test_behaviours_of_the_little_merge_are_its_score() -> None:
    score, known = behaviour({p.name: 0.7 for p in SPACE})
    assert score == pytest.approx(float(known.items.mean())) and 0 < score < 1


@pytest.mark.parametrize("name", ["map-elites", "m2n2"])
def test_a_start_that_was_enqueued_is_asked_once(name: str) -> None:
    optimizer = make_optimizer(name, FEW, 0, tasks=2)
    start: dict[str, Value] = {"x": 0.5, "y": 0.5}
    optimizer.enqueue({"x": 0.1, "y": 0.1})
    optimizer.enqueue(start)
    assert optimizer.ask(optimizer.generation).count(start) == 1


def test_those_that_miss_constraints_are_kept_until_one_keeps_them() -> None:
    archive = TaskArchive(2, 2, 0)

    def misses(score: float, missed: float, *tasks: float) -> Found:
        return replace(found(score, *tasks), missed=missed)

    assert [s for s, _ in archive.add([misses(900.0, 2.0, 0.0, 0.0), misses(9.0, 0.5, 1.0, 1.0)])] == [2, 2]
    # Of one cell stays who misses them less, whatever it reaches.
    assert archive.add([misses(-900.0, 1.5, 0.01, 0.01), misses(1e6, 3.0, 0.0, 0.0)]) == [(1, 0.5), (0, -1.5)]
    assert [(e.score, e.missed) for e in archive.elites()] == [(9.0, 0.5), (-900.0, 1.5)]
    assert archive.qd_score == 0.0
    added = archive.add([misses(1e6, 0.1, 0.5, 0.5), found(-35.0, 0.2, 0.2), misses(1e6, 0.2, 0.7, 0.7)])
    assert added == [(0, 0.0), (2, -35.0), (0, 0.0)]
    assert [(e.score, e.missed) for e in archive.elites()] == [(-35.0, 0.0)]
    # The grid spans those that count.
    assert archive.ranges is not None and archive.ranges[1].max() < 0.21
    assert archive.add([misses(1e6, 0.1, 0.5, 0.5)]) == [(0, 0.0)] and len(archive.elites()) == 1


def test_cma_me_ranks_who_misses_constraints_below_all_that_keep_them() -> None:
    optimizer: Any = make_optimizer("cma-me", FEW, 1, tasks=2, population=6)
    kept, far, near = found(-35.0, 0.2, 0.2), *(replace(found(1e6, 0.9, 0.9), missed=m) for m in (3.0, 0.5))
    status, value = optimizer._ranked([far, kept, None, near, kept], [(0, 0.0), (0, -7.0), None, (0, 0.0), (2, -35.0)])
    assert status.tolist() == [0, 0, 0, 0, 2]
    assert value[1] > value[3] > value[0] > value[2]
    # As long as none keeps them: those that the archive took first, the less they miss the sooner.
    status, value = optimizer._ranked([far, near, None], [(2, -3.0), (1, 0.1), None])
    assert status.tolist() == [1, 1, 0] and value[1] > value[0] > value[2]
