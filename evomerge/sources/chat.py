"""Whether a model has a chat template: looked for in its files, as transformers does."""

from __future__ import annotations

from evomerge.sources.files import read_object, small_file
from evomerge.sources.source import Source

_FILES = ("chat_template.jinja", "chat_template.json")


def has_chat_template(source: Source) -> bool:
    """Whether its tokenizer turns messages into text.

    Raises:
        SourceError: tokenizer_config.json cannot be read.
    """
    if any(small_file(source.path, name) is not None for name in _FILES):
        return True
    if small_file(source.path, "tokenizer_config.json") is None:
        return False
    return bool(read_object(source.path, "tokenizer_config.json").get("chat_template"))
