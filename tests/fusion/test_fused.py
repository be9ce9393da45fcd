"""What several sources say becomes one distribution: worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.fusion import fused
from evomerge.fusion.alignment import ByteAligner
from evomerge.fusion.documents import Document
from evomerge.fusion.teachers.observe import Observed
from evomerge.fusion.tokenized import Tokenized


def tokens(ends: list[int], *, bos: bool = False, known: list[bool] | None = None) -> Tokenized:
    """A text whose tokens end at those bytes, and its end."""
    n = len(ends) + 1 + bos
    starts = [*([0] if bos else []), 0, *ends[:-1], -1]
    all_ends = [*([0] if bos else []), *ends, -1]
    learned = np.ones(n, bool)
    if bos:
        learned[0] = False
    boundary = np.array([e >= 0 for e in all_ends])
    mask = np.ones(n, bool) if known is None else np.array(known)
    return Tokenized(np.arange(n, dtype=np.int32), np.array(starts), np.array(all_ends), boundary, mask, learned)


def observed(of: Tokenized, logprobs: list[float], top: list[list[tuple[int, float]]]) -> Observed:
    positions = np.flatnonzero(of.learned[1:]).astype(np.int32)
    ids = np.array([[i for i, _ in row] for row in top], np.int32)
    p = np.log(np.array([[q for _, q in row] for row in top]))
    return Observed(positions, np.array(logprobs, np.float32), ids, p.astype(np.float16))


# "abcdef": the target reads a b cd ef, the source ab cd ef, both with a token before.
TARGET, SOURCE = tokens([1, 2, 4, 6], bos=True), tokens([2, 4, 6], bos=True)
TOP = [[(0, 0.5), (1, 0.25)], [(2, 0.6), (3, 0.2)], [(4, 0.7), (5, 0.1)], [(6, 0.9), (0, 0.05)]]
MAPPING = np.array([10, 11, 12, 12, -1, 15, 16])


def said(compare="bytes"):
    own = observed(SOURCE, [-1.0, -2.0, -3.0, -0.5], TOP)
    return fused.said(TARGET, SOURCE, own, ByteAligner().align(TARGET, SOURCE), MAPPING, compare)


def test_rows_are_at_the_same_bytes():
    found = said()
    # After nothing, "a" (not the source's place), "ab", "abcd", "abcdef", the end.
    assert found.rows.tolist() == [0, -1, 1, 2, 3, -1]
    assert (found.nats, found.size, found.tokens) == (6.0, 6, 3)
    assert found.surprise("bytes") == 1.0 and found.surprise("tokens") == 2.0
    assert found.ids.tolist() == [[10, 11], [12, 12], [-1, 15], [16, 10]]


def test_what_is_ahead_is_counted_to_the_next_place_of_both():
    found = said()
    # 1 nat over "ab", 2 over "cd", 3 over "ef", .5 for the end, which is no bytes.
    assert found.ahead.tolist() == [0.5, np.inf, 1.0, 1.5, 0.5, np.inf]
    assert said("tokens").ahead.tolist() == [1.0, np.inf, 2.0, 3.0, 0.5, np.inf]


def test_chunks_are_what_lies_between_two_places():
    found = said()
    assert found.chunks.tolist() == [0, 0, 1, 2, 3, -1]
    assert found.chunk_likelihoods.tolist() == [-1.0, -2.0, -3.0, -0.5]


def test_what_a_source_cannot_write_is_masked():
    blind = tokens([2, 4, 6], bos=True, known=[True, True, False, True, True])
    own = observed(blind, [-1.0, -2.0, -3.0, -0.5], TOP)
    found = fused.said(TARGET, blind, own, ByteAligner().align(TARGET, blind), MAPPING)
    assert found.rows.tolist() == [0, -1, -1, 2, 3, -1]
    assert (found.nats, found.size) == (pytest.approx(4.0 + 2 * np.log(256)), 6)  # two bytes at 8 bits each
    assert found.chunks.tolist() == [0, 0, -1, 1, 2, -1]


def itself():
    top = [[(20, 0.8), (10, 0.1)]] * 5
    own = observed(TARGET, [-2.0, -0.2, -1.0, -1.0, -0.1], top)
    return fused.said(TARGET, TARGET, own, ByteAligner().align(TARGET, TARGET), np.arange(30))


def at(found: fused.Fused, position: int) -> dict[int, float]:
    starts = np.concatenate([[0], np.cumsum(found.counts)])
    where = np.flatnonzero(found.positions == position)
    if not len(where):
        return {}
    part = slice(starts[where[0]], starts[where[0] + 1])
    shares = [round(p, 3) for p in found.probabilities[part].tolist()]
    return dict(zip(found.ids[part].tolist(), shares, strict=True))


def test_min_ce_takes_the_chosen_sources_row_and_masks_what_it_has_not():
    found = fused.min_ce([itself(), said()], np.full(6, 1))
    assert found.positions.tolist() == [0, 2, 3, 4]
    assert at(found, 0) == {10: 0.5, 11: 0.25}
    assert at(found, 2) == {12: 0.8}  # two of its tokens are one of the target's
    assert at(found, 3) == {15: 0.1}  # one of them is none
    assert found.ids[:2].tolist() == [10, 11]  # the likeliest first


def test_choices_by_token_go_to_the_one_that_expected_what_comes():
    sources = [itself(), said()]
    chosen = fused.choice(np.stack([s.ahead for s in sources]))
    # Per byte: 2, .2, .5, .5, and .1 for the end, against .5, -, 1, 1.5, .5.
    assert chosen[:5].tolist() == [1, 0, 0, 0, 0]
    found = fused.min_ce(sources, chosen)
    assert at(found, 0) == {10: 0.5, 11: 0.25} and at(found, 1) == {20: 0.8, 10: 0.1}


def test_avg_ce_averages_those_that_have_a_row():
    weights = np.stack([np.full(6, 0.25), np.full(6, 0.75)])
    found = fused.avg_ce([itself(), said()], weights)
    assert at(found, 0) == pytest.approx({10: 0.25 * 0.1 + 0.75 * 0.5, 20: 0.2, 11: 0.1875}, abs=1e-3)
    assert at(found, 1) == {20: 0.8, 10: 0.1}  # the source has none there: the target's own, whole


def test_weights_fall_with_the_surprise_whatever_the_tokenizer():
    surprises = np.array([[1.0], [2.0], [np.inf]])
    found = fused.weights(surprises, bytes_per_token=2.0, compare="bytes")[:, 0]
    expected = np.exp([-2.0, -4.0, -np.inf])
    np.testing.assert_allclose(found, expected / expected.sum())
    # As published: softmax of exp(-CE).
    published = fused.weights(surprises, 2.0, "tokens")[:, 0]
    rewards = np.exp(np.exp([-1.0, -2.0, -np.inf]))
    np.testing.assert_allclose(published, rewards / rewards.sum())


def test_nats_per_byte_and_per_token_may_disagree():
    """The finer tokenizer looks better per token, though it expected the text worse."""
    fine, coarse = tokens([1, 2, 3, 4, 5, 6], bos=True), tokens([3, 6], bos=True)
    one = observed(fine, [-1.0] * 6 + [-1.0], [[(0, 0.5)]] * 7)
    other = observed(coarse, [-2.0, -2.0, -1.0], [[(0, 0.5)]] * 3)
    finer, coarser = (
        fused.said(TARGET, s, o, ByteAligner().align(TARGET, s), MAPPING) for s, o in ((fine, one), (coarse, other))
    )
    assert finer.surprise("bytes") == 1.0 > coarser.surprise("bytes") == pytest.approx(4 / 6)
    assert finer.surprise("tokens") == 1.0 < coarser.surprise("tokens") == 2.0


def test_ids_beyond_the_tokenizer_stand_for_nothing():
    """Embeddings are often padded: such a row may even be among the likeliest."""
    top = [[(500, 0.5), (1, 0.25)]] * 4
    own = observed(SOURCE, [-1.0] * 4, top)
    found = fused.said(TARGET, SOURCE, own, ByteAligner().align(TARGET, SOURCE), MAPPING)
    assert (found.ids[:, 0] == -1).all() and (found.ids[:, 1] == 11).all()


def test_documents_of_the_zoo_lose_no_probability(zoo_readers):
    """Sums of fused distributions never exceed one."""
    (t,), (s,) = (zoo_readers[n].read([Document("lonnel rimo ranno wesen.")]) for n in ("pivot", "tides"))
    m = int(s.learned[1:].sum())
    rng = np.random.default_rng(0)
    p = np.sort(rng.dirichlet(np.ones(20), m)[:, :10], 1)[:, ::-1]
    own = Observed(
        np.flatnonzero(s.learned[1:]).astype(np.int32), np.full(m, -1, np.float32),
        rng.integers(0, 570, (m, 10)).astype(np.int32), np.log(p).astype(np.float16),
    )  # fmt: skip
    found = fused.min_ce(
        [fused.said(t, s, own, ByteAligner().align(t, s), rng.integers(-1, 500, 576))], np.zeros(len(t), int)
    )
    starts = np.concatenate([[0], np.cumsum(found.counts)])
    sums = np.add.reduceat(found.probabilities, starts[:-1])
    assert (sums <= 1.001).all() and (found.counts <= 10).all()
