"""Parquet files: what goes in comes out, with stable columns and types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evomerge.comparison import difference
from evomerge.report import items_frame, trials_frame
from evomerge.report.frames import outcome_scores
from evomerge.study.outcome import Outcome


def test_trials_round_trip(outcome: Outcome, tmp_path: Path) -> None:
    trials_frame(outcome.trials).to_parquet(tmp_path / "t.parquet", index=False)
    frame = pd.read_parquet(tmp_path / "t.parquet")
    assert list(frame.columns) == [
        "number", "state", "value", "reason", "params.weight.maths", "params.method", "tasks.target",
        "seconds.build", "seconds.evaluate", "attributes.generation", "attributes.where",
    ]  # fmt: skip
    assert frame["number"].tolist() == [0, 1, 2, 3]
    assert frame["state"].tolist() == ["COMPLETE", "FAIL", "PRUNED", "COMPLETE"]
    assert frame["params.weight.maths"].tolist() == [0.5, 0.9, 0.7, 0.8]
    assert frame["params.method"].tolist() == ["ties", "ties", "dare_ties", "ties"]
    assert frame["value"].isna().tolist() == [False, True, True, False]
    assert frame["reason"][1] == "model.norm.weight is NaN" and frame["reason"].isna().sum() == 3
    assert frame["attributes.where"][3] == '{"node": "a"}'


def test_items_round_trip(outcome: Outcome, tmp_path: Path) -> None:
    items_frame(outcome_scores(outcome)).to_parquet(tmp_path / "i.parquet", index=False)
    frame = pd.read_parquet(tmp_path / "i.parquet")
    assert list(frame.columns) == ["subject", "split", "task", "metric", "item", "result"]
    assert frame["result"].dtype == np.float32
    search = frame[frame["split"] == "search"]
    means = search.groupby("subject", observed=True)["result"].mean()
    assert means.to_dict() == {"trial/0": 0.25, "trial/3": 0.75}
    assert search["item"].astype(str).tolist() == ["a", "b", "c", "d"] * 2


def test_paired_differences_can_be_computed_from_the_items(outcome: Outcome) -> None:
    frame = items_frame(outcome_scores(outcome))
    test = frame[(frame["split"] == "test") & (frame["task"] == "target")]
    wide = test.pivot(index="item", columns="subject", values="result")
    best = f"trial/{outcome.best.number}"
    for measured in outcome.measured[:-1]:
        subject = f"source/{measured.name}" if measured.role == "source" else f"model/{measured.name}"
        expected = difference(outcome.winner.test, measured.test).mean
        assert (wide[best] - wide[subject]).mean() == pytest.approx(expected, abs=1e-6)


def test_no_trials_still_have_columns(tmp_path: Path) -> None:
    expected = (
        (trials_frame, ["number", "state", "value", "reason"]),
        (items_frame, ["subject", "split", "task", "metric", "item", "result"]),
    )
    for made, columns in expected:
        made(()).to_parquet(tmp_path / "e.parquet", index=False)
        frame = pd.read_parquet(tmp_path / "e.parquet")
        assert list(frame.columns) == columns and frame.empty
