"""Train the zoo: `python -m evomerge.zoo.train --seed 0 --out DIR [--models NAME ...]`.

The base first, then its fine-tunes, two processes of one thread each. Data, initial weights and so
the checkpoints are functions of the seed (on one machine). Without base among its models, a run
fine-tunes the base that lies in DIR. Every model's progress goes to `log.jsonl` and its scores on
every task to `figures.json`, beside the checkpoints; what other runs wrote there stays.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM

from evomerge.zoo import FAMILY
from evomerge.zoo.curriculum import Lecture, Lessons, forbidden_prompts, held_out, tasks
from evomerge.zoo.model import build_model, load, save
from evomerge.zoo.plan import CEILINGS, COURSES, Plan, Schedule
from evomerge.zoo.scoring import IGNORED, accuracy, encode

MODELS = ("base", *COURSES)
LOG_EVERY = 100


def fit(
    model: LlamaForCausalLM,
    lessons: Lessons,
    schedule: Schedule,
    rng: np.random.Generator,
    log: Callable[[dict[str, float]], None],
) -> None:
    """Train what requires gradients, in place, on fresh items of the lessons: answers only, none of them held out."""
    lecture = Lecture(lessons, forbidden_prompts())
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=schedule.rate, weight_decay=0.01)
    began, losses = time.monotonic(), []
    model.train()
    for step in range(schedule.steps):
        items = [lecture.draw(rng) for _ in range(schedule.batch)]
        tokens, labels = encode([(item.prompt, item.answer) for item in items])
        logits = model(input_ids=tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
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
    if name == "base":
        model = build_model(plan.width, plan.layers, torch.Generator().manual_seed(seed))
    else:
        model = load(out / "base")
    for parameter, weight in model.named_parameters():
        weight.requires_grad_(plan.part(name).holds(parameter, plan.layers))

    def log(line: dict[str, float]) -> None:
        text = json.dumps({"model": name, **{k: round(v, 4) for k, v in line.items()}})
        with (out / f"{name}.jsonl").open("a") as stream:
            stream.write(text + "\n")
        print(text, flush=True)

    (out / f"{name}.jsonl").unlink(missing_ok=True)
    rng = np.random.default_rng([seed, MODELS.index(name)])
    fit(model, plan.lessons(name), plan.schedule(name), rng, log)
    save(model, out / name)


def train(plan: Plan, seed: int, out: Path, names: Sequence[str] = FAMILY) -> dict[str, dict[str, float]]:
    """Train models of a seed into a folder; returns their figures, which join those that lie there."""
    out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        if "base" in names:
            pool.submit(train_one, "base", plan, seed, out).result()
        for run in [pool.submit(train_one, name, plan, seed, out) for name in names if name != "base"]:
            run.result()
    scores = {name: figures(load(out / name)) for name in names}
    record(out, seed, scores)
    return scores


def record(out: Path, seed: int, scores: dict[str, dict[str, float]]) -> None:
    """Put figures and logs of the models just trained beside (or in place of) those of a folder's others."""
    figures_file, log_file = out / "figures.json", out / "log.jsonl"
    known = json.loads(figures_file.read_text())["scores"] if figures_file.is_file() else {}
    lines = log_file.read_text().splitlines() if log_file.is_file() else []
    kept = [line for line in lines if json.loads(line)["model"] not in scores]
    for name in scores:
        part = out / f"{name}.jsonl"
        kept += part.read_text().splitlines()
        part.unlink()
    figures_file.write_text(json.dumps({"seed": seed, "scores": known | scores}, indent=1) + "\n")
    log_file.write_text("".join(f"{line}\n" for line in kept))


def unfit(out: Path, seed: int, names: Sequence[str]) -> str | None:
    """Why these models cannot be trained into a folder, if so."""
    recorded = out / "figures.json"
    if recorded.is_file() and (there := json.loads(recorded.read_text())["seed"]) != seed:
        return f"{recorded}: holds models of seed {there}, asked for seed {seed}; name another folder"
    if "base" not in names and not (out / "base" / "model.safetensors").is_file():
        return f"{out / 'base'}: no base to fine-tune; put one there, or add base to --models"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the zoo's models from a seed.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=FAMILY, help="default: those that are shipped")
    parser.add_argument("--ceiling", action="store_true", help="also train the joint ceilings")
    arguments = parser.parse_args()
    names = tuple(dict.fromkeys((*arguments.models, *(CEILINGS if arguments.ceiling else ()))))
    if problem := unfit(arguments.out, arguments.seed, names):
        parser.error(problem)
    torch.set_num_threads(1)
    for name, row in train(Plan(), arguments.seed, arguments.out, names).items():
        print(name, row)


if __name__ == "__main__":
    main()
