"""The benchmark as it is run for docs/results.md, one seed: what docs/images.md claims of three."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.by_seed import measured


@pytest.mark.slow
@pytest.mark.timeout(2400)  # five minutes of one core, which others may use too
def test_a_student_speaks_for_each_of_its_teachers(tmp_path: Path) -> None:
    found = measured("images", tmp_path)
    student, added = found["student"], found["added"]
    for i, row in enumerate(student["matrix"]):
        assert row[i] < 0.3 * student["average"][i] and row[i] == min(row)
        # The measure itself: a teacher is nearer to itself than any average is.
        assert student["floor"][i] < 0.1 * student["average"][i]
    for style in student["styles"]:
        assert added["mu = 1"][style] < 0.2 * added["mu = 0"][style]
    assert added["mu = 1"]["orchid"] < 0.3 * min(student["average"])  # and the new one was learned
