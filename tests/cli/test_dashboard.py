"""`evomerge dashboard`: a real server on loopback, and storages that are none."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from evomerge.cli.dashboard_server import open_server
from evomerge.score import State
from evomerge.study.display import FOLDER
from evomerge.study.store import Store
from tests.faults import cheap

BUDGET = 30
# Two tasks, that a function sees in the weights.
SCORE = """
import numpy as np

def score(model, tokenizer, items):
    w = np.concatenate([p.detach().float().numpy().ravel()[:64] for _, p in sorted(model.named_parameters())])
    return {"t": [float(np.sin(50 * w.sum() + i["number"]) > 0) for i in items],
            "u": [float(np.cos(30 * w[::2].sum() + i["number"]) > 0) for i in items]}
"""


@pytest.fixture
def storage(tmp_path: Path) -> str:
    import optuna

    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(study_name="mine", storage=url, direction="maximize")
    study.add_trial(optuna.trial.create_trial(value=0.5))
    return url


def test_serves_the_study(storage: str) -> None:
    with open_server(storage, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        base = f"http://127.0.0.1:{server.server_port}"
        # no proxy: an environment's proxy settings must not come between this process and itself
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{base}/api/studies", timeout=30) as answer:
            data = json.load(answer)
        with opener.open(f"{base}/dashboard/", timeout=30) as answer:
            page = answer.read()
        server.shutdown()
        thread.join()
    assert [s["study_name"] for s in data["study_summaries"]] == ["mine"]
    assert b"<html" in page.lower()


def test_listens_on_loopback_and_ends_by_interrupt(
    command: Callable, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsgiref.simple_server import WSGIServer

    def interrupt(self: WSGIServer, poll_interval: float = 0.5) -> None:
        assert self.server_address[0] == "127.0.0.1"
        raise KeyboardInterrupt

    monkeypatch.setattr(WSGIServer, "serve_forever", interrupt)
    done = command("dashboard", "--storage", storage, "--port", 0, "--json")
    assert done.code == 0
    assert done.json["address"].startswith("http://127.0.0.1:") and done.json["studies"] == ["mine"]


def test_an_address_in_use(command: Callable, storage: str) -> None:
    with open_server(storage, "127.0.0.1", 0) as server:
        error = command("dashboard", "--storage", storage, "--port", server.server_port).error
    assert "cannot listen there" in error


def test_storages_that_are_none(command: Callable, tmp_path: Path, storage: str) -> None:
    missing = tmp_path / "none.db"
    assert "no such file" in command("dashboard", "--storage", f"sqlite:///{missing}").error
    assert not missing.exists()  # SQLite would have made it
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t (x)").connection.close()
    assert "is not a study" in command("dashboard", "--storage", f"sqlite:///{tmp_path / 'other.db'}").error
    (tmp_path / "text.db").write_text("no database at all, only some text that is long enough to have a header" * 9)
    assert "is not a SQLite database" in command("dashboard", "--storage", f"sqlite:///{tmp_path / 'text.db'}").error
    assert f"sqlite:///{missing}" in command("dashboard", "--storage", missing).error
    assert "unknown kind of database" in command("dashboard", "--storage", "sqlight:///x").error
    assert 'did you mean "mine"' in command("dashboard", "mien", "--storage", storage).error
    assert "from 0 to 65535" in command("dashboard", "--storage", storage, "--port", 99999).error


@contextlib.contextmanager
def served(url: str, folders: list[Path]) -> Iterator[Callable[[str], Any]]:
    """The dashboard's own HTTP API: gives what GETs a path."""
    # no proxy: an environment's proxy settings must not come between this process and itself
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with open_server(url, "127.0.0.1", 0, folders) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()

        def get(path: str) -> Any:
            with opener.open(f"http://127.0.0.1:{server.server_port}{path}", timeout=60) as answer:
                data = answer.read()
                return json.loads(data) if "json" in answer.headers["Content-Type"] else data

        yield get
        server.shutdown()
        thread.join()


def evaluator(folder: Path) -> Path:
    file = cheap.evaluator(folder)
    (folder / "score.py").write_text(SCORE)
    data = yaml.safe_load(file.read_text()) | {"tasks": ["t", "u"]}
    file.write_text(yaml.safe_dump(data))
    return file


@pytest.fixture(scope="module")
def searched(here: Callable, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A study that a search has just made, with a race."""
    folder = tmp_path_factory.mktemp("dashboard")
    file, out = evaluator(folder), folder / "out"
    words = cheap.asked(file, out, BUDGET, "--workers", 0, "--fidelity", "race", "--population", 6)
    done = here(*words)
    url = f"sqlite:///{out / 'study.db'}"
    return SimpleNamespace(
        folder=folder, out=out, url=url, words=words, result=done.result, study=Store(url).open("s"), err=done.stderr
    )


def page(get: Callable[[str], Any], name: str = "s") -> dict[str, Any]:
    (number,) = [s["study_id"] for s in get("/api/studies")["study_summaries"] if s["study_name"] == name]
    found: dict[str, Any] = get(f"/api/studies/{number}")
    return found | {"id": number}


def test_a_study_s_page(searched: Any) -> None:
    assert "for the dashboard" not in searched.err
    trials = {t.number: t for t in searched.study.trials()}
    with served(searched.url, [searched.out / FOLDER]) as get:
        found = page(get)
        assert found["directions"] == ["maximize"] and found["objective_names"] == ["score"]
        for shown in found["trials"]:
            trial = trials[shown["number"]]
            attributes = {a["key"]: a["value"] for a in shown["user_attrs"]}
            if trial.score is not None:
                assert shown["values"] == [trial.value]
                assert {n: float(attributes[n]) for n in "tu"} == {t.task: t.shown for t in trial.score.tasks}
            else:
                assert not {"t", "u"} & set(attributes)
        best = searched.result["best"]
        body = found["note"]["body"]
        assert body.startswith(f"Winner: trial {best['trial']} (")
        assert f"**The winner: trial {best['trial']}**" in body and "task_arithmetic: maths " in body
        assert f"| **best** | {best['test']['score']:.3f} |" in body and "| uniform | " in body
        assert f"evomerge export {searched.out} OUT" in body
        (winner,) = [t for t in found["trials"] if t["number"] == best["trial"]]
        assert winner["note"]["body"].startswith("**The winner** of s.")
        assert sum(bool(t["note"]["body"]) for t in found["trials"]) == 1
        assert {a["filename"]: a["mimetype"] for a in found["artifacts"]} == {
            "history.png": "image/png", "recipe.png": "image/png"
        }
        for artifact in found["artifacts"]:
            path = f"/artifacts/{found['id']}/{artifact['artifact_id']}"
            assert f"![{artifact['filename']}]({path})" in body
            assert get(path)[:8] == b"\x89PNG\r\n\x1a\n"
        with pytest.raises(urllib.error.HTTPError) as error:
            get(f"/artifacts/{found['id']}/00000000-0000-0000-0000-000000000000")
        assert error.value.code == 404
        assert get("/api/meta")["artifact_is_available"] is True


def test_importance_slices_and_what_was_pruned(searched: Any) -> None:
    complete = [t for t in searched.study.trials() if t.state is State.COMPLETE]
    with served(searched.url, []) as get:
        found = page(get)
        (importance,) = get(f"/api/studies/{found['id']}/param_importances")["param_importances"]
        names = {p["name"] for p in importance}
        assert names == set(complete[0].params) and sum(p["importance"] for p in importance) > 0
        assert {p["name"] for p in found["union_search_space"]} == names  # slices and contours take it
        assert found["has_intermediate_values"]
        assert {t["state"] for t in found["trials"]} == {"Complete", "Pruned"}


def test_once_more_changes_nothing_and_a_reader_s_note_stays(searched: Any, here: Callable) -> None:
    import optuna
    import optuna_dashboard

    study = optuna.load_study(study_name="s", storage=searched.url)
    before = optuna_dashboard.get_note(study)
    optuna_dashboard.save_note(study, f"{before}\n\nmy own words")
    files = sorted(f.name for f in (searched.out / FOLDER).iterdir())
    here(*searched.words)
    assert optuna_dashboard.get_note(study) == f"{before}\n\nmy own words"
    assert sorted(f.name for f in (searched.out / FOLDER).iterdir()) == files and len(files) == 2


def opened(command: Callable, monkeypatch: pytest.MonkeyPatch, *words: object) -> Any:
    """`evomerge dashboard`, interrupted as soon as it serves."""
    from wsgiref.simple_server import WSGIServer

    def interrupt(self: WSGIServer, poll_interval: float = 0.5) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(WSGIServer, "serve_forever", interrupt)
        done = command("dashboard", *words, "--port", 0, "--json")
    assert done.code == 0, done.err
    return done


def test_the_command_opens_the_study_and_writes_what_a_cut_off_search_has_not(
    searched: Any, command: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As if it had been killed before its end: no winner, no page; and its folder was moved."""
    shutil.copytree(searched.out, tmp_path / "moved", ignore=shutil.ignore_patterns(FOLDER, "model"))
    database = tmp_path / "moved" / "study.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("DELETE FROM study_user_attributes WHERE key IN ('evomerge:notes:winner', "
                           "'evomerge:notes:ended', 'evomerge:notes:artifacts', 'evomerge:notes:marked')")
        connection.execute("DELETE FROM study_system_attributes WHERE key LIKE 'dashboard:%' OR key LIKE 'artifacts:%'")
        connection.commit()
    done = opened(command, monkeypatch, database)
    assert done.json["address"].endswith("/dashboard/studies/1") and "no note" not in done.err, done.err
    ranked = sorted((t for t in searched.study.trials() if t.value is not None), key=lambda t: (-t.value, t.number))
    with served(f"sqlite:///{database}", [tmp_path / "moved" / FOLDER]) as get:
        found = page(get)
        assert f"The best so far (no winner has been chosen yet): trial {ranked[0].number}" in found["note"]["body"]
        assert f"OUT --trial {ranked[0].number}" in found["note"]["body"]
        assert {a["filename"] for a in found["artifacts"]} == {"history.png", "recipe.png"}
        for artifact in found["artifacts"]:
            assert get(f"/artifacts/{found['id']}/{artifact['artifact_id']}")
    # Again: the same two, and none left over.
    opened(command, monkeypatch, database)
    assert len(list((tmp_path / "moved" / FOLDER).iterdir())) == 2


def test_of_a_finished_one_nothing_is_written(
    searched: Any, command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = searched.study.notes()
    done = opened(command, monkeypatch, searched.out / "study.db")
    assert done.json["address"].endswith("/dashboard/studies/1") and searched.study.notes() == before


@pytest.mark.slow
def test_on_a_server_without_its_password(postgresql: Any, here: Callable, tmp_path: Path) -> None:
    import sqlalchemy as sa

    url = postgresql.url()
    secret = str(sa.make_url(url).password)
    assert len(secret) > 3
    file = evaluator(tmp_path)
    here(*cheap.asked(file, tmp_path / "out", 8, "--workers", 0, "--fidelity", "full", "--storage", url))
    with served(url, [tmp_path / "out" / FOLDER]) as get:
        found = page(get)
        assert secret not in json.dumps(found) and "***" in found["note"]["body"]
        assert "evomerge export s OUT --storage postgresql" in found["note"]["body"]
        for artifact in found["artifacts"]:
            assert get(f"/artifacts/{found['id']}/{artifact['artifact_id']}")


@pytest.mark.slow
def test_a_front_has_its_names_and_directions(here: Callable, tmp_path: Path) -> None:
    file, out = evaluator(tmp_path), tmp_path / "out"
    done = here(*cheap.asked(file, out, 12, "--workers", 0, "--objective", "t", "u"))
    with served(f"sqlite:///{out / 'study.db'}", [out / FOLDER]) as get:
        found = page(get)
        assert found["objective_names"] == ["t", "u"] and found["directions"] == ["maximize", "maximize"]
        best = {t["number"] for t in found["best_trials"]}
        assert {t["trial"] for t in done.result["front"]} <= best
        assert len(get(f"/api/studies/{found['id']}/param_importances")["param_importances"]) == 2


def test_coefficients_of_a_recipe() -> None:
    import numpy as np

    from evomerge.recipe import Recipe
    from evomerge.report.recipe_picture import coefficients

    recipe = Recipe.model_validate({
        "merge_method": "task_arithmetic", "base_model": "zoo:base",
        "slices": [
            {"sources": [
                {"model": "zoo:maths", "layer_range": [i, i + 2], "parameters": {"weight": [
                    {"filter": end, "value": 9.0}, {"filter": "attn", "value": 0.1 + i}, {"value": [0.2 + i, 0.4 + i]},
                ]}},
                {"model": "zoo:base", "layer_range": [i, i + 2]},
            ]} for i, end in ((0, "embed"), (2, "model.norm"))
        ],
    })  # fmt: skip
    found = coefficients(recipe, {"zoo:maths": "m"}, {})
    assert found is not None and found.rows == (("m", "attn"), ("m", "other")) and found.parameter == "weight"
    expected = [[9.0, 0.1, 0.1, 2.1, 2.1, 9.0], [np.nan, 0.2, 0.4, 2.2, 2.4, np.nan]]
    np.testing.assert_allclose(found.values, expected)
    plain = Recipe.model_validate({
        "merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 0.3}},
                                            {"model": "b", "parameters": {"weight": [0.0, 1.0]}}],
    })  # fmt: skip
    found = coefficients(plain, {}, {"a": 3, "b": 3})
    assert found is not None and found.rows == (("a", ""), ("b", ""))
    np.testing.assert_allclose(found.values, [[0.3] * 5, [0.0, 0.0, 0.5, 1.0, 1.0]])
