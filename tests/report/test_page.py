"""The report on searches made by hand: names that mean harm, very large ones, and what is said of each outcome."""

from __future__ import annotations

import datetime
from dataclasses import replace

import numpy as np
import pytest

from evomerge.comparison import difference, interval
from evomerge.evaluation.config import EvaluatorConfig
from evomerge.report.page import Texts, page
from evomerge.report.page.coefficients import fields_of
from evomerge.report.page.costs import kind
from evomerge.report.page.found import answer
from evomerge.report.page.items import agreements
from evomerge.score import Score, State, TaskScore, Trial
from evomerge.space import parse_space
from evomerge.study.outcome import Outcome
from evomerge.study.record import Record
from tests.report.conftest import score, searched
from tests.report.pages import check_page

WHEN = datetime.datetime(2026, 11, 29, 12, 0, tzinfo=datetime.UTC)
NASTY = "<script>alert(1)</script>\"'&$\\frac{\x07]]>"
FINGERPRINT = {
    "seed": 7,
    "sampler": {"name": "cma"},
    "sources": {"base": "aaaa", "named": {"maths": "bbbb", "kovesh": "cccc"}},
    "items": {"test": {"target": {"count": 100, "sha256": "dddd"}}},
    "evaluator": {"tasks": [{"name": "target"}]},
    "space": {"num_layers": 4},
}
SPACE = """
method: [ties, dare_ties]
base_model: zoo:base
sources: [zoo:maths, zoo:kovesh]
granularity: {layer_groups: 2, modules: {attention: attn, mlp: "*"}}
parameters:
  weight: {low: -1, high: 1}
  density: {low: 0.1, high: 1, per: source}
  lambda: {low: 0, high: 2}
"""


def record(outcome: Outcome, /, **changes: object) -> Record:
    lines = {m.name: (m.role, searched(0.25)) for m in outcome.measured[:-1]}
    made = Record(
        name=outcome.study, storage="sqlite:///x/study.db", out=None, phase="measured", driver=None,
        fingerprint=FINGERPRINT, notes={"winner": 3, "seconds": 75.0}, trials=outcome.trials, lines=lines,
        best=outcome.best, outcome=outcome, recipe=outcome.recipe,
        evaluator=EvaluatorConfig(tasks=[{"name": "target"}]),
    )  # fmt: skip
    return replace(made, **changes)


def test_held_out_figures_are_those_of_the_comparison(outcome: Outcome) -> None:
    root = check_page(page(record(outcome), Texts({}), WHEN))
    rows = {r[0]: r for r in root.table("Scores and differences")[1:]}
    assert list(rows) == ["base", "maths", "kovesh", "uniform", "best"]
    for measured, d in zip(outcome.measured, outcome.differences, strict=True):
        span = interval(measured.test)
        assert [float(x) for x in rows[measured.name][1:4]] == pytest.approx([span.mean, span.low, span.high], rel=1e-5)
        if d is not None:
            found = [float(x) for x in rows[measured.name][4:9]]
            assert found == pytest.approx([d.mean, d.low, d.high, d.p, d.holm], rel=1e-5)
    assert "Candidate 3 scores 0.490" in root.section("found").text


def test_items_gained_and_lost_agree_with_the_paired_test(outcome: Outcome) -> None:
    for found in [a for a in agreements(outcome) if a.task == "target"]:
        measured = next(m for m in outcome.measured if m.name == found.model)
        d = difference(outcome.winner.test, measured.test)
        assert found.counts[1:3] == (d.gained, d.lost) and sum(found.counts) == 100
    texts = Texts({"target": {f"item{i:03d}": f"question {i}" for i in range(100)}})
    part = check_page(page(record(outcome), texts, WHEN)).section("items")
    # The winner solves the first 49, maths the first 36.
    (gained,) = [d for d in part.all("details") if d.all("summary")[0].text.startswith("Gained against maths")]
    assert gained.all("summary")[0].text == "Gained against maths, 13 items: 3 of them"
    assert [q.text for q in gained.all("blockquote")] == ["question 36", "question 37", "question 38"]
    assert gained.all("p")[1].text == "winner: right ; maths: wrong"
    assert "question 49" not in part.text


def test_it_says_plainly_that_a_winner_is_no_better(outcome: Outcome) -> None:
    def against(*scores: int) -> str:
        measured = [replace(m, test=score(s)) for m, s in zip(outcome.measured, scores, strict=True)]
        return answer(replace(outcome, measured=tuple(measured)))

    assert "better beyond chance" in against(20, 20, 20, 20, 60)
    assert "It is no better than the best source, maths (0.500): -0.010" in against(20, 50, 20, 20, 49)
    assert "It may be no better than the best source, maths (0.480): +0.010" in against(20, 48, 20, 20, 49)
    assert "It is worse than the best source, maths, -0.400" in against(20, 90, 20, 20, 50)


def test_names_that_mean_harm_are_text(outcome: Outcome) -> None:
    def renamed(s: Score) -> Score:
        return Score(tuple(replace(t, task=f"{NASTY} {t.task}", metric=NASTY) for t in s.tasks))

    measured = tuple(
        replace(m, name=f"{m.name} {NASTY}", test=renamed(m.test), search=m.search and renamed(m.search))
        for m in outcome.measured
    )
    trials = (*outcome.trials, Trial(4, {NASTY: NASTY}, State.FAIL, reason=NASTY))
    bad = replace(outcome, study=NASTY, measured=measured, trials=trials)
    elite = {"trial": 3, "search": 0.5, "tasks": {NASTY: 0.5, "b": 0.1}}
    items = {NASTY: {NASTY: {"count": 1, "sha256": NASTY}}}
    found = record(
        bad, name=NASTY, trials=trials, driver=NASTY, phase="running", unknown=NASTY, recipe=None,
        lines={f"{NASTY} {n}": ("source", searched(0.25)) for n in "ab"},
        result={"archive": {"sampler": NASTY, "elites": [elite]}},
        fingerprint={**FINGERPRINT, "sampler": {"name": NASTY}, "items": items},
    )  # fmt: skip
    ids = {i: NASTY for i in measured[-1].test.tasks[0].items}
    text = page(found, Texts({f"{NASTY} target": ids}, NASTY), WHEN)
    root = check_page(text)
    assert "<script" not in text and root.all("h1")[0].text.startswith("<script>alert(1)</script>")
    assert NASTY.replace("\x07", "") in root.section("items").all("blockquote")[0].text.replace("\x07", "")


def test_passwords_are_not_shown(outcome: Outcome) -> None:
    from evomerge.study.database import shown

    hidden = shown("postgresql://me:s3cret@host/db")
    text = page(record(outcome, storage=hidden), Texts({}), WHEN)
    assert "s3cret" not in text and "postgresql://me:***@host/db" in text
    assert "--storage &#39;postgresql://me:***@host/db&#39;" in text


def test_ten_thousand_candidates_make_no_large_file(outcome: Outcome) -> None:
    draw = np.random.default_rng(0)
    trials = []
    for n in range(10_000):
        kind_ = n % 10
        if kind_ < 6:
            race = {"estimate": float(draw.uniform()), "seen": 2, "cost": 0.2}
            trials.append(Trial(n, {}, State.PRUNED, attributes={"race": race}))
        elif kind_ < 9:
            trials.append(Trial(n, {}, State.COMPLETE, searched(float(draw.uniform(0, 0.7)))))
        else:
            trials.append(Trial(n, {}, State.FAIL, reason=f"tensor {n} is NaN"))
    text = page(record(outcome, trials=tuple(trials)), Texts({}), WHEN)
    root = check_page(text)
    assert len(text) < 3_000_000
    assert "of 3,000 complete candidates" in root.section("course").text
    assert "of 10,000 candidates are listed" in root.section("course").text
    assert root.table("Why")[1][2] == "1,000" and len(root.table("Why")) == 2


def test_reasons_are_counted_by_their_words() -> None:
    assert kind("tensor 12 of layer 3 is NaN\nmore") == kind("tensor 7 of layer 1 is NaN")
    assert kind(None) == "" and kind("out of memory") != kind("is NaN")


def test_every_searched_value_stands_in_the_heatmap_or_beside_it(outcome: Outcome) -> None:
    config = parse_space(SPACE)
    space = config.bind(4)
    params = {p.name: 0.5 for p in space.parameters} | {"method": "ties"}
    params["weight.maths.layers_2-3.mlp"] = -0.75
    best = Trial(3, params, State.COMPLETE, searched(0.75))
    found = record(outcome, config=config, num_layers=4, best=best)
    fields, others = fields_of(found)
    assert [f.name for f in fields] == ["weight", "density"] and set(others) == {"method", "lambda"}
    weight = fields[0]
    assert weight.rows == ("embeddings", "layers 0-1", "layers 2-3", "head") and weight.parts == ("attention", "mlp")
    assert weight.panels["maths"]["layers 2-3", "mlp"] == -0.75 and (weight.low, weight.high) == (-1, 1)
    drawn = {n for n in params if n.startswith(("weight.", "density."))}
    assert sum(len({k[0] if k[0] in ("embeddings", "head") else k for k in cells}) for f in fields
               for cells in f.panels.values()) == len(drawn)  # fmt: skip
    root = check_page(page(found, Texts({}), WHEN))
    assert ["maths", "layers 2-3", "mlp", "-0.75"] in root.table("weight")
    assert root.table("Other parameters")[1:] == [["method", "ties"], ["lambda", "0.5"]]


def test_parameters_of_a_method_that_was_not_chosen_are_left_out(outcome: Outcome) -> None:
    config = parse_space(SPACE.replace("[ties, dare_ties]", "[linear, ties]"))
    params = {p.name: 0.5 for p in config.bind(4).parameters} | {"method": "linear"}
    fields, others = fields_of(
        record(outcome, config=config, num_layers=4, best=Trial(3, params, State.COMPLETE, searched(0.75)))
    )
    assert [f.name for f in fields] == ["weight"] and not any(n.startswith("density") for n in others)


def test_before_the_first_candidate_there_is_a_report(outcome: Outcome) -> None:
    running = Trial(0, {}, State.RUNNING)
    empty = record(
        outcome, trials=(running,), best=None, outcome=None, recipe=None, notes={}, phase="running", driver="process 1"
    )
    root = check_page(page(empty, Texts({}), WHEN))
    assert "still running (process 1): 0 candidates have ended, 1 under way" in root.section("found").text
    assert "No candidate is complete yet" in root.section("found").text


def test_results_that_are_no_hits_are_compared(outcome: Outcome) -> None:
    def graded(shift: float) -> Score:
        values = (np.linspace(0.1, 0.9, 20) + shift).astype(np.float32)
        return Score((TaskScore("target", "f1", float(values.mean()), 1.0, tuple(f"i{k}" for k in range(20)), values),))

    shifts = (0.0, 0.05, -0.05, 0.0, 0.0)
    measured = tuple(replace(m, test=graded(s)) for m, s in zip(outcome.measured, shifts, strict=True))
    root = check_page(page(record(replace(outcome, measured=measured)), Texts({}), WHEN))
    rows = root.table("Items of test")
    assert rows[0] == ["model", "task", "as good", "better", "worse", "items"]
    assert rows[1:4] == [["base", "target", "20", "0", "0", "20"], ["maths", "target", "0", "0", "20", "20"],
                         ["kovesh", "target", "0", "20", "0", "20"]]  # fmt: skip


def test_archives_are_drawn(mapped: Outcome) -> None:
    from evomerge.report.result import to_dict

    root = check_page(page(record(mapped, result={"archive": to_dict(mapped)["archive"]}), Texts({}), WHEN))
    assert root.table("The archive")[1] == ["3", "0.75", "0.5", "1", "3, 9"]
