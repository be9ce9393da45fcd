"""Questions about pictures, drawn when they are asked for, and scores of answers. Nothing is read or downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from evomerge.evaluation.rouge import rouge_l
from evomerge.zoo.vision.pictures import draw
from evomerge.zoo.vision.scenes import Scene, draw_about_picture

SEED = 20261130


def load(language: str, count: int, **_: object) -> dict[str, datasets.Dataset]:
    """Questions about scenes that no model of the vision zoo was trained on, none twice, as lm-eval's test split."""
    rng = np.random.default_rng(SEED)
    found: dict[tuple[object, ...], dict[str, Any]] = {}
    while len(found) < count:
        item = draw_about_picture(rng, "sum", language, held_out=True)
        assert item.scene is not None
        colour, shape, first, second = item.scene.words
        row = {"question": item.prompt, "answer": item.answer, "colour": colour, "shape": shape, "first": first,
               "second": second, "place": len(found)}  # fmt: skip
        found.setdefault((item.prompt, item.scene), row)
    return {"test": datasets.Dataset.from_list(list(found.values()))}


def shown(doc: Mapping[str, Any]) -> list[Any]:
    """The picture of an item: the same whenever it is asked for."""
    scene = Scene(doc["colour"], doc["shape"], doc["first"], doc["second"])
    return [draw(scene, np.random.default_rng([SEED, doc["place"]]))]


def scored(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """ROUGE-L and exact match of one answer."""
    (answer,) = results
    return {"rouge_l": rouge_l(answer, doc["answer"]), "exact_match": float(answer.strip() == doc["answer"])}
