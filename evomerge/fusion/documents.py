"""Documents of a corpus, and the bytes by which all models agree where they are in one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str

    @property
    def learned(self) -> bool:
        """Whether a model is to learn to say it: what users and instructions say is only read."""
        return self.role == "assistant"


@dataclass(frozen=True)
class Document:
    """A text, or a conversation.

    Positions in a document are counted in UTF-8 bytes: of its text, or of its messages' contents one after the other,
    with one byte between two, so that the end of one is another place than the beginning of the next. What a chat
    template puts around the contents differs by model and has no position.

    Attributes:
        text: The text; "" for a conversation.
        messages: The conversation; empty for a text.
        domain: What it is about, for figures by domain.
        place: Where it comes from, in words for messages.
        continued: Whether the text goes on in another document, so that it does not end here.
    """

    text: str = ""
    messages: tuple[Message, ...] = ()
    domain: str = ""
    place: str = ""
    continued: bool = False

    @property
    def contents(self) -> tuple[str, ...]:
        """The strings that have positions."""
        return tuple(m.content for m in self.messages) if self.messages else (self.text,)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each of `contents` begins."""
        found, at = [], 0
        for content in self.contents:
            found.append(at)
            at += len(content.encode()) + 1
        return tuple(found)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of what it says; equal documents have equal ones, wherever they come from."""
        said = [[m.role, m.content] for m in self.messages] if self.messages else self.text
        return hashlib.sha256(json.dumps(said, ensure_ascii=False).encode()).hexdigest()

    def beginning(self, count: int) -> Document:
        """The conversation's first messages alone."""
        return Document("", self.messages[:count], self.domain, self.place)
