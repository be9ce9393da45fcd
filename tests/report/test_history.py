"""The history picture is a real picture and draws what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from evomerge.report import write_history_png
from evomerge.report.history import running_best
from evomerge.score import State
from evomerge.study.outcome import Outcome


def read(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return np.asarray(imread(path))


def test_writes_a_picture(outcome: Outcome, tmp_path: Path) -> None:
    write_history_png(outcome, tmp_path / "h.png")
    assert (tmp_path / "h.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    picture = read(tmp_path / "h.png")
    assert picture.shape[:2] == (600, 1080)
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 10


def test_lines_and_failures_are_drawn(outcome: Outcome, tmp_path: Path) -> None:
    write_history_png(outcome, tmp_path / "all.png")
    write_history_png(replace(outcome, lines={}), tmp_path / "no_lines.png")
    whole = tuple(t for t in outcome.trials if t.state is State.COMPLETE)
    write_history_png(replace(outcome, trials=whole), tmp_path / "no_failures.png")
    pictures = [read(tmp_path / f"{n}.png") for n in ("all", "no_lines", "no_failures")]
    assert (pictures[0] != pictures[1]).any() and (pictures[0] != pictures[2]).any()


def test_a_search_without_a_complete_candidate_is_drawn_too(outcome: Outcome, tmp_path: Path) -> None:
    failed = tuple(t for t in outcome.trials if t.state is not State.COMPLETE)
    write_history_png(replace(outcome, trials=failed, lines={}), tmp_path / "h.png")
    assert (tmp_path / "h.png").stat().st_size > 1000


def test_running_best_equals_numpys() -> None:
    values = [0.3, 0.1, 0.5, 0.5, 0.2, 0.9]
    assert running_best(values) == np.maximum.accumulate(values).tolist()
    assert running_best([]) == []
