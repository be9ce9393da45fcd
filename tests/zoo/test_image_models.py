"""The script that trains tiny image models: its pictures, and a training of a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from evomerge.zoo import images as zoo


def test_pictures_are_of_their_style_and_shape() -> None:
    def drawn(style: str | None, label: int) -> np.ndarray:
        rng = np.random.default_rng(3)
        return np.stack([zoo.picture(label, style, rng) for _ in range(20)])

    for style in (None, *zoo.STYLES):
        found = drawn(style, 0)
        assert found.shape == (20, 3, 8, 8) and found.dtype == np.float32 and np.abs(found).max() <= 1
        assert np.array_equal(found, drawn(style, 0))
    means = {style: drawn(style, 0).mean((0, 2, 3)) for style in zoo.STYLES}
    assert all(np.abs(means[a] - means[b]).max() > 0.2 for a in means for b in means if a != b)
    grey = drawn(None, 0)
    assert np.abs(grey.mean(1, keepdims=True) - grey).max() < 0.3  # hardly any colour
    covered = [zoo.shape(n, np.random.default_rng(0)) for n in range(len(zoo.SHAPES))]
    assert all(np.abs(a - b).mean() > 0.03 for i, a in enumerate(covered) for b in covered[:i])


def test_trains_what_is_missing(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        made = zoo.train(tmp_path, 1, ("ember",), base_steps=4, style_steps=2)
        assert list(made) == ["base", "ember"] and all(0 < loss < 5 for loss in made.values())
        assert zoo.train(tmp_path, 1, ("ember",)) == {}
    finally:
        torch.set_num_threads(before)
    for name in ("base", "ember"):
        assert type(DiffusionPipeline.from_pretrained(tmp_path / name)).__name__ == "DDIMPipeline"
    lines = (tmp_path / "pictures" / "metadata.jsonl").read_text().splitlines()
    assert len(lines) == zoo.PICTURES and json.loads(lines[5]) == {"file_name": "0005.png", "label": 1}


def test_the_rate_rises_and_falls() -> None:
    shares = [zoo._share(step, 100) for step in range(100)]
    assert shares[0] == pytest.approx(0.1) and max(shares) > 0.95 and shares[-1] < 0.01
    assert 0 < zoo._share(0, 1) <= 1
