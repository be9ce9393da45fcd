"""Overlaps: what is found is what a plain comparison of all pairs finds; templates do not cry wolf."""

from __future__ import annotations

import itertools
import random

import pytest

from evomerge.evaluation import SPLITS, evaluator_for, open_evaluator
from evomerge.evaluation.overlaps import Overlaps, grams, overlaps, plain

WORDS = ["river", "stone", "lamp", "winter", "copper", "garden", "whistle", "harbour", "velvet", "thunder", "pocket"]


def sentence(seed: int, words: int = 14) -> str:
    """Text of the seed's own: pseudo-words, as strangers' items have them."""
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("aeioubcdfghlmnprst", k=draw.randint(3, 8))) for _ in range(words))


def counts(found: Overlaps) -> dict[tuple[str, str], tuple[int, int]]:
    return {(o.split, o.also): (o.exact, o.near) for o in found.found}


def test_exact_ones_are_found_through_case_space_and_punctuation() -> None:
    same = ["Where is the OLD harbour? By  the river!", "where is the old harbour -- by the river"]
    texts = {
        "search": {"a": (same[0], sentence(1))},
        "select": {"a": (sentence(2),)},
        "test": {"a": (same[1], same[0])},
    }
    found = overlaps(texts)
    assert counts(found) == {("test", "search"): (2, 0)}
    assert found.found[0].examples[0] == (same[1], " ".join(same[0].split()), 1.0)
    assert found.items == 5 and found.sampled is None


def test_near_ones_are_found_and_counted_once() -> None:
    long = sentence(3, 20)
    near = long.replace(long.split()[10], "harbour")
    texts = {
        "search": {"a": (long, long + " x", sentence(4))},
        "select": {"a": (sentence(5),)},
        "test": {"a": (near, sentence(6))},
    }
    found = overlaps(texts)
    assert counts(found) == {("test", "search"): (0, 1)}
    (item, like, similarity) = found.found[0].examples[0]
    a, b = ({x[i : i + 5] for i in range(len(x) - 4)} for x in (plain(near), plain(long)))
    assert item == near and like == long and similarity == pytest.approx(len(a & b) / len(a | b))
    assert found.lines()[0] == "test items of a that are in search too: 1 nearly, of 2"


def test_a_search_is_told_of_near_ones_in_a_line_and_of_exact_ones_in_full() -> None:
    long = sentence(3, 20)
    near = {"search": {"a": (long,)}, "test": {"a": (long.replace(long.split()[10], "harbour"),)}}
    found = overlaps(near)
    assert found.summary() == [
        "1 of 2 items are nearly the same as some in another split, none exactly: the report has them"
    ]
    same = overlaps({"search": {"a": (long,)}, "test": {"a": (long,)}})
    assert same.summary() == [f"overlap: {line}" for line in same.lines()] and len(same.lines()) == 2
    assert overlaps({"search": {"a": (long,)}, "test": {"a": (sentence(9),)}}).summary() == []


def test_across_tasks_and_between_search_and_select() -> None:
    one, two = sentence(7), sentence(8)
    found = overlaps({"search": {"a": (one,), "b": (two,)}, "select": {"a": (two,)}, "test": {"b": (one,)}})
    assert [(o.split, o.task, o.also, o.also_task, o.exact) for o in found.found] == [
        ("test", "b", "search", "a", 1),
        ("select", "a", "search", "b", 1),
    ]


def test_all_pairs_that_a_plain_comparison_finds() -> None:
    """Sentences with some of their words replaced: similarities from 0.4 to 1, a third of them above 0.8."""
    draw = random.Random(0)
    texts: dict[str, list[str]] = {"search": [], "test": []}
    for seed in range(120):
        words = sentence(seed, 24).split()
        texts["search"].append(" ".join(words))
        for place in draw.sample(range(24), draw.randint(0, 4)):
            words[place] = draw.choice(WORDS)
        texts["test"].append(" ".join(words))
    expected, similar = {"exact": 0, "near": 0}, []
    sets = {s: [{t[i : i + 5] for i in range(len(t) - 4)} for t in x] for s, x in texts.items()}
    for place, ours in enumerate(sets["test"]):
        best = max(len(ours & other) / len(ours | other) for other in sets["search"])
        similar.append(best)
        expected["exact"] += texts["test"][place] in texts["search"]
        expected["near"] += 0.8 <= best < 1
    (found,) = overlaps({s: {"t": tuple(x)} for s, x in texts.items()}).found
    assert {"exact": found.exact, "near": found.near} == expected
    assert 20 < expected["near"] < 80 and sum(0.7 < s < 0.8 for s in similar) > 5  # a close call, on both sides


def test_the_same_problem_with_other_numbers_is_another_one() -> None:
    text = "Anna packs {} baskets with {} pears each and carries them to the market square before noon"
    ours, theirs = (text.format(12, 7), text.format(12, 8)), (text.format(31, 45), text.format(14, 9))
    assert not overlaps({"search": {"a": ours}, "test": {"a": theirs}}).found
    near = theirs[0].replace("noon", "night")
    assert counts(overlaps({"search": {"a": theirs}, "test": {"a": (near,)}})) == {("test", "search"): (0, 1)}


def test_an_instruction_that_all_items_share_makes_them_no_duplicates() -> None:
    frame = "Below is an instruction that describes a task. Write a response that completes the request. {} ### Answer:"
    texts = [frame.format(sentence(s, 3)) for s in range(60)]
    assert not overlaps({"search": {"a": texts[:30]}, "test": {"a": texts[30:]}}).found


def test_items_in_a_text_that_was_learned() -> None:
    inside, part, outside = sentence(20), sentence(21), sentence(22)
    documents = [sentence(23, 300), f"{sentence(24)} {inside.upper()}! {sentence(25)}", part[: int(len(part) * 0.9)]]
    found = overlaps({"test": {"a": (inside, part, outside)}}, {"the corpus": documents})
    (overlap,) = found.found
    assert (overlap.split, overlap.also, overlap.also_task) == ("test", "the corpus", None)
    assert (overlap.exact, overlap.near, overlap.items) == (1, 1, 3)
    assert found.texts == {"the corpus": (3, True)}
    assert overlap.examples[0][0] == inside and overlap.examples[1][2] >= 0.8


def test_languages_without_spaces() -> None:
    question = "駅前のパン屋では朝に焼いたパンを箱に詰めて近くの小学校へ毎日届けています。今日は何箱届けたでしょうか。"
    found = overlaps({"search": {"a": (question,)}, "test": {"a": (question.replace("今日は", "昨日は"),)}})
    assert counts(found) == {("test", "search"): (0, 1)}


def test_what_was_left_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.evaluation.overlaps.MOST_ITEMS", 20)
    monkeypatch.setattr("evomerge.evaluation.overlaps.MOST_CHARACTERS", 100)
    same = sentence(0)
    texts = {"search": {"a": [sentence(s) for s in range(30)]}, "test": {"a": [same, *map(sentence, range(50, 60))]}}
    found = overlaps(texts, {"the corpus": [sentence(99), sentence(98), sentence(97)]})
    assert counts(found) == {("test", "search"): (1, 0)}  # exact ones are looked for among all
    assert found.sampled == 20 and found.texts == {"the corpus": (2, False)}
    assert found.lines()[-2:] == [
        "near duplicates were looked for among 20 of 41 items",
        "of the corpus the first 2 documents were read",
    ]
    assert overlaps(texts).to_dict() == overlaps(texts).to_dict()


def test_grams_are_of_characters_each_once() -> None:
    assert len(grams("abcabcabc", 3)) == 3 and len(grams("ab", 3)) == 0
    assert (
        len(set(itertools.chain.from_iterable(grams(w, 3).tolist() for w in ("abc", "acb", "bac", "bca", "cab")))) == 5
    )
    assert set(grams("xyzabc", 3).tolist()) >= set(grams("abc", 3).tolist())


def test_the_zoos_tasks_are_alike_and_do_not_cry_wolf() -> None:
    evaluator = open_evaluator(evaluator_for(["kovesh_problems", "ambri_problems"]))
    texts = {s: evaluator.texts(s) for s in SPLITS}
    total = sum(len(x) for of in texts.values() for x in of.values())
    found = overlaps(texts)
    assert total == found.items == 5500 and sum(o.exact for o in found.found) == 0
    assert sum(o.near for o in found.found) < total / 500
