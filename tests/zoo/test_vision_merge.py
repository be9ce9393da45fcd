"""The benchmark of vision merges, one seed: what docs/vision.md claims of six."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.by_seed import measured


@pytest.mark.slow
@pytest.mark.timeout(1800)  # four minutes of one core, which others may use too
def test_a_merge_answers_in_the_second_language_about_pictures(tmp_path: Path) -> None:
    found = measured("vision", tmp_path)
    assert all(found["held"].values()) and found["held"]
    assert all(found["loads"].values()) and len(found["loads"]) == 3
    against = found["baselines"]
    for name in ("base", "seeing", "japanese"):
        assert against[name]["difference"]["low"] > 0
    assert {"uniform", "vector seeing", "vector japanese", "random search", "plain sum"} <= against.keys()
