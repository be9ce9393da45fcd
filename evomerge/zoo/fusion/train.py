"""Train the fusion zoo and write its texts: `python -m evomerge.zoo.fusion.train --seed 0 --out DIR`.

Three models in two processes of one thread each, and `corpora/` beside them. Tokenizers, data, initial weights and so
the checkpoints are functions of the seed (on one machine).
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from evomerge.zoo.fusion.domains import NAMES
from evomerge.zoo.fusion.models import byte_level, gpt_neox, initialised, llama, metaspace, save
from evomerge.zoo.fusion.texts import lessons, write

TEXTS_FOR_TOKENIZER = 2000
LENGTH, BATCH = 128, 16
RATE, WARMUP = 2e-3, 50
LOG_EVERY = 100


@dataclass(frozen=True)
class Course:
    """A model: what it is, what it reads and for how long."""

    tokenizer: Callable[[Any, int], Any]
    model: Callable[[Any, int, int], Any]
    vocabulary: int
    domains: tuple[str, ...]
    steps: int
    width: int = 96
    layers: int = 2


# A model's place in this table is part of the seed of its data: new ones go to the end.
COURSES = {
    "pivot": Course(metaspace, llama, 512, NAMES, 300),
    "tides": Course(byte_level, llama, 576, ("tides",), 900),
    "roads": Course(byte_level, gpt_neox, 1024, ("roads",), 900),
}


def train_one(name: str, seed: int, out: Path) -> None:
    """Train one model into `out/name`, on whole blocks of text laid end to end."""
    torch.set_num_threads(1)
    course, number = COURSES[name], list(COURSES).index(name)
    texts = [t for t in islice(lessons(course.domains, seed, number), TEXTS_FOR_TOKENIZER) if isinstance(t, str)]
    tokenizer = course.tokenizer(texts, course.vocabulary)
    generator = torch.Generator().manual_seed(1000 * seed + number)
    model = initialised(course.model(tokenizer, course.width, course.layers), generator)
    blocks = _blocks(tokenizer, lessons(course.domains, seed, number))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, betas=(0.9, 0.95))
    began = time.monotonic()
    model.train()
    for step in range(course.steps):
        ids = torch.tensor(list(islice(blocks, BATCH)))
        logits = model(input_ids=ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            decay = 0.5 * (1.0 + math.cos(math.pi * step / course.steps))
            group["lr"] = RATE * min(1.0, (step + 1) / WARMUP) * decay
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % LOG_EVERY == 0:
            said = {"model": name, "step": step + 1, "loss": round(loss.item(), 4)}
            print(json.dumps({**said, "seconds": round(time.monotonic() - began, 1)}), flush=True)
    save(model.eval(), tokenizer, out / name)


def _blocks(tokenizer: Any, texts: Iterator[Any]) -> Iterator[list[int]]:
    """Blocks of LENGTH tokens, from documents laid end to end; each begins and ends as its tokenizer has it."""
    held: list[int] = []
    for text in texts:
        if isinstance(text, str):
            held += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        else:
            shown = tokenizer.apply_chat_template(text, tokenize=False)
            held += tokenizer(shown, add_special_tokens=False)["input_ids"]
        while len(held) >= LENGTH:
            yield held[:LENGTH]
            held = held[LENGTH:]


def train(seed: int, out: Path, names: tuple[str, ...] = tuple(COURSES)) -> None:
    """Train models of a seed into a folder, and write the texts."""
    out.mkdir(parents=True, exist_ok=True)
    write(seed, out / "corpora")
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        # The longest first.
        order = sorted(names, key=lambda n: -COURSES[n].steps)
        for run in [pool.submit(train_one, name, seed, out) for name in order]:
            run.result()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Train the fusion zoo's models from a seed, and write its texts.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=list(COURSES), default=list(COURSES))
    arguments = parser.parse_args()
    train(arguments.seed, arguments.out, tuple(arguments.models))


if __name__ == "__main__":
    main()
