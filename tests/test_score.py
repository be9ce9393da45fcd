"""Scores: what they add up to."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.comparison import interval
from evomerge.errors import EvoMergeError
from evomerge.score import Score, State, TaskScore, Trial


def task(name: str, results: list[float], weight: float = 1.0, start: int = 0) -> TaskScore:
    items = tuple(f"{name}{i + start}" for i in range(len(results)))
    array = np.array(results, np.float32)
    return TaskScore(name, "acc", float(array.mean()), weight, items, array)


def whole(name: str, value: float, weight: float = 1.0) -> TaskScore:
    """A task whose metric has no form per item."""
    return TaskScore(name, "f1", value, weight, ("x", "y"))


def test_value_is_the_weighted_mean_and_weight_zero_only_watches() -> None:
    score = Score((task("a", [1, 0], 3.0), task("b", [1, 1], 1.0), task("c", [0], 0.0)))
    assert score.value == pytest.approx((3 * 0.5 + 1) / 4)
    assert [t.task for t in score.weighted] == ["a", "b"]
    assert score.items == 4
    assert score.task("c") is not None and score.task("d") is None


def test_no_weight_no_value() -> None:
    with pytest.raises(EvoMergeError):
        _ = Score((task("a", [1.0], 0.0),)).value


def test_flipped_sign_is_shown_as_published() -> None:
    assert TaskScore("a", "ppl", -12.5, flipped=True).shown == 12.5
    assert TaskScore("a", "acc", 0.5).shown == 0.5


def test_interval_to_dict_under_the_name_asked_for() -> None:
    found = interval(Score((whole("a", 0.4),)))
    assert found.to_dict("score") == {"score": 0.4, "low": None, "high": None, "items": 2}


def test_trial_value() -> None:
    assert Trial(0, {}, State.FAIL, reason="NaN").value is None
    assert Trial(0, {}, State.COMPLETE, Score((task("a", [1, 0]),))).value == 0.5
    assert State.COMPLETE == "COMPLETE"
