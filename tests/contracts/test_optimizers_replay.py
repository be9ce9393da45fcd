"""Every optimizer's sequence is a function of its seed and its tells: in any process, replayed, pickled."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest

from evomerge.optimizers import Optimizer
from tests.contracts.optimizers import (
    ROOT,
    SPACES,
    each,
    every,
    every_mode,
    make_optimizer,
    quality,
    quick,
    run,
    sequences,
    shuffled,
    sometimes,
    tell,
    widest,
)


@every
def test_same_seed_same_sequence_other_seed_other(name: str, space: str) -> None:
    a, b, c = (run(make_optimizer(name, SPACES[space], seed=s), 4) for s in (7, 7, 8))
    assert a == b
    assert space in ("category", "integer") or a != c


@cache
def elsewhere(names: tuple[str, ...]) -> dict[str, Any]:
    """The same from a fresh process."""
    code = (
        "import json\nfrom tests.contracts.optimizers import sequences\n"
        f"print(json.dumps({{name: sequences(name) for name in {names!r}}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.ci
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
