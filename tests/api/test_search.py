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
    with pytest.raises(InputError, match=r'split = "train".*search, select, test'):
        study.items("train")  # type: ignore[arg-type]


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
    with pytest.raises(InputError, match="private and revision are about push"):
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
        ({"sampler": "cmaes"}, InputError, r"cmaes"),
        ({"prefix_memory": -1}, InputError, r"prefix_memory = -1: expected"),
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
