"""One model scored by itself, in this process: `evomerge evaluate`."""

from __future__ import annotations

import time
from collections.abc import Callable

from evomerge.errors import CandidateError, InputError
from evomerge.evaluation import EvaluatorFile, open_evaluator, saves_models
from evomerge.evaluation.config import Split
from evomerge.merging.device import check_device
from evomerge.pipeline.models import check_images
from evomerge.skills.folder import is_gated
from evomerge.sources import open_source
from evomerge.study.job import Answer, Job


def score_model(
    model: str, evaluator: EvaluatorFile, split: Split, device: str | None = None, say: Callable[[str], None] = print,
    *, base: str | None = None,
) -> Answer:  # fmt: skip
    """Score a model on one split, as a search does.

    Args:
        model: A reference, or the folder of a gated model.
        device: torch's; None: CUDA where there is one.
        say: Is told what is done, and what is worth a line.
        base: Where a gated model's base lies, if that is elsewhere than its folder says.

    Raises:
        InputError: the model, the evaluator or the device is wrong.
        CandidateError: it could not be scored.
    """
    if device is not None:
        check_device(device)
    if is_gated(model):
        return _score_gated(model, evaluator, split, device, say, base)
    if base is not None:
        raise InputError(f"--base {base}: says where a gated model's base lies, and {model} is none; leave it out")
    source = open_source(model)
    check_images(source, evaluator)

    from evomerge.study.builder import Builder

    say(f"scoring {model} on {split}")
    if evaluator.config.killed_after is not None:
        say(f"{evaluator.file}: timeout is not kept here: what hangs in this process cannot be stopped but by Ctrl-C")
    answer = Builder({model: source}, model, evaluator, device).run(Job(split, source=model))
    for note in answer.notes:
        say(note)
    if answer.score is None:
        raise CandidateError(f"{model}: {answer.reason}")
    return answer


def _score_gated(
    model: str, evaluator: EvaluatorFile, split: Split, device: str | None, say: Callable[[str], None],
    base: str | None,
) -> Answer:  # fmt: skip
    """Score a folder that `evomerge skills gate` wrote: by what it generates, each prompt with weights of its own."""
    if saves_models(evaluator):
        raise InputError(
            f"{evaluator.file}: kind: command scores checkpoints, and {model} is none; expected another kind"
        )
    import torch

    from evomerge.skills.gated import GatedModel

    where = device or evaluator.config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = None if evaluator.config.dtype == "auto" else getattr(torch, evaluator.config.dtype)
    began = time.perf_counter()
    scored = open_evaluator(evaluator, say)
    gated = GatedModel.from_pretrained(model, base=base, dtype=dtype, device=where)
    say(f"scoring {model} on {split}")
    built = time.perf_counter()
    score = scored.evaluate(gated, gated.tokenizer, split)
    return Answer(score, seconds={"build": built - began, "evaluate": time.perf_counter() - built})
