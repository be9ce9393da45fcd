"""What the tokens of a tokenizer stand for: the bytes of each, and which have a role instead (end of text, ...)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.errors import SourceError
from evomerge.fusion.chat import TemplateProblem, rendered
from evomerge.fusion.documents import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
METASPACE = "\u2581"
# Of what `Reader` makes of the tokens: other tokens, places or masks from the same tokenizer.
VERSION = 2


def byte_characters() -> dict[str, int]:
    """The characters by which byte-level BPE writes bytes (GPT-2's table): printable ones stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(b): b for b in printable}
    others = [b for b in range(256) if b not in printable]
    return table | {chr(256 + i): b for i, b in enumerate(others)}


class Vocabulary:
    """The tokens of one tokenizer, by id.

    Attributes:
        size: One more than the largest id.
        tokens: As the tokenizer writes them; "" for ids that it leaves out.
        pieces: The bytes that each stands for in running text, where a word that begins one has a space before it; b""
            for special tokens and ids that are left out.
        special: Whether a token is a special one, [size].
        unknown: Id of the token that the tokenizer itself puts for what it cannot write, or None: byte-level BPE has
            none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str = "tokenizer") -> None:
        """Read a tokenizer.

        Raises:
            SourceError: it is not one of the tokenizers library (a tokenizer.json), which alone says where each token
                lies in a text.
        """
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise SourceError(
                f"{name}: its tokenizer ({type(tokenizer).__name__}) is none of the tokenizers library, which alone "
                "says where each token lies in a text; convert it to a tokenizer.json first"
            )
        self.tokenizer = tokenizer
        self.backend = backend
        self._state: dict[str, Any] = json.loads(backend.to_str())
        ids: Mapping[str, int] = backend.get_vocab(with_added_tokens=True)
        self.size = max(ids.values(), default=-1) + 1
        self.tokens: list[str] = [""] * self.size
        for token, i in ids.items():
            self.tokens[i] = token
        added = {int(i): t for i, t in backend.get_added_tokens_decoder().items()}
        self.special = np.zeros(self.size, bool)
        for i, token in added.items():
            self.special[i] = token.special
        for i in tokenizer.all_special_ids:
            self.special[i] = True
        self.unknown: int | None = self._unknown(ids)
        if self.unknown is not None:
            self.special[self.unknown] = True
        if self.byte_fallback:  # <0x0A> is a byte, also where a tokenizer lists it among its special tokens
            for i, token in enumerate(self.tokens):
                if BYTE_TOKEN.fullmatch(token):
                    self.special[i] = False
                    added.pop(i, None)
        read = self._reader()
        self.pieces: list[bytes] = [
            b"" if not token or self.special[i] else token.encode() if i in added else read(token)
            for i, token in enumerate(self.tokens)
        ]
        # In running text an added token is what it is called, special ones too.
        self._written = [
            token.encode() if i in added else piece
            for i, (token, piece) in enumerate(zip(self.tokens, self.pieces, strict=True))
        ]

    @property
    def kind(self) -> str:
        """The tokenizer's algorithm: BPE, Unigram, WordPiece, WordLevel."""
        return str(self._state["model"]["type"])

    @cached_property
    def byte_level(self) -> bool:
        """Whether tokens are bytes written as characters (GPT-2)."""
        return any(
            part.get("type") == "ByteLevel" for key in ("decoder", "pre_tokenizer") for part in _parts(self._state[key])
        )

    @cached_property
    def byte_fallback(self) -> bool:
        """Whether a byte that is in no token is written as <0xNN>."""
        return bool(self._state["model"].get("byte_fallback"))

    @cached_property
    def metaspace(self) -> bool:
        """Whether a token that begins a word says so by a character of its own (SentencePiece)."""
        parts = [p for key in ("decoder", "pre_tokenizer", "normalizer") for p in _parts(self._state[key])]
        return any(p.get("type") == "Metaspace" for p in parts) or any(
            METASPACE in json.dumps(p, ensure_ascii=False) for p in parts
        )

    @cached_property
    def lengths(self) -> np.ndarray:
        """Bytes of each token in running text, [size]."""
        return np.array([len(p) for p in self._written], np.int64)

    def joined(self, ids: Sequence[int]) -> bytes:
        """What tokens stand for, one after the other."""
        return b"".join([self._written[i] for i in ids])

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that decides what the tokenizer makes of a text."""
        state = {k: v for k, v in self._state.items() if k not in ("truncation", "padding", "version")}
        roles = {role: self._role(role) for role in ("bos", "eos", "unk")}
        text = json.dumps([VERSION, state, roles], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    @cached_property
    def key(self) -> str:
        """SHA-256 (hex) of what decides what a model is given of a document: `digest`, and the chat template."""
        template = getattr(self.tokenizer, "chat_template", None)
        return hashlib.sha256(f"{self.digest} {template!r}".encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def eos(self) -> int | None:
        """Id of the token that ends a text, or None."""
        return self._role("eos")

    @cached_property
    def turn_end(self) -> int | None:
        """Id of the token that the chat template puts after what the assistant says, or None."""
        if not getattr(self.tokenizer, "chat_template", None):
            return None
        turns = (Message("user", "1"), Message("assistant", "2"))
        try:
            text, segments = rendered(self.tokenizer, turns)
        except TemplateProblem:
            return None
        after = self.backend.encode(text[segments[-1].end :], add_special_tokens=False).ids
        return next((int(i) for i in after if self.special[i]), None)

    def _unknown(self, ids: Mapping[str, int]) -> int | None:
        """By the algorithm's own word: what transformers calls `unk_token` may be the end of a text (GPT-2, GPT-NeoX),
        which nothing that cannot be written becomes."""
        model = self._state["model"]
        if model["type"] == "Unigram":
            place = model.get("unk_id")
            return None if place is None else int(ids[model["vocab"][place][0]])
        return ids.get(model.get("unk_token") or "")

    def _role(self, role: str) -> int | None:
        value = getattr(self.tokenizer, f"{role}_token_id", None)
        return int(value) if isinstance(value, int) else None

    def _reader(self) -> Any:
        """From a token as it is written to its bytes."""
        if self.byte_level:
            table = byte_characters()

            def from_characters(token: str) -> bytes:
                found = [table.get(c) for c in token]
                return token.encode() if None in found else bytes(b for b in found if b is not None)

            return from_characters
        if self.kind == "WordPiece":
            prefix = str(self._state["model"].get("continuing_subword_prefix", "##"))
            return lambda token: token[len(prefix) :].encode() if token.startswith(prefix) else f" {token}".encode()
        if self.metaspace:

            def from_pieces(token: str) -> bytes:
                byte = BYTE_TOKEN.fullmatch(token) if self.byte_fallback else None
                return bytes([int(byte[1], 16)]) if byte else token.replace(METASPACE, " ").encode()

            return from_pieces
        return lambda token: f" {token}".encode() if self.kind == "WordLevel" else token.encode()


def _parts(part: Any) -> list[dict[str, Any]]:
    """A step of a tokenizer's pipeline, or the steps of a sequence of them."""
    if not isinstance(part, dict):
        return []
    inner = next((part[k] for k in ("pretokenizers", "decoders", "normalizers") if isinstance(part.get(k), list)), None)
    return [p for i in inner for p in _parts(i)] if inner is not None else [part]
