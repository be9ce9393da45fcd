"""The aligner by byte offsets, over tokenizers of four kinds and random text."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.fusion.alignment import ByteAligner
from evomerge.fusion.documents import Document, Message
from tests.fusion.conftest import KINDS, TEXT

# Any text that can be written as UTF-8, and text of what the tokenizers were trained on, cut anywhere.
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
KNOWN = st.builds(lambda a, b: "\n".join(TEXT)[a : a + b], st.integers(0, 700), st.integers(0, 200))
# What the tokenizers take for one of their own marks, though it stands in the text.
MARKS = st.sampled_from(["<s>", "</s>", "<unk>", "<pad>", "[UNK]", "[CLS]", "[PAD]", "<|endoftext|>"])
TEXTS = st.one_of(ANY, KNOWN, st.builds("".join, st.lists(st.one_of(ANY, KNOWN, MARKS), max_size=4)))


@pytest.mark.parametrize("kind", KINDS)
def test_spans_cover_the_text(kind, readers):
    @settings(deadline=None, max_examples=250)
    @given(TEXTS)
    def check(text):
        (tokens,) = readers[kind].read([Document(text)])
        size = len(text.encode())
        own = tokens.ends >= 0
        starts, ends = tokens.starts[own], tokens.ends[own]
        if not tokens.sizes.any():  # nothing that this tokenizer has a token for
            return
        # One after the other, from the first byte to the last.
        assert ends[-1] == size and (np.diff(ends) >= 0).all()
        assert (starts[1:] == ends[:-1]).all() and starts[0] == 0
        assert tokens.sizes.sum() == size and (tokens.sizes >= 0).all()

    check()


@settings(deadline=None, max_examples=250)
@given(text=TEXTS)
def test_bytes_of_byte_level_tokens_are_the_texts(readers, text):
    vocabulary = readers["byte-level"].vocabulary
    (tokens,) = readers["byte-level"].read([Document(text)])
    data, at = text.encode(), 0
    for token, end in zip(tokens.ids.tolist(), tokens.ends.tolist(), strict=True):
        if end >= 0:
            mark = vocabulary.tokens[token].encode() if vocabulary.special[token] else b""
            assert (vocabulary.pieces[token] or mark) == data[at:end]
            at = end
    assert at == len(data) and tokens.boundary[tokens.ends >= 0].all()


@settings(deadline=None, max_examples=250)
@given(text=TEXTS.filter(lambda t: "\u2581" not in t))
def test_what_stands_before_a_boundary_is_what_was_read(readers, text):
    """A tokenizer of characters with bytes for the rest: exact but for the space that it puts before a text, and
    before what follows a mark in it."""

    def bare(data):
        return re.sub(rb"(^|<s>|</s>|<unk>|<pad>) +", rb"\1", data)

    vocabulary = readers["metaspace"].vocabulary
    (tokens,) = readers["metaspace"].read([Document(text)])
    data = text.encode()
    for i in np.flatnonzero(tokens.boundary & (tokens.sizes > 0)):
        read = vocabulary.joined(tokens.ids[1 : i + 1].tolist())
        assert bare(data[: tokens.ends[i]]) == bare(read)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_aligned_with_itself_as_it_is(kind, readers):
    @settings(deadline=None, max_examples=250)
    @given(TEXTS)
    def check(text):
        (tokens,) = readers[kind].read([Document(text)])
        found = ByteAligner().align(tokens, tokens)
        own = np.flatnonzero(tokens.boundary & (tokens.ends >= 0))
        assert (found.rows[own] == own).all()
        assert (found.rows >= 0).sum() == len(own)
        some = np.flatnonzero(tokens.sizes > 0)
        assert (found.first[some] <= some).all() and (found.last[some] >= some).all()

    check()


@pytest.mark.parametrize(("one", "other"), list(product(KINDS, KINDS)))
def test_no_index_is_out_of_range_and_what_is_aligned_ends_at_one_byte(one, other, readers):
    @settings(deadline=None, max_examples=100)
    @given(TEXTS)
    def check(text):
        (target,), (source,) = (readers[k].read([Document(text)]) for k in (one, other))
        found = ByteAligner().align(target, source)
        n, m = len(target), len(source)
        for array in (found.first, found.last, found.rows):
            assert array.shape == (n,) and ((array >= -1) & (array < m)).all()
        assert (found.first <= found.last).all()
        at = np.flatnonzero(found.rows >= 0)
        assert (target.ends[at] == source.ends[found.rows[at]]).all()
        assert (np.diff(found.rows[at]) > 0).all()  # never crossing
        # Nothing that could be aligned was left out.
        shared = set(target.ends[target.boundary & (target.ends >= 0)].tolist())
        shared &= set(source.ends[source.boundary & (source.ends >= 0)].tolist())
        assert shared == set(target.ends[at].tolist())
        # Matched tokens have a byte in common, the first and the last of them too.
        for t in np.flatnonzero((found.first >= 0) & (target.sizes > 0)):
            for s in (found.first[t], found.last[t]):
                assert source.starts[s] < target.ends[t] and source.ends[s] > target.starts[t]

    check()


def test_aligning_is_symmetric(readers):
    document = Document("\n".join(TEXT))
    for one, other in product(KINDS, KINDS):
        (a,), (b,) = readers[one].read([document]), readers[other].read([document])
        there, back = ByteAligner().align(a, b).rows, ByteAligner().align(b, a).rows
        at = np.flatnonzero(there >= 0)
        assert len(at) and (back[there[at]] == at).all()


def test_a_worked_example(readers):
    """▁The ▁get ting ▁now | The Ġgetting Ġnow: both stand after "The", after "getting" and after "now"."""
    document = Document("The getting now")
    (target,), (source,) = readers["metaspace"].read([document]), readers["byte-level"].read([document])
    found = ByteAligner().align(target, source)
    ends = {int(target.ends[i]) for i in np.flatnonzero(found.rows >= 0)}
    assert {3, 11, 15} <= ends


def test_messages_are_aligned_by_their_own_bytes_whatever_the_template(zoo_readers):
    """The templates of the zoo differ; what users and assistants say does not."""
    chat = Document(messages=(Message("user", "lomen rimo"), Message("assistant", "silmol naramil wesen")))
    tokens = {name: r.read([chat])[0] for name, r in zoo_readers.items()}
    for one, other in (("pivot", "tides"), ("pivot", "roads"), ("tides", "roads")):
        found = ByteAligner().align(tokens[one], tokens[other])
        answer = tokens[one].learned & (tokens[one].sizes > 0)
        assert answer.any()
        at = np.flatnonzero(found.rows >= 0)
        # The beginning of the answer, which the template ends before, and its end are places of both.
        offset = chat.offsets[1]
        ends = set(tokens[one].ends[at].tolist())
        assert {offset, offset + len("silmol naramil wesen")} <= ends
        # Nothing of one message is aligned with another.
        assert (tokens[one].ends[at] == tokens[other].ends[found.rows[at]]).all()
