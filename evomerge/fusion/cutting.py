"""Documents cut to what every model can read, all of them at the same places; and what becomes of which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from evomerge.fusion.chat import TemplateProblem
from evomerge.fusion.documents import Document
from evomerge.fusion.tokenized import Reader, Tokenized

# Characters that are looked at for each token of the limit: a tokenizer that makes more of them is asked again with
# more.
_CHARACTERS = 8
_BATCH = 256
NOTHING = "nothing that every tokenizer has a token for"


@dataclass
class Counts:
    """What became of a corpus's documents.

    Attributes:
        documents, pieces: How many were read, and how many they were cut into.
        left_out: Why documents are not among them, with how many and where the first is.
        unwritable: By model: documents with text that its tokenizer cannot write (<unk>), and where the first is.
        lossy: By model: documents that its tokens, decoded, do not give back; see `Tokenized.lossy`.
    """

    documents: int = 0
    pieces: int = 0
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)
    unwritable: dict[str, tuple[int, str]] = field(default_factory=dict)
    lossy: dict[str, tuple[int, str]] = field(default_factory=dict)

    def leave_out(self, why: str, place: str) -> None:
        """Count a document that is left out."""
        self.left_out[why] = _counted(self.left_out.get(why), place)

    def look_at(self, pieces: Sequence[Mapping[str, Tokenized]], place: str) -> None:
        """Count a document for the models whose tokenizer cannot write all of it, or does not give it back.

        Args:
            pieces: The tokens of each of its pieces, by model.
        """
        for kind, wrong in ((self.unwritable, _unknown), (self.lossy, lambda t: t.lossy)):
            for name in dict.fromkeys(n for found in pieces for n, tokens in found.items() if wrong(tokens)):
                kind[name] = _counted(kind.get(name), place)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Counts:
        """What `to_dict` gave."""
        kinds = ({k: (n, at) for k, (n, at) in data[key].items()} for key in ("left_out", "unwritable", "lossy"))
        return cls(data["documents"], data["pieces"], *kinds)

    def lines(self, what: str = "documents", *, places: bool = True) -> list[str]:
        """In words, for whoever runs it.

        Args:
            places: Whether to say where the first of each is; that names somebody's files.
        """

        def first(at: str) -> str:
            return f" (first: {at})" if places else ""

        found = [
            f"{n:,} of {self.documents:,} {what} left out: {why}{first(at)}" for why, (n, at) in self.left_out.items()
        ]
        found += [
            f"{name}: its tokenizer cannot write all of {n:,} {what}{first(at)}; what it cannot is not learned, and "
            "measured as 8 bits per byte"
            for name, (n, at) in self.unwritable.items()
        ]
        found += [
            f"{name}: its tokenizer does not give {n:,} {what} back as they are{first(at)}: it changes text (letter "
            "case, white space, forms of characters); all bytes of the text count, so its bits per byte look too good"
            for name, (n, at) in self.lossy.items()
        ]
        return found


def _unknown(tokens: Tokenized) -> bool:
    """Whether there is text to learn that is not written."""
    return not bool(tokens.known[tokens.learned].all())


def _counted(before: tuple[int, str] | None, place: str) -> tuple[int, str]:
    return (1, place) if before is None else (before[0] + 1, before[1])


def pieces(
    documents: Iterable[Document], readers: Mapping[str, Reader], limit: int, counts: Counts
) -> Iterator[tuple[int, Document, dict[str, int]]]:
    """The pieces of documents that no tokenizer makes more than `limit` tokens of: (number of the document, piece, how
    many each tokenizer makes)."""
    numbered = enumerate(documents)
    while batch := list(islice(numbered, _BATCH)):
        counts.documents += len(batch)
        # Texts that may well be whole are read together.
        short = [d for _, d in batch if not d.messages and len(d.text) <= limit * _CHARACTERS and d.text.strip()]
        read = {name: dict(zip(map(id, short), r.read(short), strict=True)) for name, r in readers.items()}
        for number, document in batch:
            found = {name: of[id(document)] for name, of in read.items() if id(document) in of}
            if document.messages:
                pieces = _cut_chat(document, readers, limit, counts)
            elif found and max(map(len, found.values())) <= limit:
                pieces = _whole_text(document, found, counts)
            else:
                pieces = _cut_text(document, readers, limit, counts)
            yield from ((number, piece, sizes) for piece, sizes in pieces)


def _whole_text(
    document: Document, found: Mapping[str, Tokenized], counts: Counts
) -> Iterator[tuple[Document, dict[str, int]]]:
    counts.look_at([found], document.place)
    sizes = _sizes(found)
    if min(sizes.values()) >= 2:
        yield document, sizes
    else:
        counts.leave_out(NOTHING, document.place)


def _cut_text(
    document: Document, readers: Mapping[str, Reader], limit: int, counts: Counts
) -> Iterator[tuple[Document, dict[str, int]]]:
    if not document.text.strip():
        counts.leave_out("empty", document.place)
        return
    text, at = document.text, 0
    end = len(text.rstrip())
    read: list[dict[str, Tokenized]] = []
    some = False
    while at < end:
        piece, found = _first_piece(text, at, readers, limit)
        at += len(piece)
        read.append(found)
        sizes = _sizes(found)
        if min(sizes.values()) >= 2:
            some = True
            yield Document(piece, (), document.domain, document.place, continued=at < end), sizes
    if not some:
        counts.leave_out(NOTHING, document.place)
    counts.look_at(read, document.place)


def _sizes(found: Mapping[str, Tokenized]) -> dict[str, int]:
    return {name: len(tokens) for name, tokens in found.items()}


def _first_piece(
    text: str, start: int, readers: Mapping[str, Reader], limit: int
) -> tuple[str, dict[str, Tokenized]]:
    """The longest piece of a text, from a character on, that every tokenizer can read in one go; and its tokens."""
    window = limit * _CHARACTERS
    while True:
        part = text[start : start + window]
        found = {name: r.read([Document(part)])[0] for name, r in readers.items()}
        if max(map(len, found.values())) > limit:
            break
        if start + len(part) == len(text):
            return part, found
        window *= 2
    # Two tokens of the limit are left for what stands before and after a text.
    ends = [int(t.ends[min(limit - 3, len(t) - 1)]) for t in found.values() if len(t) > limit]
    data = part.encode()
    cut = len(data[: max(min(e for e in ends), 1)].decode("utf-8", "ignore")) or 1
    while True:
        spaces = max(part.rfind(" ", 1, cut), part.rfind("\n", 1, cut))
        piece = part[: spaces if spaces > 0 and part[:spaces].strip() else cut]
        found = {name: r.read([Document(piece)])[0] for name, r in readers.items()}
        if max(map(len, found.values())) <= limit or len(piece) <= 1:
            return piece, found
        cut = max(len(piece) - max(1, len(piece) // 16), 1)


def _cut_chat(
    document: Document, readers: Mapping[str, Reader], limit: int, counts: Counts
) -> Iterator[tuple[Document, dict[str, int]]]:
    left = document
    if not any(m.content.strip() for m in document.messages if m.learned):
        counts.leave_out("empty", document.place)
        return
    while any(m.content.strip() for m in left.messages if m.learned):
        if left.messages[-1].learned:
            try:
                found = {name: r.read([left])[0] for name, r in readers.items()}
            except TemplateProblem as e:
                counts.leave_out(str(e), document.place)
                return
            if max(map(len, found.values())) <= limit:
                counts.look_at([found], document.place)
                yield left, _sizes(found)
                return
        left = left.beginning(len(left.messages) - 1)
    counts.leave_out(f"a conversation longer than {limit:,} tokens", document.place)
