"""A picture of pictures: styles by prompts, for people to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from evomerge.images.conditions import Prompt
from evomerge.images.measure import Gallery
from evomerge.images.sampling import plain
from evomerge.images.student import StyledPipeline, to_image

# Of one picture in the grid, and what is left around it.
_LEAST, _GAP, _LEFT, _TOP = 64, 6, 150, 24


def rows(
    gallery: Gallery, student: StyledPipeline, references: Mapping[str, Callable[[], Any]], prompts: Sequence[Prompt]
) -> list[tuple[str, Tensor]]:
    """What the grid shows: each teacher above the student in its style, then half of the first style and half of the
    last. All of one noise, so that what differs is the model."""
    found: list[tuple[str, Tensor]] = []
    for style, load in references.items():
        denoiser = load().to(student.device)
        found.append((f"teacher {style}", gallery.pictures(plain(denoiser), prompts, "grid")))
        found.append((f"student {style}", gallery.pictures(student.denoise(style), prompts, "grid")))
    first, last = student.styles[0], student.styles[-1]
    if first != last:
        half = gallery.pictures(student.denoise({first: 0.5, last: 0.5}), prompts, "grid")
        found.append((f"{first} + {last}", half))
    return found


def write_grid(
    file: Path,
    gallery: Gallery,
    student: StyledPipeline,
    references: Mapping[str, Callable[[], Any]],
    prompts: Sequence[Prompt],
) -> None:
    """Write the grid as a PNG."""
    from PIL import Image, ImageDraw

    shown = rows(gallery, student, references, prompts)
    height, width = shown[0][1].shape[-2:]
    scale = max(1, -(-_LEAST // max(height, width)))
    cell = (width * scale + _GAP, height * scale + _GAP)
    size = (_LEFT + cell[0] * len(prompts), _TOP + cell[1] * len(shown))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for column, prompt in enumerate(prompts):
        draw.text((_LEFT + column * cell[0], 6), str(prompt)[: cell[0] // 6], fill="black")
    for row, (name, pictures) in enumerate(shown):
        top = _TOP + row * cell[1]
        draw.text((6, top + cell[1] // 2 - 8), name[: _LEFT // 6], fill="black")
        for column, picture in enumerate(pictures):
            image = to_image(picture).convert("RGB")
            # Nearest: a pixel of a tiny model stays one.
            large = image.resize((width * scale, height * scale), Image.Resampling.NEAREST)
            canvas.paste(large, (_LEFT + column * cell[0], top))
    canvas.save(file, format="PNG")
