"""An uninterrupted search, which others are compared with."""

import pytest

from tests.pipeline.searches import asked


@pytest.fixture(scope="session")
def whole(evomerge, small_evaluator, tmp_path_factory):
    """An uninterrupted search with one worker, in this machine's quickest way."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = evomerge(*asked(small_evaluator, out), "--workers", 0, "--json")
    return out, done.result
