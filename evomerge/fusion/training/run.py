"""One target's training, from the first step or the last checkpoint to a plain checkpoint, and several of them at
once."""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import EvoMergeError, InputError, choose
from evomerge.fusion.config import TrainingConfig
from evomerge.fusion.files import key_of, read_json_object, write_json
from evomerge.fusion.workers import Watcher, Workers
from evomerge.sources import Source

RESULT, PROGRESS = "result.json", "progress.json"
CHECKPOINT = "checkpoint-"
_STATE = "trainer_state.json"
KEY = "key.json"
VERSION = 2
# What this program decides about a Trainer, so that `training.arguments` cannot.
_OURS = (
    "output_dir", "logging_dir", "do_train", "do_eval", "do_predict", "eval_strategy", "eval_steps", "save_strategy",
    "save_steps", "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "remove_unused_columns",
    "label_names", "seed", "data_seed", "resume_from_checkpoint", "push_to_hub", "disable_tqdm", "use_cpu",
    "local_rank", "logging_nan_inf_filter", "report_to", "save_total_limit", "logging_strategy", "logging_steps",
    "restore_callback_states_from_checkpoint", "ddp_backend",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One target's training; all of it can be written as JSON, for other machines and processes.

    Attributes:
        name: What the target is called.
        target: Reference of the model that learns; a local one by its full path.
        content: Its content hash.
        files: What it learns from (`evomerge.fusion.targets`).
        held_out: File of the documents that are held out.
        held_out_hash: Its hash: they choose the checkpoint.
        domains: Their domains.
        work: Folder of checkpoints.
        out: Where the target goes.
        out_dtype: Type of its weights; None: the target's own.
    """

    name: str
    target: str
    content: str
    files: tuple[str, ...]
    hashes: tuple[str, ...]
    held_out: str
    held_out_hash: str
    domains: tuple[str, ...]
    config: TrainingConfig
    work: str
    out: str
    out_dtype: str | None
    seed: int
    trust_remote_code: bool = False

    def to_json(self) -> str:
        """The run as JSON; see `read`."""
        return json.dumps({**asdict(self), "config": self.config.model_dump(mode="json")})

    @classmethod
    def read(cls, text: str) -> Run:
        """What `to_json` gave."""
        data = json.loads(text)
        tuples = {k: tuple(data[k]) for k in ("files", "hashes", "domains")}
        return cls(**{**data, **tuples, "config": TrainingConfig.model_validate(data["config"])})

    @property
    def key(self) -> str:
        """Short name of everything that decides what comes out."""
        return key_of(
            {
                "version": VERSION,
                "target": self.content,
                "learned": self.hashes,
                "seed": self.seed,
                "config": self.config.model_dump(mode="json"),
                "out_dtype": self.out_dtype,
                "domains": self.domains,
                "held_out": self.held_out_hash,
            }
        )


@dataclass(frozen=True)
class Outcome:
    """A target that has learned.

    Attributes:
        bits_per_byte: Of the checkpoint taken, by domain of the held-out documents.
        step, steps: The checkpoint's step, and how many there were.
        history: What was measured, and when: {step, epoch, bits_per_byte, ...}.
        seconds: Of training, in all runs together.
        stopped: "budget" or "patience".
    """

    name: str
    out: str
    bits_per_byte: Mapping[str, float]
    step: int
    steps: int
    history: tuple[Mapping[str, float], ...]
    seconds: float
    stopped: str


def train_all(runs: Sequence[Run], workers: Workers, watcher: Watcher) -> list[Outcome]:
    """Train several targets, side by side where there are workers; those that are done already stay.

    Raises:
        InputError: a training argument is wrong.
        EvoMergeError: a loss is not finite, or a process of a training failed.
    """
    found = {run.name: outcome for run in runs if (outcome := _done(run)) is not None}
    left = [run for run in runs if run.name not in found]
    if left:
        steps = sum(planned_steps(run) for run in left)
        names = ", ".join(run.name for run in left)
        watcher.begin(f"training {names}", steps, "steps", sum(_reached(run) for run in left))
        try:
            polled = _Poll(left, watcher)
            made = _Maker(watcher if workers.local else None)
            for _, data in workers.run(made, [run.to_json() for run in left], None if workers.local else polled):
                outcome = Outcome(**{**data, "history": tuple(data["history"])})
                found[outcome.name] = outcome
        finally:
            watcher.end()
    return [found[run.name] for run in runs]


def check_arguments(config: TrainingConfig) -> None:
    """Refuse training arguments that transformers does not know, or that are decided here.

    Raises:
        InputError: with the nearest one that there is.
    """
    from transformers import TrainingArguments
    from transformers.trainer_utils import SchedulerType

    from evomerge.fusion.training.work import training_arguments

    check_fields(config.arguments, TrainingArguments, "training", set(TrainingConfig.model_fields))

    kinds = [s.value for s in SchedulerType]
    if config.lr_scheduler_type not in kinds:
        given = config.lr_scheduler_type
        raise InputError(f'training.lr_scheduler_type = "{given}": {choose(given, kinds)}')
    with tempfile.TemporaryDirectory(prefix="evomerge-") as folder:
        alone = config.model_copy(update={"processes": 1, "bf16": False})
        training_arguments(alone, Path(folder), 1, 1, "cpu", 0)


def check_lora(config: TrainingConfig, source: Source) -> None:
    """Refuse an adapter for modules that the target does not have.

    Raises:
        InputError: with the nearest that there are.
    """
    wanted = config.lora.target_modules if config.lora is not None else "all-linear"
    if wanted == "all-linear":
        return
    tensors = source.merged_tensors.items()
    modules = [name.removesuffix(".weight") for name, t in tensors if name.endswith(".weight") and len(t.shape) == 2]
    last = sorted({m.rpartition(".")[2] for m in modules})
    if isinstance(wanted, str):
        try:
            found = any(re.fullmatch(wanted, m) for m in modules)
        except re.error as e:
            raise InputError(f'training.lora.target_modules = "{wanted}": is no regular expression ({e})') from None
        if not found:
            raise InputError(f'training.lora.target_modules = "{wanted}": matches no module; {choose(wanted, last)}')
        return
    for name in wanted:
        if not any(m == name or m.endswith(f".{name}") for m in modules):
            raise InputError(f'training.lora.target_modules: no module "{name}" in the target; {choose(name, last)}')


def check_fields(
    given: Mapping[str, Any], kind: type, key: str, own: Collection[str], more: Collection[str] = ()
) -> None:
    """Hold arguments for a library's dataclass against its fields.

    Args:
        kind: The dataclass.
        key: Of the file, under which they stand as `arguments`.
        own: Names that stand under the key itself.
        more: Names that are decided here, beside those of every training.

    Raises:
        InputError: an unknown name, with the nearest, or a value of another type.
    """
    import dataclasses
    import typing

    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticSchemaGenerationError

    ours = {*_OURS, *more}
    known = [f.name for f in dataclasses.fields(kind) if f.name not in ours]
    hints = typing.get_type_hints(kind)
    for name, value in given.items():
        where = f"{key}.arguments.{name}"
        if name in own:
            raise InputError(f"{where}: is a key of {key} itself; set {key}.{name}")
        if name in ours:
            raise InputError(f"{where}: is decided by evomerge; leave it out")
        if name not in known:
            raise InputError(f"{where}: {kind.__name__} has none; {choose(name, known)}")
        try:
            TypeAdapter(hints[name], config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
        except PydanticSchemaGenerationError:
            continue  # a type of the library's own, which it looks at itself
        except ValidationError as e:
            raise InputError(f"{where} = {value!r}: {e.errors()[0]['msg'].lower()}") from None


def planned_steps(run: Run) -> int:
    """How many steps a run takes in all, if it is not stopped."""
    from evomerge.fusion.training.data import documents_to_learn

    config = run.config
    if config.max_steps is not None:
        return config.max_steps
    batch = config.per_device_train_batch_size * config.processes
    batches = math.ceil(len(documents_to_learn([Path(f) for f in run.files])) / batch)
    return max(1, math.ceil(math.ceil(batches / config.gradient_accumulation_steps) * config.num_train_epochs))


def begin(work: Path, key: str) -> None:
    """Forget checkpoints that were made from something else, so that no training goes on from another one's."""
    if (read_json_object(work / KEY) or {}).get("key") != key:
        forget(work)
        for name in (PROGRESS, RESULT):
            (work / name).unlink(missing_ok=True)
        write_json(work / KEY, {"key": key})


def forget(work: Path) -> None:
    """Remove all checkpoints."""
    for folder in work.glob(f"{CHECKPOINT}*"):
        shutil.rmtree(folder, ignore_errors=True)


def last_checkpoint(work: Path) -> Path | None:
    """The newest whole checkpoint; what a killed process had begun to write is removed."""
    found: dict[int, Path] = {}
    for folder in work.glob(f"{CHECKPOINT}*"):
        number = folder.name.removeprefix(CHECKPOINT)
        # The state is the last file of a checkpoint that the Trainer writes.
        if number.isdigit() and read_json_object(folder / _STATE) is not None:
            found[int(number)] = folder
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return found[max(found)] if found else None


def _reached(run: Run) -> int:
    """The step of the last checkpoint of this very run."""
    if (read_json_object(Path(run.work) / KEY) or {}).get("key") != run.key:
        return 0
    last = last_checkpoint(Path(run.work))
    return int(last.name.removeprefix(CHECKPOINT)) if last is not None else 0


def _done(run: Run) -> Outcome | None:
    data = finished(run.work, run.key, run.out)
    return None if data is None else Outcome(**{**data, "history": tuple(data["history"])})


class _Poll:
    """Tells how far trainings on other machines are, by what they write."""

    def __init__(self, runs: Sequence[Run], watcher: Watcher) -> None:
        self._files = [Path(run.work) / PROGRESS for run in runs]
        self._watcher = watcher
        self._before = sum(_reached(run) for run in runs)

    def __call__(self) -> None:
        states = [read_json_object(f) for f in self._files]
        steps = sum(int(s["step"]) for s in states if s is not None)
        if steps > self._before:
            notes = [str(s["note"]) for s in states if s is not None and s.get("note")]
            self._watcher.advance(steps - self._before, ", ".join(notes))
            self._before = steps


@dataclass(frozen=True)
class _Maker:
    watcher: Watcher | None

    def __call__(self, device: str) -> Callable[[str], dict[str, Any]]:
        return _Work(device, self.watcher)


@dataclass(frozen=True)
class _Work:
    """Trains one target after the other on a worker."""

    device: str
    watcher: Watcher | None

    def __call__(self, text: str) -> dict[str, Any]:
        from evomerge.fusion.alone import alone
        from evomerge.fusion.training.launch import launched
        from evomerge.fusion.training.work import train

        run = Run.read(text)
        with alone(Path(run.work)):
            begin(Path(run.work), run.key)
            if run.config.processes == 1:
                train(run, self.device, self.watcher)
        if run.config.processes > 1:
            launched(run, self.device)
        done = _done(run)
        if done is None:
            raise EvoMergeError(f"{run.work}: the training of {run.name} ended without a result")
        return asdict(done)


def finish(work: str, key: str, out: str, facts: Mapping[str, Any]) -> None:
    """Note that a training is done, after its checkpoint was written; what it went on from is needed no more."""
    write_json(Path(work) / RESULT, {"key": key, "content": _content(out), **facts})
    forget(Path(work))


def finished(work: str, key: str, out: str) -> dict[str, Any] | None:
    """What `finish` was told; None where the training was another, or its checkpoint is not what was written."""
    found = read_json_object(Path(work) / RESULT)
    if found is None or found.get("key") != key or found.get("content") != _content(out):
        return None
    return {k: v for k, v in found.items() if k not in ("key", "content")}


def _content(out: str) -> str | None:
    """Content hash of a checkpoint that was written; None where there is none, or no whole one."""
    from evomerge.errors import SourceError
    from evomerge.sources import open_source

    if not (Path(out) / "config.json").is_file():
        return None
    try:
        return open_source(out).content_hash()
    except SourceError:
        return None
