"""Rows of embeddings under a merged vocabulary, against the rule written down token by token in NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from evomerge.merging.operand import LowRank, Operand, Stored
from evomerge.merging.plan import Input
from evomerge.merging.tokens.gather import Gatherer
from evomerge.merging.tokens.merged import MergedVocabulary
from evomerge.merging.tokens.rows import gathered
from evomerge.merging.tokens.vocabulary import Vocabulary
from evomerge.recipe import TokenizerSettings

COLUMNS = 5
WORDS = [f"w{i}" for i in range(40)]


def vocabulary(ids: dict[str, int]) -> Vocabulary:
    return Vocabulary(Tokenizer(models.WordLevel(ids, unk_token=next(iter(ids)))).to_str())


def expected(
    ids: dict[str, int], size: int, own: Sequence[dict[str, int]], rows: Sequence[np.ndarray], base: int | None
) -> list[np.ndarray]:
    """One array for each model: its own row, else the base's, else the only one, else the mean, else zeros."""
    found = []
    for mine, matrix in zip(own, rows, strict=True):
        out = np.full((size, COLUMNS), np.nan)
        for token, i in ids.items():
            have = [m[v[token]] for v, m in zip(own, rows, strict=True) if v.get(token, 10**9) < len(m)]
            if mine.get(token, 10**9) < len(matrix):
                out[i] = matrix[mine[token]]
            elif base is not None and own[base].get(token, 10**9) < len(rows[base]):
                out[i] = rows[base][own[base][token]]
            else:
                out[i] = np.mean(have, axis=0) if have else 0.0
        out[np.isnan(out).any(axis=1)] = np.nanmean(out, axis=0)
        found.append(out)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_the_rule_token_by_token(seed: int) -> None:
    """Vocabularies with gaps and padding, tokens beyond an embedding, tokens that nobody has, and adapters."""
    rng = np.random.default_rng(seed)
    own, matrices, operands = [], [], []
    for number in range(3):
        words = rng.permutation(WORDS[:35])[: rng.integers(5, 30)].tolist()
        places = rng.permutation(len(words) + 4)[: len(words)].tolist()
        own.append(dict(zip(words, map(int, places), strict=True)))
        stored = rng.standard_normal((len(words) + int(rng.integers(-2, 6)), COLUMNS)).astype(np.float32)
        left, right = rng.standard_normal((len(stored), 2)), rng.standard_normal((2, COLUMNS))
        if number == 2:
            operand: Operand = LowRank(*(torch.tensor(x, dtype=torch.float32) for x in (stored, left, right)), 0.5)
            stored = stored + 0.5 * left.astype(np.float32) @ right.astype(np.float32)
        else:
            operand = Stored(torch.tensor(stored))
        operands.append(operand)
        matrices.append(stored)
    words = rng.permutation(WORDS)[:25].tolist()
    ids = dict(zip(words, map(int, rng.permutation(28)[:25]), strict=True))
    base = None if seed % 3 == 0 else int(rng.integers(0, 3))
    names = ["a", "b", "c"]
    merged = MergedVocabulary(
        "a", vocabulary(ids), True, {n: vocabulary(v) for n, v in zip(names, own, strict=True)}, 32, TokenizerSettings()
    )
    inputs = [Input(name, "embedding") for name in names]
    problems: list[str] = []
    gathers = Gatherer(merged).gathers(
        inputs, [len(m) for m in matrices], names[base] if base is not None else None, problems
    )
    assert not problems
    wanted = expected(ids, 32, own, matrices, base)
    for gather, item, values in zip(gathers, inputs, wanted, strict=True):
        operand = gathered(gather, item, lambda i: operands[names.index(i.model)], {})
        assert operand.shape == (32, COLUMNS)
        whole = operand.chunk(0, 32 * COLUMNS)
        np.testing.assert_allclose(whole.reshape(32, COLUMNS).numpy(), values, rtol=1e-5, atol=1e-6)
        for size in (1, 7, 33):
            cut = [operand.chunk(at, min(at + size, 32 * COLUMNS)) for at in range(0, 32 * COLUMNS, size)]
            assert torch.equal(torch.cat(cut), whole)
