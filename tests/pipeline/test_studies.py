"""What makes a study another one, and where it may not write."""

import shutil
import sqlite3

import pytest

from evomerge import presets, zoo
from tests.study.recorded import sequence

WHOLE = pytest.mark.xdist_group("whole search")


@pytest.mark.ci
@WHOLE
def test_another_seed_is_another_sequence_and_another_study(whole, here, small_evaluator, tmp_path):
    out, _ = whole
    args = ("search", "--evaluator", small_evaluator, "--workers", 0, "--study", "s")
    here(*args, "--budget", 7, "--seed", 1, "--out", tmp_path)
    one, other = ([t[1] for t in sequence(folder)] for folder in (tmp_path, out))
    assert one[:5] == other[:5]  # sources, uniform merge, published settings
    assert not [p for p in one[5:] if p in other]
    refused = here(*args, "--budget", 30, "--seed", 1, "--out", out, check=False)
    assert refused.returncode == 2 and "seed is 1, was 0" in refused.stderr


@WHOLE
def test_another_study_does_not_take_a_finished_ones_place(whole, here, small_evaluator):
    out, _ = whole
    before = (out / "result.json").read_bytes()
    args = ("search", "--evaluator", small_evaluator, "--workers", 0, "--budget", 2, "--out", out, "--seed", 3)
    done = here(*args, check=False)
    assert done.returncode == 2 and 'holds the results of study "s"; give another --out' in done.stderr
    assert (out / "result.json").read_bytes() == before


@WHOLE
def test_list_goes_on_past_what_is_no_study(here, whole, tmp_path):
    out, _ = whole
    shutil.copytree(out, tmp_path / "runs" / "good")
    (tmp_path / "runs" / "bad").mkdir()
    with sqlite3.connect(tmp_path / "runs" / "bad" / "mlflow.db") as connection:
        connection.execute("create table experiments (name text)")
    done = here("list", tmp_path / "runs", "--json")
    assert [row["study"] for row in done.result] == ["s"] and "mlflow.db: is not a study" in done.stderr


@pytest.mark.ci
def test_a_source_that_changed_is_another_study(here, small_evaluator, tmp_path):
    for name in ("base", "maths"):
        shutil.copytree(zoo.path(name), tmp_path / name)
    args = (
        "search", "--models", tmp_path / "maths", "--base", tmp_path / "base", "--evaluator", small_evaluator,
        "--workers", 0, "--budget", 2, "--study", "s", "--out", tmp_path / "o",
    )  # fmt: skip
    here(*args)
    shutil.copytree(zoo.path("kovesh"), tmp_path / "maths", dirs_exist_ok=True)
    done = here(*args, check=False)
    assert done.returncode == 2 and "sources.named.maths is" in done.stderr


@pytest.mark.ci
def test_a_changed_task_is_another_study(here, small_evaluator, tmp_path):
    """The prompts of a task are part of what a score means, though its items and its name stay the same."""
    tasks = tmp_path / "tasks"
    shutil.copytree(presets.folder("evaluators") / "zoo", tasks)
    evaluator = tmp_path / "e.yaml"
    evaluator.write_text(small_evaluator.read_text().replace(str(presets.folder("evaluators") / "zoo"), str(tasks)))
    args = ("search", "--evaluator", evaluator, "--workers", 0, "--study", "s", "--out", tmp_path / "o")
    here(*args, "--budget", 2)
    file = tasks / "kovesh_problems.yaml"
    file.write_text(file.read_text().replace("{{prompt}}", "drevin {{prompt}}"))
    done = here(*args, "--budget", 3, check=False)
    assert done.returncode == 2 and "tasks.kovesh_problems is" in done.stderr
