"""The work of a training, in the process or processes that do it."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from evomerge.errors import EvoMergeError, InputError
from evomerge.fusion.config import TrainingConfig
from evomerge.fusion.files import write_json
from evomerge.fusion.loading import loaded, quiet
from evomerge.fusion.prepared import read_documents
from evomerge.fusion.tokenized import Reader
from evomerge.fusion.training.data import Collator, HeldOut, documents_to_learn
from evomerge.fusion.training.run import PROGRESS, Run, finish, last_checkpoint, planned_steps
from evomerge.fusion.training.trainer import METRIC, FusionTrainer, Learning
from evomerge.fusion.vocabulary import Vocabulary
from evomerge.fusion.workers import Watcher
from evomerge.merging.checkpoint import atomic_folder
from evomerge.merging.tokens.files import FILES
from evomerge.sources import open_source, read_object, small_file

# What is kept of the target beside its tokenizer.
_KEPT = ("generation_config.json", "LICENSE")


def train(run: Run, device: str, watcher: Watcher | None) -> None:
    """Train a target, from its last checkpoint where there is one, and write it.

    Raises:
        EvoMergeError: the loss is not finite.
        InputError: an argument does not go together with the machine.
    """
    quiet(device)
    config, work = run.config, Path(run.work)
    steps = planned_steps(run)
    every = math.ceil(steps / config.evaluations)
    source = open_source(run.target)
    arguments = training_arguments(config, work, steps, every, device, run.seed)
    if arguments.world_size != config.processes:
        raise EvoMergeError(f"{arguments.world_size} processes came together, not {config.processes}")
    set_seed(run.seed)
    model: Any
    model, tokenizer = loaded(source, config.dtype, "cpu", trust_remote_code=run.trust_remote_code)
    model.requires_grad_(True).train()
    if config.lora is not None:
        model = _with_adapter(model, config)
    reader = Reader(Vocabulary(tokenizer, run.name), run.name)
    held_out = HeldOut(read_documents(Path(run.held_out)), reader, run.domains)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    patience = config.early_stopping_patience
    follower = _Follower(work / PROGRESS, watcher)
    trainer = FusionTrainer(
        model=model,
        args=arguments,
        train_dataset=documents_to_learn([Path(f) for f in run.files]),
        eval_dataset=held_out,
        data_collator=Collator(int(pad or 0)),
        callbacks=[follower, *([_Patience(patience)] if patience is not None else [])],
        learning=Learning(config.loss, config.clm_weight, config.alm_temperature, config.renormalize),
        domains=run.domains,
    )
    trainer.remove_callback(PrinterCallback)  # it prints on stdout, which holds the result alone
    began = time.monotonic()
    last = last_checkpoint(work)
    trainer.train(resume_from_checkpoint=str(last) if last is not None else None)
    if not trainer.accelerator.is_main_process:
        return
    history = _history(trainer.state)
    best = min(history, key=lambda line: line[METRIC])
    learned: Any = trainer.accelerator.unwrap_model(trainer.model)
    if config.lora is not None:
        learned = learned.merge_and_unload()
    write_model(learned, source.path, Path(run.out), run.out_dtype)
    ended = trainer.state.global_step
    finish(
        run.work,
        run.key,
        run.out,
        {
            "name": run.name,
            "out": run.out,
            "bits_per_byte": _by_domain(best, run),
            "step": int(best["step"]),
            "steps": steps,
            "history": history,
            "seconds": follower.seconds + time.monotonic() - began,
            "stopped": "budget" if ended >= steps else "patience",
        },
    )


def training_arguments(
    config: TrainingConfig, work: Path, steps: int, every: int, device: str, seed: int
) -> TrainingArguments:
    """What the Trainer is told.

    Args:
        every: Steps between two measurements.

    Raises:
        InputError: transformers does not take it.
    """
    bf16 = config.bf16 if isinstance(config.bf16, bool) else has_bf16(device)
    own = (
        "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "warmup_steps",
        "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm", "per_device_train_batch_size",
    )  # fmt: skip
    asked: dict[str, Any] = {
        "output_dir": str(work),
        "max_steps": steps,
        "bf16": bf16,
        "per_device_eval_batch_size": config.per_device_train_batch_size,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": METRIC,
        "greater_is_better": False,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "logging_strategy": "steps",
        "logging_steps": every,
        "logging_nan_inf_filter": False,  # it would hide what `_Follower` looks for
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
        **({"ddp_backend": "gloo"} if device == "cpu" and config.processes > 1 else {}),
        "seed": seed,
        "data_seed": seed,
        **{name: getattr(config, name) for name in own},
        **({checkpointing(): True} if config.gradient_checkpointing else {}),
        **config.arguments,
    }
    try:
        found = TrainingArguments(**asked)
    except (TypeError, ValueError, ImportError) as e:
        raise InputError(f"training: {' '.join(str(e).split())[:300]}") from None
    if found.world_size == 1 and device != "cpu":
        found._n_gpu = 1  # one process uses one GPU; more of them are more processes
    return found


def has_bf16(device: str) -> bool:
    """Whether to compute in bfloat16 where nothing is said."""
    return device != "cpu" and torch.cuda.is_bf16_supported()


def checkpointing() -> str:
    """What transformers calls it: the name is about to change."""
    names = {f.name for f in fields(TrainingArguments)}
    return "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"


def _with_adapter(model: Any, config: TrainingConfig) -> Any:
    from peft import LoraConfig, get_peft_model

    assert config.lora is not None
    if config.gradient_checkpointing:
        model.enable_input_require_grads()
    try:
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config.lora.model_dump()))
    except ValueError as e:
        raise InputError(f"training.lora: {' '.join(str(e).split())[:300]}") from None


def _history(state: TrainerState) -> list[dict[str, float]]:
    """What was measured, and the loss since the measurement before."""
    losses = {line["step"]: float(line["loss"]) for line in state.log_history if "loss" in line}
    found = []
    for line in state.log_history:
        if f"eval_{METRIC}" in line:
            own = {k.removeprefix("eval_"): float(v) for k, v in line.items() if METRIC in k or k in ("step", "epoch")}
            step = line["step"]
            found.append({**own, **({"loss": losses[step]} if step in losses else {})})
    return found


def _by_domain(line: Mapping[str, float], run: Run) -> dict[str, float]:
    names = {domain: f"{METRIC}_{domain or 'all'}" for domain in run.domains}
    return {domain or "all": line[name] for domain, name in names.items() if name in line}


def write_model(model: Any, original: Path, out: Path, out_dtype: str | None) -> None:
    """Write a trained model as a plain checkpoint with the tokenizer of what it was before, whole or not at all."""
    dtype = getattr(torch, out_dtype) if out_dtype else _own_dtype(original)
    model = model.cpu().to(dtype).eval()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    with atomic_folder(out, overwrite=True, needed=size) as folder:
        model.config.dtype = dtype
        model.save_pretrained(folder)
        _copy_tokenizer(original, folder)
        for file in folder.iterdir():
            file.chmod(0o644)


def _own_dtype(original: Path) -> torch.dtype:
    config = read_object(original, "config.json")
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    found = getattr(torch, name, torch.float32)
    return found if isinstance(found, torch.dtype) else torch.float32


def _copy_tokenizer(original: Path, folder: Path) -> None:
    """The target's own tokenizer files, byte for byte: learning does not change them."""
    for name in (*FILES, *_KEPT):
        file = small_file(original, name)
        if file is not None:
            shutil.copyfile(file, folder / name)


class _Patience(EarlyStoppingCallback):
    """Stops as many measurements after the best one in a run that was cut off as in one that was not."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count again what was measured before."""
        self.early_stopping_patience_counter = 0
        best = math.inf
        for line in state.log_history:
            value = float(line.get(f"eval_{METRIC}", math.nan))
            if math.isnan(value):
                continue
            if value < best:
                best, self.early_stopping_patience_counter = value, 0
            else:
                self.early_stopping_patience_counter += 1
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


class _Follower(TrainerCallback):
    """Tells how far a training is, and ends it where the loss is no number any more."""

    def __init__(self, file: Path, watcher: Watcher | None) -> None:
        from evomerge.fusion.files import read_json_object

        self._file, self._watcher = file, watcher
        self._note = ""
        # Of the runs that were cut off before.
        self.seconds = float((read_json_object(file) or {}).get("seconds", 0.0))
        self._began = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A step is done."""
        if state.global_step >= state.max_steps:  # the last step is measured too
            control.should_log = control.should_evaluate = control.should_save = True
        if not state.is_world_process_zero:
            return
        if self._watcher is not None:
            self._watcher.advance(1, self._note)
        elif state.global_step % 10 == 0:
            self._tell(state)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Losses or measurements are there."""
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(float(loss)):
            raise EvoMergeError(f"step {state.global_step}: the loss is {loss}; try a lower learning_rate")
        bits = (logs or {}).get(f"eval_{METRIC}")
        if bits is not None:
            if not math.isfinite(float(bits)):
                raise EvoMergeError(f"step {state.global_step}: {bits} bits per byte; try a lower learning_rate")
            self._note = f"{float(bits):.4f} bits per byte"

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A checkpoint is there."""
        if state.is_world_process_zero:
            self._tell(state)

    def _tell(self, state: TrainerState) -> None:
        seconds = self.seconds + time.monotonic() - self._began
        write_json(self._file, {"step": state.global_step, "note": self._note, "seconds": seconds})
