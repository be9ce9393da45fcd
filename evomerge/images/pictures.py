"""A folder of pictures and what they show, in the form that `datasets` calls an image folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.evaluation.pictures import DAMAGED
from evomerge.images.conditions import Kind, Prompt
from evomerge.images.config import ImageFusionError, PictureConfig
from evomerge.sources import file_hash, read_text

METADATA = "metadata.jsonl"
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
_SHOWN = 6
# What the column of prompts is called where the file does not say.
_COLUMNS: dict[Kind, str] = {"class": "label", "text": "text", "none": ""}


@dataclass(frozen=True)
class Pictures:
    """Pictures, and what each shows.

    Attributes:
        files, prompts: Of each picture.
        size: Height and width that they are brought to: scaled by the shorter side, then cut at the centre.
        channels: 3 for colour, 1 for grey.
    """

    files: tuple[Path, ...]
    prompts: tuple[Prompt, ...]
    size: tuple[int, int]
    channels: int = 3

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"picture": self.tensor(index), "prompt": self.prompts[index]}

    def tensor(self, index: int) -> Tensor:
        """A picture in [-1, 1], [channels, height, width].

        Raises:
            ImageFusionError: the file cannot be read.
        """
        import numpy as np
        from PIL import Image, ImageOps

        try:
            with Image.open(self.files[index]) as image:
                plain = image.convert("RGB" if self.channels == 3 else "L")
        except (*DAMAGED, Image.DecompressionBombError) as e:
            raise ImageFusionError(f"{self.files[index]}: cannot be read as a picture ({e})") from None
        height, width = self.size
        if plain.size != (width, height):
            plain = ImageOps.fit(plain, (width, height))
        pixels = torch.from_numpy(np.array(plain, dtype=np.float32)) / 127.5 - 1.0
        return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels.unsqueeze(0)

    def check(self) -> None:
        """Read every picture, so that a damaged one is found before a training begins.

        Raises:
            ImageFusionError: those that cannot be read, a line for each of the first.
        """
        problems = []
        for index in range(len(self)):
            try:
                self.tensor(index)
            except ImageFusionError as e:
                problems.append(str(e))
        if len(problems) > _SHOWN:
            problems[_SHOWN:] = [f"and {len(problems) - _SHOWN} more pictures that cannot be read"]
        if problems:
            raise ImageFusionError("\n".join(problems))

    def content_hash(self) -> str:
        """SHA-256 (hex) of every picture and what it shows."""
        digest = hashlib.sha256()
        for file, prompt in zip(self.files, self.prompts, strict=True):
            digest.update(f"{file.name} {file_hash(file)} {prompt!r}\n".encode())
        return digest.hexdigest()


def read_pictures(
    config: PictureConfig, root: Path, kind: Kind, size: tuple[int, int], channels: int, where: str
) -> Pictures:
    """The pictures of a folder, in the order of its metadata.jsonl (or of their names where nothing is asked of them).

    Args:
        root: Folder that the path is relative to.
        kind: What the models are told of a picture.
        where: How messages call the key that names the folder.

    Raises:
        ImageFusionError: a picture or what it shows is missing, or lies outside of the folder.
    """
    folder = root / Path(config.path).expanduser()
    if not folder.is_dir():
        raise ImageFusionError(f"{where}: {folder}: no such folder")
    column = config.prompt or _COLUMNS[kind]
    rows = _rows(folder, column, where) if (folder / METADATA).is_file() else None
    if rows is None and kind != "none":
        raise ImageFusionError(
            f'{where}: {folder} has no {METADATA}, whose "{column}" says what each picture shows, which models are told'
        )
    if rows is None:
        rows = [(f.name, "") for f in sorted(folder.iterdir()) if f.suffix.lower() in _ENDINGS]
    rows = rows[: config.limit]
    if not rows:
        raise ImageFusionError(f"{where}: {folder}: no picture ({', '.join(_ENDINGS)})")
    files = []
    for name, _ in rows:
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            raise ImageFusionError(f"{folder / METADATA}: refused: {name} lies outside of the folder")
        if not file.is_file():
            raise ImageFusionError(f"{folder / METADATA}: names {name}, which is not there")
        files.append(file)
    return Pictures(tuple(files), tuple(p for _, p in rows), size, channels)


def _rows(folder: Path, column: str, where: str) -> list[tuple[str, Prompt]]:
    file = folder / METADATA
    found: list[tuple[str, Prompt]] = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as e:
            raise ImageFusionError(f"{file}:{number}: not JSON ({e})") from None
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise ImageFusionError(f'{file}:{number}: expected an object with a "file_name"')
        prompt = row.get(column, "") if not column else row.get(column)
        if not isinstance(prompt, str | int):
            known = ", ".join(k for k in row if k != "file_name")
            raise ImageFusionError(
                f'{file}:{number}: has no "{column}", a text or a class; it has {known or "nothing"}'
            )
        found.append((row["file_name"], prompt))
    return found


def asked(prompts: Sequence[Prompt], count: int) -> tuple[Prompt, ...]:
    """The first so many different prompts, in order: by size where they are classes."""
    different = list(dict.fromkeys(prompts))
    if all(isinstance(p, int) for p in different):
        different.sort()
    return tuple(different[:count])
