"""The main job, end to end: real models, real tasks, real workers."""

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.evaluation import load_evaluator
from evomerge.recipe import load_recipe
from evomerge.sources import open_sources
from evomerge.study.builder import Builder
from evomerge.study.job import Job
from tests.pipeline.searches import BUDGET, asked
from tests.study.recorded import sequence

pytestmark = pytest.mark.xdist_group("whole search")


def test_the_result_and_the_outputs(whole):
    out, result = whole
    assert result["study"] == "s" and result["seed"] == 0
    assert result["candidates"] == {"complete": BUDGET, "pruned": 0, "failed": 0}
    assert list(result["baselines"]) == ["base", "maths", "kovesh", "sorting", "uniform"]
    assert result["best"]["test"]["items"] == 60
    assert set(result["tasks"]) == {"kovesh_problems", "kovesh_direction"}
    # Forty items of search and select, sixty of test, of two tasks: none is another, exactly.
    assert result["overlaps"]["items"] == 280 and not any(o["exact"] for o in result["overlaps"]["found"])
    assert result["cost"] == BUDGET
    assert {p.name for p in out.iterdir()} >= {
        "model", "recipe.yaml", "README.md", "trials.parquet", "history.png", "result.json", "study.db"
    }  # fmt: skip
    assert len(pd.read_parquet(out / "trials.parquet")) == BUDGET
    items = pd.read_parquet(out / "items.parquet")
    assert (items["split"] == "search").sum() == BUDGET * 40
    # Five baselines and the winner, on two tasks of 60 test items.
    assert (items["split"] == "test").sum() == 6 * 2 * 60


def test_the_winner_is_a_plain_checkpoint_that_generates(whole):
    out, _ = whole
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    assert model.dtype == torch.bfloat16
    ids = tokenizer("drevin kunt 5 nesh , 4 rindesh . djor ?", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=6).shape[1] > ids.input_ids.shape[1]


def test_the_recipe_rebuilds_the_winner_byte_for_byte(whole, here, tmp_path):
    out, _ = whole
    here("merge", out / "recipe.yaml", tmp_path / "again")
    here("export", out, tmp_path / "exported")
    made = (out / "model" / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == made
    assert (tmp_path / "exported" / "model.safetensors").read_bytes() == made


def test_the_exported_model_scores_as_the_live_candidate_did(whole, small_evaluator):
    out, result = whole
    recipe = load_recipe(out / "recipe.yaml")
    builder = Builder(open_sources(recipe.references()), "zoo:base", load_evaluator(small_evaluator))
    live, exported = builder.run(Job("test", recipe)), builder.run(Job("test", recipe, exported=True))
    assert live.score is not None and exported.score is not None
    for a, b in zip(live.score.tasks, exported.score.tasks, strict=True):
        assert a.results.tolist() == b.results.tolist()
    assert live.score.value == result["best"]["test"]["score"]


def test_evaluate_agrees_with_the_table(whole, here, small_evaluator):
    out, result = whole
    for model, score in ((out / "model", result["best"]["test"]), ("zoo:maths", result["baselines"]["maths"]["test"])):
        found = here("evaluate", model, "--evaluator", small_evaluator, "--split", "test", "--json").result
        assert found["score"] == score["score"]


@pytest.mark.ci
def test_two_ray_workers_find_the_same_sequence(whole, evomerge, small_evaluator, tmp_path):
    out, result = whole
    done = evomerge(*asked(small_evaluator, tmp_path), "--workers", 2, "--json")
    assert sequence(tmp_path) == sequence(out)
    same = ("study", "seed", "candidates", "best", "baselines", "tasks")
    assert {k: done.result[k] for k in same} == {k: result[k] for k in same}


def test_what_a_search_writes_is_what_the_study_holds(whole, here, tmp_path):
    out, _ = whole
    here("export", out, tmp_path / "stored", "--format", "parquet")
    for name in ("trials.parquet", "items.parquet"):
        written, stored = pd.read_parquet(out / name), pd.read_parquet(tmp_path / "stored" / name)
        columns = list(written.columns)
        assert sorted(stored.columns) == sorted(columns)
        if name == "trials.parquet":
            assert written["attributes.recipe_hash"].notna().all()
            pd.testing.assert_frame_equal(stored[columns], written)
        else:
            # The study also holds what the finalists and sources scored on the other splits.
            keys = ["subject", "split", "task", "item"]
            both = written.astype({k: str for k in keys}).merge(stored.astype({k: str for k in keys}), on=keys)
            assert len(both) == len(written) and (both["result_x"] == both["result_y"]).all()
