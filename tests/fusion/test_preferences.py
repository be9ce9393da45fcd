"""From scored answers to what TRL learns from."""

from __future__ import annotations

import json

import pytest

from evomerge.errors import EvoMergeError
from evomerge.fusion.config import FusionError
from evomerge.fusion.documents import Document, Message
from evomerge.fusion.preference_config import PreferenceConfig
from evomerge.fusion.preferences import Answered, choose_pairs, held_out_scores, score_answers, write_pairs
from evomerge.fusion.preferences.answers import load_score, questions


def documents(count):
    turns = [(Message("user", f"question {i}"), Message("assistant", f"reference {i}")) for i in range(count)]
    return [Document(messages=m) for m in turns]


def test_a_question_is_what_stands_before_the_last_answer():
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    ((question, reference),) = questions([Document(messages=turns)])
    assert [m["content"] for m in question] == ["a", "b", "c"] and reference == "d"
    with pytest.raises(FusionError, match="here: preferences need conversations with a question"):
        questions([Document("text", place="here")])
    with pytest.raises(FusionError, match="with a question"):
        questions([Document(messages=(Message("assistant", "b"),))])


ANSWERED = [
    Answered("one", tuple(("bad", "good") for _ in range(200)), tuple((0.0, 0.5) for _ in range(200))),
    Answered("other", tuple(("worse", "best", "best") for _ in range(200)),
             tuple((0.2, 0.9, 0.9) if i % 2 else (0.1, 0.2, 0.3) for i in range(200))),
]  # fmt: skip


def test_both_members_of_a_pair_are_of_the_source_with_the_best_answer():
    pairs = choose_pairs(ANSWERED, documents(200), 0.4, 0.0)
    assert 50 < len(pairs.sft) < 110 and len(pairs.sft) + len(pairs.dpo) == 200
    for row in pairs.dpo:
        own = (row["chosen"][0]["content"], row["rejected"][0]["content"])
        number = int(row["prompt"][0]["content"].split()[1])
        assert own == (("best", "worse") if number % 2 else ("good", "bad"))
    for row in pairs.sft:
        number = int(row["prompt"][0]["content"].split()[1])
        assert row["completion"] == [{"role": "assistant", "content": "best" if number % 2 else "good"}]
    assert pairs.taken == {"one": 100, "other": 100}
    # The parts share no question, and a question's part is its own.
    assert choose_pairs(ANSWERED, documents(200), 0.4, 0.0) == pairs


def test_pairs_that_are_too_close_are_left_out():
    pairs = choose_pairs(ANSWERED, documents(200), 0.4, 0.6)
    assert {int(r["prompt"][0]["content"].split()[1]) % 2 for r in pairs.dpo} == {1}
    same = [Answered("one", (("a", "a"),), ((1.0, 0.0),))]
    assert not choose_pairs(same, documents(1), 0.01, 0.0).dpo


def test_written_as_trl_reads_them(tmp_path):
    import datasets

    sft, dpo = write_pairs(choose_pairs(ANSWERED, documents(200), 0.4, 0.0), tmp_path)
    rows = datasets.load_dataset("json", data_files=str(dpo), split="train", cache_dir=str(tmp_path / "cache"))
    assert set(rows.column_names) == {"prompt", "chosen", "rejected"}
    assert json.loads(sft.read_text().splitlines()[0])["completion"][0]["role"] == "assistant"


def test_scores_are_the_functions():
    asked = documents(2)
    seen = []

    def score(questions, answers, references):
        seen.append((questions, answers, references))
        return [len(a) for a in answers]

    (found,) = score_answers({"one": [["a", "bbb"], ["cc", ""]]}, asked, score, "f")
    assert found.scores == ((1, 3), (2, 0))
    assert seen[0][1] == ["a", "bbb", "cc", ""]
    assert seen[0][2] == ["reference 0"] * 2 + ["reference 1"] * 2
    assert held_out_scores([found]) == {"one": 1.5}


@pytest.mark.parametrize("returned", [[1.0], [1.0, float("nan")], "ab", None, [None, 1]])
def test_a_function_that_gives_no_scores(returned):
    with pytest.raises(EvoMergeError, match="f: returned"):
        score_answers({"one": [["a", "b"]]}, documents(1), lambda *_: returned, "f")


def test_functions_that_cannot_be_had(tmp_path):
    (tmp_path / "reward.py").write_text("def score(q, a, r): return [0.0] * len(a)\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")

    def load(score):
        return load_score(PreferenceConfig(score=score), tmp_path, tmp_path / "fusion.yaml")

    assert load("reward.py:score")([], ["a"], []) == [0.0]
    with pytest.raises(FusionError, match=r'fusion.yaml: preferences.score = reward.py:scor: .*did you mean "score"'):
        load("reward.py:scor")
    with pytest.raises(FusionError, match="fails on import: ZeroDivisionError"):
        load("broken.py:score")
    with pytest.raises(FusionError, match="no such file"):
        load("missing.py:score")
