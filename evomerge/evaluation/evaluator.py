"""What every evaluator offers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from evomerge.evaluation.config import EVALUATORS, Split
from evomerge.evaluation.file import EvaluatorFile
from evomerge.evaluation.splits import Places
from evomerge.score import Score

# Raised whenever our own part of scoring changes, so that results of before are not used again.
VERSION = 1
CODE = (".py", ".yaml", ".yml", ".jinja", ".txt")


class Evaluator(Protocol):
    """Scores live models on items that it prepared once.

    The contract suite in tests/contracts/test_evaluators.py holds every entry of `EVALUATORS` to this.
    """

    def __init__(self, file: EvaluatorFile, say: Callable[[str], None] | None = None) -> None:
        """Load tasks and items.

        Args:
            say: Is told what the user should know of: a smaller batch because memory ran out.

        Raises:
            EvaluatorError: an unknown task, metric or option.
        """

    @property
    def sees(self) -> bool:
        """Whether it shows pictures: models are then vision-language models, each with its processor."""

    def items(self, split: Split) -> Mapping[str, tuple[str, ...]]:
        """Ids of each task's items in a split."""

    def searched(self) -> Sequence[str]:
        """Names of the tasks that are run on the search items, as `items` has them."""

    def groups(self) -> Mapping[str, Sequence[str]]:
        """Of what the file names that is several tasks (a group or tag of lm-eval), their names."""

    def texts(self, split: Split) -> Mapping[str, tuple[str, ...]]:
        """What a model is shown of each item, with the right answer, in the order of `items`; for `overlaps`.

        Empty where that is not known.
        """

    def definition(self) -> Mapping[str, str]:
        """Hash per task of what the evaluator's file does not hold (a task's own configuration and code)."""

    def measures(self, task: str) -> Sequence[str]:
        """What can be measured of a task's answers beside its metric ("length", ...)."""

    def versions(self) -> Mapping[str, str]:
        """Hash per task of all that a model's results on its search items depend on.

        Where it is equal, results are used again: of the same study, of another with more items or other weights.
        """

    def evaluate(self, model: Any, tokenizer: Any, split: Split, only: Places | None = None) -> Score:
        """Score a model (a transformers causal language model in eval mode) with its tokenizer.

        One that `sees` is given the model's processor, which holds the tokenizer, in the tokenizer's place.

        On "search" only the tasks are run that count or that an objective or a constraint needs; on "select" and "test"
        all of them. What is measured of a task's answers beside its metric follows it as a score "TASK.MEASURE" of
        weight 0.

        Args:
            only: Which of the split's items to score; default all. Tasks that none of them belongs to are left out.

        Raises:
            CandidateError: the model's logits are NaN or infinite, or a result is not a finite number.
        """


@runtime_checkable
class SavedEvaluator(Evaluator, Protocol):
    """One that scores checkpoints on disk: candidates need no live model, and are written for it."""

    def saved(
        self, write: Callable[[Path], None], needed: int, place: Path | None = None
    ) -> AbstractContextManager[Path]:
        """Room for a checkpoint while it is scored: the folder `model` in a new one.

        Args:
            write: Writes it into the folder it is given.
            needed: Bytes of its weights.
            place: The only folder to make one in; default: the best that has room.

        Raises:
            EvoMergeError: there is no room for it.
        """

    def evaluate_saved(self, model: Path, split: Split, only: Places | None = None) -> Score:
        """Score a checkpoint; see `Evaluator.evaluate`."""


def settings(file: EvaluatorFile) -> dict[str, Any]:
    """What the results of every task depend on, for `Evaluator.versions`."""
    named = file.fingerprint()
    for other in ("tasks", "splits", "split_seed", "items", "items_sha256", "objectives", "constraints"):
        named.pop(other, None)
    libraries = {name: metadata.version(name) for name in ("torch", "transformers")}
    return {"version": VERSION, "settings": named, "libraries": libraries, "code": _code(file)}


def _code(file: EvaluatorFile) -> dict[str, str]:
    """Hash of every file under `include_path` that may say how a task is scored: what a function calls is not in it."""
    folder = file.config.include_path
    if folder is None:
        return {}
    root = file.path(folder, "include_path")
    files = sorted(p for p in root.rglob("*") if p.suffix in CODE and p.is_file())
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def saves_models(file: EvaluatorFile) -> bool:
    """Whether its evaluator scores checkpoints (see `SavedEvaluator`)."""
    return file.config.kind == "command"


def leaves_models(file: EvaluatorFile) -> bool:
    """Whether a live model that was scored is sure to have the weights that it had: by a function it may not."""
    return file.config.kind == "lm_eval"


def open_evaluator(file: EvaluatorFile, say: Callable[[str], None] | None = None) -> Evaluator:
    """Make the evaluator that a file describes, ready to score; see `Evaluator.__init__`."""
    module, _, name = EVALUATORS[file.config.kind].partition(":")
    made: Evaluator = getattr(import_module(module), name)(file, say)
    return made
