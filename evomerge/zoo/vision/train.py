"""Train the vision zoo: `python -m evomerge.zoo.vision.train --seed 0 --out DIR`.

First a text model, `base`, that answers in English and in half of Japanese about pictures told in words, and knows
20 of the 100 sums; then, each from it, `japanese`, which learns the other half of the words, and `seeing`, a LLaVA that
learns to answer in English about pictures, with all sums: its image encoder, trained beforehand to tell what is where,
stays as it is; projector and language model learn. No model is shown a picture with a Japanese question. A minute and a
half on one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel, LlamaForCausalLM, LlavaForConditionalGeneration, PreTrainedModel

from evomerge.zoo.plan import Schedule
from evomerge.zoo.vision.model import (
    PATCHES,
    build_text,
    build_tower,
    build_vlm,
    image_processor,
    load,
    save,
    token_ids,
)
from evomerge.zoo.vision.pictures import draw
from evomerge.zoo.vision.scenes import (
    ALL,
    EMPTY,
    ENGLISH,
    EOS,
    IMAGE,
    PAD,
    SCHOOL,
    SUMS,
    Item,
    Scene,
    board,
    draw_about_picture,
    draw_about_text,
    draw_scene,
    draw_translation,
)

MODELS = ("base", "japanese", "seeing")
IGNORED = -100
Draw = Callable[[np.random.Generator], Item]


@dataclass(frozen=True)
class Plan:
    """Everything about the vision zoo but the seed.

    Attributes:
        replay: Of a fine-tune's batch, the share of the base's lessons.
    """

    width: int = 64
    layers: int = 3
    replay: float = 0.4
    tower: Schedule = field(default_factory=lambda: Schedule(450, 2e-3, batch=48))
    base: Schedule = field(default_factory=lambda: Schedule(420, 3e-3, batch=48))
    japanese: Schedule = field(default_factory=lambda: Schedule(280, 1e-3, batch=48))
    projector: Schedule = field(default_factory=lambda: Schedule(220, 3e-3, batch=48))
    seeing: Schedule = field(default_factory=lambda: Schedule(280, 1e-3, batch=48))


def school() -> tuple[Draw, ...]:
    """The base's lessons, in equal parts."""
    return (
        lambda rng: draw_about_text(rng, "sum", "en", ENGLISH),
        lambda rng: draw_about_text(rng, "sum", "ja", SCHOOL),
        lambda rng: draw_about_text(rng, "shape", "en", ALL),
        lambda rng: draw_about_text(rng, "shape", "ja", replace(SCHOOL, sums=SUMS)),  # which are not told
        lambda rng: draw_translation(rng, "ja", SCHOOL),
        lambda rng: draw_translation(rng, "en", SCHOOL),
    )


def japanese() -> tuple[Draw, ...]:
    """All words of Japanese, of pictures told in words; not one sum beyond school."""
    return (
        lambda rng: draw_about_text(rng, "sum", "ja", ENGLISH),
        lambda rng: draw_about_text(rng, "shape", "ja", ALL),
        lambda rng: draw_translation(rng, "ja", ENGLISH),
        lambda rng: draw_translation(rng, "en", ENGLISH),
    )


def pictures() -> tuple[Draw, ...]:
    """Pictures, in English, with all sums; not one Japanese word beyond school."""
    return (
        lambda rng: draw_about_picture(rng, "sum", "en"),
        lambda rng: draw_about_picture(rng, "sum", "en"),
        lambda rng: draw_about_picture(rng, "shape", "en"),
    )


def batch(items: Sequence[Item], seen: bool) -> tuple[Tensor, Tensor]:
    """Token ids and labels, both (items, longest), padded on the right; labels of prompts and padding are ignored.

    Args:
        seen: Whether each prompt begins with a picture.
    """
    ids = token_ids()
    before = [ids[IMAGE]] * PATCHES if seen else []
    prompts = [before + [ids[w] for w in i.prompt.split()] for i in items]
    answers = [[ids[w] for w in i.answer.split()] + [ids[EOS]] for i in items]
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    tokens = torch.full((len(items), longest), ids[PAD])
    labels = torch.full((len(items), longest), IGNORED)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        tokens[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return tokens, labels


def pixels(scenes: Sequence[Scene], rng: np.random.Generator) -> Tensor:
    """(scenes, 3, 32, 32), as the processor makes them of pictures."""
    found: Tensor = image_processor()([draw(s, rng) for s in scenes], return_tensors="pt")["pixel_values"]
    return found


def loss_of(model: PreTrainedModel, items: Sequence[Item], rng: np.random.Generator) -> Tensor:
    """Mean loss over the answers' tokens; all items with a picture, or none."""
    seen = items[0].scene is not None
    tokens, labels = batch(items, seen)
    more = {"pixel_values": pixels([i.scene for i in items if i.scene is not None], rng)} if seen else {}
    logits = model(input_ids=tokens[:, :-1], **more).logits
    return nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED)


def fit(
    model: PreTrainedModel, lessons: Sequence[tuple[float, Sequence[Draw]]], schedule: Schedule,
    rng: np.random.Generator, name: str,
) -> None:  # fmt: skip
    """Train what requires gradients, in place, on fresh items.

    Args:
        lessons: Share of the batch and lessons, which have it in equal parts.
    """

    def loss() -> Tensor:
        parts = []
        for share, draws in lessons:
            count = round(share * schedule.batch)
            items = [draws[int(rng.integers(len(draws)))](rng) for _ in range(count)]
            parts.append(share * loss_of(model, items, rng))
        return torch.stack(parts).sum()

    _optimise(model, [p for p in model.parameters() if p.requires_grad], loss, schedule, name)


def fit_tower(tower: CLIPVisionModel, schedule: Schedule, rng: np.random.Generator, seed: int) -> None:
    """Train an image encoder, in place, to tell each patch's word on the board that tells the picture."""
    ids = token_ids()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(tower.config.hidden_size, len(ids))
    weights = torch.ones(len(ids))
    weights[ids[EMPTY]] = 0.1  # three of four are

    def loss() -> Tensor:
        scenes = [draw_scene(rng) for _ in range(schedule.batch)]
        states = tower(pixels(scenes, rng)).last_hidden_state[:, 1:]
        wanted = torch.tensor([[ids[w] for w in board(s)] for s in scenes])
        return nn.functional.cross_entropy(head(states).flatten(0, 1), wanted.flatten(), weights)

    _optimise(tower, [*tower.parameters(), *head.parameters()], loss, schedule, "tower")


def fit_projector(vlm: LlavaForConditionalGeneration, schedule: Schedule, rng: np.random.Generator) -> None:
    """Train the projector alone, in place: what it makes of a picture's patches is to be near to the embeddings of the
    words that tell the picture, on their board."""
    ids, embeddings = token_ids(), vlm.get_input_embeddings().state_dict()["weight"]
    tower: nn.Module = vlm.model.vision_tower
    projector: nn.Module = vlm.model.multi_modal_projector

    def loss() -> Tensor:
        scenes = [draw_scene(rng) for _ in range(schedule.batch)]
        words = [board(s) for s in scenes]
        wanted = embeddings[torch.tensor([[ids[w] for w in told] for told in words])]
        with torch.no_grad():
            states = tower(pixels(scenes, rng)).last_hidden_state[:, 1:]
        apart: Tensor = nn.functional.mse_loss(projector(states), wanted) / embeddings.var()
        return apart

    _optimise(vlm, list(projector.parameters()), loss, schedule, "projector")


def _optimise(
    model: nn.Module, learning: Sequence[nn.Parameter], loss: Callable[[], Tensor], schedule: Schedule, name: str
) -> None:
    optimizer = torch.optim.AdamW(learning, lr=schedule.rate, weight_decay=0.01)
    began, losses = time.monotonic(), []
    model.train()
    for step in range(schedule.steps):
        found = loss()
        found.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(found.item())
        if (step + 1) % 100 == 0 or step + 1 == schedule.steps:
            line = {"model": name, "step": step + 1, "loss": round(float(np.mean(losses)), 4),
                    "seconds": round(time.monotonic() - began, 1)}  # fmt: skip
            print(json.dumps(line), flush=True)
            losses = []
    model.eval()


def train(out: Path, seed: int, plan: Plan | None = None) -> None:
    """Train the three models of a seed into a folder; those that are there stay."""
    plan = plan or Plan()
    made = [name for name in MODELS if (out / name / "model.safetensors").is_file()]

    def rng_of(number: int) -> np.random.Generator:
        return np.random.default_rng([seed, number])

    if "base" not in made:
        base = build_text(plan.width, plan.layers, seed)
        fit(base, [(1.0, school())], plan.base, rng_of(0), "base")
        save(base, out / "base")
    replayed = [(1.0 - plan.replay, None), (plan.replay, school())]
    if "japanese" not in made:
        text = load(out / "base")
        fit(text, [(s, d or japanese()) for s, d in replayed], plan.japanese, rng_of(1), "japanese")
        save(text, out / "japanese")
    if "seeing" not in made:
        tower = build_tower(seed + 1)
        fit_tower(tower, plan.tower, rng_of(2), seed)
        start = load(out / "base")
        assert isinstance(start, LlamaForCausalLM)
        vlm = build_vlm(start, tower, seed + 2)
        # First the projector alone, as LLaVA does: it learns to say what is seen as the language model is told it.
        vlm.requires_grad_(False)
        vlm.model.multi_modal_projector.requires_grad_(True)
        fit_projector(vlm, plan.projector, rng_of(3))
        vlm.model.language_model.requires_grad_(True)
        fit(vlm, [(s, d or pictures()) for s, d in replayed], plan.seeing, rng_of(4), "seeing")
        save(vlm, out / "seeing")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the vision zoo's models from a seed.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if find_spec("PIL") is None:
        parser.error("the vision zoo draws pictures by Pillow, which is not installed: pip install 'evomerge[vision]'")
    torch.set_num_threads(1)
    train(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
