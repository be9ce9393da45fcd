"""Pictures of scenes, 32 x 32 points: a shape on the left, two digits on the right, all a little out of place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from evomerge.zoo.vision.scenes import DIGITS, Scene

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

SIZE = 32
BACKGROUND = (20, 20, 20)
INKS = {
    "red": (230, 30, 30),
    "blue": (40, 70, 240),
    "green": (30, 170, 50),
    "white": (245, 245, 245),
    "yellow": (240, 225, 40),
    "purple": (130, 40, 170),
    "orange": (245, 140, 20),
    "pink": (250, 150, 190),
}
# Five rows of three points each, as on a pocket calculator.
_GLYPHS = {
    "0": "### #.# #.# #.# ###",
    "1": ".#. ##. .#. .#. ###",
    "2": "### ..# ### #.. ###",
    "3": "### ..# ### ..# ###",
    "4": "#.# #.# ### ..# ..#",
    "5": "### #.. ### ..# ###",
    "6": "### #.. ### #.# ###",
    "7": "### ..# ..# ..# ..#",
    "8": "### #.# ### #.# ###",
    "9": "### #.# ### ..# ###",
}
_DOT, _WHITE = 3, (245, 245, 245)
assert tuple(_GLYPHS) == DIGITS


def draw(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """The picture of a scene, RGB; the generator moves shape and digits."""
    from PIL import Image, ImageDraw  # late: what is missing without it is said in words

    image = Image.new("RGB", (SIZE, SIZE), BACKGROUND)
    pen = ImageDraw.Draw(image)
    left, top = (int(rng.integers(low, high)) for low, high in ((1, 4), (4, 14)))
    _shape(pen, scene.shape, left, top, 13, INKS[scene.colour])
    for digit, above in ((scene.first, 0), (scene.second, 16)):
        left, top = 20 + int(rng.integers(4)), above + int(rng.integers(2))
        for y, row in enumerate(_GLYPHS[digit].split()):
            for x, point in enumerate(row):
                if point == "#":
                    corner = (left + _DOT * x, top + _DOT * y)
                    pen.rectangle((corner, (corner[0] + _DOT - 1, corner[1] + _DOT - 1)), fill=_WHITE)
    return image


def _shape(pen: ImageDraw.ImageDraw, name: str, x: int, y: int, size: int, ink: tuple[int, int, int]) -> None:
    end, middle = size - 1, (size - 1) / 2
    box = (x, y, x + end, y + end)
    if name == "circle":
        pen.ellipse(box, fill=ink)
    elif name == "square":
        pen.rectangle(box, fill=ink)
    elif name == "ring":
        pen.ellipse(box, outline=ink, width=3)
    elif name == "bar":
        pen.rectangle((x, y + middle - 2, x + end, y + middle + 2), fill=ink)
    elif name == "cross":
        pen.rectangle((x, y + middle - 2, x + end, y + middle + 2), fill=ink)
        pen.rectangle((x + middle - 2, y, x + middle + 2, y + end), fill=ink)
    elif name == "triangle":
        pen.polygon(((x, y + end), (x + end, y + end), (x + middle, y)), fill=ink)
    elif name == "diamond":
        pen.polygon(((x + middle, y), (x + end, y + middle), (x + middle, y + end), (x, y + middle)), fill=ink)
    else:
        turns = [math.pi * (i / 5 - 0.5) for i in range(10)]
        points = [
            (x + middle + r * math.cos(a), y + middle + r * math.sin(a))
            for i, a in enumerate(turns)
            for r in [middle + 0.5 if i % 2 == 0 else middle * 0.4]
        ]
        pen.polygon(points, fill=ink)
