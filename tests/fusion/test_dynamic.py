"""The published dynamic programme: worked examples, a plain programme of its recurrence, both ways to run it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.fusion.alignment import DynamicAligner, dynamic, exact_map, warp
from evomerge.fusion.documents import Document, Message
from evomerge.fusion.tokenized import Reader
from evomerge.fusion.vocabulary import Vocabulary
from tests.fusion.conftest import TEXT

# Target, source, cost, FuseLLM's paths, FuseChat's (facts/fusion.md, obtained from the published code).
WORKED = {
    "E1": ("▁The ▁get ting ▁now", "The Ġgetting Ġnow", 6, [[0], [0], [1], [2]], None),
    "E2": ("▁getting ▁now", "get ting Ġnow", 7, [[0, 1], [2]], None),
    "E3": ("▁utter ▁non sense .", "utter Ġnons ense .", 2, [[0], [1], [2], [3]], None),
    "E4": ("▁20 24 ▁x", "2 0 2 4 Ġx", 4, [[0, 1, 2], [3], [4]], None),
    "E5a": ("▁sa t ▁sat", "s at Ġsa t", 5, [[0], [1], [2, 3]], [[0, 1, 2], [3], [3]]),
    "E5b": ("▁m at ▁ma t", "ma t Ġmat", 5, [[0], [0], [0], [1, 2]], [[0], [1], [2], [2]]),
}


def bare(tokens: str) -> list[str]:
    return [t.replace("▁", "").replace("Ġ", "") for t in tokens.split()]


def paths(first, last) -> list[list[int]]:
    return [[*range(a, b + 1)] for a, b in zip(first.tolist(), last.tolist(), strict=True)]


@pytest.mark.parametrize("name", WORKED)
@pytest.mark.parametrize("order", ["fusellm", "fusechat"])
@pytest.mark.parametrize("compiled", [True, False])
def test_worked_examples(name, order, compiled, monkeypatch):
    target, source, cost, fusellm, fusechat = WORKED[name]
    if not compiled:
        monkeypatch.setattr(dynamic, "library", lambda _: None)
    elif dynamic.library(dynamic.KERNELS) is None:
        pytest.skip("no C++ compiler on this machine")
    found, first, last = warp(bare(target), bare(source), order)
    assert found == cost
    assert paths(first, last) == (fusellm if order == "fusellm" or fusechat is None else fusechat)


def levenshtein(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


def programme(target: list[str], source: list[str], order: str) -> tuple[int, list[list[int]]]:
    """The published recurrence and way back, cell by cell, with infinity around the table."""
    table = {(-1, -1): 0}
    for i, s in enumerate(source):
        for j, t in enumerate(target):
            before = [table.get(cell, float("inf")) for cell in ((i - 1, j), (i, j - 1), (i - 1, j - 1))]
            table[i, j] = levenshtein(s, t) + min(before)
    del table[-1, -1]
    i, j = len(source) - 1, len(target) - 1
    found: list[list[int]] = [[] for _ in target]
    while True:
        found[j].insert(0, i)
        if (i, j) == (0, 0):
            return table[len(source) - 1, len(target) - 1], found
        steps = (
            [(i - 1, j - 1), (i - 1, j), (i, j - 1)] if order == "fusellm" else [(i - 1, j - 1), (i, j - 1), (i - 1, j)]
        )
        i, j = min(steps, key=lambda cell: table.get(cell, float("inf")))


WORDS = st.lists(st.text("abc", min_size=0, max_size=4), min_size=1, max_size=9)


@settings(deadline=None, max_examples=200)
@given(WORDS, WORDS, st.sampled_from(["fusellm", "fusechat"]))
def test_equals_a_plain_programme(target, source, order):
    cost, expected = programme(target, source, order)
    with pytest.MonkeyPatch.context() as patch:
        for _ in range(2):  # compiled where it can be, and without
            found, first, last = warp(target, source, order)
            assert (found, paths(first, last)) == (cost, expected)
            patch.setattr(dynamic, "library", lambda _: None)


def test_long_sequences_are_the_same_with_and_without_a_compiler(monkeypatch):
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcde"), size=int(rng.integers(1, 8)))) for _ in range(80)]
    target, source = ([words[i] for i in rng.integers(0, 80, n)] for n in (700, 650))
    for order in ("fusellm", "fusechat"):
        compiled = warp(target, source, order)
        with monkeypatch.context() as patch:
            patch.setattr(dynamic, "library", lambda _: None)
            plain = warp(target, source, order)
        assert compiled[0] == plain[0]
        assert all(np.array_equal(a, b) for a, b in zip(compiled[1:], plain[1:], strict=True))


def test_nothing_to_align():
    assert warp([], ["a"])[0] == 0
    cost, first, last = warp(["a"], [])
    assert cost == 0 and first.tolist() == last.tolist() == [-1]


def test_rows_are_of_equal_strings_alone(vocabularies, readers):
    """FuseLLM takes a row where one token is matched and the strings, or the vocabulary map, agree."""
    one, other = "metaspace", "byte-level"
    document = Document(TEXT[0])
    (target,), (source,) = readers[one].read([document]), readers[other].read([document])
    mapping = exact_map(vocabularies[other], vocabularies[one])
    found = DynamicAligner(vocabularies[one], vocabularies[other], mapping).align(target, source)
    at = np.flatnonzero((found.rows >= 0) & (target.sizes > 0))
    assert 5 < len(at) < len(target)
    for t in at:
        mine = vocabularies[one].pieces[target.ids[t]].replace(b" ", b"")
        assert mine == vocabularies[other].pieces[source.ids[found.rows[t]]].replace(b" ", b"")
        assert found.first[t] == found.last[t] == found.rows[t]
    # What the text begins with has its row too: <s> here, nothing there.
    assert found.rows[0] == -1


def test_fusechat_adds_several_for_one_and_one_for_several(vocabularies, readers):
    document = Document(TEXT[0])
    (target,), (source,) = readers["metaspace"].read([document]), readers["byte-level"].read([document])
    mapping = np.full(vocabularies["byte-level"].size, -1, np.int32)
    counts = {}
    for order in ("fusellm", "fusechat"):
        aligner = DynamicAligner(vocabularies["metaspace"], vocabularies["byte-level"], mapping, order)
        found = aligner.align(target, source)
        at = np.flatnonzero((found.rows >= 0) & (target.sizes > 0))
        counts[order] = len(at)
        ends = target.ends[at] == source.ends[found.rows[at]]
        assert ends.mean() > 0.9  # the soft matching of strings is right about most of them
    assert counts["fusechat"] > counts["fusellm"]


def test_a_model_is_aligned_with_itself_as_it_is(vocabularies, readers):
    for kind, vocabulary in vocabularies.items():
        (tokens,) = readers[kind].read([Document(TEXT[0] + " " + TEXT[1])])
        for order in ("fusellm", "fusechat"):
            found = DynamicAligner(vocabulary, vocabulary, exact_map(vocabulary, vocabulary), order).align(
                tokens, tokens
            )
            own = np.flatnonzero((tokens.ends >= 0) & (tokens.sizes > 0))
            assert (found.first[own] == own).all() and (found.last[own] == own).all() and (found.rows[own] == own).all()


def test_a_message_of_nothing_shifts_no_other(readers):
    """One template keeps a message of white space, the other trims it to nothing."""
    import copy

    messages = (
        Message("user", "the"),
        Message("assistant", "  "),
        Message("user", "a"),
        Message("assistant", "harbour"),
    )
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content CHANGE }}\n{% endfor %}"
    tokens = []
    for change in ("", "| trim"):
        tokenizer = copy.deepcopy(readers["byte-level"].vocabulary.tokenizer)
        tokenizer.chat_template = template.replace("CHANGE", change)
        (read,) = Reader(Vocabulary(tokenizer)).read([Document(messages=messages)])
        tokens.append(read)
    vocabulary = readers["byte-level"].vocabulary
    identity = np.arange(vocabulary.size, dtype=np.int32)
    for target, source in (tokens, tokens[::-1]):
        found = DynamicAligner(vocabulary, vocabulary, identity).align(target, source)
        at = np.flatnonzero(found.first >= 0)
        assert len(at) > 3
        assert (target.ends[at] == source.ends[found.last[at]]).all()
