"""Folders of pictures: what is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evomerge.images.config import ImageFusionError, PictureConfig
from evomerge.images.pictures import asked, read_pictures
from tests.images import models


def read(folder: Path, **options: object) -> object:
    config = PictureConfig(path=folder.name, **options)  # type: ignore[arg-type]
    return read_pictures(config, folder.parent, "class", (8, 8), 3, "pictures")


def test_reads_pictures_in_the_order_of_the_file(tmp_path: Path) -> None:
    folder = models.save_pictures(tmp_path / "p", [3, 1, 2])
    found = read(folder)
    assert found.prompts == (3, 1, 2) and len(found) == 3
    pixels = np.array(Image.open(folder / "1.png"), dtype=np.float64)
    want = torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)
    torch.testing.assert_close(found[1]["picture"].double(), want, rtol=0, atol=1e-6)
    assert read(folder, limit=2).prompts == (3, 1)
    assert found.content_hash() == read(folder).content_hash() != read(folder, limit=2).content_hash()


def test_brings_pictures_to_size_and_colour(tmp_path: Path) -> None:
    folder = models.save_pictures(tmp_path / "p", [0], size=20)
    Image.new("L", (30, 20), 255).save(folder / "0.png")
    wide = read(folder)[0]["picture"]
    assert wide.shape == (3, 8, 8) and torch.equal(wide, torch.ones(3, 8, 8))
    grey = read_pictures(PictureConfig(path="p"), tmp_path, "class", (8, 8), 1, "pictures")
    assert grey[0]["picture"].shape == (1, 8, 8)


def test_a_column_of_ones_own_and_no_column(tmp_path: Path) -> None:
    folder = models.save_pictures(tmp_path / "p", [2, 0], column="shape")
    assert read(folder, prompt="shape").prompts == (2, 0)
    told_nothing = read_pictures(PictureConfig(path="p"), tmp_path, "none", (8, 8), 3, "pictures")
    assert len(told_nothing) == 2
    (folder / "metadata.jsonl").unlink()
    assert len(read_pictures(PictureConfig(path="p"), tmp_path, "none", (8, 8), 3, "pictures")) == 2


def row(**changes: object) -> str:
    return json.dumps({"file_name": "0.png", "label": 0, **changes})


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["{"], "metadata.jsonl:1: not JSON"),
        (["[]"], 'metadata.jsonl:1: expected an object with a "file_name"'),
        ([row(), row(label=None)], 'metadata.jsonl:2: has no "label", a text or a class; it has label'),
        ([row(file_name="9.png")], "names 9.png, which is not there"),
        ([row(file_name="../secret.png")], "refused: ../secret.png lies outside of the folder"),
        ([], "no picture"),
    ],
)
def test_what_is_wrong_with_the_file(tmp_path: Path, lines: list[str], words: str) -> None:
    folder = models.save_pictures(tmp_path / "p", [0])
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(ImageFusionError) as e:
        read(folder)
    assert words in str(e.value)


def test_what_is_wrong_with_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageFusionError, match="no such folder"):
        read(tmp_path / "none")
    folder = models.save_pictures(tmp_path / "p", [0])
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(ImageFusionError, match=r'has no metadata\.jsonl, whose "label" says what each picture shows'):
        read(folder)
    folder = models.save_pictures(tmp_path / "q", [0])
    (folder / "0.png").write_bytes(b"no picture")
    with pytest.raises(ImageFusionError, match=r"0\.png: cannot be read as a picture"):
        read(folder)[0]


def test_damaged_pictures_are_found_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = models.save_pictures(tmp_path / "p", list(range(4)), size=64)
    found = read(folder)
    found.check()
    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(whole[: len(whole) // 2])  # its head is in order
    with pytest.raises(ImageFusionError, match=r"2\.png: cannot be read as a picture") as e:
        found.check()
    assert "0.png" not in str(e.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageFusionError, match=r"0\.png: cannot be read as a picture .*decompression bomb"):
        found.check()


def test_the_prompts_that_are_asked_for() -> None:
    assert asked([3, 1, 3, 0, 2], 3) == (0, 1, 2)
    assert asked(["b", "a", "b"], 8) == ("b", "a")
