"""The two trainings, by TRL: supervised fine-tuning on best answers, then direct preference optimization."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from evomerge.errors import EvoMergeError, InputError
from evomerge.fusion.files import key_of, sha256
from evomerge.fusion.loading import loaded, quiet
from evomerge.fusion.preference_config import PreferenceConfig, StageConfig
from evomerge.fusion.training.run import begin, check_fields, finish, finished, last_checkpoint
from evomerge.fusion.workers import Watcher, Workers
from evomerge.sources import open_source

VERSION = 1
SAVES = 4


@dataclass(frozen=True)
class Stage:
    """One training; all of it can be written as JSON.

    Attributes:
        kind: "sft" or "dpo".
        model: Reference of what is trained; a local one by its full path.
        data: What it learns, as JSON lines.
        max_length: Tokens of a conversation at most.
    """

    kind: Literal["sft", "dpo"]
    model: str
    data: str
    config: StageConfig
    work: str
    out: str
    out_dtype: str | None
    max_length: int
    seed: int
    trust_remote_code: bool = False

    def to_json(self) -> str:
        """The stage as JSON; see `read`."""
        return json.dumps({**asdict(self), "config": self.config.model_dump(mode="json")})

    @classmethod
    def read(cls, text: str) -> Stage:
        """What `to_json` gave."""
        data = json.loads(text)
        return cls(**{**data, "config": StageConfig.model_validate(data["config"])})

    @property
    def key(self) -> str:
        """Short name of everything that decides what comes out."""
        return key_of(
            {
                "version": VERSION,
                "kind": self.kind,
                "model": open_source(self.model).content_hash(),
                "data": sha256(Path(self.data)),
                "config": self.config.model_dump(mode="json"),
                "out_dtype": self.out_dtype,
                "max_length": self.max_length,
                "seed": self.seed,
            }
        )

    @property
    def done(self) -> bool:
        """Whether it has been trained, from this and to what lies there."""
        return finished(self.work, self.key, self.out) is not None


def run_stages(stages: Sequence[Stage], workers: Workers, watcher: Watcher) -> None:
    """Train one after the other, each from where the one before ended; those that are done stay.

    Raises:
        InputError: TRL is not installed, or an argument is wrong.
        EvoMergeError: a loss is not finite.
    """
    check_trl()
    for stage in stages:
        if stage.done:
            continue
        watcher.begin(f"{stage.kind.upper()} on {_lines(stage.data):,} conversations", 1, "training")
        try:
            for _, _ in workers.run(_Maker(), [stage.to_json()]):
                watcher.advance(1)
        finally:
            watcher.end()


def check_trl() -> None:
    """Raise InputError where TRL is missing, saying what to install."""
    try:
        import trl  # noqa: F401
    except ImportError:
        raise InputError(
            "preferences: are learned by TRL, which is not installed: pip install 'evomerge[preferences]'"
        ) from None


def check_stages(config: PreferenceConfig) -> None:
    """Hold what is passed on to TRL against what it takes.

    Raises:
        InputError: an unknown name, with the nearest, or a wrong value.
    """
    from evomerge.fusion.training.work import checkpointing

    own = set(StageConfig.model_fields)
    for kind, stage in (("sft", config.sft), ("dpo", config.dpo)):
        settings, _ = _kinds()[kind]
        check_fields(stage.arguments, settings, f"preferences.{kind}", own, ("max_steps", "max_length"))
        with tempfile.TemporaryDirectory(prefix="evomerge-") as folder:
            asked = {"output_dir": folder, "use_cpu": True, checkpointing(): False, **_given(kind, stage)}
            _settings(settings, asked, kind)


def _kinds() -> Mapping[str, tuple[Any, Any]]:
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    return {"sft": (SFTConfig, SFTTrainer), "dpo": (DPOConfig, DPOTrainer)}


def _given(kind: str, config: StageConfig) -> dict[str, Any]:
    """What the file says, by TRL's names."""
    names = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps")
    beta = {"beta": config.beta} if kind == "dpo" else {}
    return {**{n: getattr(config, n) for n in names}, **beta, **config.arguments}


def _settings(kind: Any, asked: Mapping[str, Any], name: str) -> Any:
    try:
        return kind(**asked)
    except (TypeError, ValueError, ImportError) as e:
        raise InputError(f"preferences.{name}: {' '.join(str(e).split())[:300]}") from None


def _lines(file: str) -> int:
    with open(file, encoding="utf-8") as stream:
        return sum(1 for _ in stream)


@dataclass(frozen=True)
class _Maker:
    def __call__(self, device: str) -> Callable[[str], None]:
        return _Work(device)


@dataclass(frozen=True)
class _Work:
    device: str

    def __call__(self, text: str) -> None:
        from evomerge.fusion.alone import alone

        stage = Stage.read(text)
        with alone(Path(stage.work)):
            _train(stage, self.device)


def _train(stage: Stage, device: str) -> None:
    import datasets
    from transformers import PrinterCallback, set_seed

    from evomerge.fusion.training.work import write_model

    quiet(device)
    datasets.disable_progress_bars()
    set_seed(stage.seed)
    source = open_source(stage.model)
    model: Any
    tokenizer: Any
    work = Path(stage.work)
    begin(work, stage.key)
    model, tokenizer = loaded(source, "float32", "cpu", trust_remote_code=stage.trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.requires_grad_(True).train()
    rows = [json.loads(line) for line in Path(stage.data).read_text(encoding="utf-8").splitlines()]
    trainer = _trainer(stage, model, tokenizer, datasets.Dataset.from_list(rows), device)
    trainer.remove_callback(PrinterCallback)
    last = last_checkpoint(work)
    result = trainer.train(resume_from_checkpoint=str(last) if last is not None else None)
    if not math.isfinite(result.training_loss):
        raise EvoMergeError(f"{stage.kind}: the loss is {result.training_loss}; try a lower learning_rate")
    write_model(trainer.accelerator.unwrap_model(trainer.model), source.path, Path(stage.out), stage.out_dtype)
    facts = {"loss": result.training_loss, "steps": trainer.state.global_step}
    finish(stage.work, stage.key, stage.out, facts)


def _trainer(stage: Stage, model: Any, tokenizer: Any, rows: Any, device: str) -> Any:
    from evomerge.fusion.training.work import checkpointing, has_bf16

    config = stage.config
    batches = math.ceil(len(rows) / config.per_device_train_batch_size)
    steps = max(1, math.ceil(math.ceil(batches / config.gradient_accumulation_steps) * config.num_train_epochs))
    asked: dict[str, Any] = {
        "output_dir": stage.work,
        "max_steps": steps,
        "max_length": stage.max_length,
        "save_strategy": "steps",
        "save_steps": max(1, steps // SAVES),
        "save_total_limit": 1,
        "logging_steps": max(1, steps // SAVES),
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
        "bf16": has_bf16(device),
        "logging_nan_inf_filter": False,
        # TRL's own default is to save memory, which is not what is short on a CPU.
        checkpointing(): device != "cpu",
        "seed": stage.seed,
        "data_seed": stage.seed,
        **_given(stage.kind, config),
    }
    settings, trainer = _kinds()[stage.kind]
    arguments = _settings(settings, asked, stage.kind)
    return trainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
