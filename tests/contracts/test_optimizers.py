"""What every optimizer of the table promises (`Optimizer`). A new one needs its line in the table and nothing here."""

from __future__ import annotations

import json
import math
import pickle
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.errors import EvoMergeError, SpaceError
from evomerge.optimizers import OPTIMIZERS, Optimizer, default_optimizer
from evomerge.optimizers import make_optimizer as make
from evomerge.optimizers.protocol import Behaviour
from evomerge.score import Value
from evomerge.space import Categorical, Float, Integer, Parameter

ROOT = Path(__file__).parents[2]
FLOATS: tuple[Parameter, ...] = (
    Float("weight.a", -1.0, 2.0, 0.5),
    Float("weight.b", 0.0, 1.0, 1.0),  # starts on its bound
    Float("lambda", 1e-3, 10.0, 0.1, log=True),
)
NUMBERS: tuple[Parameter, ...] = (*FLOATS, Integer("k", 1, 6, 2))
MIXED: tuple[Parameter, ...] = (Categorical("method", ("linear", "ties", "slerp"), "linear"), *NUMBERS)
SPACES: dict[str, tuple[Parameter, ...]] = {
    "floats": FLOATS,
    "one float": FLOATS[:1],
    "numbers": NUMBERS,
    "integer": NUMBERS[3:],
    "grid": (*FLOATS[:2], Float("weight.c", 0.5, 1.5, 1.0, step=0.1)),
    "mixed": MIXED,
    "category": MIXED[:1],
}


def make_optimizer(name: str, parameters: Sequence[Parameter], seed: int, **keys: Any) -> Optimizer:
    """As made for two tasks that count."""
    if keys.get("asynchronous") and OPTIMIZERS[name].batches:
        pytest.skip("must be told whole generations")
    return make(name, parameters, seed, **{"tasks": 2, **keys})


def takes(name: str, space: str) -> bool:
    return OPTIMIZERS[name].categorical or not any(isinstance(p, Categorical) for p in SPACES[space])


# Each candidate after the tenth takes a quarter of a second: in tests that ask fewer, and in test_optuna.py.
SLOW = ("gp",)
quick = [n for n in OPTIMIZERS if n not in SLOW]
CASES = [(name, space) for name in quick for space in SPACES if takes(name, space)]
every = pytest.mark.parametrize(("name", "space"), CASES, ids=[f"{n}, {s}" for n, s in CASES])
each = pytest.mark.parametrize("name", quick)
of_all = pytest.mark.parametrize("name", list(OPTIMIZERS))
# One generation after the other, and candidates by ones and twos in any order: this in two spaces, for brevity.
widest = {n: "mixed" if entry.categorical else "numbers" for n, entry in OPTIMIZERS.items()}
MODES = [(n, s, mode) for n, s in CASES for mode in (False, True) if not mode or s in (widest[n], "integer")]
every_mode = pytest.mark.parametrize(
    ("name", "space", "asynchronous"),
    MODES,
    ids=[f"{n}, {s}, {'asynchronous' if m else 'in turn'}" for n, s, m in MODES],
)
# Mutation draws one parameter anew: of one alone nothing is inherited.
ALONE = ("nsga2", "nsga3")


def quality(params: Mapping[str, Value]) -> float:
    """A sphere around weight.a = 1.1, weight.b = 0.3, lambda = 0.01, k = 5, method = ties; the best is 0."""
    p: Any = dict(params)
    out = -((p.get("weight.a", 1.1) - 1.1) ** 2) - (p.get("weight.b", 0.3) - 0.3) ** 2
    out -= (p.get("weight.c", 1.2) - 1.2) ** 2
    out -= 0.2 * (math.log10(p.get("lambda", 0.01)) + 2) ** 2 + 0.1 * (p.get("k", 5) - 5) ** 2
    return out - (p.get("method", "ties") != "ties")


Log = list[tuple[dict[str, Value], float | None]]
THRESHOLDS = -np.geomspace(0.003, 4.0, 12)


def behaviour(params: Mapping[str, Value], score: float | None) -> Behaviour | None:
    """Two tasks whose mean is the score, and items that ask for more and more of either; which of them, a wave says."""
    if score is None or not math.isfinite(score):
        return None
    lean = 0.2 * math.sin(3 * sum(len(v) if isinstance(v, str) else v for v in params.values()))
    tasks = (score + lean, score - lean)
    items = np.concatenate([value > THRESHOLDS for value in tasks]).astype(np.float32)
    return Behaviour(tasks, items)


def tell(optimizer: Optimizer, asked: Sequence[Mapping[str, Value]], scores: Sequence[float | None]) -> None:
    """With behaviours, where the optimizer needs them."""
    if OPTIMIZERS[optimizer.name].whole:
        optimizer.tell(asked, scores, [behaviour(p, s) for p, s in zip(asked, scores, strict=True)])
    else:
        optimizer.tell(asked, scores)


def run(
    optimizer: Optimizer,
    generations: int,
    score: Callable[[Mapping[str, Value]], float | None] = quality,
    asynchronous: bool = False,
) -> Log:
    """Some generations, or asynchronously as many candidates; every candidate with its score."""
    if asynchronous:
        return [
            (p, s) for told in shuffled(optimizer, generations * optimizer.generation, score)[1]
            for p, s in zip(*told, strict=True)
        ]  # fmt: skip
    log: Log = []
    for _ in range(generations):
        asked = optimizer.ask(optimizer.generation)
        scores = [score(p) for p in asked]
        tell(optimizer, asked, scores)
        log += zip(asked, scores, strict=True)
    return log


def shuffled(
    optimizer: Optimizer, count: int, score: Callable[[Mapping[str, Value]], float | None], seed: int = 0
) -> tuple[list[list[dict[str, Value]]], list[tuple[list[dict[str, Value]], list[float | None]]]]:
    """As up to ten workers would: one to three asked at a time, one or two told, in any order.

    Returns:
        Every asking and every telling; the n-th telling follows the n-th asking.
    """
    draw = random.Random(seed)
    out: list[dict[str, Value]] = []
    asks, tells, told = [], [], 0
    while told < count:
        asks.append(optimizer.ask(draw.randint(1, 3) if len(out) < 8 else 1))
        out += asks[-1]
        back = [out.pop(draw.randrange(len(out))) for _ in range(min(len(out), draw.randint(1, 2)))]
        tells.append((back, [score(p) for p in back]))
        tell(optimizer, *tells[-1])
        told += len(back)
    return asks, tells


def best(log: Sequence[tuple[dict[str, Value], float | None]]) -> float:
    return max(s for _, s in log if s is not None)


def sometimes(params: Mapping[str, Value]) -> float | None:
    """Fails in a part of the space."""
    fails = float(params["weight.a"]) > 0.9 if "weight.a" in params else float(params.get("k", 0)) > 1.6
    return None if fails else quality(params)


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
def test_same_seed_same_sequence_other_seed_other(name: str, space: str) -> None:
    a, b, c = (run(make_optimizer(name, SPACES[space], seed=s), 4) for s in (7, 7, 8))
    assert a == b
    assert space in ("category", "integer") or a != c


def sequences(name: str) -> dict[str, Any]:
    """What it asks in both modes, with failures."""
    space = SPACES[widest[name]]
    found: dict[str, Any] = {"in turn": run(make_optimizer(name, space, seed=5), 4, sometimes)}
    if not OPTIMIZERS[name].batches:
        found["asynchronous"] = shuffled(make_optimizer(name, space, seed=5, asynchronous=True), 35, sometimes)
    return found


@cache
def elsewhere(names: tuple[str, ...]) -> dict[str, Any]:
    """The same from a fresh process."""
    code = (
        "import importlib.util, json, sys\n"
        f"spec = importlib.util.spec_from_file_location('suite', {str(Path(__file__))!r})\n"
        "suite = importlib.util.module_from_spec(spec); spec.loader.exec_module(suite)\n"
        f"print(json.dumps({{name: suite.sequences(name) for name in {names!r}}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@each
def test_same_sequence_in_a_fresh_process(name: str) -> None:
    assert elsewhere(tuple(quick))[name] == json.loads(json.dumps(sequences(name)))


@every
def test_replay_equals_continued(name: str, space: str) -> None:
    whole = make_optimizer(name, SPACES[space], seed=2)
    log = run(whole, 3, sometimes)
    replayed = make_optimizer(name, SPACES[space], seed=2)
    told = iter(json.loads(json.dumps(log)))  # as a database gives them back
    for _ in range(3):
        asked = replayed.ask(replayed.generation)
        stored = [next(told) for _ in asked]
        assert [p for p, _ in stored] == asked
        tell(replayed, [p for p, _ in stored], [s for _, s in stored])
    assert run(whole, 3) == run(replayed, 3)


@each
def test_replay_equals_continued_asynchronously(name: str) -> None:
    """Asks are a function of what was asked and told, in their order; other orders of telling are other searches."""
    space = widest[name]
    whole, replayed = (make_optimizer(name, SPACES[space], seed=2, asynchronous=True) for _ in range(2))
    asks, tells = shuffled(whole, 40, sometimes)
    for asked, told in json.loads(json.dumps(list(zip(asks, tells, strict=True)))):
        assert replayed.ask(len(asked)) == asked
        tell(replayed, *told)
    assert [whole.ask(2) for _ in range(3)] == [replayed.ask(2) for _ in range(3)]
    if name != "random":
        one, other = (make_optimizer(name, SPACES[space], seed=2, asynchronous=True) for _ in range(2))
        assert shuffled(one, 40, sometimes)[0][-3:] != shuffled(other, 40, sometimes, seed=4)[0][-3:]


@every
def test_pickles_mid_generation(name: str, space: str) -> None:
    one = make_optimizer(name, SPACES[space], seed=3)
    run(one, 2)
    asked = one.ask(one.generation)
    two: Optimizer = pickle.loads(pickle.dumps(one))
    for optimizer in (one, two):
        tell(optimizer, asked, [quality(p) for p in asked])
    assert run(one, 2) == run(two, 2)


@every_mode
def test_global_generators_are_neither_read_nor_touched(name: str, space: str, asynchronous: bool) -> None:
    def state() -> tuple[Any, Any]:
        return random.getstate(), [x.tolist() if isinstance(x, np.ndarray) else x for x in np.random.get_state()]

    random.seed(1)
    np.random.seed(1)
    before = state()
    a = run(make_optimizer(name, SPACES[space], seed=4, asynchronous=asynchronous), 3, quality, asynchronous)
    assert state() == before
    random.seed(2)
    np.random.seed(2)
    assert run(make_optimizer(name, SPACES[space], seed=4, asynchronous=asynchronous), 3, quality, asynchronous) == a


@every_mode
def test_a_failure_is_told_as_worse_than_every_score(name: str, space: str, asynchronous: bool) -> None:
    """Told None or NaN, an optimizer goes on as if told a score below all others; told something good it does not."""

    def sequence(stand_in: float | None) -> list[Any]:
        def score(params: Mapping[str, Value]) -> float | None:
            found = sometimes(params)
            return stand_in if found is None else found

        optimizer = make_optimizer(name, SPACES[space], seed=6, population=8, asynchronous=asynchronous)
        return [p for p, _ in run(optimizer, 5, score, asynchronous)]

    failed = sequence(None)
    assert failed == sequence(float("nan"))
    if name == "random":
        assert failed == sequence(1e3)
        return
    # An archive over the tasks keeps a bad candidate that is alone in its cell, a failed one never.
    assert OPTIMIZERS[name].tasks or failed == sequence(-1e3)
    assert failed != sequence(1e3) or space in ("category", "integer") or (name in ALONE and space == "one float")


@each
def test_failures_are_avoided(name: str) -> None:
    if name == "random":
        pytest.skip("random search learns nothing")
    if name == "cma-me":
        pytest.skip("where nothing is new it starts again from any elite; tests/optimizers/test_quality_diversity.py")

    def score(params: Mapping[str, Value]) -> float | None:
        return None if float(params["weight.a"]) < 0.2 else 0.5  # half the space fails, the rest ties

    log = run(make_optimizer(name, FLOATS, seed=0), 20, score)
    failed = [s is None for _, s in log]
    early, late = sum(failed[: len(failed) // 2]), sum(failed[len(failed) // 2 :])
    assert late < max(early, 0.1 * len(failed))  # or is far below what fails of the space from the beginning


@every
def test_survives_generations_that_fail_or_tie_altogether(name: str, space: str) -> None:
    optimizer = make_optimizer(name, SPACES[space], seed=9)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        run(optimizer, 2, lambda _: None)
        run(optimizer, 2, lambda _: 0.25)
        run(optimizer, 1, lambda _: float("inf"))
    assert not optimizer.done
    for params, _ in run(optimizer, 3):
        assert all(p.problem(params[p.name]) is None for p in SPACES[space])


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


@each
def test_several_objectives(name: str) -> None:
    """Two that contradict each other in k: an entry that takes them comes near the front, failures or not."""
    if not OPTIMIZERS[name].several:
        with pytest.raises(SpaceError, match=f'"{name}" has one objective, 2 are asked for'):
            make_optimizer(name, NUMBERS, seed=1, objectives=2)
        return

    def front(which: str, asynchronous: bool, fails: bool = False) -> float:
        """Mean over k of the best second value; the sum is on the front where it is 0."""
        optimizer = make_optimizer(which, NUMBERS, 3, population=8, objectives=2, asynchronous=asynchronous)
        found: dict[int, float] = {}
        told = 0
        while told < 160:
            asked = optimizer.ask(5 if asynchronous else optimizer.generation)
            values = [(float(p["k"]), quality({**p, "k": 5}) - float(p["k"])) for p in asked]
            failed = [fails and float(p["weight.a"]) > 1.6 for p in asked]
            optimizer.tell(asked, [None if f else v for f, v in zip(failed, values, strict=True)])
            for (k, value), f in zip(values, failed, strict=True):
                found[int(k)] = max(found.get(int(k), -9.0), -9.0 if f else value + k)
            told += len(asked)
        with pytest.raises(EvoMergeError, match="told 1 values of a candidate, expected 2"):
            optimizer.tell(optimizer.ask(optimizer.generation), [0.0] * optimizer.generation)
        return sum(found.values()) / 6

    for asynchronous in (False, True):
        reached = front(name, asynchronous)
        assert front(name, asynchronous, fails=True) > -3
        assert name == "random" or reached > front("random", asynchronous)


@each
@pytest.mark.parametrize("objectives", [1, 3])
def test_objectives_that_all_fail_or_tie(name: str, objectives: int) -> None:
    if objectives > 1 and not OPTIMIZERS[name].several:
        pytest.skip("one objective")
    optimizer = make_optimizer(name, FLOATS, seed=3, objectives=objectives)
    for generation in range(7):
        asked = optimizer.ask(optimizer.generation)
        tie = 0.5 if objectives == 1 else (0.5,) * objectives
        tell(optimizer, asked, [None if generation < 3 else tie] * len(asked))
    assert all(p.problem(params[p.name]) is None for params in asked for p in FLOATS)


@cache
def reached(name: str, space: str, seed: int, asynchronous: bool) -> float:
    budget = 160
    size = 8 if name in ALONE else None  # of more there would be too few generations
    optimizer = make_optimizer(name, SPACES[space], seed, population=size, asynchronous=asynchronous)
    return best(run(optimizer, budget // optimizer.generation, quality, asynchronous))


@each
@pytest.mark.parametrize("space", ["floats", "mixed"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["in turn", "asynchronous"])
def test_improves(name: str, space: str, asynchronous: bool) -> None:
    """The search gets nearer than uniform draws do at equal budget.

    But random search itself, and archives over tasks, whose candidates go to all cells (they have a test of their own).
    """
    if asynchronous:
        space = "floats" if space == "floats" else "numbers"
    if not takes(name, space):
        pytest.skip("refuses categories")
    seeds = range(3)
    found = np.median([reached(name, space, seed, asynchronous) for seed in seeds])
    assert found > quality({p.name: p.init for p in SPACES[space]}) / 2
    if name != "random" and not OPTIMIZERS[name].tasks:
        assert found > np.median([reached("random", space, seed, False) for seed in seeds])


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
    assert len({json.dumps(e.params) for e in elites}) == len(elites)


def test_default() -> None:
    assert default_optimizer(FLOATS) == default_optimizer(NUMBERS) == "cma"
    assert default_optimizer(MIXED) == "catcma"  # a space may know better: its `sampler`
    assert make_optimizer("auto", MIXED, seed=1).name == "catcma"
    assert make_optimizer("auto", FLOATS, seed=1).name == "cma"


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
