"""One model scored by itself, in this process: `evomerge evaluate`."""

from __future__ import annotations

from collections.abc import Callable

from evomerge.errors import CandidateError
from evomerge.evaluation import EvaluatorFile
from evomerge.evaluation.config import Split
from evomerge.merging.device import check_device
from evomerge.sources import open_source
from evomerge.study.job import Answer, Job


def score_model(
    model: str, evaluator: EvaluatorFile, split: Split, device: str | None = None, say: Callable[[str], None] = print
) -> Answer:
    """Score a model on one split, as a search does.

    Args:
        device: torch's; None: CUDA where there is one.
        say: Is told what is done, and what is worth a line.

    Raises:
        InputError: the model, the evaluator or the device is wrong.
        CandidateError: it could not be scored.
    """
    if device is not None:
        check_device(device)
    source = open_source(model)

    from evomerge.study.builder import Builder

    say(f"scoring {model} on {split}")
    if evaluator.config.killed_after is not None:
        say(
            f"{evaluator.file}: timeout is not kept here: what hangs in this process cannot be stopped but by Ctrl-C"
        )
    answer = Builder({model: source}, model, evaluator, device).run(Job(split, source=model))
    for note in answer.notes:
        say(note)
    if answer.score is None:
        raise CandidateError(f"{model}: {answer.reason}")
    return answer
