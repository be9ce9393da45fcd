"""`evomerge.search` and the study that it gives, on a search that has just run in this process."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import evomerge
from evomerge.cli import main
from evomerge.errors import EvaluatorError, EvoMergeError, InputError, SpaceError, StudyError
from evomerge.study.watcher import Silent

SCORE = '''
import torch

def nesh(model, tokenizer, items):
    """How likely each item's text is."""
    found = []
    for item in items:
        ids = torch.tensor([tokenizer(item["text"])["input_ids"]])
        with torch.inference_mode():
            found.append(-float(model(input_ids=ids, labels=ids).loss))
    return found
'''
SPACE = {
    "method": "task_arithmetic",
    "base_model": "zoo:base",
    "sources": ["zoo:maths", "zoo:kovesh"],
    "granularity": {"layer_groups": 2, "modules": {"attention": ["self_attn"], "mlp": ["mlp"]}},
    "parameters": {"weight": {"low": 0, "high": 1.2, "init": 0.5}},
}


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("evaluator")
    (folder / "score.py").write_text(SCORE)
    lines = [json.dumps({"text": f"drevin {i} kunt {j} nesh {i + j}"}) for i in range(6) for j in range(6)]
    (folder / "items.jsonl").write_text("\n".join(lines))
    return {
        "kind": "python",
        "function": f"{folder / 'score.py'}:nesh",
        "items": str(folder / "items.jsonl"),
        "tasks": ["score"],
        "splits": {"search": {"share": 0.4}, "select": {"share": 0.3}, "test": {"share": 0.3}},
    }


@pytest.fixture(scope="module")
def study(evaluator: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> evomerge.Study:
    out = tmp_path_factory.mktemp("runs") / "mine"
    return evomerge.search(
        SPACE, evaluator=evaluator, budget=6, workers=0, seed=3, out=out, study="mine", fidelity="full", progress=False
    )


def test_the_outputs_are_the_commands(study: evomerge.Study) -> None:
    assert study.folder is not None and study.name == "mine" and study.phase == "measured"
    names = {p.name for p in study.folder.iterdir()}
    assert {"model", "recipe.yaml", "README.md", "result.json", "trials.parquet", "items.parquet"} <= names
    result = json.loads((study.folder / "result.json").read_text())
    assert result["best"]["trial"] == study.best_trial.number
    assert study.model == study.folder / "model"
    # The command goes on with what Python began.
    assert main(["status", str(study.folder)]) == 0


def test_trials_and_items(study: evomerge.Study) -> None:
    trials = study.trials()
    assert trials["number"].tolist() == list(range(len(trials))) and (trials["state"] == "COMPLETE").all()
    best = trials.set_index("number").loc[study.best_trial.number]
    assert study.best_value == best["value"] and best["params.weight.maths.layers_0-1.attention"] == (
        study.best_params["weight.maths.layers_0-1.attention"]
    )
    assert study.best_params == study.best_trial.params
    items = study.items()
    assert set(items["split"]) == {"search", "select", "test"}
    search = study.items("search")
    assert set(search["split"]) == {"search"}
    means = search.groupby("subject", observed=True)["result"].mean()
    for number, value in zip(trials["number"], trials["value"], strict=True):
        assert means[f"trial/{number}"] == pytest.approx(value, abs=1e-6)
    with pytest.raises(InputError, match=r'split = "tst".*did you mean "test"'):
        study.items("tst")  # type: ignore[arg-type]


def test_coefficients_are_the_winners_parameters(study: evomerge.Study) -> None:
    found = study.coefficients()
    assert set(found["source"]) == {"maths", "kovesh"}
    assert {"attention", "mlp"} <= set(found["module"])
    assert sorted(found["value"]) == sorted(study.best_params.values())
    assert (found["low"] == 0).all() and (found["high"] == 1.2).all()
    wide = found.pivot_table("value", "where", ["source", "module"], observed=True)
    assert wide.index.is_monotonic_increasing and wide.index.ordered
    other = next(n for n in study.trials()["number"] if n != study.best_trial.number)
    params = next(t.params for t in study._record.trials if t.number == other)
    assert sorted(study.coefficients(other)["value"]) == sorted(params.values())
    with pytest.raises(StudyError, match="no candidate 99"):
        study.coefficients(99)


def test_results_are_those_of_the_table(study: evomerge.Study) -> None:
    found = study.results()
    assert found["model"].tolist() == ["base", "maths", "kovesh", "uniform", "best"]
    test = study.items("test")
    means = test.groupby("subject", observed=True)["result"].mean()
    best = found.iloc[-1]
    assert best["score"] == pytest.approx(means[f"trial/{study.best_trial.number}"], abs=1e-6)
    assert np.isnan(best["difference"])
    base = found.iloc[0]
    assert base["difference"] == pytest.approx(best["score"] - base["score"], abs=1e-6)
    assert base["difference.low"] <= base["difference"] <= base["difference.high"]
    shown = study._repr_html_()
    assert "<table" in shown and "uniform" in shown and "mine" in shown
    assert repr(study) == f"<Study mine: measured; {len(study.trials())} complete; best {study.best_value:.4f} " \
        f"(trial {study.best_trial.number})>"


def test_opened_again_it_says_the_same(study: evomerge.Study) -> None:
    again = evomerge.Study(str(study.folder))
    pd.testing.assert_frame_equal(again.results(), study.results())
    pd.testing.assert_frame_equal(again.trials(), study.trials())
    assert again.best_params == study.best_params and len(again.optuna().trials) == len(again.trials())
    with pytest.raises(StudyError, match="no such study"):
        evomerge.Study("nowhere/none")


def test_its_recipe_is_merged_to_the_same_weights(study: evomerge.Study, tmp_path: Path) -> None:
    built = evomerge.merge(study.recipe(), tmp_path / "again")
    assert study.folder is not None
    weights = "model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (study.folder / "model" / weights).read_bytes()
    assert built.out == tmp_path / "again" and built.bytes == (tmp_path / "again" / weights).stat().st_size
    written = study.export(tmp_path / "first", 0)
    assert "candidate 0" in (written / "README.md").read_text()  # a card of its own
    assert (written / "config.json").is_file() and evomerge.load_recipe(written / "recipe.yaml") == study.recipe(0)
    place = study.report(tmp_path / "r.html")
    assert "mine" in place.read_text()
    assert study.report(place) == place  # one of ours is replaced
    (tmp_path / "other.html").write_text("mine")
    with pytest.raises(InputError, match="no report"):
        study.report(tmp_path / "other.html")
    with pytest.raises(InputError, match="private, revision and replace_model are about push"):
        study.export(tmp_path / "second", private=True)
    with pytest.raises(InputError, match="expected OWNER/NAME"):
        study.export(tmp_path / "second", push="mine")
    assert not (tmp_path / "second").exists()


def test_a_larger_budget_goes_on(study: evomerge.Study, evaluator: dict[str, object]) -> None:
    class Counting(Silent):
        ran = known = 0

        def finished(self, trial: object, replayed: bool) -> None:
            self.known += replayed
            self.ran += not replayed

    before = study.trials()
    watcher = Counting()
    found: list[evomerge.Study] = []

    def go_on() -> None:
        found.append(
            evomerge.search(
                SPACE, evaluator=evaluator, budget="8", workers=0, seed=3, out=study.folder, study="mine",
                fidelity="full", progress=watcher,
            )
        )  # fmt: skip

    # Not the main thread, as in a server: signals are not taken, and it runs.
    thread = threading.Thread(target=go_on)
    thread.start()
    thread.join()
    assert (watcher.known, watcher.ran) == (6, 2)
    after = found[0].trials()
    pd.testing.assert_frame_equal(after.head(6)[["number", "value"]], before[["number", "value"]])
    assert len(study.trials()) == 6 and len(study.refresh().trials()) == 8


def nowhere() -> None:
    """A function of a file that is no evaluator's: it is never called."""


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"space": {**SPACE, "methd": "ties"}}, SpaceError, r'<space>: unknown key "methd"; did you mean "method"'),
        ({"space": "quickstrat"}, SpaceError, r'"quickstrat".*did you mean "quickstart"'),
        ({"space": {**SPACE, "sources": ["zoo:math"]}}, InputError, r"zoo:math"),
        ({"budget": 0}, InputError, r"must be at least 1"),
        ({"budget": "soon"}, InputError, r'"soon".*number of candidates'),
        ({"budget": None}, InputError, r'"None".*number of candidates'),
        ({"sampler": "catcm"}, InputError, r'--sampler catcm: .*did you mean "catcma"'),
        ({"sampler": None}, InputError, r"sampler = nothing \(empty\): expected"),
        ({"fidelity": "fast"}, InputError, r'fidelity = "fast": .*Valid: auto, full, race'),
        ({"estimates": "plane"}, InputError, r'estimates = "plane": .*did you mean "plain"'),
        ({"restarts": "bipopp"}, InputError, r'restarts = "bipopp": .*did you mean "bipop"'),
        ({"seed": -1}, InputError, r"seed = -1: expected a whole number from 0 to 2147483647"),
        ({"seed": 2**31}, InputError, r"seed = 2147483648: expected a whole number"),
        ({"seed": True}, InputError, r"seed = True: expected a whole number"),
        ({"seed": "1"}, InputError, r"seed = '1': expected a whole number"),
        ({"population": 0}, InputError, r"population = 0: expected a whole number from 1"),
        ({"population": 4.5}, InputError, r"population = 4.5: expected a whole number"),
        ({"sigma": 0}, InputError, r"sigma = 0: expected a number above 0"),
        ({"sigma": float("nan")}, InputError, r"sigma = nan: expected a number above 0"),
        ({"patience": 0}, InputError, r"patience = 0: expected a whole number from 1"),
        ({"timeout": "10m"}, InputError, r"timeout = '10m': expected a number above 0"),
        ({"timeout": 0}, InputError, r"timeout = 0: expected a number above 0"),
        ({"workers": -1}, InputError, r"workers = -1: expected a whole number from 0"),
        ({"workers": "two"}, InputError, r"workers = 'two': expected a whole number"),
        ({"gpus_per_worker": -0.5}, InputError, r"gpus_per_worker = -0.5: expected 0, a share up to 1"),
        ({"gpus_per_worker": "1"}, InputError, r"gpus_per_worker = '1': expected 0, a share up to 1"),
        ({"address": ""}, InputError, r"address = '': expected a text"),
        ({"prefix_memory": -1}, InputError, r"prefix_memory = -1: expected a number, 0 or more"),
        ({"prefix_memory": "1"}, InputError, r"prefix_memory = '1': expected a number, 0 or more"),
        ({"study": ".."}, InputError, r'study "\.\.": expected a name without'),
        ({"study": "."}, InputError, r'study "\.": expected a name without'),
        ({"study": ""}, InputError, r"study = '': expected a text"),
        ({"study": "a/b"}, InputError, r'study "a/b": expected a name without'),
        ({"study": 3}, InputError, r"study = 3: expected a text"),
        ({"storage": 3}, InputError, r"storage = 3: expected a text"),
        ({"objectives": {"score": 1}}, InputError, r"objectives = .*: expected a list of texts"),
        ({"models": ["zoo:maths", None]}, InputError, r"models\[1\] = nothing \(empty\): expected a text"),
        ({"tasks": 3, "evaluator": None}, InputError, r"tasks = 3: expected a list of texts"),
        ({"enqueue": [3]}, InputError, r"enqueue\[0\] = 3: expected a text"),
        ({"include_path": 3}, InputError, r"include_path = 3: expected the path"),
        ({"starts": "no"}, InputError, r"starts = 'no': expected True or False"),
        ({"progress": "loud"}, InputError, r"progress = 'loud': expected True, False, or an object .*lacks say, begin"),
        ({"warm_start": 3}, InputError, r"warm_start = 3: expected a text"),
        ({"space": 3}, InputError, r"space = 3: expected a file, a preset's name, or a mapping"),
        ({"evaluator": ["a"]}, InputError, r"evaluator = \['a'\]: expected a file, a preset's name, or a mapping"),
        ({"space": {}}, SpaceError, r'<space>: key "\w+" is missing'),
        ({"evaluator": {}}, EvaluatorError, r'<evaluator>: key "tasks" is missing'),
        ({"evaluator": {"kind": "python", "function": lambda m, t, i: 0}}, EvaluatorError, "in a Python file"),
        ({"evaluator": {"kind": "lm_eval", "taks": []}}, EvaluatorError, r'<evaluator>: unknown key "taks"'),
        ({"models": "zoo:maths", "space": None, "evaluator": None}, InputError, "needs --tasks or --evaluator"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_written(
    change: dict[str, object], error: type[EvoMergeError], words: str, evaluator: dict[str, object], tmp_path: Path
) -> None:
    given = {"space": SPACE, "evaluator": evaluator, "budget": 2, "workers": 0, "progress": False, **change}
    with pytest.raises(error, match=words):
        evomerge.search(out=tmp_path / "out", **given)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_database_of_the_folder_above_is_not_written(
    evaluator: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="expected a name without"):
        evomerge.search(SPACE, evaluator=evaluator, budget=2, workers=0, progress=False, study="..")
    assert main(["search", "--budget", "2", "--workers", "0", "--study", ".."]) == 2
    assert [p.name for p in tmp_path.rglob("*")] == ["runs"]


def test_numbers_of_numpy_are_plain_numbers(evaluator: dict[str, object], tmp_path: Path) -> None:
    space = {
        **SPACE,
        "granularity": {**SPACE["granularity"], "layer_groups": np.int64(2)},  # type: ignore[dict-item]
        "parameters": {"weight": {"low": np.float64(0), "high": np.float32(1.5), "init": np.float64(0.5)}},
    }
    given = {"space": space, "workers": np.int64(0), "seed": np.int64(3), "population": np.int32(4),
             "sigma": np.float64(0.25), "budget": np.int64(2), "starts": np.bool_(False), "models": None}  # fmt: skip
    found = evomerge.search(
        evaluator={**evaluator, "split_seed": np.int64(1)}, out=tmp_path / "n", study="n", fidelity="full",
        progress=False, **given,  # type: ignore[arg-type]
    )  # fmt: skip
    kept = found._store.open("n").fingerprint
    assert kept["seed"] == 3 and kept["sampler"]["population"] == 4 and kept["evaluator"]["split_seed"] == 1
    assert (found.coefficients()["high"] == 1.5).all()


@pytest.mark.ci
def test_a_study_of_another_database_is_begun_from(evaluator: dict[str, object], tmp_path: Path) -> None:
    def go(name: str, **more: object) -> evomerge.Study:
        return evomerge.search(
            SPACE, evaluator=evaluator, workers=0, fidelity="full", progress=False, study=name, out=tmp_path / name,
            **{"budget": 2, **more},  # type: ignore[arg-type]
        )  # fmt: skip

    theirs = str(tmp_path / "theirs.db")
    # Two of one database that no folder is named by, and a search that belongs to the second.
    go("first", storage=theirs)
    other = go("second", storage=theirs, seed=5, controls=True)
    part = evomerge.Study("second/random search", theirs)
    for name, begun in (("whole", other), ("part", part)):
        found = go(name, warm_start=begun, budget=1, starts=False)
        assert found.best_params == begun.best_params != {}
        assert found._store.open(name).fingerprint["warm_start"] == f"{begun.name} (sqlite:///{theirs})"
        assert len(go(name, warm_start=begun, starts=False).trials()) == 2  # and goes on


def test_a_study_of_a_folder_is_begun_from_as_the_command_does(study: evomerge.Study) -> None:
    from evomerge.pipeline.warm_start import called

    begun = study.as_beginning()
    assert begun.folder == str(study.folder) and called(begun, "sqlite:///other.db") == str(study.folder)


def test_a_study_without_candidates_says_so() -> None:
    from evomerge.study.finding import no_candidate

    assert "no candidate 3; it has no candidates yet" in str(no_candidate("s", 3, []))
    assert "no candidate 9; it has 0 to 4" in str(no_candidate("s", 9, range(5)))


def test_a_function_stands_for_its_name(tmp_path: Path, evaluator: dict[str, object]) -> None:
    from evomerge.api.calls import _with_function

    named = _with_function({**evaluator, "function": nowhere})
    assert isinstance(named, dict) and named["function"] == f"{Path(__file__).resolve()}:nowhere"


def test_paths_over_layers_are_a_frame(tmp_path: Path, evaluator: dict[str, object]) -> None:
    found = evomerge.search(
        "dataflow", evaluator=evaluator, budget=3, workers=0, out=tmp_path / "path", fidelity="full", progress=False
    )
    path = found.coefficients()
    assert path["hop"].tolist() == list(range(len(path))) and set(path["source"]) <= {"kovesh_lower", "maths_upper"}
    assert path.attrs["embeddings"] in ("kovesh_lower", "maths_upper")
    assert len(found.coefficients(0)) > 0 and (path["scale"] > 0).all()
