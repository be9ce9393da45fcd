"""One tokenizer that knows the tokens of several.

mergekit makes every foreign token an added token: matched in the text before the model splits it, wherever its letters
stand, so that a word of the base falls apart around a short token of another model. (Two BPE tokenizers of 8,000
tokens, English and Python: 22 % of the tokens of English text change, and it gets 22 % longer.) Here tokens of a
tokenizer of the same kind enter the model itself, a BPE's merges after those that are there: the same ids, and 3 %.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from evomerge.merging.tokens.vocabulary import Vocabulary, pair, product

# Kinds whose vocabulary is a table of ids, to which a token can be added by itself.
_TABLES = ("BPE", "WordPiece", "WordLevel")
# A token and its settings, as tokenizer.json has them.
Added = dict[str, Any]


def united(start: Vocabulary, others: Sequence[tuple[Vocabulary, int]], more: Iterable[str]) -> Vocabulary:
    """The start, whose tokens keep their ids, with the tokens of others after them.

    First come plain tokens, model after model in the order of their ids, then those that are matched before the text is
    split; the first model's settings of a token count.

    Args:
        others: Tokenizers, each with the number of its embeddings: tokens beyond it are left out.
        more: Tokens that are added in any case, as plain added tokens.

    Returns:
        The start itself where nothing is new.
    """
    others = [(other, limit) for other, limit in others if other is not start or limit < start.size]
    more = list(more)
    if not others and start.ids.keys() >= set(more):
        return start  # what most merges come to: fine-tunes that share a tokenizer
    before = json.loads(start.text)
    kind = start.kind
    added: dict[str, Added] = {t["content"]: t for t in before.get("added_tokens") or ()}
    for other, limit in others:
        for known in other.added:
            if known["id"] < limit:
                added.setdefault(known["content"], known)
    plain: dict[str, bool] = {}
    for other, limit in others:
        same = kind in _TABLES and other.kind == kind
        for i, token in sorted(other.tokens.items()):
            if i < limit and token not in added and token not in start.ids:
                plain[token] = plain.get(token, False) or same
    for token in more:
        if token not in start.ids and token not in plain:
            added.setdefault(token, _plain(token))
    outer = [_plain(token) for token, inner in plain.items() if not inner]
    if kind not in _TABLES:
        return _appended(start, [*outer, *added.values()])
    ids, size = dict(start.ids), start.size
    inside = [token for token, inner in plain.items() if inner]
    for token in (*inside, *(t["content"] for t in outer), *added):
        if token not in ids:
            ids[token] = size
            size += 1
    if len(ids) == len(start.ids) and [*added] == [t["content"] for t in before.get("added_tokens") or ()]:
        return start
    model = before["model"]
    if inside or size != len(ids):
        # The library numbers added tokens anew unless they stand in the model with their ids.
        merges = _merges(model, [other for other, _ in others if other.kind == kind], ids)
        model = {**model, "vocab": ids, **({"merges": merges} if "merges" in model else {})}
    tokens = [{**t, "id": ids[t["content"]]} for t in (*outer, *added.values())]
    data = {**before, "added_tokens": sorted(tokens, key=lambda t: t["id"]), "model": model}
    return Vocabulary(json.dumps(data, ensure_ascii=False))


def _plain(token: str) -> Added:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return {"id": -1, "content": token, **flags}


def _appended(start: Vocabulary, tokens: Sequence[Added]) -> Vocabulary:
    """The start with added tokens, numbered by the library (a Unigram's vocabulary is a list without gaps)."""
    from tokenizers import AddedToken

    tokenizer = start.tokenizer()
    before = tokenizer.to_str()
    tokenizer.add_tokens([AddedToken(**{k: v for k, v in t.items() if k != "id"}) for t in tokens])
    text = tokenizer.to_str()
    return start if text == before else Vocabulary(text)


def _merges(model: dict[str, Any], others: Sequence[Vocabulary], ids: dict[str, int]) -> list[list[str]]:
    """A BPE's merges, and after them those of others between tokens that are known."""
    prefix = model.get("continuing_subword_prefix") or ""
    found: dict[tuple[str, str], None] = {}
    for merge in model.get("merges") or ():
        found[pair(merge)] = None
    for other in others:
        for left, right in map(pair, json.loads(other.text)["model"].get("merges") or ()):
            if left in ids and right in ids and product(left, right, prefix) in ids:
                found.setdefault((left, right))
    return [list(pair) for pair in found]
