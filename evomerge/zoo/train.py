"""Train the zoo: `python -m evomerge.zoo.train --seed 0 --out DIR`.

The base first, then its fine-tunes, two processes of one thread each. Data, initial weights and so
the checkpoints are functions of the seed (on one machine). Every model's progress goes to
`log.jsonl` and its scores on every task to `figures.json`, beside the checkpoints.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM

from evomerge.zoo.curriculum import (
    Curriculum,
    Lecture,
    Lessons,
    forbidden_prompts,
    held_out,
    tasks,
)
from evomerge.zoo.model import build_model, load, save
from evomerge.zoo.scoring import IGNORED, accuracy, encode

FINE_TUNES = ("maths", "kovesh", "sorting")
CEILINGS = ("ceiling", "ceiling_target")
LOG_EVERY = 100


@dataclass(frozen=True)
class Schedule:
    """One training run: AdamW, linear warm-up, cosine to zero."""

    steps: int
    rate: float
    batch: int = 64
    warmup: int = 50

    def rate_at(self, step: int) -> float:
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Plan:
    """Everything about the zoo but the seed."""

    curriculum: Curriculum = field(default_factory=Curriculum)
    width: int = 96
    layers: int = 4
    base: Schedule = Schedule(2500, 2e-3)
    fine_tune: Schedule = Schedule(700, 1e-3)

    def lessons(self, name: str) -> Lessons:
        c = self.curriculum
        if name == "base":
            return c.base()
        parts = {
            "maths": (c.maths(),),
            "kovesh": (c.kovesh(),),
            "sorting": (c.sorting(),),
            "ceiling": (c.maths(), c.kovesh()),
            "ceiling_target": (c.maths(), c.kovesh(), c.target()),
        }
        return c.with_replay(*parts[name])

    def schedule(self, name: str) -> Schedule:
        """A ceiling sees as many items as the fine-tunes it stands against together."""
        if name == "base":
            return self.base
        runs = 2 if name in CEILINGS else 1
        return Schedule(
            self.fine_tune.steps * runs,
            self.fine_tune.rate,
            self.fine_tune.batch,
            self.fine_tune.warmup,
        )


def fit(
    model: LlamaForCausalLM,
    lessons: Lessons,
    schedule: Schedule,
    rng: np.random.Generator,
    log: Callable[[dict[str, float]], None],
) -> None:
    """Train in place on fresh items of the lessons, answers only, none of them held out."""
    lecture = Lecture(lessons, forbidden_prompts())
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.rate, weight_decay=0.01)
    began, losses = time.monotonic(), []
    model.train()
    for step in range(schedule.steps):
        items = [lecture.draw(rng) for _ in range(schedule.batch)]
        tokens, labels = encode([(item.prompt, item.answer) for item in items])
        logits = model(input_ids=tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % LOG_EVERY == 0 or step + 1 == schedule.steps:
            seconds = time.monotonic() - began
            log({"step": step + 1, "loss": float(np.mean(losses)), "seconds": seconds})
            losses = []
    model.eval()


def figures(model: LlamaForCausalLM) -> dict[str, float]:
    """The share right on every task, over all its held-out items."""
    items = held_out()
    return {task.name: round(accuracy(model, items[task.name], task.generated), 4) for task in tasks()}


def train_one(name: str, plan: Plan, seed: int, out: Path) -> None:
    """Train one model into `out/name`; a fine-tune starts from the base that lies there."""
    torch.set_num_threads(1)
    order = ("base", *FINE_TUNES, *CEILINGS).index(name)
    if name == "base":
        model = build_model(plan.width, plan.layers, torch.Generator().manual_seed(seed))
    else:
        model = load(out / "base")

    def log(line: dict[str, float]) -> None:
        text = json.dumps({"model": name, **{k: round(v, 4) for k, v in line.items()}})
        with (out / f"{name}.jsonl").open("a") as stream:
            stream.write(text + "\n")
        print(text, flush=True)

    (out / f"{name}.jsonl").unlink(missing_ok=True)
    rng = np.random.default_rng([seed, order])
    fit(model, plan.lessons(name), plan.schedule(name), rng, log)
    save(model, out / name)


def train(plan: Plan, seed: int, out: Path, ceiling: bool = False) -> dict[str, dict[str, float]]:
    """Train the zoo of a seed into a folder; returns the figures it wrote there."""
    out.mkdir(parents=True, exist_ok=True)
    names = FINE_TUNES + (CEILINGS if ceiling else ())
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        pool.submit(train_one, "base", plan, seed, out).result()
        for run in [pool.submit(train_one, name, plan, seed, out) for name in names]:
            run.result()
    scores = {name: figures(load(out / name)) for name in ("base", *names)}
    (out / "figures.json").write_text(json.dumps({"seed": seed, "scores": scores}, indent=1) + "\n")
    with (out / "log.jsonl").open("w") as log:
        for name in ("base", *names):
            part = out / f"{name}.jsonl"
            log.write(part.read_text())
            part.unlink()
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the zoo's models from a seed.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ceiling", action="store_true", help="also train the joint ceilings")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scores = train(Plan(), arguments.seed, arguments.out, arguments.ceiling)
    for name, row in scores.items():
        print(name, row)


if __name__ == "__main__":
    main()
