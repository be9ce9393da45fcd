"""Pictures that items name: tried when the evaluator is opened, decoded as they are asked for, told apart by points."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from evomerge.errors import EvaluatorError
from evomerge.evaluation import Evaluator, load_evaluator, open_evaluator, pictures
from evomerge.evaluation.pictures import Pictures, picture_hashes

SCORE = """
SHOWN = []

def corner(model, tokenizer, items):
    SHOWN.append(items)
    return [float(i["image"].getpixel((0, 0))[0]) for i in items]
"""
Make = Callable[..., Evaluator]
COUNT = 12
# Orientation: the camera was turned, and what is stored lies on its side.
ORIENTATION, TURNED = 0x0112, 6


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(name, write): an evaluator over small pictures, the last of them written by `write`."""

    def build(name: str = "last.png", write: Callable[[Path], object] = lambda path: None) -> Evaluator:
        rows = []
        for i in range(COUNT):
            file = tmp_path / (name if i == COUNT - 1 else f"{i}.png")
            Image.new("RGB", (8, 8), (10 * i, 0, 0)).save(tmp_path / f"{i}.png")
            if i == COUNT - 1:
                Image.new("RGB", (8, 8), (10 * i, 0, 0)).save(file)
                write(file)
            rows.append({"question": f"{i} ?", "image": file.name})
        (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (tmp_path / "score.py").write_text(SCORE)
        data = {"kind": "python", "function": "score.py:corner", "items": "items.jsonl", "images": "image",
                "tasks": ["t"]}  # fmt: skip
        (tmp_path / "e.yaml").write_text(yaml.safe_dump(data))
        return open_evaluator(load_evaluator(tmp_path / "e.yaml"))

    return build


def cut(kind: str) -> Callable[[Path], object]:
    """A file whose end is missing, as of a download that broke off."""

    def write(path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path, kind)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return write


def huge(path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(path)  # some kilobytes


def large(path: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(path)


@pytest.mark.parametrize(("name", "write", "message"), [
    ("last.png", lambda p: p.write_text("not a picture"), "is no picture that Pillow can read"),
    ("last.png", cut("png"), "is a picture that cannot be decoded: "),
    ("last.jpg", cut("jpeg"), "is a picture that cannot be decoded: "),
    ("last.webp", cut("webp"), "picture that"),
    ("last.png", huge, "has more points than Pillow reads (89,478,485); expected a smaller picture"),
    ("last.png", large, "has more points than Pillow reads (89,478,485); expected a smaller picture"),
])  # fmt: skip
def test_a_picture_that_cannot_be_read_is_found_at_once(
    name: str, write: Any, message: str, make: Make, tmp_path: Path, here: Any
) -> None:
    """Not when its split is first scored, which of test items is when the search is paid for."""
    with pytest.raises(EvaluatorError) as e:
        make(name, write)
    assert f"e.yaml: items = items.jsonl: item 12: image = {name} ({tmp_path / name}): " in str(e.value)
    assert message in str(e.value) and "BytesIO" not in str(e.value)
    done = here("check", tmp_path / "e.yaml", check=False)
    assert done.returncode == 2 and message in done.stderr


def test_a_photograph_is_shown_upright(make: Make) -> None:
    def write(path: Path) -> None:
        picture = Image.new("RGB", (8, 4))
        picture.putpixel((0, 3), (255, 0, 0))  # lower left, which upright is upper left
        exif = Image.Exif()
        exif[ORIENTATION] = TURNED
        picture.save(path, exif=exif)

    evaluator = make("last.png", write)
    item = next(i for s in ("search", "select", "test") for i in shown(evaluator, s) if i["question"] == "11 ?")
    assert item["image"].size == (4, 8) and item["image"].getpixel((0, 0)) == (255, 0, 0)


def shown(evaluator: Any, split: Any) -> list[Any]:
    return [evaluator._items.shown(i) for i in evaluator._items.chosen(split, None)]


def test_pictures_are_decoded_when_they_are_asked_for(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = make()
    decoded: list[str] = []
    real = Pictures._decoded

    def counted(self: Pictures, name: str) -> Any:
        decoded.append(name)
        return real(self, name)

    monkeypatch.setattr(Pictures, "_decoded", counted)
    items = shown(evaluator, "test")
    assert all(i["question"].endswith("?") and set(i) == {"question", "image"} for i in items) and not decoded
    assert items[0]["image"].size == (8, 8) and len(decoded) == 1
    items[0]["answer"] = "seen"  # a function may note what it likes
    assert dict(items[0])["answer"] == {**items[0]}["answer"] == "seen" and dict(items[0])["image"].mode == "RGB"


def test_what_is_kept_for_the_next_candidate_has_an_end(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "KEPT_BYTES", 2 * 8 * 8 * 3)
    evaluator = make()
    first = evaluator.evaluate(torch.nn.Identity(), None, "test").tasks[0].results
    found: Any = evaluator
    assert len(found._items._pictures._kept) == 2
    item = shown(evaluator, "test")[0]
    item["image"].putpixel((0, 0), (255, 255, 255))  # what is drawn on is not what the next one is shown
    assert list(evaluator.evaluate(torch.nn.Identity(), None, "test").tasks[0].results) == list(first)


def test_results_of_pictures_that_were_read_otherwise_are_not_used_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make().versions()
    monkeypatch.setattr("evomerge.evaluation.items.READING", "as they lie")
    assert make().versions() != before


def test_pictures_are_told_apart_by_their_points() -> None:
    def painted(colours: list[int]) -> Image.Image:
        picture = Image.new("P", (4, 4), 1)
        picture.putpalette([0, 0, 0, *colours])
        return picture

    assert len(set(picture_hashes([painted([255, 0, 0]), painted([0, 255, 0])]))) == 2, "points are numbers of colours"
    assert len(set(picture_hashes([painted([255, 0, 0]), painted([255, 0, 0, 9, 9, 9])]))) == 1, "9, 9, 9 is nowhere"
    points = np.zeros((200, 200, 3), dtype=np.uint8)
    other = points.copy()
    other[100, 100] = 255  # numpy's own text leaves the middle out
    assert len(set(picture_hashes([points, other, points.astype(float), points.reshape(100, 400, 3)]))) == 4
    grey = Image.new("L", (4, 4), 7)
    assert picture_hashes([grey]) == picture_hashes([grey.copy()]) != picture_hashes([grey.convert("RGB")])
