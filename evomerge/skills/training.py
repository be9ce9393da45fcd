"""Training a gate by transformers' Trainer: the base and the adapters stay as they are."""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from evomerge.errors import EvoMergeError, InputError
from evomerge.library import Library
from evomerge.merging.checkpoint import checked_target
from evomerge.merging.device import check_device
from evomerge.skills.examples import Example, Tokens, tokenized
from evomerge.skills.folder import GATE_CONFIG, GateConfig
from evomerge.skills.gate import Gate
from evomerge.skills.gated import IGNORED, GatedModel
from evomerge.skills.opened import open_library
from evomerge.skills.shelf import check_outside_libraries

_POOLED_AT_ONCE = 64


@dataclass(frozen=True)
class GateTraining:
    """How a gate is trained.

    Attributes:
        steps: Updates.
        learning_rate: Largest; it falls to 0 along a cosine, after 5 % of the steps in which it rises.
        batch_size: Prompts in an update.
        width: Hidden units of the gate.
        per_layer: Whether each layer has weights of its own.
        max_length: Tokens of prompt and answer, at most as many as the base has positions; longer examples are left
            out.
        seed: Of the gate's first weights and of the order of examples.
        device: torch's; None: CUDA where there is one.
    """

    steps: int = 300
    learning_rate: float = 3e-3
    batch_size: int = 16
    width: int = 64
    per_layer: bool = False
    max_length: int = 1024
    seed: int = 0
    device: str | None = None


@dataclass(frozen=True)
class TrainedGate:
    """A gate that was trained.

    Attributes:
        model: With the gate.
        examples, left_out: How many it learned from, and how many were too long.
        losses: Mean cross entropy of an answer's tokens, over each tenth of the steps; of less than ten
            steps, of each.
        seconds: How long it took.
    """

    model: GatedModel
    examples: int
    left_out: int
    losses: tuple[float, ...]
    seconds: float


def train_gate(
    library: Library,
    names: Sequence[str],
    examples: Sequence[Example],
    out: Path,
    training: GateTraining = GateTraining(),
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> TrainedGate:
    """Train a gate over some of a library's skills, and write it.

    Args:
        say: Is told what is left out, and how it goes.

    Raises:
        InputError: the library, an example or `out` is wrong (or `out` lies in a skill library); nothing is written.
        EvoMergeError: the loss is not finite.
    """
    device = training.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    check_outside_libraries(out)
    with checked_target(out, overwrite, 0, GATE_CONFIG):
        pass
    opened = open_library(library, names)
    groups = opened.base.num_layers if training.per_layer else 1
    hidden = _hidden_size(opened.base)
    generator = torch.Generator().manual_seed(training.seed)
    gate = Gate(hidden, len(names), groups, training.width, generator)
    facts = {**asdict(training), "device": device, "examples": len(examples), "data_sha256": _digest(examples)}
    config = GateConfig(skills=tuple(names), groups=groups, hidden_size=hidden, width=training.width)
    model = GatedModel(opened, gate, config, device=device)
    positions = model.positions
    most = training.max_length if positions is None else min(training.max_length, positions)
    found = list(tokenized(examples, model.tokenizer, most))
    learned = [t for t in found if t is not None]
    if not learned and most < training.max_length:
        raise InputError(
            f"{examples[0].place}: every example has more than {most} tokens, and the base has no more positions; "
            "expected shorter ones"
        )
    if not learned:
        raise InputError(
            f"{examples[0].place}: every example has more than {most} tokens; expected shorter ones, or a larger "
            "--max-length"
        )
    if len(learned) < len(found):
        why = ", the base has no more positions" if most < training.max_length else ""
        say(f"left out: {len(found) - len(learned)} examples of more than {most} tokens{why}")
    say(f"training a gate over {', '.join(names)} on {len(learned)} examples, {training.steps} steps")
    began = time.monotonic()
    losses = fit(model, learned, training)
    model.trained = {**facts, "losses": [round(x, 6) for x in losses]}
    model.save_pretrained(out, overwrite=overwrite)
    return TrainedGate(model, len(learned), len(found) - len(learned), losses, time.monotonic() - began)


def fit(
    model: GatedModel, examples: Sequence[Tokens], training: GateTraining, pooled: Tensor | None = None
) -> tuple[float, ...]:
    """Train a model's gate in place, by the cross entropy of the answers' tokens; see `TrainedGate.losses`.

    Args:
        pooled: What the gate reads of each example, [examples, hidden size], instead of its own prompt (a control).

    Raises:
        EvoMergeError: the loss is not finite.
    """
    model.requires_grad_(False)
    model.gate.requires_grad_(True)
    rows = _Rows(examples, pooled_prompts(model, examples) if pooled is None else pooled)
    with _restored(model.device), tempfile.TemporaryDirectory(prefix="evomerge-") as folder:
        set_seed(training.seed)
        arguments = _Arguments(
            output_dir=folder, max_steps=training.steps, learning_rate=training.learning_rate,
            per_device_train_batch_size=training.batch_size, lr_scheduler_type="cosine",
            warmup_steps=training.steps // 20, weight_decay=0.0, seed=training.seed, data_seed=training.seed,
            save_strategy="no", eval_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True,
            remove_unused_columns=False, dataloader_pin_memory=False, use_cpu=model.device.type == "cpu",
            label_names=["labels"], on=str(model.device),
        )  # fmt: skip
        pad = model.tokenizer.pad_token_id
        collator = _Collator(0 if pad is None else int(pad))
        trainer = _Quiet(model=model, args=arguments, train_dataset=rows, data_collator=collator)
        trainer.train()
        losses = torch.stack(trainer.losses).cpu()
    model.eval().requires_grad_(False)
    if not all(torch.isfinite(p).all() for p in model.gate.parameters()):
        raise EvoMergeError("the gate's weights are not finite: the loss was not; try a smaller --lr")
    return tuple(float(part.mean()) for part in losses.tensor_split(min(10, len(losses))))


@contextmanager
def _restored(device: torch.device) -> Iterator[None]:
    """What the Trainer sets for a whole process is put back: random generators, progress bars, the current GPU."""
    bars, state, numpy_state = logging.is_progress_bar_enabled(), random.getstate(), np.random.get_state()
    gpus = list(range(torch.cuda.device_count()))
    current = torch.cuda.device(torch.cuda.current_device()) if device.type == "cuda" else nullcontext()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(gpus), current:
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
        if bars:
            logging.enable_progress_bar()


@dataclass
class _Arguments(TrainingArguments):
    """The Trainer's arguments, on the device where the model is: by itself it takes the first GPU, and copies of the
    model on all others (nn.DataParallel), which the hooks of one model cannot serve.

    Attributes:
        on: The device.
    """

    on: str = "cpu"

    @cached_property
    def _setup_devices(self) -> torch.device:
        found: torch.device = super()._setup_devices
        self._n_gpu = min(self._n_gpu, 1)
        device = torch.device(self.on)
        if device.type != "cuda":
            return found
        torch.cuda.set_device(device)  # where accelerate puts models and batches
        return device


class _Quiet(Trainer):
    """The Trainer without its lines on stdout; the base stays in evaluation mode (dropout would change its states).

    Attributes:
        losses: Of each step.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.losses: list[Tensor] = []

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Print nothing."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """A step, of the gate alone."""
        model.eval()
        found: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.losses.append(found.detach().float())
        return found


class _Rows(torch.utils.data.Dataset[dict[str, Any]]):
    def __init__(self, examples: Sequence[Tokens], pooled: Tensor) -> None:
        self._examples, self._pooled = examples, pooled

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        own = self._examples[index]
        return {"prompt": own.prompt, "answer": own.answer, "pooled": self._pooled[index]}


@dataclass(frozen=True)
class _Collator:
    """Rows padded on the right: what follows is masked, and positions are those of the text alone."""

    pad: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        width = max(len(r["prompt"]) + len(r["answer"]) for r in rows)
        ids = torch.full((len(rows), width), self.pad)
        labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        for i, row in enumerate(rows):
            whole = [*row["prompt"], *row["answer"]]
            ids[i, : len(whole)] = torch.tensor(whole)
            mask[i, : len(whole)] = 1
            labels[i, len(row["prompt"]) : len(whole)] = torch.tensor(row["answer"])
        pooled = torch.stack([r["pooled"] for r in rows])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "pooled": pooled}


def pooled_prompts(model: GatedModel, examples: Sequence[Tokens]) -> Tensor:
    """z of every prompt, once: the base does not change. On the CPU, [examples, hidden size]."""
    found = []
    collate = _Collator(0)
    for start in range(0, len(examples), _POOLED_AT_ONCE):
        some = examples[start : start + _POOLED_AT_ONCE]
        batch = collate([{"prompt": e.prompt, "answer": [], "pooled": torch.zeros(1)} for e in some])
        found.append(model.pooled(batch["input_ids"], batch["attention_mask"]).cpu())
    return torch.cat(found)


def _hidden_size(source: Any) -> int:
    for key in ("hidden_size", "n_embd", "d_model"):
        if isinstance(value := source.text_config.get(key), int):
            return value
    raise InputError(f"{source.path / 'config.json'}: says no hidden_size; expected the size of hidden states")


def _digest(examples: Sequence[Example]) -> str:
    said = [[e.prompt, e.answer] for e in examples]
    return hashlib.sha256(json.dumps(said, ensure_ascii=False).encode()).hexdigest()
