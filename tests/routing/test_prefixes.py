"""Which hidden states are kept: GreedyDual-Size-Frequency against a model of it that looks at every entry."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from evomerge.routing.prefixes import KeptStates


def state(elements: int) -> Tensor:
    return torch.zeros(elements, dtype=torch.uint8)


def test_the_bound_holds() -> None:
    kept = KeptStates(100)
    kept.keep("too large", state(101), cost=1e9)
    assert len(kept) == 0 and kept.bytes == 0
    kept.keep("all of it", state(100), cost=1)
    assert kept.bytes == 100 and kept.get("all of it") is not None
    nothing = KeptStates(0)
    nothing.keep("a", state(1), cost=1)
    nothing.keep("b", state(0), cost=1)
    assert len(nothing) == 0


def test_what_is_kept_is_a_copy_of_its_own() -> None:
    kept = KeptStates(1000)
    whole = torch.arange(1000)
    kept.keep("part", whole[:100], cost=1)
    whole.zero_()
    found = kept.get("part")
    assert found is not None and torch.equal(found, torch.arange(100))
    assert found.untyped_storage().nbytes() == found.nbytes == kept.bytes


@pytest.mark.parametrize("elements", [10, 100_000])
def test_memory_is_used_again(elements: int) -> None:
    kept = KeptStates(8 * elements)
    place = 0
    for number in range(3):
        with torch.inference_mode(number % 2 == 0):
            value = torch.full((elements,), number)
            kept.keep(number, value.view(2, -1), cost=10**number)
        found = kept.get(number)
        assert found is not None and torch.equal(found, torch.full((2, elements // 2), number))
        assert number == 0 or found.data_ptr() == place
        assert found.data_ptr() % 16 == 0 and not found.is_inference()
        place = found.data_ptr()
    kept.keep("other type", torch.ones(elements, dtype=torch.float64), cost=1e6)
    assert "other type" in kept and len(kept) == 1


def test_dear_and_often_used_ones_stay() -> None:
    kept = KeptStates(30)
    for key, cost in (("cheap", 1), ("dear", 5), ("used", 1)):
        kept.keep(key, state(10), cost)
    kept.get("used")
    kept.get("used")
    kept.keep("new", state(10), cost=2)
    assert "cheap" not in kept and all(key in kept for key in ("dear", "used", "new"))


def test_smaller_ones_are_worth_more() -> None:
    kept = KeptStates(30)
    kept.keep("large", state(20), cost=2)
    kept.keep("small", state(10), cost=2)
    kept.keep("new", state(10), cost=2)
    assert "large" not in kept and "small" in kept and "new" in kept


def test_what_was_useful_once_grows_old() -> None:
    kept = KeptStates(20)
    kept.keep("old", state(10), cost=5)
    for _ in range(3):
        kept.get("old")
    for number in range(40):
        kept.keep(number, state(10), cost=5)
    assert "old" not in kept


def test_a_newcomer_worth_less_than_all_is_not_kept() -> None:
    kept = KeptStates(20)
    kept.keep("a", state(10), cost=5)
    kept.keep("b", state(10), cost=5)
    kept.keep("new", state(10), cost=1)
    assert "new" not in kept and "a" in kept and "b" in kept
    # Both would have to go, and one of them is worth more: neither goes.
    mixed = KeptStates(20)
    mixed.keep("cheap", state(10), cost=1)
    mixed.keep("dear", state(10), cost=50)
    mixed.keep("wide", state(20), cost=10)
    assert "cheap" in mixed and "dear" in mixed and "wide" not in mixed
    mixed.keep("next", state(10), cost=2)
    assert "cheap" not in mixed and "next" in mixed, "it went on as before"


class Reference:
    """The same rule, written for clarity: no queue, every entry looked at."""

    def __init__(self, limit: int) -> None:
        self.limit, self.clock, self.turn = limit, 0.0, 0
        self.entries: dict[int, dict[str, float]] = {}

    def rank(self, key: int, size: int, cost: float, hits: int) -> None:
        self.turn += 1
        entry = {"size": size, "cost": cost, "hits": hits, "turn": self.turn}
        self.entries[key] = entry | {"priority": self.clock + hits * cost / size}

    def get(self, key: int) -> bool:
        if key not in self.entries:
            return False
        entry = self.entries[key]
        self.rank(key, int(entry["size"]), entry["cost"], int(entry["hits"]) + 1)
        return True

    def keep(self, key: int, size: int, cost: float) -> None:
        if size > self.limit or key in self.entries:
            return
        worst = sorted(self.entries, key=lambda k: (self.entries[k]["priority"], self.entries[k]["turn"]))
        gone = []
        free = self.limit - sum(e["size"] for e in self.entries.values())
        while free < size:
            entry = self.entries[worst[len(gone)]]
            if entry["priority"] > self.clock + cost / size:
                return
            free += entry["size"]
            gone.append(worst[len(gone)])
        for k in gone:
            self.clock = max(self.clock, self.entries.pop(k)["priority"])
        self.rank(key, size, cost, 1)


@pytest.mark.parametrize("seed", range(4))
def test_as_the_rule_says(seed: int) -> None:
    rng = random.Random(seed)
    kept, reference = KeptStates(120), Reference(120)
    sizes = {key: rng.randint(1, 60) for key in range(60)}
    for _ in range(3000):
        key = min(rng.randrange(60), rng.randrange(60))
        if rng.random() < 0.5:
            assert (kept.get(key) is not None) == reference.get(key)
        else:
            cost = key % 7 + 1
            kept.keep(key, state(sizes[key]), cost)
            reference.keep(key, sizes[key], cost)
        assert kept.bytes <= 120
        assert {k for k in range(60) if k in kept} == set(reference.entries)
    assert kept.bytes == sum(e["size"] for e in reference.entries.values())
    assert len(kept._queue) <= 64 + 4 * len(kept)
