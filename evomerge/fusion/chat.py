"""Conversations as a model reads them: its chat template around the messages, and where in it each message stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.errors import InputError
from evomerge.fusion.documents import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stands for a message while the template is looked at: characters of the private use area, which nobody writes.
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"


class TemplateProblem(InputError):
    """A conversation that a chat template cannot show, or not as it is."""


@dataclass(frozen=True)
class Segment:
    """Where a string of a document stands in what the model reads.

    Attributes:
        start, end: In characters of what is read.
        skipped: Characters at the beginning of the string that the template leaves out (whitespace).
        learned: Whether the model is to learn to say it.
    """

    start: int
    end: int
    skipped: int
    learned: bool


def rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[str, list[Segment]]:
    """A conversation in a model's chat template, and the place of every message's content.

    Raises:
        TemplateProblem: the template refuses the conversation, or changes more of a message than the whitespace around.
    """
    marks = [f"{_OPEN}{i}{_CLOSE}" for i in range(len(messages))]
    text = _applied(tokenizer, messages)
    skeleton = _applied(tokenizer, [Message(m.role, mark) for m, mark in zip(messages, marks, strict=True)])
    literals: list[str] = []
    for number, mark in enumerate(marks):
        before, found, skeleton = skeleton.partition(mark)
        if not found or mark in skeleton:
            raise TemplateProblem(f"the chat template does not show message {number + 1} once, in its order")
        literals.append(before)
    literals.append(skeleton)
    segments: list[Segment] = []
    at = len(literals[0])
    if not text.startswith(literals[0]):
        raise TemplateProblem("what the chat template puts first depends on what the messages say")
    for number, message in enumerate(messages):
        after = literals[number + 1]
        last = number == len(messages) - 1
        for form in dict.fromkeys(
            (message.content, message.content.strip(), message.content.rstrip(), message.content.lstrip())
        ):
            end = at + len(form)
            if text.startswith(form, at) and (text[end:] == after if last else text.startswith(after, end)):
                break
        else:
            raise TemplateProblem(f"the chat template changes what message {number + 1} says")
        skipped = (
            len(message.content) - len(message.content.lstrip())
            if form != message.content and form == form.lstrip()
            else 0
        )
        segments.append(Segment(at, end, skipped, message.learned))
        at = end + len(after)
    return text, segments


def _applied(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    try:
        found = tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in messages], tokenize=False
        )
    except Exception as e:  # templates raise what they like: jinja's errors, TypeErrors, their own words
        raise TemplateProblem(f"the chat template refuses it: {' '.join(str(e).split())[:200]}") from None
    return str(found)
