"""`--budget`: candidates or time, and nothing else."""

import numpy as np
import pytest

from evomerge.errors import InputError
from evomerge.score import COST, VIOLATION, Score, State, TaskScore, Trial, cost
from evomerge.study.budget import Budget
from evomerge.study.candidates import Spent, best


@pytest.mark.parametrize(
    ("text", "candidates", "seconds"),
    [
        ("200", 200, None),
        ("90s", None, 90),
        ("10m", None, 600),
        ("1h30m", None, 5400),
        ("1.5h", None, 5400),
        ("2D", None, 172800),
    ],
)
def test_candidates_or_time(text, candidates, seconds):
    assert Budget.parse(text) == Budget(candidates, seconds)


@pytest.mark.parametrize(
    "text", ["0", "-5", "+0", "0m", "0.0h", "soon", "", "10 parsecs", "1e3", "nan", "m", "1.5", "10m5"]
)
def test_nonsense_is_refused(text):
    with pytest.raises(InputError, match="--budget"):
        Budget.parse(text)


def test_left_and_share():
    assert Budget(candidates=2).left(1, 1e9) and not Budget(candidates=2).left(2, 0)
    assert Budget(seconds=10).left(10**6, 9.9) and not Budget(seconds=10).left(0, 10)
    assert Budget(candidates=4).share(1, 0) == 0.25 and Budget(seconds=10).share(0, 20) == 1


def test_what_is_spent_is_kept_up_as_candidates_come():
    """To the bit what adding up from the start gives: in any order of ends, with ties, failures and constraints."""
    random = np.random.default_rng(0)
    for _ in range(20):
        spent, ended = Spent(), []
        for number in random.permutation(40).tolist():
            score = Score((TaskScore("t", "acc", float(random.integers(6)) / 5),)) if random.random() < 0.7 else None
            attributes = {COST: float(random.random()), VIOLATION: float(random.integers(2))}
            state = State.FAIL if score is None else State.COMPLETE
            ended.append(Trial(number, {}, state, score, attributes=attributes))
            spent.add(ended[-1])
            ranked = best(ended)
            place = ended.index(ranked[0]) if ranked else -1
            assert spent.units == cost(ended) and spent.since_best == cost(ended[place + 1 :])
