"""Documents of a small text file, and the tokens that a model sees of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_documents(file: Path) -> tuple[list[str], str]:
    """The documents of a file, and the SHA-256 (hex) of its bytes.

    A file named .jsonl has one JSON object a line, with its document under "text". In any other, documents are divided
    by blank lines; where there is no blank line, each line is one.

    Raises:
        InputError: the file is missing, is not UTF-8, holds no document, or (with the line) no JSON with "text".
    """
    try:
        data = file.read_bytes()
        content = data.decode("utf-8")
    except OSError as e:
        raise InputError(f"{file}: cannot be read ({e.strerror or e})") from None
    except UnicodeDecodeError as e:
        raise InputError(f"{file}: is not UTF-8 text ({e.reason} at byte {e.start})") from None
    found = _json_lines(file, content) if file.suffix.lower() == ".jsonl" else _plain(content)
    found = [text for text in found if text.strip()]
    if not found:
        raise InputError(f"{file}: holds no document")
    return found, hashlib.sha256(data).hexdigest()


def _plain(content: str) -> list[str]:
    lines = content.splitlines()
    if all(line.strip() for line in lines):
        return lines
    documents: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            documents[-1].append(line)
        elif documents[-1]:
            documents.append([])
    return ["\n".join(document) for document in documents]


def _json_lines(file: Path, content: str) -> list[str]:
    found = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise InputError(f"{file}, line {number}: not JSON ({e})") from None
        text = entry.get("text") if isinstance(entry, dict) else None
        if not isinstance(text, str):
            raise InputError(f'{file}, line {number}: expected an object with a string under "text"')
        found.append(text)
    return found


def tokenized(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, samples: int | None
) -> list[list[int]]:
    """The first `max_length` tokens of each document, special tokens as the tokenizer adds them.

    Documents of fewer than two tokens, which predict nothing, are left out; the first `samples` others are taken.

    Raises:
        InputError: none is left.
    """
    found: list[list[int]] = []
    for document in documents:
        tokens = list(tokenizer(document, truncation=False)["input_ids"])[:max_length]
        if len(tokens) >= 2:
            found.append(tokens)
        if samples is not None and len(found) >= samples:
            break
    if not found:
        raise InputError("the text has no document of at least two tokens")
    return found
