"""What is known of candidates' items: all of it, some of it, and on whose budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evomerge.evaluation.draw import Draw
from evomerge.score import Score, TaskScore
from evomerge.study.known import KnownResults
from evomerge.study.store import Store

IDS = {"a": ("a0", "a1", "a2", "a3"), "b": ("b0", "b1")}
LIKE = Score((TaskScore("a", "acc", 0.0, 2.0), TaskScore("b", "f1", 0.0, 1.0)))


def part(**places: tuple[int, ...]) -> Score:
    """A score on some items; each has its place for its result."""
    return Score(
        tuple(
            TaskScore(t, LIKE.task(t).metric, float(np.mean(at)), 1.0, tuple(IDS[t][p] for p in at),  # type: ignore[union-attr]
                      np.array(at, np.float32))
            for t, at in places.items()
        )
    )  # fmt: skip


@pytest.fixture
def draw() -> Draw:
    return Draw.of(IDS, {"a": 2.0, "b": 1.0}, 0)


@pytest.fixture
def known(tmp_path: Path, draw: Draw) -> KnownResults:
    study = Store(f"sqlite:///{tmp_path}/s.db", create=True).create("s", (), {})
    return KnownResults(study.results, draw, {"a": "v1", "b": "v1"}, LIKE)


@pytest.mark.parametrize("forgotten", [False, True], ids=["held", "read again"])
def test_what_is_missing_and_who_pays(known: KnownResults, draw: Draw, forgotten: bool) -> None:
    every = draw.all_places
    assert known.missing("m", every) == every == {"a": (0, 1, 2, 3), "b": (0, 1)}
    assert known.share("m", every, 5) == 1.0
    known.keep("m", part(a=(1, 3)), 5)
    known.keep("m", part(a=(2,), b=(0, 1)), 6)
    if forgotten:
        known.forget(["m"])
    assert known.missing("m", every) == {"a": (0,)}
    assert known.missing("m", {"a": (1, 2), "b": (1,)}) == {}
    assert known.missing("other", every) == every
    # One item is scored anew; an earlier run's own items were paid for by whom they were scored for.
    assert known.share("m", every, 7) == pytest.approx(1 / 6)
    assert known.share("m", every, 5) == pytest.approx(3 / 6)
    assert known.share("m", every, 6) == pytest.approx(4 / 6)
    assert known.share("m", {"a": (1, 3)}, 6) == 0.0
    found = known.score("m", {"a": (1, 2, 3), "b": (0,)})
    assert [t.results.tolist() for t in found.tasks] == [[1.0, 2.0, 3.0], [0.0]]
    assert [t.metric for t in found.tasks] == ["acc", "f1"] and found.tasks[0].items == IDS["a"][1:]


def test_the_first_result_of_an_item_stays(known: KnownResults) -> None:
    known.keep("m", part(a=(1,)), 5)
    known.keep("m", Score((TaskScore("a", "acc", 9.0, 1.0, ("a1", "a2"), np.array([9, 9], np.float32)),)), 6)
    assert known.score("m", {"a": (1, 2)}).tasks[0].results.tolist() == [1.0, 9.0]
    assert known.share("m", {"a": (1, 2)}, 5) == pytest.approx(1 / 6)


def test_scores_are_joined_alike_in_one_part_and_in_several(draw: Draw) -> None:
    rng = np.random.default_rng(0)
    results = rng.random(4).astype(np.float32)
    whole = Score((TaskScore("a", "acc", 0.0, 2.0, IDS["a"], results),))
    pieces = [
        Score((TaskScore("a", "acc", 0.0, 2.0, tuple(IDS["a"][p] for p in at), results[list(at)]),))
        for at in ((3, 1), (0, 2))
    ]
    shuffled = Score((TaskScore("a", "acc", 0.0, 2.0, IDS["a"][::-1], results[::-1]),))
    joined = [draw.joined(parts).tasks[0] for parts in ([whole], pieces, [shuffled])]
    assert len({t.value for t in joined}) == 1 and {t.items for t in joined} == {IDS["a"]}
    assert all(np.array_equal(t.results, results) and t.results.dtype == np.float32 for t in joined)
