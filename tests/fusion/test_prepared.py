"""Corpora made ready: cut so that every model can read them, what is held out, what is left out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from evomerge.fusion.config import CorpusConfig
from evomerge.fusion.corpus import CorpusError
from evomerge.fusion.documents import Document, Message
from evomerge.fusion.prepared import prepare
from tests.fusion.conftest import TEXT


@pytest.fixture
def ready(tmp_path, readers):
    """ready(entries, limit=..., held_out=...): a prepared corpus of some entries."""

    def make(
        entries, limit=64, held_out=0.2, shard_tokens=500, only=("byte-level", "metaspace"), folder="out", **config
    ):
        file = tmp_path / "corpus.jsonl"
        file.write_text("".join(json.dumps(e) + "\n" for e in entries), encoding="utf-8")
        asked = CorpusConfig(path=str(file), held_out=held_out, **config)
        return prepare(asked, None, {k: readers[k] for k in only}, limit, shard_tokens, tmp_path / folder)

    return make


def texts(*found: str, domain="") -> list[dict[str, str]]:
    return [{"text": t, "domain": domain} for t in found]


def learned(corpus) -> list[Document]:
    return [d for i in range(len(corpus.shards)) for d in corpus.documents(i)]


def test_long_texts_are_cut_where_all_can_read_them_and_nothing_is_lost(ready, readers):
    text = " ".join(TEXT) * 3
    corpus = ready(texts(text, "short enough"), held_out=0.5)
    found = {d.place: "" for d in [*learned(corpus), *corpus.held_out]}
    for document in [*learned(corpus), *corpus.held_out]:
        found[document.place] += document.text
        for kind in ("byte-level", "metaspace"):
            assert len(readers[kind].read([document])[0]) <= 64
    assert sorted(found.values()) == sorted([text, "short enough"])
    # Pieces are as long as they can be, and end where a word does.
    pieces = [d.text for d in [*learned(corpus), *corpus.held_out] if d.text != "short enough"]
    assert len(pieces) < 40
    assert (
        np.mean([max(len(readers[k].read([Document(p)])[0]) for k in ("byte-level", "metaspace")) for p in pieces]) > 50
    )
    assert sum(p.startswith((" ", "\n")) for p in pieces[1:]) > len(pieces) / 2


def test_a_text_without_a_space_is_cut_between_characters(ready):
    text = "日本語の文章" * 60
    corpus = ready(texts(text, "x y"), held_out=0.5)
    pieces = [d.text for d in [*learned(corpus), *corpus.held_out]]
    assert "".join(p for p in pieces if p != "x y") == text and len(pieces) > 5


def test_of_long_conversations_the_last_messages_are_left_out(ready):
    turns = [{"role": r, "content": f"the harbour {i}"} for i in range(20) for r in ("user", "assistant")]
    corpus = ready([{"messages": turns}, {"messages": turns[:2]}], held_out=0.5, limit=80, only=("byte-level",))
    lengths = sorted(len(d.messages) for d in [*learned(corpus), *corpus.held_out])
    assert lengths[0] == 2 and 4 <= lengths[1] < 40 and lengths[1] % 2 == 0
    assert not corpus.counts.left_out


def test_what_is_left_out_is_counted_with_the_first_place(ready):
    long_turn = {"role": "assistant", "content": "the harbour " * 200}
    corpus = ready([
        *texts("one two", "", "   ", "three four", "five"),
        {"messages": [{"role": "user", "content": "a"}, long_turn]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]},
    ], only=("byte-level",))  # fmt: skip
    out = corpus.counts.left_out
    assert {why: n for why, (n, _) in out.items()} == {"empty": 3, "a conversation longer than 64 tokens": 1}
    assert out["empty"][1].endswith("corpus.jsonl:2")
    lines = corpus.counts.lines()
    assert any("3 of 7 documents left out: empty (first: " in line for line in lines)


def test_what_a_tokenizer_cannot_write_is_counted_and_kept(ready):
    corpus = ready(texts("the harbour", "龍 the harbour", "in the night", "龍 again"), only=("byte-level", "wordpiece"))
    assert corpus.counts.unwritable["wordpiece"][0] == 2
    assert "byte-level" not in corpus.counts.unwritable
    assert corpus.counts.documents == 4 and not corpus.counts.left_out
    (line,) = corpus.counts.lines()
    assert "wordpiece: its tokenizer cannot write all of 2 documents" in line and "8 bits per byte" in line


def test_what_a_tokenizer_does_not_give_back_is_counted_and_kept(ready, tmp_path):
    """Whole and cut into pieces; once for each document."""
    long = " ".join(["THE harbour  was quiet"] * 40)
    entries = texts("the harbour", "The harbour", long, "in the night")
    corpus = ready(entries, only=("byte-level", "wordpiece"))
    assert {name: n for name, (n, _) in corpus.counts.lossy.items()} == {"wordpiece": 2}
    assert corpus.counts.lossy["wordpiece"][1].endswith("corpus.jsonl:2") and not corpus.counts.unwritable
    line = corpus.counts.lines(places=False)[-1]
    assert line.startswith("wordpiece: its tokenizer does not give 2 documents back as they are: it changes text")
    assert "bits per byte" in line
    assert ready(entries, only=("byte-level", "wordpiece")).counts == corpus.counts  # as it lies there


def test_held_out_documents_are_a_share_of_each_domain_and_equal_ones_go_together(ready):
    entries = [{"text": f"the harbour {i} {d}", "domain": d} for d in ("x", "y") for i in range(20)]
    corpus = ready([*entries, *entries], held_out=0.2)
    domains = [d.domain for d in corpus.held_out]
    assert domains.count("x") == domains.count("y") == 8  # 4 different ones, each twice
    assert not {d.text for d in corpus.held_out} & {d.text for d in learned(corpus)}
    assert corpus.domains == ("x", "y")
    # By what they say, not by where they stand.
    again = ready([*reversed(entries), *entries], held_out=0.2, folder="other")
    assert {d.text for d in again.held_out} == {d.text for d in corpus.held_out}


def test_a_file_of_its_own_to_measure_on(ready, tmp_path):
    (tmp_path / "held.jsonl").write_text('{"text": "in the night"}\n')
    corpus = ready(texts("the harbour", "the boats"), held_out=str(tmp_path / "held.jsonl"))
    assert [d.text for d in corpus.held_out] == ["in the night"] and len(learned(corpus)) == 2


def test_the_same_is_taken_and_anything_else_is_made_again(ready, tmp_path):
    entries = texts(*(f"the harbour {i}" for i in range(60)))
    first = ready(entries, shard_tokens=100)
    assert len(first.shards) > 3
    stamps = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out").iterdir()}
    assert ready(entries, shard_tokens=100) == first
    assert {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out").iterdir()} == stamps
    damaged = tmp_path / "out" / first.shards[1].name
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1])
    assert ready(entries, shard_tokens=100) == first and damaged.read_bytes() == content
    assert ready(entries[:-1], shard_tokens=100).key != first.key
    assert ready(entries, shard_tokens=100, limit=32).key != first.key


def test_what_leaves_nothing(ready):
    with pytest.raises(CorpusError, match=r"leaves no document to learn from\n3 of 3 documents left out: empty"):
        ready(texts("", " ", "\n"))
    with pytest.raises(CorpusError, match=r"leaves no document to measure \(corpus.held_out\)"):
        ready(texts("the same", "the same"))


def test_messages_survive(ready):
    turns = [{"role": "user", "content": " what? "}, {"role": "assistant", "content": "ßﬁ🎉"}]
    corpus = ready([{"messages": turns}, {"messages": [*turns, *turns]}], held_out=0.5, only=("byte-level",))
    found = sorted((d.messages for d in [*learned(corpus), *corpus.held_out]), key=len)
    assert found[0] == (Message("user", " what? "), Message("assistant", "ßﬁ🎉"))
