"""Which row of which model's embedding becomes each row of the merged vocabulary's: numbers only, nothing is read.

A token that a model lacks gets (mergekit's rule) the base's embedding where the base has the token, else the only
model's that has it, else the mean of those that have it; else that of the model which the merge is put into, whose
processor writes the token; zeros where none has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evomerge.errors import choose
from evomerge.merging.plan import Input
from evomerge.merging.tokens.merged import MergedVocabulary
from evomerge.recipe import ModelToken, TokenEmbedding, ZeroToken

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Gather:
    """How one model's tensor is laid out for the merged vocabulary.

    Extra row k is the mean of entries `start[k]` up to `start[k + 1]`, each a row of a model's tensor; without entries
    it is zero. Extra row `len(start) - 1` is the mean of all rows that are a token's: what padding gets.

    Attributes:
        index: For each output row its row in the model's own tensor, or -1 - k for extra row k.
        start: Where the entries of each extra row begin, and the number of entries at the end.
        member: For each entry the tensor, as its place in `inputs`.
        row: For each entry the row in that tensor.
        inputs: The tensors that meet in the output tensor, in its order; after them that of the model which the merge
            is put into, where it is not merged.
        is_token: For each output row whether it is a token's, and no padding.
    """

    index: Integers
    start: Integers
    member: Integers
    row: Integers
    inputs: tuple[Input, ...]
    is_token: npt.NDArray[np.bool_]

    @property
    def size(self) -> int:
        """Number of output rows."""
        return len(self.index)

    @property
    def has_padding(self) -> bool:
        """Whether some rows are no token's."""
        return not bool(self.is_token.all())

    def is_identity(self, rows: int) -> bool:
        """Whether a tensor of so many rows stays as it is."""
        return self.size == rows and bool((self.index == np.arange(rows)).all())


class Gatherer:
    """Works out gathers over one merged vocabulary."""

    def __init__(self, merged: MergedVocabulary) -> None:
        self.merged = merged
        self._places: dict[tuple[str, int], Integers] = {}
        self._ids = merged.vocabulary.ids
        self._is_token = np.zeros(merged.size, dtype=np.bool_)
        self._is_token[list(self._ids.values())] = True

    def gathers(
        self, inputs: Sequence[Input], rows: Sequence[int], base: str | None, problems: list[str], into: int = 0
    ) -> list[Gather]:
        """One gather for each model that meets in an output tensor.

        Args:
            inputs: Their tensors.
            rows: Number of rows of each.
            base: The base model, whose embeddings are preferred where it is one of them.
            problems: What the recipe's `tokens:` ask for in vain is added here.
            into: How many of the last inputs are not merged: 1 where that of the model is there which the merge is put
                into, whose rows fill what is lacking.
        """
        models = [item.model for item in inputs]
        places = np.stack([self._place(m, n) for m, n in zip(models, rows, strict=True)])
        count = len(models) - into
        default = _Defaults(models, places, base, count)
        forced = np.zeros(self.merged.size, dtype=np.bool_)
        chosen: dict[int, list[tuple[int, int]]] = {}
        for token, wish in (self.merged.settings.tokens or {}).items():
            i = self._ids[token]
            if wish.source is None or (not wish.force and (places[:count, i] >= 0).all()):
                continue
            forced[i] = wish.force
            chosen[i] = self._chosen(token, i, wish, models, rows, places, problems)
        found = []
        for m in range(count):
            lacks = np.flatnonzero(self._is_token & ((places[m] < 0) | forced))
            entries = [chosen[i] if i in chosen else default.of(i) for i in lacks.tolist()]
            index = places[m].copy()
            index[lacks] = -1 - np.arange(len(lacks))
            index[~self._is_token] = -1 - len(lacks)
            flat = [e for row in entries for e in row]
            found.append(
                Gather(
                    index=index,
                    start=np.cumsum([0, *map(len, entries)], dtype=np.int64),
                    member=np.array([e[0] for e in flat], dtype=np.int64),
                    row=np.array([e[1] for e in flat], dtype=np.int64),
                    inputs=tuple(inputs),
                    is_token=self._is_token,
                )
            )
        return found

    def _place(self, model: str, rows: int) -> Integers:
        """The row of each output token in a model's tensor, or -1."""
        key = (model, rows)
        if key not in self._places:
            own = self.merged.own[model].ids
            place = np.full(self.merged.size, -1, dtype=np.int64)
            for token, i in self._ids.items():
                row = own.get(token, -1)
                if row < rows:
                    place[i] = row
            self._places[key] = place
        return self._places[key]

    def _chosen(
        self,
        token: str,
        i: int,
        wish: TokenEmbedding,
        models: Sequence[str],
        rows: Sequence[int],
        places: Integers,
        problems: list[str],
    ) -> list[tuple[int, int]]:
        where = f"tokenizer.tokens.{token}.source"
        if isinstance(wish.source, ZeroToken):
            return []
        model = wish.source.model if isinstance(wish.source, ModelToken) else str(wish.source)
        if model not in models:
            problems.append(f'{where}: "{model}" is not merged here; {choose(model, list(dict.fromkeys(models)))}')
            return []
        m = list(models).index(model)
        row, name = int(places[m, i]), token
        if isinstance(wish.source, ModelToken):
            name = wish.source.token if wish.source.token is not None else str(wish.source.token_id)
            row = self.merged.own[model].ids.get(name, -1) if wish.source.token is not None else -1
            if wish.source.token_id is not None:
                row = wish.source.token_id
                if row >= rows[m]:
                    problems.append(f'{where}: "{model}" has token ids 0 to {rows[m] - 1}, got {row}')
                    return []
        if not 0 <= row < rows[m]:
            problems.append(f'{where}: "{model}" has no token "{name}"')
            return []
        return [(m, row)]


class _Defaults:
    """Where the embedding of a token comes from that some model lacks and the recipe says nothing of."""

    def __init__(self, models: Sequence[str], places: Integers, base: str | None, count: int) -> None:
        self._places = places
        self._count = count
        merged = list(models[:count])
        self._base = merged.index(base) if base is not None and base in merged else None

    def of(self, i: int) -> list[tuple[int, int]]:
        """The entries (model, row) whose mean it is."""
        column = self._places[:, i]
        if self._base is not None and column[self._base] >= 0:
            return [(self._base, int(column[self._base]))]
        found = [(m, int(row)) for m, row in enumerate(column) if row >= 0]
        return [entry for entry in found if entry[0] < self._count] or found
