"""The benchmark as it is run for docs/results.md, one seed: what docs/images.md claims of three."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.by_seed import ROOT, measured


@pytest.mark.slow
@pytest.mark.timeout(2400)  # nine minutes of one core, which others may use too
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
    four = found["four"]
    assert list(four) == [*student["styles"], "orchid"]
    for style, row in four.items():
        assert row[style] == min(row.values()) == added["mu = 1"][style]


@pytest.mark.slow
def test_the_tables_have_what_was_kept(tmp_path: Path) -> None:
    """Of seeds that were measured before whole rows were kept, and of one with them."""
    results = json.loads((ROOT / "docs" / "results.json").read_text(encoding="utf-8"))["images"]
    names = ["ember", "ice", "meadow", "orchid"]
    row = {name: 0.125 for name in names}
    results["7"] = {**results["0"], "four": {name: row for name in names}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    code = "import json, images; print('\\n'.join(images.tables(json.load(open('results.json')))))"
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=tmp_path)
    lines = done.stdout.splitlines()
    rows = lines[lines.index("The student of four (mu = 1), rows styles, columns teachers:") + 4 :]
    assert rows == [f"| 7 | {name} | 0.1250 | 0.1250 | 0.1250 | 0.1250 |" for name in names]
