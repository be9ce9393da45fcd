"""What every optimizer of the table promises (`Optimizer`): asking, telling, enqueueing, and what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from typing import Any

import pytest

from evomerge.errors import EvoMergeError, SpaceError
from evomerge.optimizers import OPTIMIZERS, default_optimizer
from evomerge.optimizers.behaviours import Archiving
from evomerge.score import Value
from evomerge.space import Categorical, Float, Integer
from tests.contracts.optimizers import (
    FLOATS,
    MIXED,
    NUMBERS,
    SPACES,
    behaviour,
    best,
    each,
    every,
    every_mode,
    make_optimizer,
    of_all,
    quality,
    run,
    sometimes,
    tell,
)


@every_mode
def test_asks_in_bounds_order_and_type(name: str, space: str, asynchronous: bool) -> None:
    parameters = SPACES[space]
    optimizer = make_optimizer(name, parameters, seed=1, asynchronous=asynchronous)
    assert optimizer.name == name
    assert optimizer.generation >= 2
    assert not optimizer.done and optimizer.whole == OPTIMIZERS[name].whole
    log = run(optimizer, 6, asynchronous=asynchronous)
    assert len(log) >= 6 * optimizer.generation
    for params, _ in log:
        assert list(params) == [p.name for p in parameters]
        for p in parameters:
            assert p.problem(params[p.name]) is None
            assert type(params[p.name]) is {Float: float, Integer: int, Categorical: str}[type(p)]
            if isinstance(p, Float) and p.step is not None:
                # To the bit, so that equal scales of two candidates are equal.
                assert params[p.name] in [p.at(k) for k in range(11)]
    assert len({json.dumps(p) for p, _ in log}) > 1


@every
def test_enqueued_come_first_as_they_are_and_are_told(name: str, space: str) -> None:
    parameters = SPACES[space]
    mine: list[dict[str, Value]] = [
        {p.name: p.choices[-1] if isinstance(p, Categorical) else p.high for p in parameters},
        {p.name: p.init for p in parameters},
        {p.name: p.choices[0] if isinstance(p, Categorical) else p.low for p in parameters},
    ]
    optimizer = make_optimizer(name, parameters, seed=1, population=6)
    for params in mine:
        optimizer.enqueue(params)
    if OPTIMIZERS[name].starts and name != "evolution":  # whose start comes after them
        mine = [{p.name: p.init for p in parameters}, *mine]
    given = mine
    asked = optimizer.ask(6)
    assert asked[: len(given)] == given
    tell(optimizer, asked, [quality(p) for p in asked])
    log = run(optimizer, 2)
    assert all(p.problem(params[p.name]) is None for params, _ in log for p in parameters)
    with pytest.raises(EvoMergeError, match="before the first generation"):
        optimizer.enqueue(mine[0])
    one_by_one = make_optimizer(name, parameters, seed=1, population=6, asynchronous=True)
    for params in mine[OPTIMIZERS[name].starts and name != "evolution" :]:
        one_by_one.enqueue(params)
    first = [one_by_one.ask(1)[0] for _ in range(8)]
    assert first[: len(given)] == given
    for params in reversed(first):
        tell(one_by_one, [params], [quality(params)])
    assert all(p.problem(params[p.name]) is None for params in one_by_one.ask(4) for p in parameters)


@each
def test_more_enqueued_than_a_generation_holds(name: str) -> None:
    optimizer = make_optimizer(name, FLOATS, seed=1, population=4)
    mine = [{"weight.a": i / 10, "weight.b": 0.5, "lambda": 0.1} for i in range(7)]
    for params in mine:
        optimizer.enqueue(params)
    log = [p for p, _ in run(optimizer, 4)]
    places = [log.index(p) for p in mine]  # type: ignore[arg-type]
    assert places == sorted(places)
    assert places[-1] < 12


@of_all
def test_enqueue_refuses_what_is_not_in_the_space(name: str) -> None:
    optimizer = make_optimizer(name, FLOATS, seed=1)
    with pytest.raises(SpaceError, match=r"weight\.a = 7: outside \[-1, 2\]"):
        optimizer.enqueue({"weight.a": 7, "weight.b": 0.5, "lambda": 0.1})


@of_all
def test_ask_and_tell_take_turns(name: str) -> None:
    optimizer = make_optimizer(name, FLOATS, seed=1)
    n = optimizer.generation
    with pytest.raises(EvoMergeError, match="no generation is asked for"):
        optimizer.tell([], [])
    with pytest.raises(EvoMergeError, match=f"has {n} candidates, {n + 1} were asked for"):
        optimizer.ask(n + 1)
    asked = optimizer.ask(n)
    with pytest.raises(EvoMergeError, match="has not been told"):
        optimizer.ask(n)
    with pytest.raises(EvoMergeError, match=f"expected the {n} asked last"):
        optimizer.tell(asked[:-1], [0.0] * (n - 1))
    with pytest.raises(EvoMergeError, match=f"expected the {n} asked last"):
        optimizer.tell([*asked[:-1], {**asked[-1], "weight.b": 0.123}], [0.0] * n)
    asked_copy = [dict(p) for p in asked]
    asked[0].clear()  # the caller's copy is the caller's
    tell(optimizer, asked_copy, [0.0] * n)


@each
def test_asynchronously_any_number_is_asked_and_told_at_any_time(name: str) -> None:
    optimizer = make_optimizer(name, FLOATS, seed=1, asynchronous=True)
    with pytest.raises(EvoMergeError, match="nothing to tell"):
        optimizer.tell([], [])
    with pytest.raises(EvoMergeError, match="0 candidates were asked for, expected 1 or more"):
        optimizer.ask(0)
    asked = [*optimizer.ask(1), *optimizer.ask(optimizer.generation + 3), *optimizer.ask(2)]
    assert len(asked) == optimizer.generation + 6
    with pytest.raises(EvoMergeError, match="told 1 candidates and 2 scores, expected one of each"):
        optimizer.tell(asked[:1], [0.0, 1.0])
    with pytest.raises(EvoMergeError, match="not asked for, or told before"):
        optimizer.tell([asked[1], {**asked[0], "weight.b": 0.123}], [0.0, 0.0])
    with pytest.raises(EvoMergeError, match="told 2 values of a candidate, expected 1"):
        optimizer.tell(asked[:1], [(0.0, 1.0)])
    tell(optimizer, asked[1:2], [0.0])  # what was refused left it as it was
    with pytest.raises(EvoMergeError, match="not asked for, or told before"):
        optimizer.tell(asked[1:2], [0.0])
    # The last ones first, and none for a while: it asks on whatever is out.
    for params in reversed(asked[2:]):
        tell(optimizer, [params], [quality(params)])
    later = optimizer.ask(5)
    tell(optimizer, [*later[3:], asked[0]], [0.5, None, float("nan")])
    assert len(optimizer.ask(3)) == 3


@each
def test_asynchronously_twins_are_interchangeable(name: str) -> None:
    twin: dict[str, Value] = {"weight.a": 0.3, "weight.b": 0.5, "lambda": 0.1}

    def next_after(order: Sequence[int]) -> list[dict[str, Value]]:
        optimizer = make_optimizer(name, FLOATS, seed=1, population=6, asynchronous=True)
        optimizer.enqueue(twin)
        optimizer.enqueue(twin)
        asked = optimizer.ask(8)
        assert asked.count(twin) == 2
        twins = [i for i, p in enumerate(asked) if p == twin]
        for i in [twins[k] for k in order] + [i for i in range(8) if i not in twins]:
            tell(optimizer, [asked[i]], [quality(asked[i])])
        with pytest.raises(EvoMergeError, match="nothing to tell"):
            optimizer.tell([twin], [0.0])
        return optimizer.ask(3)

    assert next_after([0, 1]) == next_after([1, 0])


@of_all
def test_population_is_the_generation(name: str) -> None:
    assert make_optimizer(name, FLOATS, seed=1, population=14).generation == 14
    least = OPTIMIZERS[name].least
    log = run(make_optimizer(name, FLOATS, seed=1, population=least), 5)
    assert len(log) == 5 * least
    with pytest.raises(SpaceError, match=f"needs at least {least}"):
        make_optimizer(name, FLOATS, seed=1, population=least - 1)


@of_all
def test_another_number_of_objectives_is_refused(name: str) -> None:
    optimizer = make_optimizer(name, FLOATS, seed=1)
    asked = optimizer.ask(optimizer.generation)
    with pytest.raises(EvoMergeError, match="told 2 values of a candidate, expected 1"):
        optimizer.tell(asked, [(0.5, 0.5)] * len(asked))


def test_categories_are_refused_with_who_can_take_them() -> None:
    can = [n for n, entry in OPTIMIZERS.items() if entry.categorical]
    for name in OPTIMIZERS:
        if name in can:
            continue
        with pytest.raises(SpaceError) as caught:
            make_optimizer(name, MIXED, seed=1)
        assert str(caught.value) == (
            f'optimizer "{name}" cannot take categorical parameters (method); these can: {", ".join(can)}'
        )


@pytest.mark.parametrize("name", [n for n, entry in OPTIMIZERS.items() if entry.whole])
def test_behaviours_are_asked_for_and_elites_known(name: str) -> None:
    optimizer: Any = make_optimizer(name, FLOATS, seed=1)
    assert optimizer.whole and optimizer.elites() == []
    asked = optimizer.ask(optimizer.generation)
    with pytest.raises(EvoMergeError, match=f"expected the behaviours of all {len(asked)} candidates, got none"):
        pickle.loads(pickle.dumps(optimizer)).tell(asked, [0.5] * len(asked))
    with pytest.raises(EvoMergeError, match="a candidate that has a score has no behaviour"):
        pickle.loads(pickle.dumps(optimizer)).tell(asked, [0.5] * len(asked), [None] * len(asked))
    scores = [sometimes(p) for p in asked]
    tell(optimizer, asked, scores)
    log = [*zip(asked, scores, strict=True), *run(optimizer, 4, sometimes)]
    elites = optimizer.elites()
    assert [e.score for e in elites] == sorted((e.score for e in elites), reverse=True)
    assert elites[0].score == best(log)
    for elite in elites:  # none that failed, each as it was told
        assert (elite.params, elite.score) in log
        assert elite.tasks == behaviour(elite.params, elite.score).tasks  # type: ignore[union-attr]
        assert log[elite.told] == (elite.params, elite.score)
    assert len({json.dumps(e.params) for e in elites}) == len(elites)


@pytest.mark.parametrize("name", [n for n, entry in OPTIMIZERS.items() if entry.whole])
def test_a_generation_that_was_cut_short_joins_the_archive(name: str) -> None:
    optimizer: Any = make_optimizer(name, FLOATS, seed=1)
    assert isinstance(optimizer, Archiving) and not isinstance(make_optimizer("random", FLOATS, seed=1), Archiving)
    first = len(run(optimizer, 3))
    asked = optimizer.ask(optimizer.generation)
    scores = [9.0, None, 8.0]  # better than all others
    with pytest.raises(EvoMergeError, match="expected"):
        optimizer.close([asked[1], asked[0]], [9.0, 8.0], [behaviour(p, 9.0) for p in asked[:2]])
    # What was refused left it as it was.
    optimizer.close(asked[:3], scores, [behaviour(p, s) for p, s in zip(asked, scores, strict=False)])
    best_two = optimizer.elites()[:2]
    assert [(e.params, e.score, e.told) for e in best_two] == [(asked[0], 9.0, first), (asked[2], 8.0, first + 2)]
    with pytest.raises(EvoMergeError, match="has not been told"):
        optimizer.ask(optimizer.generation)


def test_default() -> None:
    assert default_optimizer(FLOATS) == default_optimizer(NUMBERS) == "thompson"
    assert default_optimizer([Float(f"w{i}", 0.0, 1.0, 0.5) for i in range(201)]) == "cma"
    assert default_optimizer(MIXED) == "catcma"  # a space may know better: its `sampler`
    assert make_optimizer("auto", MIXED, seed=1).name == "catcma"
    assert make_optimizer("auto", FLOATS, seed=1).name == "thompson"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"name": "cmaes"},
            'unknown optimizer "cmaes"; did you mean "cma"? Valid: ' + ", ".join(["auto", *OPTIMIZERS]),
        ),
        ({"parameters": ()}, "the space has nothing to search: every parameter is fixed"),
        ({"population": 1}, 'population = 1: optimizer "cma" needs at least 4'),
        ({"sigma": 0.0}, "sigma = 0: expected a share of the range, above 0 and at most 1"),
        ({"sigma": 3.0}, "sigma = 3: expected a share of the range, above 0 and at most 1"),
        ({"seed": -1}, "seed = -1: expected 0 or more"),
        ({"initial": {"weight.a": 0.5}}, 'parameter "weight.b" has no value\nparameter "lambda" has no value'),
        ({"parameters": (Integer("k", 2, 2, 2),)}, "k: low = 2 must be below high = 2"),
        (
            {"parameters": (Float("w", 0.5, 1.4, 1.0, step=0.2),)},
            "w: step = 0.2: high = 1.4 is not low plus a multiple"
            " of it\nw: step = 0.2: init = 1 is not low plus a multiple of it",
        ),
        (
            {"parameters": (Float("w", 0.5, 1.5, 1.0, log=True, step=0.1),)},
            "w: step = 0.1: a parameter whose logarithm is searched has no grid",
        ),
        ({"parameters": (Float("w", 0.5, 1.5, 1.0, step=0.0),)}, "w: step = 0: expected a number above 0"),
        (
            {"name": "map-elites", "tasks": 1},
            'optimizer "map-elites" keeps the best of each mix of the values in 2 to 4 tasks that count, the evaluator'
            ' has 1; "m2n2" keeps diversity over the items of any number',
        ),
        (
            {"name": "cma-me", "tasks": 5},
            'optimizer "cma-me" keeps the best of each mix of the values in 2 to 4 tasks that count, the evaluator'
            ' has 5; "m2n2" keeps diversity over the items of any number',
        ),
        (
            {"objectives": 2},
            'optimizer "cma" has one objective, 2 are asked for; these can: '
            + ", ".join(n for n, entry in OPTIMIZERS.items() if entry.several),
        ),
        ({"restarts": "bipo"}, 'restarts "bipo" are unknown; did you mean "bipop"? Valid: none, ipop, bipop'),
        (
            {"name": "tpe", "restarts": "ipop"},
            'optimizer "tpe" has no restarts, "ipop" is asked for; these have: cma, catcma',
        ),
        ({"name": "tpe", "parameters": (Categorical("m", ("a",), "a"),)}, "m: expected at least two choices, got a"),
    ],
)
def test_bad_input(keys: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"name": "cma", "parameters": FLOATS, "seed": 1, **keys}
    with pytest.raises(SpaceError) as caught:
        make_optimizer(given.pop("name"), given.pop("parameters"), given.pop("seed"), **given)
    assert str(caught.value) == message
