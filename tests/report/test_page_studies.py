"""`evomerge report` on studies that real searches have just made: finished, raced, cut off, fronts, paths."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import yaml

from evomerge.errors import Interrupted
from evomerge.pipeline import Options, search
from evomerge.pipeline.recorded import recorded
from evomerge.report import to_dict
from evomerge.study.budget import Budget
from evomerge.study.stopping import Stop
from evomerge.study.store import Store
from evomerge.study.watcher import Silent
from evomerge.study.workers import Cluster
from tests.report.pages import check_page

pytestmark = pytest.mark.xdist_group("reports")


@pytest.fixture(scope="session")
def finished(here, small_evaluator, tmp_path_factory):
    """A finished search, its folder and its result."""
    out = tmp_path_factory.mktemp("finished") / "out"
    done = here("search", "--evaluator", small_evaluator, "--budget", 8, "--study", "s", "--out", out, "--workers", 0,
                "--json")  # fmt: skip
    return out, done.result


def read(file: Path):
    return check_page(file.read_text(encoding="utf-8"))


def test_what_the_study_holds_is_what_the_search_handed_on(finished):
    out, result = finished
    found = recorded(Store(f"sqlite:///{out}/study.db"), "s", out)
    assert found.phase == "measured" and found.outcome is not None
    again = json.loads(json.dumps(to_dict(found.outcome)))
    assert again == json.loads((out / "result.json").read_text())
    assert found.recipe.hash() == result["best"]["recipe_hash"]
    # Without the folder's files the recipe is worked out from the models.
    alone = recorded(Store(f"sqlite:///{out}/study.db"), "s", None)
    assert alone.recipe == found.recipe and alone.result is None


def test_a_finished_study(here, finished, tmp_path, small_evaluator):
    out, result = finished
    done = here("report", out, "--evaluator", small_evaluator, "--json").result
    assert done["out"] == str(out / "report.html") and done["phase"] == "measured"
    root = read(out / "report.html")
    parts = ["found", "course", "held-out", "parameters", "items", "cost", "failures", "rebuild"]
    assert [h.attributes["id"] for h in root.all("main")[0].all("h2")] == parts
    winner = result["best"]["trial"]
    assert f"Candidate {winner} scores {result['best']['test']['score']:.3f}" in root.section("found").text
    assert len(root.table("Candidates")) == 1 + result["cost"]
    maths = next(r for r in root.table("Scores and differences") if r[0] == "maths")
    assert float(maths[1]) == pytest.approx(result["baselines"]["maths"]["test"]["score"], rel=1e-5)
    gained = result["baselines"]["kovesh"]["difference"]["gained"]
    assert next(r for r in root.table("Items of test") if r[:2] == ["kovesh", "kovesh_problems"])[3] == str(gained)
    # The items are shown with their prompts, which are Kovesh.
    quotes = root.section("items").all("blockquote")
    assert quotes and all("djor" in q.text for q in quotes)
    assert result["best"]["recipe_hash"] in root.section("rebuild").text
    assert yaml.safe_load(_recipe(root)) == yaml.safe_load((out / "recipe.yaml").read_text())


def _recipe(root):
    (details,) = [d for d in root.section("rebuild").all("details") if "recipe" in d.all("summary")[0].text]
    return "".join(c for c in details.all("code")[0].children if isinstance(c, str))


def test_items_go_by_their_ids_where_texts_are_unknown(here, finished, tmp_path):
    out, _ = finished
    here("report", out, "--out", tmp_path / "r.html")
    part = read(tmp_path / "r.html").section("items")
    assert "--evaluator FILE" in part.text and not part.all("blockquote") and part.all("li")
    here("report", out, "--out", tmp_path / "r.html", "--no-texts")
    assert "--no-texts" in read(tmp_path / "r.html").section("items").text


def test_what_is_refused(here, finished, tmp_path):
    out, _ = finished

    def refused(*words):
        done = here("report", *words, check=False)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        return done.stderr

    (tmp_path / "other.html").write_text("<!DOCTYPE html><p>mine")
    assert "is no report of evomerge; give another --out, or --overwrite" in refused(
        out, "--out", tmp_path / "other.html"
    )
    assert (tmp_path / "other.html").read_text().endswith("mine")
    here("report", out, "--out", tmp_path / "other.html", "--overwrite", "--no-texts")
    here("report", out, "--out", tmp_path / "other.html", "--no-texts")
    assert "is a folder" in refused(out, "--out", tmp_path)
    assert "has none of the test items" in refused(out, "--out", tmp_path / "n.html", "--evaluator", _other(tmp_path))
    assert not (tmp_path / "n.html").exists()
    assert 'no study "t"' in refused("t", "--storage", out / "study.db")
    assert "no such study" in refused("nothing-of-this-name")
    assert "give one of them" in refused(out, "--no-texts", "--evaluator", "quickstart")


def _other(folder: Path) -> Path:
    (folder / "items.jsonl").write_text("\n".join(json.dumps({"q": i}) for i in range(40)))
    (folder / "score.py").write_text("def score(model, tokenizer, items):\n    return [1.0] * len(items)\n")
    file = folder / "other.yaml"
    file.write_text(yaml.safe_dump({"kind": "python", "function": "score.py:score", "items": "items.jsonl",
                                    "tasks": ["kovesh_problems"]}))  # fmt: skip
    return file


def test_by_storage_its_folder_is_found(here, finished):
    out, _ = finished
    done = here("report", "s", "--storage", out / "study.db", "--no-texts", "--json").result
    assert done["out"] == str(out / "report.html")


class _After(Silent):
    """Asks a search to end after some candidates."""

    def __init__(self, stop: Stop, count: int) -> None:
        self.stop, self.count = stop, count

    def finished(self, trial, replayed):
        self.count -= 1
        if not self.count:
            self.stop.ask(signal.SIGINT)


def cut_off(out: Path, evaluator: Path, budget: int, after: int, **more) -> None:
    stop = Stop()
    options = Options(
        Budget(candidates=budget), evaluator=str(evaluator), study="s", out=out, cluster=Cluster(workers=0), **more
    )
    with pytest.raises(Interrupted):
        search(options, _After(stop, after), stop)


@pytest.mark.ci
def test_raced_and_cut_off(here, small_evaluator, tmp_path):
    out = tmp_path / "out"
    cut_off(out, small_evaluator, 30, 40, fidelity="race")
    assert here("report", out, "--json").result["phase"] == "interrupted"
    root = read(out / "report.html")
    assert "was interrupted: " in root.section("found").text and "There is no winner yet" in root.section("found").text
    states = [r[1] for r in root.table("Candidates")[1:]]
    assert "stopped early" in states and "complete" in states
    estimates = [float(r[3]) for r in root.table("Candidates")[1:] if r[1] == "stopped early"]
    raced = [t for t in Store(f"sqlite:///{out}/study.db").open("s").trials() if t.stopped]
    assert estimates == pytest.approx([t.estimate for t in raced], rel=1e-5)
    ids = [h.attributes["id"] for h in root.all("main")[0].all("h2")]
    assert "held-out" not in ids and "items" not in ids and "rebuild" in ids
    assert "--trial" in root.section("rebuild").text


def test_extended_and_cut_off_it_keeps_the_earlier_winner(here, finished, small_evaluator, tmp_path):
    import shutil

    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    cut_off(out, small_evaluator, 20, 11)
    here("report", out, "--no-texts")
    part = read(out / "report.html").section("found")
    assert "was interrupted: " in part.text and "the winner chosen 3 candidates ago" in part.text


@pytest.mark.ci
def test_a_front(here, tmp_path):
    from tests.pipeline.test_goals import EVALUATOR

    (tmp_path / "e.yaml").write_text(yaml.safe_dump(EVALUATOR))
    asked = ["--evaluator", tmp_path / "e.yaml", "--budget", 10, "--study", "s", "--workers", 0, "--json"]
    aims = ["--objective", "kovesh_direction", "ambri_problems"]
    done = here("search", *asked, *aims, "--out", tmp_path / "out").result
    here("report", tmp_path / "out", "--no-texts")
    root = read(tmp_path / "out" / "report.html")
    rows = root.table("The front")
    assert rows[0] == ["candidate", "kovesh_direction", "ambri_problems"]
    assert [int(r[0]) for r in rows[1:]] == [f["trial"] for f in done["front"]]
    volumes = [float(r[1]) for r in root.table("Hypervolume")[1:]]
    assert volumes == pytest.approx([v for _, v in done["hypervolume"]["history"]], rel=1e-5)


@pytest.mark.ci
def test_a_path(here, small_evaluator, tmp_path):
    asked = ["--evaluator", small_evaluator, "--budget", 5, "--study", "s", "--workers", 0, "--json"]
    done = here("search", "dataflow", *asked, "--out", tmp_path / "out").result
    here("report", tmp_path / "out", "--no-texts")
    root = read(tmp_path / "out" / "report.html")
    assert done["path"] in root.section("path").text
    hops = root.table("Hops")
    assert hops[1][0] == "embeddings" and hops[-1][0] == "norm, head" and len(hops) >= 4
