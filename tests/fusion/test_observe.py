"""One model's predictions: what is kept of them, against the model's own logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evomerge.errors import EvoMergeError
from evomerge.fusion.documents import Document, Message
from evomerge.fusion.loading import loaded
from evomerge.fusion.teachers.cache import nats_and_bytes, read_shard, write_shard
from evomerge.fusion.teachers.observe import _BLOCK, _batches, _top, observe
from evomerge.sources import open_source

DOCUMENTS = [
    Document("lonnel rimo ranno wesen linilwen."),
    Document("gititkat dikbakberd girdbek gutbot dirdzet kakkeke bogukbik batbak dirdzet bokidat. kukkut."),
    Document("mulo"),
    Document(messages=(Message("user", "lomen rimo"), Message("assistant", "silmol naramil wesen"))),
]


@pytest.fixture(scope="module", params=["pivot", "roads"])
def model(request):
    return loaded(open_source(f"zoo:{request.param}"), "auto", "cpu")[0], request.param


def test_equals_the_models_own_softmax(model, zoo_readers):
    """Whatever shares a pass with a document: padding changes nothing."""
    live, name = model
    tokens = zoo_readers[name].read(DOCUMENTS)
    for batch_tokens in (1, 40, 10**6):
        for document, found in zip(tokens, observe(live, tokens, 7, batch_tokens), strict=True):
            ids = torch.tensor(document.ids[None].astype(np.int64))
            with torch.inference_mode():
                logprobs = torch.log_softmax(live(input_ids=ids).logits[0].float(), -1).numpy()
            positions = np.flatnonzero(document.learned[1:])
            assert found.positions.tolist() == positions.tolist()
            expected = logprobs[positions, document.ids[positions + 1]]
            np.testing.assert_allclose(found.likelihoods, expected, atol=2e-5)
            best = np.sort(logprobs[positions], axis=1)[:, ::-1][:, :7]
            np.testing.assert_allclose(found.top_logprobs.astype(np.float32), best, rtol=2e-3, atol=2e-3)
            np.testing.assert_allclose(
                np.take_along_axis(logprobs[positions], found.top_ids.astype(np.int64), 1), best, atol=2e-5
            )
            assert found.top_ids.dtype == np.int32 and found.top_logprobs.dtype == np.float16


@pytest.mark.parametrize("k", [0, 1, 3, 10])
@pytest.mark.parametrize("size", [11, _BLOCK, 12 * _BLOCK - 1, 12 * _BLOCK, 40 * _BLOCK + 1, 131 * _BLOCK + 77])
@pytest.mark.parametrize("values", [10**9, 40], ids=["all differ", "many are equal"])
def test_the_greatest_of_many_are_found_by_blocks(k, size, values):
    drawn = torch.Generator().manual_seed(size + k)
    logits = torch.randint(values, (5, size), generator=drawn).float()
    logits[1] = torch.arange(size).float()  # all of them in one block
    logits[2] = -logits[1]
    logits[3, -1] = 2 * values  # behind the last whole block
    found, places = _top(logits.clone(), k)
    assert torch.equal(found, logits.topk(k, dim=-1).values)
    assert torch.equal(logits.gather(1, places), found)
    assert all(len(set(row)) == k for row in places.tolist())


def test_only_what_is_learned_is_kept(model, zoo_readers):
    live, name = model
    (tokens,) = zoo_readers[name].read(DOCUMENTS[3:])
    (found,) = observe(live, [tokens], 3, 100)
    assert len(found.positions) == tokens.learned.sum() < len(tokens)
    nats, size = nats_and_bytes(tokens, found)
    assert size == len("silmol naramil wesen") and nats > 0


def test_a_vocabulary_smaller_than_k(model, zoo_readers):
    live, name = model
    tokens = zoo_readers[name].read(DOCUMENTS[:1])
    (found,) = observe(live, tokens, 100_000, 1000)
    rows = live.get_input_embeddings().weight.shape[0]
    assert found.top_ids.shape[1] == rows
    np.testing.assert_allclose(np.exp(found.top_logprobs.astype(np.float64)).sum(1), 1, atol=5e-3)
    (none,) = observe(live, tokens, 0, 1000)
    assert none.top_ids.shape[1] == 0 and np.array_equal(none.likelihoods, found.likelihoods)


def test_the_longest_documents_go_first_and_passes_keep_their_size(zoo_readers):
    tokens = zoo_readers["pivot"].read([Document("lonnel rimo " * n) for n in (1, 9, 3, 9, 2, 5)])
    batches = list(_batches(tokens, 120))
    assert sorted(i for b in batches for i in b) == [*range(6)]
    sizes = [len(tokens[b[0]]) for b in batches]
    assert sizes == sorted(sizes, reverse=True)
    for b in batches:
        assert len(b) == 1 or len(b) * max(len(tokens[i]) for i in b) <= 120


def test_logits_that_are_no_numbers_end_it(zoo_readers):
    live, _ = loaded(open_source("zoo:pivot"), "auto", "cpu")
    with torch.no_grad():
        live.get_input_embeddings().weight[5, 0] = float("nan")
    with pytest.raises(EvoMergeError, match="logits are NaN or infinite"):
        observe(live, zoo_readers["pivot"].read(DOCUMENTS[:1]), 3, 1000)


@pytest.mark.parametrize("wide", [False, True])
def test_a_shard_is_read_back_as_it_was_written_in_few_bytes(model, zoo_readers, tmp_path, wide):
    live, name = model
    tokens = zoo_readers[name].read(DOCUMENTS * 40)
    observed = observe(live, tokens, 10, 4000)
    if wide:  # a vocabulary of 250k, its ids drawn at random: nothing to be packed but the highest byte
        rng = np.random.default_rng(0)
        for o in observed:
            o.top_ids[:] = rng.integers(0, 250_000, o.top_ids.shape)
    write_shard(tmp_path / "shard.parquet", tokens, observed)
    for (ids, found), t, o in zip(read_shard(tmp_path / "shard.parquet"), tokens, observed, strict=True):
        assert np.array_equal(ids, t.ids) and ids.dtype == np.int32
        for field in ("positions", "likelihoods", "top_ids", "top_logprobs"):
            assert np.array_equal(getattr(found, field), getattr(o, field)), field
    size = (tmp_path / "shard.parquet").stat().st_size / sum(len(o.positions) for o in observed)
    assert size <= 64
    again = tmp_path / "again.parquet"
    write_shard(again, tokens, observed)
    assert again.read_bytes() == (tmp_path / "shard.parquet").read_bytes()
