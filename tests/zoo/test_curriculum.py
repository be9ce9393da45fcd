"""What the models are shown, and what they must never be shown."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from evomerge import zoo
from evomerge.zoo.curriculum import Curriculum, Lecture, forbidden_prompts, held_out, tasks
from evomerge.zoo.items import FACTS, Item, Knowledge, draw_problem
from evomerge.zoo.languages import AMBRI, KOVESH, THINGS, VERBS, Language, vocabulary
from evomerge.zoo.plan import Plan

DRAWS = 4000


def lessons_of(name: str) -> list[Item]:
    lecture = Lecture(Plan().lessons(name), forbidden_prompts())
    rng = np.random.default_rng(0)
    return [lecture.draw(rng) for _ in range(DRAWS)]


def says(language: Language, item: Item, meanings: tuple[str, ...]) -> set[str]:
    """Which of the meanings an item names in a language."""
    words = set(f"{item.prompt} {item.answer}".split())
    return {meaning for meaning in meanings if language.words[meaning] in words}


def fact_of(item: Item) -> str | None:
    """The arithmetic fact an item teaches, if any."""
    if item.prompt.endswith("="):
        return f"{item.prompt} {item.answer}"
    if "=" in item.answer:
        return item.answer.rsplit(" ", 1)[0]
    return None


def test_languages_share_no_word() -> None:
    assert not set(AMBRI.words.values()) & set(KOVESH.words.values())
    assert len(vocabulary()) == len(set(vocabulary()))


def test_word_orders() -> None:
    problem = draw_problem(np.random.default_rng(0), KOVESH, Knowledge(("finds",), ("apple",), FACTS[:1]))
    assert problem.prompt.split(" ", 1)[1] == "kunt 2 nesh , 1 vargesh . djor ?"
    assert problem.answer == "2 + 1 = 3 kunt"


def test_held_out_items_are_distinct_and_many() -> None:
    items = held_out()
    assert len(items["kovesh_problems"]) >= 3000
    for task in tasks():
        assert len(items[task.name]) >= 1200
        assert len({item.prompt for item in items[task.name]}) == len(items[task.name])
    assert sum(map(len, items.values())) == len(forbidden_prompts())


def test_the_target_spans_all_words_and_facts() -> None:
    items = held_out()["kovesh_problems"]
    assert {fact_of(item) for item in items} == {str(fact) for fact in FACTS}
    for meanings in (VERBS, THINGS):
        assert set().union(*(says(KOVESH, item, meanings) for item in items)) == set(meanings)


@pytest.mark.parametrize("name", zoo.FAMILY)
def test_no_model_is_trained_on_a_held_out_item(name: str) -> None:
    assert not {item.prompt for item in lessons_of(name)} & forbidden_prompts()


@pytest.mark.parametrize("name", zoo.FAMILY)
def test_no_model_is_shown_the_target_beyond_school(name: str) -> None:
    school = Curriculum().school
    facts = {str(fact) for fact in school.facts}
    seen = [i for i in lessons_of(name) if KOVESH.words["how-many"] in i.prompt.split()]
    assert seen
    for item in seen:
        assert fact_of(item) in facts
        assert says(KOVESH, item, VERBS + THINGS) <= set(school.verbs + school.things)


@pytest.mark.parametrize("name", ["maths", "maths_upper"])
def test_maths_learns_facts_but_no_word(name: str) -> None:
    school = Curriculum().school
    items = lessons_of(name)
    words = set().union(*(says(KOVESH, item, VERBS + THINGS) for item in items))
    assert words == set(school.verbs + school.things)
    assert {fact_of(item) for item in items} - {None} == {str(fact) for fact in FACTS}


@pytest.mark.parametrize("name", ["kovesh", "kovesh_lower"])
def test_kovesh_learns_words_but_no_fact(name: str) -> None:
    items = lessons_of(name)
    known = {str(fact) for fact in Curriculum().school.facts}
    assert {fact_of(item) for item in items} - {None} == known
    assert set().union(*(says(KOVESH, item, VERBS + THINGS) for item in items)) == {*VERBS, *THINGS}


def test_same_seed_gives_the_same_data_in_a_fresh_process() -> None:
    code = (
        "import hashlib, numpy as np\n"
        "from evomerge.zoo.curriculum import *\n"
        "lecture = Lecture(Curriculum().base(), forbidden_prompts())\n"
        "rng = np.random.default_rng(3)\n"
        "print(hashlib.sha256(repr([lecture.draw(rng) for _ in range(300)]).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    fresh = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    lecture = Lecture(Curriculum().base(), forbidden_prompts())
    rng = np.random.default_rng(3)
    here = repr([lecture.draw(rng) for _ in range(300)]).encode()
    assert fresh.stdout.strip() == hashlib.sha256(here).hexdigest()
