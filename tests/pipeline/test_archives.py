"""Searches that keep different candidates: what they end with is written, told, listed and exported."""

import json

import pytest
import yaml

from evomerge.recipe import load_recipe
from evomerge.study.store import Store
from tests.pipeline.test_goals import EVALUATOR


@pytest.fixture
def search(here, tmp_path):
    def run(sampler, budget, *more):
        path = tmp_path / "e.yaml"
        tasks = [task | {"weight": 1} for task in EVALUATOR["tasks"][:2]]
        path.write_text(yaml.safe_dump(EVALUATOR | {"tasks": tasks}))
        return here("search", "--evaluator", path, "--sampler", sampler, "--population", 8, "--budget", budget,
                    "--study", "s", "--workers", 0, "--out", tmp_path / "out", *more)  # fmt: skip

    return run


@pytest.mark.ci
def test_a_grid_is_handed_on_the_same_after_resuming(here, search, tmp_path):
    search("map-elites", 9)
    done = search("map-elites", 13)
    archive = json.loads((tmp_path / "out" / "result.json").read_text())["archive"]
    trials = Store(f"sqlite:///{tmp_path}/out/study.db").open("s").trials()
    for elite in archive["elites"]:
        score = trials[elite["trial"]].score
        assert elite["search"] == score.value and elite["tasks"] == {t.task: t.value for t in score.tasks}
        for place, (task, axis) in zip(elite["cell"], archive["grid"].items(), strict=True):
            along = (elite["tasks"][task] - axis["low"]) / (axis["high"] - axis["low"]) * axis["cells"]
            assert place - 1e-4 <= along <= place + 1 + 1e-4
    assert max(e["search"] for e in archive["elites"]) == max(t.value for t in trials)
    assert archive["coverage"] == pytest.approx(len(archive["elites"]) / 100) and archive["offset"] == 0
    assert archive["qd_score"] == pytest.approx(sum(e["search"] for e in archive["elites"]))
    line = f"archive of map-elites, on the search items: {len(archive['elites'])} of 100 cells"
    assert line in done.stdout and done.stdout.count("archive of") == 1
    assert f"| {archive['elites'][0]['trial']} | " in (tmp_path / "out" / "README.md").read_text().split("else was")[1]
    assert search("map-elites", 13, "--json").result["archive"] == archive
    other = archive["elites"][-1]["trial"]
    here("export", tmp_path / "out", tmp_path / "made", "--trial", other)
    assert load_recipe(tmp_path / "made" / "recipe.yaml").evomerge.provenance["trial"] == other


@pytest.mark.ci
def test_an_archive_that_shares_the_items(search):
    """With fewer candidates than it holds all are in it, and the items that any solves are given away whole."""
    archive = search("m2n2", 7, "--json").result["archive"]
    assert set(archive) == {"sampler", "elites"} and sorted(e["trial"] for e in archive["elites"]) == [*range(7)]
    fitness = [e["fitness"] for e in archive["elites"]]
    assert min(fitness) >= 0 and sum(fitness) == pytest.approx(round(sum(fitness)), abs=0.01) and sum(fitness) <= 80


@pytest.mark.ci
def test_others_have_none(search):
    assert "archive" not in search("cma", 4, "--json").result
