"""ROUGE-L against sums by hand and against rouge-score's own words."""

from __future__ import annotations

import pytest
from rouge_score.rouge_scorer import RougeScorer

from evomerge.evaluation.rouge import rouge_l, words


def test_of_the_words_in_order() -> None:
    # Five of the answer's five words are in the reference's six, four of them in its order.
    assert rouge_l("a red blue circle seven", "a red circle and blue seven") == pytest.approx(2 * 4 / (5 + 6))
    assert rouge_l("", "a red circle") == rouge_l("a red circle", "") == rouge_l("...", "a") == 0.0
    assert rouge_l("A red circle!", "a red circle") == 1.0


@pytest.mark.parametrize(("answer", "reference"), [
    ("The cat sat on the mat.", "A cat was sitting on the mat"), ("police kill the gunman", "police killed the gunman"),
    ("7 of 12 shown", "12 of 7 were shown"), ("one, two; three", "three two one"),
])  # fmt: skip
def test_of_english_it_is_the_librarys(answer: str, reference: str) -> None:
    own = RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure
    assert rouge_l(answer, reference) == pytest.approx(own) and 0 < own < 1


def test_the_best_of_several_references() -> None:
    assert rouge_l("a blue ring", ["a red ring", "a blue ring", "no"]) == 1.0


def test_words_of_every_script() -> None:
    assert words("Zwölf Äpfel, naïve ＡＢＣ_1") == ["zwölf", "äpfel", "naïve", "abc", "1"]
    assert words("絵に赤い円があります。") == list("絵に赤い円があります")
    assert words("iPhoneを3台") == ["iphone", "を", "3", "台"]
    # With spaces or without, which Japanese leaves to the writer.
    assert rouge_l("赤い 円", "赤い円") == 1.0
    # Two of 円と七 in the reference's order: 円, 七 of 3 and 2 characters.
    assert rouge_l("円と七", "円七") == pytest.approx(2 * 2 / (3 + 2))
    assert RougeScorer(["rougeL"]).score("赤い円", "赤い円")["rougeL"].fmeasure == 0.0, "why the words are cut here"
