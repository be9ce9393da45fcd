"""The output folder: every file there, whole, and result.json last."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import evomerge.report.outputs as outputs
from evomerge.errors import EvoMergeError
from evomerge.recipe import Path as RecipePath
from evomerge.recipe import load_recipe
from evomerge.report import to_dict, write_outputs
from evomerge.study.outcome import Aims, Outcome

PATH = RecipePath.scaled([("zoo:maths", 0), ("zoo:maths", 1), ("zoo:kovesh", 1)], [1.0, 0.9, 1.0])
FILES = {"recipe.yaml", "README.md", "trials.parquet", "items.parquet", "history.png", "result.json"}


def test_writes_everything_and_nothing_else(outcome: Outcome, tmp_path: Path) -> None:
    write_outputs(outcome, tmp_path / "deep" / "out")
    out = tmp_path / "deep" / "out"
    assert {f.name for f in out.iterdir()} == FILES
    assert json.loads((out / "result.json").read_text()) == to_dict(outcome)
    assert load_recipe(out / "recipe.yaml") == outcome.recipe


def test_a_path_has_its_picture_and_what_it_saved(outcome: Outcome, tmp_path: Path) -> None:
    trial = replace(outcome.trials[0], attributes={"depth": 3})
    searched = replace(
        outcome,
        recipe=PATH.recipe(("o_proj", "down_proj")),
        path=PATH,
        names={"zoo:maths": "maths", "zoo:kovesh": "kovesh"},
        depths={"zoo:maths": 4, "zoo:kovesh": 4},
        layers=(200, 150),
        aims=Aims(front=(trial,)),
    )
    write_outputs(searched, tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == FILES | {"path.png"}
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["path"] == "embeddings maths > maths 0 > maths 1 x0.9 > kovesh 1 > head maths"
    assert result["layer_evaluations"] == {"asked": 200, "run": 150, "saved": 0.25}
    assert result["front"] == [{"trial": 0, "depth": 3, "search": 0.25}]


def test_what_a_killed_process_left_half_written_is_removed(outcome: Outcome, tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f".trials.parquet.{gone.pid}.part").touch()
    alive = tmp_path / f".trials.parquet.{os.getppid()}.part"
    alive.touch()
    write_outputs(outcome, tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == FILES | {alive.name}


def test_a_second_time_replaces(outcome: Outcome, tmp_path: Path) -> None:
    write_outputs(outcome, tmp_path)
    write_outputs(replace(outcome, seconds=99.0), tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["seconds"] == 99.0
    assert {f.name for f in tmp_path.iterdir()} == FILES


def test_an_error_midway_leaves_the_old_files_whole(
    outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_outputs(outcome, tmp_path)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}

    def full(_outcome: Outcome, part: Path) -> None:
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(part))

    monkeypatch.setattr(outputs, "write_history_png", full)
    with pytest.raises(EvoMergeError, match="No space left on device"):
        write_outputs(replace(outcome, seconds=99.0), tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == FILES
    for name in ("history.png", "result.json"):
        assert (tmp_path / name).read_bytes() == before[name]


def test_a_file_in_the_way_is_one_clear_error(outcome: Outcome, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(EvoMergeError, match="out: cannot be written"):
        write_outputs(outcome, tmp_path / "out")
