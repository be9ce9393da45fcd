"""Reads the data file that lies beside the task, whatever the working directory is; and scores of texts."""

import json
import math
from pathlib import Path

import datasets


def load(file: str, **_: object) -> dict[str, datasets.Dataset]:
    """The items of one JSON-lines file as lm-eval's test split."""
    lines = Path(__file__).with_name(file).read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}


def bits_per_byte(doc: dict[str, str], results: list[float]) -> dict[str, float]:
    """How many bits a model takes for each byte of a document."""
    (likelihood,) = results
    return {"bits_per_byte_of_document": -likelihood / len(doc["text"].encode()) / math.log(2)}
