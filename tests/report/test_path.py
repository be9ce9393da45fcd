"""A path in words and as a picture: every hop at its place, in its source's colour, with its scale."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path as File

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from evomerge.recipe import Path
from evomerge.report import path_text, write_path_png
from evomerge.report.path import COLOURS, MARKERS

LOWER, UPPER = "zoo:kovesh_lower", "/models/maths_upper"
NAMES = {LOWER: "kovesh_lower", UPPER: "maths"}
DEPTHS = {LOWER: 4, UPPER: 4}


def path(scales=None, head=LOWER):
    return Path.scaled([(LOWER, 0), (LOWER, 1), (UPPER, 2), (UPPER, 3)], scales, LOWER, head)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws a path; returns the figure that was saved and the picture's pixels."""

    def draw(path, names=NAMES, depths=DEPTHS):
        kept = []
        save = Figure.savefig

        def keeping(self, *args, **kwargs):
            kept.append(self)
            save(self, *args, **kwargs)

        monkeypatch.setattr(Figure, "savefig", keeping)
        file = tmp_path / "path.png"
        write_path_png(path, names, depths, file)
        assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        return kept[0], np.asarray(imread(file))

    return draw


def marks(figure):
    """Name, places and colour of each source's marks."""
    lines = [line for line in figure.axes[0].lines if line.get_linestyle() == "None"]
    return {line.get_label(): (list(zip(*line.get_data(), strict=True)), line.get_color()) for line in lines}


def test_words() -> None:
    assert path_text(path([1, 1, 0.9, 1]), NAMES) == (
        "embeddings kovesh_lower > kovesh_lower 0-1 > maths 2-3 x0.9 > head kovesh_lower"
    )


def test_a_scale_a_repeat_or_a_step_back_begins_a_step_of_its_own() -> None:
    made = Path.scaled([("a", 0), ("a", 1), ("a", 1), ("a", 0), ("b", 1)], [1, 1.25, 1, 1, 1], "a", "b")
    assert path_text(made, {}) == "embeddings a > a 0 > a 1 x1.25 > a 1 > a 0 > b 1 > head b"


def test_the_words_of_a_path_that_was_a_recipe_are_the_same() -> None:
    """Scales come back from factors in a file with rounding: 0.9 / 0.9 is not said to be one."""
    made = path([1.1, 0.9, 1, 0.7])
    back = Path.read(made.recipe(("o_proj", "down_proj")))
    assert back is not None and path_text(back, NAMES) == path_text(made, NAMES)


def test_models_without_a_short_name_are_called_by_their_last_part() -> None:
    assert path_text(Path.scaled([("org/model", 0)]), {}) == "embeddings model > model 0 > head model"
    assert path_text(Path.scaled([("/disk/private/expert/", 3)]), {}) == "embeddings expert > expert 3 > head expert"


def test_every_hop_is_at_its_layer_in_its_sources_colour(drawn) -> None:
    figure, picture = drawn(path([1, 1, 0.9, 1], head=UPPER))
    found = marks(figure)
    assert found["kovesh_lower"][0] == [(-1, -1), (0, 0), (1, 1)]
    assert found["maths"][0] == [(2, 2), (3, 3), (4, 4)]  # the head lies above all layers
    for _, colour in found.values():
        seen = np.abs(picture[..., :3] - np.array(to_rgb(colour))).max(-1) < 0.02
        assert seen.sum() > 3 * 50  # three marks' worth of pixels
    assert [t.get_text() for t in figure.axes[0].texts] == ["0.90"]
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert labels == ["embeddings", "0", "1", "2", "3", "norm, head"]


def test_layers_of_a_deeper_source_that_no_hop_takes_are_there_too(drawn) -> None:
    figure, _ = drawn(path(), depths={LOWER: 4, UPPER: 8})
    assert marks(figure)["kovesh_lower"][0][-1] == (4, 8)
    assert drawn(path(), depths={})[0].axes[0].get_ylim()[1] > 4


def test_colours_and_shapes_differ_between_sources(drawn) -> None:
    many = Path.scaled([(f"model{i}", i) for i in range(9)])
    figure, _ = drawn(many, names={}, depths={})
    lines = [line for line in figure.axes[0].lines if line.get_linestyle() == "None"]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 9
    assert len(set(COLOURS)) == len(COLOURS) and len(set(MARKERS)) == len(MARKERS)


@pytest.mark.parametrize("count", [1, 4, 100])
def test_scales_do_not_cover_each_other_however_long_the_path(drawn, count) -> None:
    layers = [("zoo:a" if i // 5 % 2 else "zoo:b", (i * 32) // max(count, 32)) for i in range(count)]
    figure, picture = drawn(Path.scaled(layers, [0.5 + i % 7 / 10 for i in range(count)]), names={}, depths={})
    texts = figure.axes[0].texts
    assert len(texts) == count - sum(f"{0.5 + i % 7 / 10:.2f}" == "1.00" for i in range(count))
    boxes = [t.get_window_extent() for t in texts]
    whole = figure.bbox
    for left, right in pairwise(boxes):
        assert left.x1 <= right.x0 + 1 or left.y1 <= right.y0 or right.y1 <= left.y0
    assert all(whole.x0 <= b.x0 and b.x1 <= whole.x1 and b.y1 <= whole.y1 for b in boxes)
    assert picture.shape[1] == round(figure.get_figwidth() * 120)


def test_a_file_that_is_there_is_replaced(tmp_path: File) -> None:
    file = tmp_path / "path.png"
    file.write_bytes(b"old")
    write_path_png(path(), NAMES, DEPTHS, file)
    assert imread(file).shape[:2] == (600, 840)
