"""result.json: its schema is the contract, its figures agree with SciPy's and with sums done by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from scipy import stats

from evomerge.comparison import tango
from evomerge.report import rows, to_dict
from evomerge.score import Score, TaskScore
from evomerge.study.goals import Goals, Limit
from evomerge.study.outcome import Aims, Measured, Outcome

NUMBER = {"type": "number"}
OPTIONAL = {"type": ["number", "null"]}


def exactly(properties: dict) -> dict:
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip


TEST = {"score": NUMBER, "low": OPTIONAL, "high": OPTIONAL, "items": {"type": "integer"}}
SPAN = {"mean": NUMBER, "low": OPTIONAL, "high": OPTIONAL}
COUNT = {"type": ["integer", "null"]}
TESTED = {"p": OPTIONAL, "holm": OPTIONAL, "test": {"type": ["string", "null"]}, "gained": COUNT, "lost": COUNT}
SCHEMA = exactly(
    {
        "study": {"type": "string"},
        "storage": {"type": "string"},
        "seed": {"type": "integer"},
        "candidates": exactly({k: {"type": "integer"} for k in ("complete", "pruned", "failed")}),
        "cost": NUMBER,
        "best": exactly(
            {
                "trial": {"type": "integer"},
                "recipe_hash": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
                "search": OPTIONAL,
                "select": OPTIONAL,
                "test": exactly(TEST),
                "shrinkage": exactly({k: exactly(SPAN) for k in ("search", "select")}),
            }
        ),
        "baselines": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": exactly(
                {"test": exactly(TEST), "difference": exactly({**SPAN, **TESTED})}
            ),
        },
        "tasks": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "additionalProperties": exactly({**TEST, "metric": {"type": "string"}}),
            },
        },
        "seconds": NUMBER,
    }
)


def test_follows_the_schema_after_a_round_trip_through_strict_json(outcome: Outcome) -> None:
    import jsonschema

    text = json.dumps(to_dict(outcome), allow_nan=False)
    jsonschema.validate(json.loads(text), SCHEMA)
    assert json.loads(text) == to_dict(outcome)


def test_counts_and_best(outcome: Outcome) -> None:
    data = to_dict(outcome)
    assert data["candidates"] == {"complete": 2, "pruned": 1, "failed": 1} and data["cost"] == 4.0
    best = data["best"]
    assert (best["trial"], best["search"], best["select"]) == (3, 0.75, 0.5)
    wilson = stats.binomtest(49, 100).proportion_ci(0.95, method="wilson")
    assert best["test"] == pytest.approx({"score": 0.49, "low": wilson.low, "high": wilson.high, "items": 100})


def test_baselines_are_base_sources_and_uniform_with_paired_differences(outcome: Outcome) -> None:
    baselines = to_dict(outcome)["baselines"]
    assert list(baselines) == ["base", "maths", "kovesh", "uniform"]
    # best solves items 0..48, maths 0..35: thirteen more, and loses none; of four comparisons it is the third surest
    low, high = tango(13, 0, 100)
    assert baselines["maths"]["difference"] == {
        "mean": pytest.approx(0.13), "low": pytest.approx(low), "high": pytest.approx(high), "gained": 13, "lost": 0,
        "p": pytest.approx(2 / 2**13), "holm": pytest.approx(2 * 2 / 2**13), "test": "McNemar, exact",
    }  # fmt: skip
    assert [baselines[n]["difference"]["holm"] for n in ("base", "kovesh", "uniform")] == pytest.approx(
        [4 * 2 / 2**29, 3 * 2 / 2**22, 0.5]
    )
    assert baselines["maths"]["test"]["score"] == pytest.approx(0.36)


def test_shrinkage_is_from_search_and_select_to_test(outcome: Outcome) -> None:
    """0.75 of four items, 0.5 of the others, then 0.49 of a hundred, each with its own interval."""
    found = to_dict(outcome)["best"]["shrinkage"]
    assert (found["search"]["mean"], found["select"]["mean"]) == (pytest.approx(0.26), pytest.approx(0.01))
    wide = to_dict(outcome)["best"]["test"]
    assert found["select"]["low"] == pytest.approx(0.5 - 0.49 - (wide["high"] - 0.49))  # all four items alike
    assert found["select"]["low"] < 0.01 < found["select"]["high"]


def test_controls_are_baselines_too(outcome: Outcome) -> None:
    control = Measured("random search", "control", outcome.measured[0].test, cost=3.9)
    more = replace(outcome, measured=(*outcome.measured[:-1], control, outcome.winner))
    found = to_dict(more)["baselines"]
    assert list(found) == ["base", "maths", "kovesh", "uniform", "random search"]
    assert found["random search"]["cost"] == 3.9 and "cost" not in found["uniform"]


def test_tasks_keep_their_authors_direction(outcome: Outcome) -> None:
    other = to_dict(outcome)["tasks"]["other"]
    assert list(other) == ["base", "maths", "kovesh", "uniform", "best"]
    assert other["base"]["score"] == 0.5 and other["best"]["score"] == 0.25  # an error rate, not its negative
    assert other["best"]["metric"] == "error"


def test_a_metric_without_items_has_no_interval(outcome: Outcome, with_best: Callable[[Score], Outcome]) -> None:
    whole = Score((TaskScore("target", "f1", 0.6),))
    data = to_dict(with_best(whole))
    assert data["best"]["test"] == {"score": 0.6, "low": None, "high": None, "items": 0}
    assert data["baselines"]["base"]["difference"]["low"] is None
    assert data["baselines"]["base"]["difference"]["mean"] == pytest.approx(0.4)


def test_what_was_kept_in_a_grid(mapped: Outcome, outcome: Outcome) -> None:
    assert "archive" not in to_dict(outcome)
    assert to_dict(mapped)["archive"] == {
        "sampler": "map-elites",
        "elites": [
            {"trial": 3, "search": 0.75, "tasks": {"one": 0.5, "two": 1.0}, "cell": [3, 9]},
            {"trial": 0, "search": 0.0, "tasks": {"one": 0.25, "two": -0.25}, "cell": [0, 0]},
        ],
        "grid": {"one": {"cells": 10, "low": 0.0, "high": 1.0}, "two": {"cells": 10, "low": -0.3, "high": 1.0}},
        "coverage": 0.02, "qd_score": 0.95, "norm_qd_score": 0.0095, "offset": -0.1,
    }  # fmt: skip


def test_what_shares_the_items_and_who_misses_a_constraint(shared: Outcome) -> None:
    goals = Goals(limits=(Limit("target", low=0.5),))
    found = to_dict(replace(shared, aims=Aims(goals, limits={"search": goals.limits})))["archive"]
    elites = [
        {"trial": 3, "search": 0.75, "tasks": {"target": 0.75}, "violation": 0.0, "fitness": 2.5},
        {"trial": 0, "search": 0.25, "tasks": {"target": 0.25}, "violation": 0.0, "fitness": 0.5},
    ]
    assert found == {"sampler": "m2n2", "elites": elites}


def test_models_of_one_name_do_not_hide_each_other(outcome: Outcome) -> None:
    twin = replace(outcome.measured[1], name="uniform")
    renamed = replace(outcome, measured=(outcome.measured[0], twin, *outcome.measured[2:]))
    names = [r.name for r in rows(renamed)]
    assert len(set(names)) == 5 and names[1] == "uniform" and names[3] == "uniform (uniform)"


def test_not_a_number_becomes_null(outcome: Outcome, with_best: Callable[[Score], Outcome]) -> None:
    data = to_dict(replace(with_best(Score((TaskScore("target", "f1", float("nan")),))), seconds=float("inf")))
    assert data["best"]["test"]["score"] is None and data["seconds"] is None
    json.dumps(data, allow_nan=False)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///runs/x.db", "sqlite:///runs/x.db"),
        ("postgresql://me:s3cret@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("mysql+pymysql://me:a%40b@host/db", "mysql+pymysql://me:***@host/db"),
    ],
)
def test_passwords_are_not_written(outcome: Outcome, url: str, shown: str) -> None:
    assert to_dict(replace(outcome, storage=url))["storage"] == shown
