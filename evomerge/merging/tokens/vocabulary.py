"""Tokenizers as they lie on disk: the id of every token, as transformers will see them.

Ids are taken from the tokenizers library itself, which numbers added tokens anew when it loads a file: what a file says
of them and what a program gets can differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import SourceError
from evomerge.sources import read_object, read_text, small_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE, CONFIG, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
# Any of them is a tokenizer, for transformers to convert where there is no tokenizer.json.
_OTHERS = ("tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """One tokenizer.

    Attributes:
        text: Its tokenizer.json.
    """

    text: str

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token ids by token, added tokens included."""
        return self._facts[0]

    @cached_property
    def tokens(self) -> dict[int, str]:
        """Tokens by id."""
        return {i: token for token, i in self.ids.items()}

    @cached_property
    def size(self) -> int:
        """The highest id and one."""
        return max(self.ids.values(), default=-1) + 1

    @cached_property
    def added(self) -> list[dict[str, Any]]:
        """Tokens that are matched in the text before the model splits it, as tokenizer.json has them, by their ids."""
        tokens: list[dict[str, Any]] = json.loads(self.text).get("added_tokens") or []
        return sorted(({**t, "id": self.ids[t["content"]]} for t in tokens), key=lambda t: int(t["id"]))

    @cached_property
    def kind(self) -> str:
        """Name of the model that splits the text: BPE, Unigram, WordPiece, WordLevel."""
        return self._facts[1]

    @cached_property
    def _facts(self) -> tuple[dict[str, int], str]:
        tokenizer = self.tokenizer()
        return dict(tokenizer.get_vocab(with_added_tokens=True)), type(tokenizer.model).__name__

    def tokenizer(self) -> Tokenizer:
        """A fresh object of the tokenizers library, which the caller may change."""
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.text)

    def below(self, rows: int) -> Vocabulary:
        """The vocabulary without the tokens whose id is `rows` or more: they have no embedding."""
        beyond = {token for token, i in self.ids.items() if i >= rows}
        if not beyond:
            return self
        data = json.loads(self.text)
        data["added_tokens"] = [t for t in data.get("added_tokens") or () if t["content"] not in beyond]
        model = data["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {token: i for token, i in model["vocab"].items() if token not in beyond}
        else:  # Unigram: ids are places in the list
            model["vocab"] = model["vocab"][:rows]
        if "merges" in model:
            prefix = model.get("continuing_subword_prefix") or ""
            merges = map(pair, model["merges"])
            model["merges"] = [m for m in merges if beyond.isdisjoint((*m, product(*m, prefix)))]
        return Vocabulary(json.dumps(data, ensure_ascii=False))


def pair(merge: Any) -> tuple[str, str]:
    """The two sides of a merge, in the new form of tokenizer.json ([a, b]) or the old one ("a b")."""
    left, right = merge if isinstance(merge, list) else merge.split(" ")
    return left, right


def product(left: str, right: str, prefix: str) -> str:
    """What a merge makes; `prefix` is what marks a piece inside a word."""
    return left + right[len(prefix) :]


def has_tokenizer(folder: Path) -> bool:
    """Whether a model's folder holds a tokenizer of any kind."""
    return any((folder / name).is_file() for name in (FILE, *_OTHERS))


def reader() -> Callable[[Path], Vocabulary]:
    """A function that reads the tokenizer of a folder, and remembers: fine-tunes mostly share one."""
    known: dict[str, Vocabulary] = {}

    def read(folder: Path) -> Vocabulary:
        digest = hashlib.sha256()
        names = sorted(p.name for p in folder.iterdir() if p.name in (FILE, CONFIG, SPECIAL, "added_tokens.json"))
        if FILE not in names:
            names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.suffix != ".safetensors")
        for name in names:
            digest.update(f"\n{name}\n".encode())
            try:
                digest.update((small_file(folder, name) or folder / name).read_bytes())
            except OSError as e:
                raise SourceError(f"{folder / name}: cannot be read ({e.strerror or e})") from None
        key = digest.hexdigest()
        if key not in known:
            known[key] = read_vocabulary(folder)
        return known[key]

    return read


def read_vocabulary(folder: Path) -> Vocabulary:
    """The tokenizer of a model.

    Raises:
        SourceError: the folder has none, or one that cannot be read.
    """
    if not has_tokenizer(folder):
        raise SourceError(f"{folder}: has no tokenizer ({', '.join((FILE, *_OTHERS))})")
    try:
        file = small_file(folder, FILE)
        if file is not None:
            vocabulary = Vocabulary(read_text(file))
            vocabulary = _with_special(vocabulary, list(_special(folder)))
        else:
            vocabulary = Vocabulary(_converted(folder))
        _ = vocabulary.ids  # what is damaged shows here, not later
        return vocabulary
    except (SourceError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # the tokenizers library raises bare Exceptions and panics, transformers many kinds
        words = " ".join(str(e).split())[:200]
        raise SourceError(f"{folder}: its tokenizer cannot be read ({type(e).__name__}: {words})") from None


def _converted(folder: Path) -> str:
    """tokenizer.json of a tokenizer that is kept in another form, as transformers converts it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise SourceError(f"{folder}: its tokenizer has no fast form ({type(tokenizer).__name__}); save one as {FILE}")
    return str(backend.to_str())


def _special(folder: Path) -> Iterator[dict[str, Any]]:
    """The special tokens that a tokenizer's configuration names, in the order in which transformers adds them."""
    config = read_object(folder, CONFIG)
    decoder = config.get("added_tokens_decoder")
    named: dict[str, Any] = {**({} if decoder else read_object(folder, SPECIAL)), **config}
    for _, token in sorted((decoder or {}).items(), key=lambda item: int(item[0])):
        yield dict(token)
    words = [v for k, v in named.items() if k.endswith("_token") and isinstance(v, str | dict)]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = named.get(key) or ()
        words += more.values() if isinstance(more, dict) else more
    for word in words:
        token = {"content": word} if isinstance(word, str) else {k: v for k, v in word.items() if k != "__type"}
        if isinstance(token.get("content"), str):
            yield {**token, "special": True}


def _with_special(vocabulary: Vocabulary, special: list[dict[str, Any]]) -> Vocabulary:
    """The vocabulary with the tokens that it lacks."""
    lacking = {t["content"]: t for t in reversed(special) if t["content"] not in vocabulary.ids}
    if not lacking:
        return vocabulary
    from tokenizers import AddedToken

    tokenizer = vocabulary.tokenizer()
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    tokens = [AddedToken(t["content"], **{k: bool(t[k]) for k in flags if k in t}) for t in reversed(lacking.values())]
    tokenizer.add_tokens(tokens)
    return Vocabulary(tokenizer.to_str())
