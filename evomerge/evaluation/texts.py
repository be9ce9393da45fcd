"""What a model is shown of an item of lm-eval, and what it is to answer, as one text."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from evomerge.evaluation.obstacles import right_answer


def item_text(task: Any, doc: Any) -> str:
    """Prompt and right answer of an item, without few-shot examples.

    A prompt that stands in the choices (lm-eval's `multiple_inputs`) is all of these.
    """
    shown: list[Any] = [task.doc_to_text(doc)]
    if not isinstance(shown[0], str):
        shown = list(task.doc_to_choice(doc))
    try:
        answer = right_answer(task, doc)
    except (KeyError, IndexError, TypeError):  # an item whose answer is kept back, or is no place in the choices
        answer = ""
    shown += answer if isinstance(answer, list) else [answer]
    return " ".join(str(part) for part in shown)


@contextmanager
def templates_compiled_once() -> Iterator[None]:
    """Inside the block lm-eval's templates are compiled once each, not anew for every item: ten times as fast."""
    from lm_eval.utils import env

    compiled = functools.lru_cache(maxsize=None)(env.from_string)
    env.from_string = compiled
    try:
        yield
    finally:
        del env.from_string
