"""`--budget`: candidates or time, and nothing else."""

import pytest

from evomerge.errors import InputError
from evomerge.study.budget import Budget


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
