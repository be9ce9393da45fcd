"""The evolutionary search: its mutations, its memory, several objectives, and what it finds among paths."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping

import pytest

from evomerge.optimizers import OPTIMIZERS, Optimizer, make_optimizer
from evomerge.optimizers.evolution import Evolution
from evomerge.score import Value
from evomerge.space import Categorical, Float, Integer, Parameter
from tests.optimizers import paths

Params = dict[str, Value]
SMALL: tuple[Parameter, ...] = (
    Categorical("source.0", ("a", "b", "c"), "a"),
    Integer("times.0", 0, 2, 1),
    Float("scale.0", 0.9, 1.1, 1.0, step=0.1),
)


def generations(optimizer: Optimizer, count: int, score: Mapping[str, float] | None = None) -> list[Params]:
    """Some generations that all tie, or score the sum of the named parameters times a factor."""
    log: list[Params] = []
    for _ in range(count):
        asked = optimizer.ask(optimizer.generation)
        optimizer.tell(asked, [sum(f * float(p[n]) for n, f in (score or {}).items()) for p in asked])
        log += asked
    return log


def differing(a: Params, b: Params) -> set[str]:
    return {name for name in a if a[name] != b[name]}


def test_the_first_generation_is_the_start_and_mutants_of_it() -> None:
    many = tuple(Float(f"scale.{i}", 0.0, 1.0, 0.5) for i in range(30))
    start, *mutants = make_optimizer("evolution", many, seed=1, population=200).ask(200)
    assert start == {p.name: 0.5 for p in many}
    counts = Counter(len(differing(start, m)) for m in mutants)
    assert counts[0] == 0
    assert statistics.mean(len(differing(start, m)) for m in mutants) == pytest.approx(2.0, abs=0.25)  # 1 + Poisson(1)


def test_the_start_can_be_another() -> None:
    start: Params = {"source.0": "c", "times.0": 2, "scale.0": 1.1}
    assert make_optimizer("evolution", SMALL, seed=1, initial=start).ask(8)[0] == start


def test_the_start_follows_what_is_enqueued_even_a_generation_later() -> None:
    optimizer = make_optimizer("evolution", SMALL, seed=1, population=2)
    for choice in ("b", "c"):
        optimizer.enqueue({"source.0": choice, "times.0": 0, "scale.0": 0.9})
    log = generations(optimizer, 2)
    assert log[2] == {p.name: p.init for p in SMALL}


def test_kinds_are_mutated_equally_often() -> None:
    """One choice of embeddings is not drowned by forty scales."""
    many: tuple[Parameter, ...] = (*(Float(f"scale.{i}", 0.0, 1.0, 0.5) for i in range(40)),
                                   Categorical("embeddings", ("a", "b"), "a"))  # fmt: skip
    start, *mutants = make_optimizer("evolution", many, seed=3, population=400).ask(400)
    single = [differing(start, m) for m in mutants if len(differing(start, m)) == 1]
    # Equal parameter sets are not asked twice: that of the embeddings alone is one of the 400.
    more = [differing(start, m) for m in mutants if len(differing(start, m)) > 1]
    assert sum("embeddings" in d for d in single) == 1
    assert sum("embeddings" in d for d in more) / len(more) > 0.4


def test_numbers_move_to_their_neighbours() -> None:
    space: tuple[Parameter, ...] = (Integer("k", 0, 9, 9), Float("w", 0.0, 3.0, 0.0, step=0.1))
    start, *mutants = make_optimizer("evolution", space, seed=0, population=40, sigma=0.01).ask(40)
    assert start == {"k": 9, "w": 0.0}
    assert {m["k"] for m in mutants[:5]} <= {9, 8, 7}
    assert all(p.problem(m[p.name]) is None for m in mutants for p in space)
    assert {0.1, 0.2} <= {m["w"] for m in mutants}  # a step of the grid, though sigma is a third of one


def test_logarithms_are_searched_where_asked_for() -> None:
    space = (Float("w", 1e-6, 1.0, 1e-3, log=True),)
    _, *mutants = make_optimizer("evolution", space, seed=0, population=4000).ask(4000)
    moved = [math.log10(float(m["w"])) + 3 for m in mutants]
    assert statistics.median(moved) == pytest.approx(0.0, abs=0.1)
    assert statistics.quantiles(moved, n=4)[2] > 0.5


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_asked_twice_while_the_space_allows(seed: int) -> None:
    optimizer = make_optimizer("evolution", SMALL, seed=seed, population=9)
    log = generations(optimizer, 3, {"times.0": 1.0})
    assert len({tuple(p.values()) for p in log}) == 27  # every point of the space
    assert all(p.problem(params[p.name]) is None for params in generations(optimizer, 2) for p in SMALL)


def test_the_best_of_all_generations_remain_parents() -> None:
    space = tuple(Float(f"scale.{i}", 0.0, 1.0, 0.5) for i in range(20))
    optimizer = make_optimizer("evolution", space, seed=0, population=20)
    asked = optimizer.ask(20)
    optimizer.tell(asked, [1.0 if i == 7 else None for i in range(20)])
    for _ in range(5):  # nothing comes near it
        later = optimizer.ask(20)
        optimizer.tell(later, [None] * 20)
    assert isinstance(optimizer, Evolution)
    near = [len(differing(asked[7], p)) for p in later]
    assert sum(n <= 3 for n in near) > 4


def test_several_objectives_spread_over_the_front() -> None:
    """Score falls with k, depth counts as much: every k from 0 to 9 with w = 1 is on the front."""
    space: tuple[Parameter, ...] = (Integer("k", 0, 9, 4), Float("w", 0.0, 1.0, 0.0, step=0.05))
    optimizer = make_optimizer("evolution", space, seed=1, objectives=2)
    found: set[int] = set()
    for _ in range(20):
        asked = optimizer.ask(optimizer.generation)
        optimizer.tell(asked, [(float(p["k"]) + float(p["w"]), -float(p["k"])) for p in asked])
        found |= {int(p["k"]) for p in asked if p["w"] == 1.0}
    assert len(found) >= 7


def test_failures_and_several_objectives() -> None:
    optimizer = make_optimizer("evolution", SMALL, seed=1, objectives=3)
    asked = optimizer.ask(8)
    optimizer.tell(asked, [None, (1.0, 2.0, float("nan")), *[(0.0, 1.0, 2.0)] * 6])
    assert len(optimizer.ask(8)) == 8


@pytest.mark.ci
@pytest.mark.parametrize("name", ["evolution", "catcma"])
def test_finds_paths_that_random_search_does_not(name: str) -> None:
    """The compact preset on a stand-in landscape with the traps of real ones (see `paths.landscape`)."""
    budget, seeds = (160, range(5)) if name == "evolution" else (400, range(5))
    space = paths.compact()
    assert OPTIMIZERS[name].categorical

    def reached(which: str, seed: int) -> float:
        optimizer, best = make_optimizer(which, space.parameters, seed=seed), -1.0
        for _ in range(budget // optimizer.generation):
            asked = optimizer.ask(optimizer.generation)
            scores = [paths.landscape(space.decode(p)) for p in asked]
            optimizer.tell(asked, scores)
            best = max(best, *scores)
        return best

    found = statistics.median(reached(name, seed) for seed in seeds)
    assert found > 0.44
    assert found > max(reached("random", seed) for seed in seeds)
