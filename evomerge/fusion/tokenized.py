"""A document as one model reads it: its tokens, and where each of them ends in the document's own bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.errors import SourceError
from evomerge.fusion.chat import Segment, TemplateProblem, rendered
from evomerge.fusion.documents import Document
from evomerge.fusion.vocabulary import Vocabulary

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tokenized:
    """Tokens of a document, all arrays of length n.

    `starts` and `ends` of the tokens that stand for text follow one another without a gap.

    Attributes:
        ids: Token ids, int32.
        starts: Where the bytes that a token stands for begin in the document, int64; -1 for a token that stands for
            none of them (what a chat template adds, the end of the text).
        ends: Where they end. A token right before a message begins (or a text: the token at the beginning) has both at
            the message's beginning.
        boundary: Whether the tokens up to this one are exactly the document up to `ends`; not so in the middle of a
            character that the tokenizer wrote in other ones.
        known: Whether the tokenizer could write what the token stands for; not so for <unk>, unless the text says so.
        learned: Whether a model is to learn to say the token: of a conversation the assistant's messages, and the token
            that ends them.
        lossy: Whether the tokens, decoded, give another text than the one to learn: a normaliser changed it (lower
            case, white space folded, NFKC), or characters were dropped. <unk> does not count, nor does one space before
            the text, which tokenizers add or leave out by design.
    """

    ids: Array
    starts: Array
    ends: Array
    boundary: Array
    known: Array
    learned: Array
    lossy: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sizes(self) -> Array:
        """Bytes that each token stands for, [n]."""
        return np.where(self.ends >= 0, self.ends - self.starts, 0)

    @property
    def scored(self) -> Array:
        """Tokens whose likelihood counts for bits per byte: those to learn that stand for text, [n]."""
        return self.learned & (self.ends >= 0)


# What a byte costs that a tokenizer has no token for: any of 256 is as likely, 8 bits.
BYTE_NATS = math.log(256)


def unwritable(tokens: Tokenized) -> int:
    """Bytes of the text to learn that the tokenizer could not write."""
    lost = tokens.scored & ~tokens.known
    return int(tokens.sizes[1:][lost[1:]].sum())


class Reader:
    """Makes one model's tokens of documents.

    Special tokens are those that the tokenizer adds itself; the end of a text is marked where there is a token for it.

    Args:
        name: What messages call the model.
        rows: How many tokens the model knows, where that is to be looked at.
    """

    def __init__(self, vocabulary: Vocabulary, name: str = "", rows: int | None = None) -> None:
        self.vocabulary = vocabulary
        self._name, self._rows = name, rows
        vocabulary.backend.no_truncation()
        vocabulary.backend.no_padding()

    def read(self, documents: Sequence[Document]) -> list[Tokenized]:
        """Tokens of each document.

        Raises:
            TemplateProblem: a conversation does not go into the model's chat template.
            SourceError: the tokenizer gives a token that the model does not have.
        """
        found: dict[int, Tokenized] = {}
        texts = [i for i, d in enumerate(documents) if not d.messages]
        encodings = self.vocabulary.backend.encode_batch([documents[i].text for i in texts], add_special_tokens=True)
        for i, encoding in zip(texts, encodings, strict=True):
            found[i] = self._text(documents[i], encoding)
        for i, document in enumerate(documents):
            if document.messages:
                found[i] = self._chat(document)
        if self._rows is not None:
            largest = max((int(t.ids.max()) for t in found.values() if len(t)), default=0)
            if largest >= self._rows:
                raise SourceError(
                    f"{self._name}: its tokenizer gives token {largest}, its embedding has {self._rows} rows"
                )
        return [found[i] for i in range(len(documents))]

    def _text(self, document: Document, encoding: Any) -> Tokenized:
        text = document.text
        ids = np.array(encoding.ids, np.int64)
        added = np.array(encoding.special_tokens_mask, bool)
        own = np.flatnonzero(~added)
        ends, boundary, same = self._ends(text, ids[own], encoding, own)
        size = len(text.encode())
        if len(ends) and ends[-1] != size:
            ends[-1], boundary[-1] = size, True  # whitespace at the end that the tokenizer leaves out
        starts = np.full(len(ids), -1, np.int64)
        all_ends, exact = starts.copy(), np.zeros(len(ids), bool)
        all_ends[own], exact[own] = ends, boundary
        starts[own] = np.concatenate([[0], ends[:-1]]) if len(own) else ends
        if len(own) and own[0]:  # the last token before the text: what follows it is the text's beginning
            starts[own[0] - 1] = all_ends[own[0] - 1] = 0
            exact[own[0] - 1] = True
        learned = np.ones(len(ids), bool)
        learned[: own[0] if len(own) else 0] = False
        known = self._known(text, ids, encoding, own)
        lossy = not same and not self._given_back(text.encode(), ids[own], starts[own], ends, known[own])
        eos = self.vocabulary.eos
        if document.continued:
            learned[own[-1] + 1 if len(own) else 0 :] = False
        elif eos is not None and len(ids) and not (added[-1] or ids[-1] == eos):
            ids = np.append(ids, eos)
            starts, all_ends = np.append(starts, -1), np.append(all_ends, -1)
            exact, known, learned = np.append(exact, False), np.append(known, True), np.append(learned, True)
        return Tokenized(ids.astype(np.int32), starts, all_ends, exact, known, learned, lossy)

    def _chat(self, document: Document) -> Tokenized:
        try:
            text, segments = rendered(self.vocabulary.tokenizer, document.messages)
        except TemplateProblem as e:
            raise TemplateProblem(f"{self._name}: {e}" if self._name else str(e)) from None
        encoding = self.vocabulary.backend.encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, np.int64)
        own = np.arange(len(ids))
        ends, boundary, same = self._ends(text, ids, encoding, own)
        starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
        characters = _byte_offsets(text)
        at, to = np.full(len(ids), -1, np.int64), np.full(len(ids), -1, np.int64)
        learned = np.zeros(len(ids), bool)
        literals = [int(characters[s.start]) for s in segments[1:]] + [int(characters[-1])]
        for segment, content, offset, until in zip(
            segments, document.contents, document.offsets, literals, strict=True
        ):
            self._place(segment, content, offset, until, characters, ids, starts, ends, at, to, learned)
        known = self._known(text, ids, encoding, own)
        lossy = not same and not all(
            self._given_back(text.encode(), ids, starts, ends, known, characters[s.start], characters[s.end])
            for s in segments
            if s.learned
        )
        return Tokenized(ids.astype(np.int32), at, to, boundary & (to >= 0), known, learned, lossy)

    def _place(
        self, segment: Segment, content: str, offset: int, until: int, characters: Array, ids: Array, starts: Array,
        ends: Array, at: Array, to: Array, learned: Array,
    ) -> None:  # fmt: skip
        """Put the positions of one message's tokens into `at` and `to`, and mark those to learn.

        Args:
            until: The byte at which the next message begins.
        """
        first, last = int(characters[segment.start]), int(characters[segment.end])
        origin = offset + len(content[: segment.skipped].encode())
        inside = (ends > first) & (ends <= last)
        at[inside] = origin + np.maximum(starts[inside], first) - first
        to[inside] = origin + ends[inside] - first
        before = np.flatnonzero((ends == first) & (to < 0))
        if len(before):
            at[before[-1]] = to[before[-1]] = origin
        if segment.learned:
            learned[(ends > first) & ((starts < last) | (ends == last))] = True
            # What ends the message: up to the first special token before the next one, else the one token behind it.
            after = np.flatnonzero((starts >= last) & (ends > last) & (starts < until))
            special = np.flatnonzero(self.vocabulary.special[ids[after]])
            if len(special):
                learned[after[: special[0] + 1]] = True
            elif len(after) and starts[after[0]] == last:
                learned[after[0]] = True

    def _known(self, text: str, ids: Array, encoding: Any, own: Array) -> Array:
        """Which tokens are no <unk>; one that the text spells out, or that is put around it, stands for itself: it may
        be the end of a text as well."""
        known = np.ones(len(ids), bool)
        if self.vocabulary.unknown is None:
            return known
        for i in own[ids[own] == self.vocabulary.unknown].tolist():
            start, end = encoding.offsets[i]
            known[i] = text[start:end].strip() == self.vocabulary.tokens[ids[i]]
        return known

    def _given_back(
        self, data: bytes, ids: Array, starts: Array, ends: Array, known: Array, first: int = 0, last: int | None = None
    ) -> bool:
        """Whether tokens, decoded, say what stands between two bytes of what was read, but for what they cannot write.

        Args:
            starts, ends: In `data`, without gaps.
            first, last: Tokens that reach over one of them say more than that.
        """
        last = len(data) if last is None else last
        inside = (ends > first) & (starts < last)
        if not inside.any():
            return not data[first:last].strip()
        kept = np.flatnonzero(inside & known)
        wanted = b"".join(data[max(int(starts[i]), first) : min(int(ends[i]), last)] for i in kept)
        tokens = ids[kept].tolist()
        # The tokenizer's own decoder knows, for one, that there is no space before a comma, where tokens do not say so.
        decoded: str = self.vocabulary.backend.decode(tokens, skip_special_tokens=False)
        given = (self.vocabulary.joined(tokens), decoded.encode())
        return any(wanted.removeprefix(b" ") in g.removeprefix(b" ") for g in given)

    def _ends(self, text: str, ids: Array, encoding: Any, own: Array) -> tuple[Array, Array, bool]:
        """Where each token ends in the text's bytes, whether that is exactly so, and whether they say just the text."""
        data = text.encode()
        written = self.vocabulary.joined(ids.tolist())
        shift = len(written) - len(data)
        # A space that the tokenizer puts before the text is no part of it.
        if written == data or (shift == 1 and written[:1] == b" " and written[1:] == data):
            ends = np.cumsum(self.vocabulary.lengths[ids]) - shift
            return np.maximum(ends, 0), np.ones(len(ids), bool), True
        return *self._ends_by_offsets(text, data, ids, [encoding.offsets[i] for i in own]), False

    def _ends_by_offsets(
        self, text: str, data: bytes, ids: Array, offsets: Sequence[tuple[int, int]]
    ) -> tuple[Array, Array]:
        """The same from the characters that the tokenizer gives for each token, where tokens alone do not say it.

        Several tokens of one character (its bytes; what a normaliser made of it) all end where it does: only the last
        of them is a boundary, unless their bytes are the character's own.
        """
        characters = _byte_offsets(text)
        ends = characters[np.array([end for _, end in offsets], np.int64)] if len(offsets) else np.zeros(0, np.int64)
        ends = np.maximum.accumulate(ends)
        boundary = np.ones(len(ids), bool)
        starts_at = characters[np.array([start for start, _ in offsets], np.int64)] if len(offsets) else ends
        i = 0
        while i < len(ids):
            j = i + 1
            while j < len(ids) and ends[j] == ends[i] and starts_at[j] < ends[i]:
                j += 1
            if j - i > 1:
                group = ids[i:j]
                begin = int(ends[i - 1]) if i else 0
                if self.vocabulary.joined(group.tolist()) == data[begin : int(ends[i])]:
                    ends[i:j] = begin + np.cumsum(self.vocabulary.lengths[group])
                else:
                    boundary[i : j - 1] = False
            elif j < len(ids) and starts_at[j] < ends[i]:
                # Given a character that the next one begins with as well: a space put before a word ends before the
                # word, and within what a normaliser made of one character there is no boundary.
                ends[i] = max(int(ends[i - 1]) if i else 0, int(starts_at[j]))
                boundary[i] = not self.vocabulary.joined([int(ids[i])]).strip()
            i = j
        return ends, boundary


def _byte_offsets(text: str) -> Array:
    """The byte at which each character begins, and the number of bytes: [characters + 1]."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
