"""The table and its verdict say what was measured, no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from evomerge.report import model_card, table_text, verdict
from evomerge.report.table import archive_text, number
from evomerge.score import Score, TaskScore
from evomerge.study.outcome import Outcome


def cells(text: str, model: str) -> list[str]:
    line = next(x for x in text.splitlines() if x.startswith("│") and x.split("│")[1].strip() == model)
    return [c.strip() for c in line.split("│")[1:-1]]


def test_one_row_per_model_the_winner_last(outcome: Outcome) -> None:
    text = table_text(outcome)
    names = [x.split("│")[1].strip() for x in text.splitlines() if x.startswith("│")]
    assert names == ["base", "maths", "kovesh", "uniform", "best"]
    assert "100 held-out items" in text


def test_figures_of_a_row(outcome: Outcome) -> None:
    text = table_text(outcome)
    model, value, interval, difference, _, p, other = cells(text, "maths")
    assert (model, value, difference, p, other) == ("maths", "0.360", "+0.130", "<.001", "0.500")
    assert cells(text, "uniform")[5] == ".500"  # two items gained, none lost
    assert interval == "0.273 .. 0.458"  # Wilson, 36 of 100
    assert cells(text, "best")[3:] == ["", "", "", "0.250"]


def test_long_names_of_tasks_fold_and_figures_do_not(outcome: Outcome) -> None:
    def more(s: Score) -> Score:
        others = tuple(replace(s.tasks[1], task=f"a_task_of_a_long_name_{i}") for i in range(4))
        return Score((replace(s.tasks[0], task="the_skill_that_the_search_is_after"), *others))

    wide = replace(outcome, measured=tuple(replace(m, test=more(m.test)) for m in outcome.measured))
    figures = ["0.360", "0.273 .. 0.458", "+0.130", "+0.078 .. +0.210", "<.001"]
    text = table_text(wide, width=140)
    assert max(map(len, text.splitlines())) <= 140 and " a_task_of_ " in text
    assert cells(text, "maths") == ["maths", *figures, *["0.500"] * 4]
    # Too narrow a terminal gets the other tasks in a table of their own, and loses no figure.
    others, target = table_text(wide, width=80).split("\n\n")
    assert cells(others, "maths") == ["maths", *["0.500"] * 4] and cells(target, "maths") == ["maths", *figures]
    assert max(map(len, (others + "\n" + target).splitlines())) <= 80
    assert table_text(wide, width=40) == table_text(wide, width=80)


def test_several_weighted_tasks_are_shown_each(outcome: Outcome) -> None:
    def both(s: Score) -> Score:
        return Score((s.tasks[0], replace(s.tasks[1], weight=1.0)))

    more = replace(outcome, measured=tuple(replace(m, test=both(m.test)) for m in outcome.measured))
    header = next(x for x in table_text(more).splitlines() if "model" in x)
    assert [c.strip() for c in header.split("┃")[1:-1]] == [
        "model", "score", "95 %", "minus it", "95 %", "p", "target", "other",
    ]  # fmt: skip


def test_verdict_names_who_is_not_beaten(outcome: Outcome, with_best: Callable[[Score], Outcome]) -> None:
    # 49 against uniform's 47 of the same items: two gained, none lost, which is heads twice
    assert verdict(outcome) == (
        "The best found beats base, maths and kovesh. "
        "Not beyond chance, either way (p above .05, corrected for 4 tests, or no test): uniform."
    )
    solved = np.ones(100, np.float32)
    target = replace(outcome.winner.test.tasks[0], value=1.0, results=solved)
    assert "beats every model" in verdict(with_best(Score((target,))))
    none = replace(target, value=0.0, results=np.zeros(100, np.float32))
    assert verdict(with_best(Score((none,)))) == (
        "The best found beats none of the models here. It is worse than base, maths, kovesh and uniform."
    )


def test_a_difference_that_one_of_many_tests_would_show_is_not_claimed(outcome: Outcome) -> None:
    """Six items gained, none lost: p = .031 alone, but .125 among four tests alike."""
    target = outcome.winner.test.tasks[0]
    less = replace(target, results=(np.arange(100) < 43).astype(np.float32), value=0.43)
    near = [replace(m, test=Score((less,))) for m in outcome.measured[:-1]]
    many = replace(outcome, measured=(*near, outcome.winner))
    assert verdict(many).startswith("The best found beats none of the models here.")
    assert verdict(replace(outcome, measured=(near[0], outcome.winner))) == (
        "The best found beats every model here beyond chance (each p at most .05)."
    )


@pytest.mark.parametrize(
    ("right", "words"),
    [
        (40, "Overfitting: 0.850 on the search items, 0.400 on the test items, shrinkage +0.450 (+0.2"),
        (78, "shrinkage +0.070 (-0.0"),
        (90, "): no sign of it."),
    ],
)
def test_overfitting_is_said(outcome: Outcome, with_best: Callable[[Score], Outcome], right: int, words: str) -> None:
    target = outcome.winner.test.tasks[0]

    def solved(count: int, items: int) -> Score:
        ids = tuple(f"item{i:03d}" for i in range(items))
        results = (np.arange(items) < count).astype(np.float32)
        return Score((replace(target, value=count / items, results=results, items=ids),))

    found = with_best(solved(right, 100))
    found = replace(found, measured=(*found.measured[:-1], replace(found.winner, search=solved(34, 40))))
    text = " ".join(table_text(found).split())  # a caption is as wide as its table
    assert words in text and words in model_card(found)
    ends = {40: ": too much for chance.", 78: ": may be chance.", 90: ": no sign of it."}
    assert f"{ends[right]} Uniform" in text


def test_what_was_not_measured_is_said(outcome: Outcome) -> None:
    """A search without controls leaves open whether one source alone would do: the table says how to know."""
    assert "each source alone" in " ".join(table_text(outcome).split())
    assert "--controls" not in model_card(outcome)  # a card is for those who did not search
    controlled = replace(outcome, measured=(replace(outcome.measured[0], role="control"), *outcome.measured[1:]))
    assert "--controls" not in table_text(controlled)


def test_without_intervals_nothing_is_claimed(outcome: Outcome, with_best: Callable[[Score], Outcome]) -> None:
    assert "beats none" in verdict(with_best(Score((TaskScore("target", "f1", 0.99),))))


def test_looks_are_said(outcome: Outcome) -> None:
    assert "have been read" not in table_text(outcome)
    assert "have been read 3 times" in table_text(replace(outcome, looks=3))


def test_the_archive_is_a_line(outcome: Outcome, mapped: Outcome, shared: Outcome) -> None:
    assert archive_text(outcome) == []
    assert archive_text(mapped) == [
        "archive of map-elites, on the search items: 2 of 100 cells (coverage 0.020), QD score 0.950 "
        "(normalised 0.009, offset -0.100); each is in result.json"
    ]
    assert archive_text(shared) == [
        "archive of m2n2, on the search items: 2 candidates of 0.250 to 0.750, shared fitness 0.500 to 2.500 items; "
        "each is in result.json"
    ]
    assert shared.archive is not None
    members = [replace(m, trial=replace(m.trial, attributes={"violation": 0.5})) for m in shared.archive.members]
    (line,) = archive_text(replace(shared, archive=replace(shared.archive, members=tuple(members))))
    assert line.endswith("2.500 items, all of which miss the constraints; each is in result.json")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (0.00758, "0.008"), (0.00042, "0.00042"), (12345.6, "1.23e+04"), (-3.5, "-3.500")],
)
def test_numbers_stay_readable(value: float, text: str) -> None:
    assert number(value) == text
