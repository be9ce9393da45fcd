"""Prompts and their right answers, from JSON lines: what a gate learns from. Nothing here loads torch."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import InputError, beside

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Problems that are told at once.
_SHOWN = 5
_EXPECTED = 'an object with texts under "prompt" and "completion", or a list under "messages"'
ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Example:
    """One line of a file.

    Attributes:
        prompt: A text, or a conversation up to the last answer: messages of "role" and "content".
        answer: The right answer.
        place: Where it stands, in words for messages.
    """

    prompt: str | tuple[dict[str, str], ...]
    answer: str
    place: str


@dataclass(frozen=True)
class Tokens:
    """An example as token ids."""

    prompt: list[int]
    answer: list[int]


def read_examples(file: Path) -> list[Example]:
    """The examples of a .jsonl file, in its order.

    TRL's formats: {"prompt": ..., "completion": ...} ("answer" is taken too, as evaluators' items have it), and
    {"messages": [{"role": ..., "content": ...}, ...]}, of which the last must be the assistant's.

    Raises:
        InputError: the first few lines that are none, a line each, or that there is none.
    """
    if not file.is_file():
        what = "is a folder, expected a .jsonl file" if file.is_dir() else f"no such file{beside(file)}"
        raise InputError(f"{file}: {what}")
    found: list[Example] = []
    problems: list[str] = []
    try:
        # Some editors begin a text with a byte order mark.
        for number, line in enumerate(file.read_bytes().removeprefix(BOM_UTF8).splitlines(), start=1):
            if not line.strip():
                continue
            place = f"{file}:{number}"
            try:
                found.append(_example(_parsed(line, place), place))
            except InputError as e:
                problems.append(str(e))
                if len(problems) >= _SHOWN:
                    raise InputError("\n".join([*problems, f"{file}: read no further"])) from None
    except OSError as e:
        raise InputError(f"{file}: cannot be read ({e.strerror or e})") from None
    if problems:
        raise InputError("\n".join(problems))
    if not found:
        raise InputError(f"{file}: holds no example; expected in each line {_EXPECTED}")
    return found


def _parsed(line: bytes, place: str) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as e:
        raise InputError(f"{place}: is not UTF-8 text (at byte {e.start} of the line); expected JSON lines") from None
    except (ValueError, RecursionError):
        raise InputError(f"{place}: is not JSON; expected {_EXPECTED}") from None


def _example(entry: Any, place: str) -> Example:
    if not isinstance(entry, Mapping):
        raise InputError(f"{place}: expected {_EXPECTED}")
    if "messages" in entry:
        return _conversation(entry["messages"], place)
    prompt, answer = entry.get("prompt"), entry.get("completion", entry.get("answer"))
    for key, value in (("prompt", prompt), ("completion", answer)):
        if not isinstance(value, str) or not value.strip():
            keys = ", ".join(f'"{k}"' for k in entry) or "none"
            raise InputError(f'{place}: "{key}" is no text; expected {_EXPECTED}; its keys: {keys}')
    return Example(str(prompt), str(answer), place)


def _conversation(messages: Any, place: str) -> Example:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or len(messages) < 2:
        raise InputError(f'{place}: "messages": expected a list of a question and the right answer at least')
    for number, message in enumerate(messages):
        right = isinstance(message, Mapping) and message.get("role") in ROLES
        if not right or not isinstance(message.get("content"), str):
            raise InputError(
                f'{place}: messages[{number}]: expected an object with a text under "content" and under "role" one of '
                f"{', '.join(ROLES)}"
            )
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise InputError(f"{place}: its last message is no answer of the assistant; expected what is to be learned")
    kept = tuple({"role": m["role"], "content": m["content"]} for m in messages[:-1])
    return Example(kept, messages[-1]["content"], place)


def tokenized(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, most: int) -> Iterator[Tokens | None]:
    """Each example as a model reads it; None for one of more than `most` tokens.

    The answer ends with the tokenizer's end of text, or with what the chat template writes behind it.

    Raises:
        InputError: a conversation, and the tokenizer has no chat template or one that does not begin with its prompt.
    """
    for example in examples:
        prompt, answer = _ids(example, tokenizer)
        yield Tokens(prompt, answer) if len(prompt) + len(answer) <= most else None


def prompt_ids(prompt: str | Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a prompt, as generation begins with them: without the end of text that some tokenizers add."""
    if isinstance(prompt, str):
        return _unended(prompt, tokenizer)
    shown = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
    return list(tokenizer(shown, add_special_tokens=False)["input_ids"])


def _ids(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    if isinstance(example.prompt, str):
        prompt, whole = _unended(example.prompt, tokenizer), _unended(example.prompt + example.answer, tokenizer)
        # Some tokenizers split prompt and answer elsewhere than between them.
        if len(whole) > len(prompt) and whole[: len(prompt)] == prompt:
            answer = whole[len(prompt) :]
        else:
            answer = list(tokenizer(example.answer, add_special_tokens=False)["input_ids"])
        ending = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
        return prompt, answer + ending
    if not tokenizer.chat_template:
        raise InputError(
            f'{example.place}: has "messages", and the base has no chat template; expected "prompt" and "completion"'
        )
    ids = prompt_ids(example.prompt, tokenizer)
    messages = [*example.prompt, {"role": "assistant", "content": example.answer}]
    shown = tokenizer.apply_chat_template(messages, tokenize=False)
    found = list(tokenizer(shown, add_special_tokens=False)["input_ids"])
    if found[: len(ids)] != ids or len(found) == len(ids):
        raise InputError(
            f"{example.place}: the chat template does not begin a whole conversation as it begins the prompt; expected "
            'one that does, or "prompt" and "completion"'
        )
    return ids, found[len(ids) :]


def _unended(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A text's ids, without an end of text that is not in it."""
    ids, end = list(tokenizer(text)["input_ids"]), tokenizer.eos_token_id
    if not ids or ids[-1] != end:
        return ids
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids if plain and plain[-1] == end else ids[:-1]
