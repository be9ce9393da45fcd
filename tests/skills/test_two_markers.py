"""The two-marker task as the benchmark runs it, one seed: what docs/skills.md claims of three."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.by_seed import measured


@pytest.mark.slow
@pytest.mark.timeout(1800)  # two and a half minutes of one core, which others may use too
def test_a_gate_routes_where_no_static_weights_can(tmp_path: Path) -> None:
    found = measured("skills", tmp_path)
    routing = found["routing"]
    static = max(v for name, v in routing.items() if name.startswith("static") or name.endswith("alone"))
    assert routing["oracle"] >= 0.95
    assert routing["gate"] >= static + 0.25
    assert routing["shuffled contexts"] <= static
    assert all(found["held"].values())
    # Which way composition falls is reported, and not held to anything but being measured.
    rows = found["composed"]
    assert (
        sum(name.startswith("parameters") for name in rows) == 5
        and sum(name.startswith("outputs") for name in rows) == 4
    )
    assert all(0.0 <= cell["exact"] <= cell["tokens"] <= 1.0 for cell in rows.values())
