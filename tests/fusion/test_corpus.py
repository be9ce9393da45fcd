"""Corpora: every form that is read, and what is wrong with one in one line."""

from __future__ import annotations

import json

import datasets
import pytest

from evomerge.fusion.config import CorpusConfig
from evomerge.fusion.corpus import CorpusError, locate, read_corpus
from evomerge.fusion.documents import Document, Message

ROWS = [
    {"text": "one", "domain": "x"},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    {"text": ""},
]
DOCUMENTS = [
    Document("one", domain="x"),
    Document(messages=(Message("user", "q"), Message("assistant", "a"))),
    Document(""),
]


def said(documents):
    return [(d.text, d.messages, d.domain) for d in documents]


def read(where, **config):
    return list(read_corpus(where, CorpusConfig(path=str(where), **config)))


@pytest.fixture
def lines(tmp_path):
    def write(*entries, name="corpus.jsonl"):
        file = tmp_path / name
        file.write_text("".join((e if isinstance(e, str) else json.dumps(e)) + "\n" for e in entries))
        return file

    return write


def test_json_lines(lines):
    assert said(read(lines(*ROWS, ""))) == said(DOCUMENTS)
    assert said(read(lines(*ROWS), documents=2)) == said(DOCUMENTS[:2])


def test_other_columns(lines):
    file = lines({"body": "one", "topic": "x"}, {"turns": ROWS[1]["messages"]})
    assert said(read(file, text="body", messages="turns", domain="topic")) == said(DOCUMENTS[:2])


def test_folders_of_datasets(tmp_path):
    texts = datasets.Dataset.from_list([{"text": "one", "domain": "x"}, {"text": "two", "domain": "y"}])
    wanted = [("one", (), "x"), ("two", (), "y")]
    texts.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": texts, "test": texts.select([0])}).save_to_disk(tmp_path / "split")
    (tmp_path / "parquet").mkdir()
    texts.to_parquet(tmp_path / "parquet" / "train.parquet")
    assert said(read(tmp_path / "saved")) == wanted
    assert said(read(tmp_path / "split")) == wanted
    assert said(read(tmp_path / "split", split="test")) == wanted[:1]
    assert said(read(tmp_path / "parquet")) == wanted
    with pytest.raises(CorpusError, match=r"corpus.split = 'tset': did you mean \"test\""):
        read(tmp_path / "split", split="tset")
    chats = datasets.Dataset.from_list([ROWS[1]])
    chats.save_to_disk(tmp_path / "chats")
    assert said(read(tmp_path / "chats")) == said(DOCUMENTS[1:2])


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{", r"corpus.jsonl:2: is not JSON"),
        ([1], r'corpus.jsonl:2: expected an object with "text" or "messages", got \[1\]'),
        ({"txt": "a"}, r'corpus.jsonl:2: expected a string under "text" .* got keys "txt"'),
        ({"text": 5}, r"got text = 5"),
        ({"messages": "hello"}, r"messages: expected a list of messages, got 'hello'"),
        (
            {"messages": [{"role": "user"}]},
            r'messages\[0\]: expected an object with strings under "role" and "content"',
        ),
        ({"messages": [{"role": "asistant", "content": "a"}]}, r'role = .asistant.: did you mean "assistant"'),
        ({"messages": [{"role": "user", "content": "a"}]}, r"no message of the assistant"),
        ('{"text": "\\ud800"}', r"half of a surrogate pair at character 0"),
    ],
)
def test_what_is_no_document(lines, entry, problem):
    with pytest.raises(CorpusError, match=problem):
        read(lines({"text": "fine"}, entry))


def test_several_problems_are_told_at_once_and_not_for_ever(lines):
    with pytest.raises(CorpusError) as e:
        read(lines({"txt": 1}, {"text": "fine"}, {"txt": 2}))
    assert [line.split(": ")[0].rsplit(":", 1)[1] for line in str(e.value).splitlines()] == ["1", "3"]
    with pytest.raises(CorpusError) as e:
        read(lines(*[{"txt": 1}] * 100))
    assert len(str(e.value).splitlines()) == 6 and "read no further" in str(e.value)


def test_files_that_are_no_corpus(tmp_path, lines):
    with pytest.raises(CorpusError, match="holds no document"):
        read(lines(""))
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(CorpusError, match=r"binary.jsonl:1: is not UTF-8 text"):
        read(binary)
    with pytest.raises(CorpusError, match=r"corpus.txt: expected a .jsonl file"):
        read(lines({"text": "a"}, name="corpus.txt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="neither a folder that `datasets` saved nor one of"):
        read(tmp_path / "empty")


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["corpus.json", "corpus.jsonl"])
def test_an_array_is_told_from_lines(lines, indent, name):
    file = lines("", json.dumps(ROWS, indent=indent), name=name)
    with pytest.raises(CorpusError) as e:
        read(file)
    assert str(e.value) == (
        f'{file}:2: an array begins here, expected an object with "text" or "messages" in each line; '
        "write each entry of the array in a line of its own"
    )


def test_a_broken_data_set_is_told_once(tmp_path, caplog, capfd):
    """`datasets` logs what it raises."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").write_bytes(b"PAR1 and no more")
    before = datasets.logging.get_verbosity()
    with pytest.raises(CorpusError, match=r"data: cannot be read as a data set: .*[Pp]arquet"):
        read(tmp_path / "data")
    assert capfd.readouterr() == ("", "") and not caplog.records
    assert datasets.logging.get_verbosity() == before


def test_where_a_corpus_is(tmp_path):
    (tmp_path / "mine.jsonl").write_text("")
    assert locate("mine.jsonl", tmp_path) == tmp_path / "mine.jsonl"
    assert locate("zoo:chains", None).is_file()
    with pytest.raises(CorpusError, match='did you mean "chains"'):
        locate("zoo:chain", None)
    with pytest.raises(CorpusError, match="no such file or folder"):
        locate("missing.jsonl", tmp_path)
