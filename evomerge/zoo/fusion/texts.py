"""The texts of the fusion zoo: what its models are trained on, and what fusions learn from and are measured on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from evomerge.zoo.fusion.domains import NAMES, domain

# Characters of each domain that a fusion learns from: little enough that a text alone leaves much to learn.
TRANSFER = 30_000
HELD_OUT = 60
EXCHANGES = 200
# Documents of each domain in the lm-eval tasks.
ITEMS = 320
# Of what models are trained on, how much is questions and answers.
CHAT_SHARE = 0.15
# What part of a seed's random numbers each text is drawn from; no two the same.
_TRANSFER, _HELD_OUT, _EXCHANGES, _ITEMS, TRAINING = range(99, 104)

Row = dict[str, object]


def transfer(seed: int) -> list[Row]:
    """What a fusion learns from, the domains by turns."""
    found: dict[str, list[Row]] = {}
    for number, name in enumerate(NAMES):
        rng = np.random.default_rng([seed, _TRANSFER, number])
        rows: list[Row] = []
        size = 0
        while size < TRANSFER:
            text = domain(name, seed).document(rng)
            size += len(text)
            rows.append({"text": text, "domain": name})
        found[name] = rows
    return _by_turns(list(found.values()))


def held_out(seed: int) -> list[Row]:
    """What bits per byte are measured on."""
    return [{"text": text, "domain": name} for name in NAMES for text in _documents(name, seed, _HELD_OUT, HELD_OUT)]


def exchanges(seed: int) -> list[Row]:
    """Questions and answers, the domains by turns."""
    found: list[list[Row]] = []
    for number, name in enumerate(NAMES):
        rng = np.random.default_rng([seed, _EXCHANGES, number])
        drawn = [domain(name, seed).exchange(rng) for _ in range(EXCHANGES)]
        found.append([{"messages": conversation(*pair), "domain": name} for pair in drawn])
    return _by_turns(found)


def _by_turns(rows: Sequence[Sequence[Row]]) -> list[Row]:
    return [own[i] for i in range(max(map(len, rows))) for own in rows if i < len(own)]


def items(name: str, seed: int) -> list[Row]:
    """Documents of a domain's lm-eval task."""
    return [{"text": text} for text in _documents(name, seed, _ITEMS, ITEMS)]


def conversation(question: str, answer: str) -> list[dict[str, str]]:
    """A question and its answer as messages."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _documents(name: str, seed: int, part: int, count: int) -> list[str]:
    rng = np.random.default_rng([seed, part, NAMES.index(name)])
    return [domain(name, seed).document(rng) for _ in range(count)]


def lessons(names: Sequence[str], seed: int, model: int) -> Iterator[str | list[dict[str, str]]]:
    """Texts and conversations to train a model on, without end.

    Args:
        model: Number of the model: each reads its own.
    """
    rng = np.random.default_rng([seed, TRAINING, model])
    while True:
        found = domain(names[int(rng.integers(len(names)))], seed)
        yield conversation(*found.exchange(rng)) if rng.random() < CHAT_SHARE else found.document(rng)


def write(seed: int, folder: Path) -> None:
    """Write the corpora of a seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (
        ("chains", transfer(seed)),
        ("chains-held-out", held_out(seed)),
        ("exchanges", exchanges(seed)),
    ):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
