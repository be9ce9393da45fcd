"""The ways to ask for a search: samplers, controls, recipes and models of one's own, no YAML."""

import shutil

import pytest

from evomerge import zoo
from evomerge.pipeline.options import Options
from evomerge.space import load_space
from evomerge.study.budget import Budget
from evomerge.study.store import Store
from tests.study.recorded import sequence


@pytest.mark.ci
@pytest.mark.parametrize(
    "sampler", ["catcma", "thompson", *(pytest.param(s, marks=pytest.mark.slow) for s in ("tpe", "random"))]
)
def test_other_samplers_run_and_resume(here, small_evaluator, tmp_path, sampler):
    args = ("search", "--evaluator", small_evaluator, "--workers", 0, "--sampler", sampler, "--study", "s")
    here(*args, "--budget", 5, "--out", tmp_path / "a")
    here(*args, "--budget", 11, "--out", tmp_path / "a")
    here(*args, "--budget", 11, "--out", tmp_path / "b")
    assert sequence(tmp_path / "a") == sequence(tmp_path / "b")


@pytest.mark.ci
def test_a_study_goes_on_with_the_restarts_that_it_was_begun_with(here, small_evaluator, tmp_path):
    args = (
        "search", "--evaluator", small_evaluator, "--workers", 0, "--sampler", "cma", "--study", "s", "--out", tmp_path
    )  # fmt: skip
    url = f"sqlite:///{tmp_path}/study.db"
    # As studies of before there were restarts: no such key.
    here(*args, "--budget", 3, "--restarts", "none")
    assert "restarts" not in Store(url).open("s").fingerprint["sampler"]
    here(*args, "--budget", 4)
    assert len(Store(url).open("s").trials()) == 4
    done = here(*args, "--budget", 5, "--restarts", "ipop", check=False)
    assert done.returncode == 2
    assert "begun with --restarts none, now it is ipop" in done.stderr
    here(*args[:-3], "t", "--out", tmp_path / "t", "--budget", 3)
    assert Store(f"sqlite:///{tmp_path}/t/study.db").open("t").fingerprint["sampler"]["restarts"] == "bipop"


@pytest.mark.ci
def test_a_study_goes_on_with_the_sampler_that_it_was_begun_with(here, small_evaluator, tmp_path):
    args = ("search", "--evaluator", small_evaluator, "--workers", 0, "--study", "s", "--out", tmp_path)
    here(*args, "--budget", 3, "--sampler", "cma")  # the default of before
    here(*args, "--budget", 5)
    study = Store(f"sqlite:///{tmp_path}/study.db").open("s")
    assert study.fingerprint["sampler"]["name"] == "cma" and len(study.trials()) == 5
    refused = here(*args, "--budget", 7, "--sampler", "thompson", check=False)
    assert refused.returncode == 2 and "cma" in refused.stderr and "thompson" in refused.stderr
    other = (*args[:-3], "t", "--out", tmp_path / "t")
    here(*other, "--budget", 3)
    done = here(*other, "--budget", 5, "--restarts", "ipop", check=False)
    assert done.returncode == 2
    assert 'optimizer "thompson" has no restarts, "ipop" is asked for; these have: cma, catcma' in done.stderr
    assert Options(budget=Budget(candidates=3), restarts="bipop").sampler_for(load_space("quickstart").bind(4)) == "cma"


@pytest.mark.ci
def test_controls_are_searched_and_reported(here, small_evaluator, tmp_path):
    done = here(
        "search",
        "--evaluator",
        small_evaluator,
        "--budget",
        4,
        "--workers",
        0,
        "--controls",
        "--out",
        tmp_path,
        "--json",
    )
    names = [
        "base",
        "maths",
        "kovesh",
        "sorting",
        "uniform",
        "vector maths",
        "vector kovesh",
        "vector sorting",
        "random search",
    ]
    assert list(done.result["baselines"]) == names
    listed = here("list", tmp_path, "--json").result
    assert {row["complete"] for row in listed} == {4} and len(listed) == 5
    assert {row["sampler"] for row in listed} == {"thompson", "random"}


@pytest.mark.ci
def test_random_search_as_a_control_of_random_search_is_another_one(here, small_evaluator, tmp_path):
    args = ("search", "linear", "--evaluator", small_evaluator, "--workers", 0, "--sampler", "random", "--controls")
    done = here(*args, "--budget", 3, "--study", "s", "--out", tmp_path, "--json")
    # A normalised average of one source is that source: no vector is searched alone.
    assert [n for n in done.result["baselines"] if "vector" in n] == [] and "1 more searches" in done.stderr
    assert [t[1] for t in sequence(tmp_path)] != [t[1] for t in sequence(tmp_path, "s/random search")]


@pytest.mark.ci
def test_a_recipe_of_ones_own_comes_first(here, small_evaluator, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "merge_method: task_arithmetic\nbase_model: zoo:base\ndtype: float32\nout_dtype: bfloat16\nmodels:\n"
        "- {model: zoo:maths, parameters: {weight: 0.9}}\n- {model: zoo:kovesh, parameters: {weight: 0.8}}\n"
        "- {model: zoo:sorting, parameters: {weight: 0.0}}\n"
    )
    args = ("search", "--evaluator", small_evaluator, "--workers", 0, "--enqueue", recipe, "--out", tmp_path / "o")
    here(*args, "--budget", 2, "--study", "s")
    params = sequence(tmp_path / "o")[0][1]
    assert {v for k, v in params.items() if "maths" in k} == {0.9}
    assert {v for k, v in params.items() if "sorting" in k} == {0.0}


@pytest.mark.ci
def test_without_any_yaml(here, tmp_path):
    done = here(
        "search", "--models", "zoo:maths", "zoo:kovesh", "--base", "zoo:base", "--tasks", "kovesh_direction",
        "--budget", 2, "--workers", 0, "--out", tmp_path, "--json",
    )  # fmt: skip
    assert list(done.result["baselines"]) == ["base", "maths", "kovesh", "uniform"]


@pytest.mark.ci
def test_a_search_over_folders_beside_its_space_rebuilds_from_anywhere(here, small_evaluator, tmp_path, monkeypatch):
    for name in ("base", "maths", "kovesh"):
        shutil.copytree(zoo.path(name), tmp_path / "mine" / name)
    space = tmp_path / "mine" / "space.yaml"
    space.write_text(
        "method: task_arithmetic\nbase_model: ./base\nsources: [./maths, ./kovesh]\n"
        "parameters: {weight: {low: 0, high: 1.5}}\ndtype: float32\nout_dtype: bfloat16\n"
    )
    args = ("search", space, "--evaluator", small_evaluator, "--workers", 0, "--budget", 4, "--out", tmp_path / "o")
    first = here(*args, "--json").result
    assert list(first["baselines"]) == ["base", "maths", "kovesh", "uniform"]
    # From another folder, the models moved along with their space: the same study.
    monkeypatch.chdir(tmp_path / "mine")
    assert here(*args, "--json").result["best"] == first["best"]
    here("merge", tmp_path / "o" / "recipe.yaml", tmp_path / "again")
    here("export", tmp_path / "o", tmp_path / "exported", "--trial", first["best"]["trial"])
    made = (tmp_path / "o" / "model" / "model.safetensors").read_bytes()
    for again in ("again", "exported"):
        assert (tmp_path / again / "model.safetensors").read_bytes() == made


@pytest.mark.ci
def test_sources_called_base_and_uniform_keep_their_own_scores(here, small_evaluator, tmp_path):
    for folder, name in (("base", "maths"), ("uniform", "sorting")):
        shutil.copytree(zoo.path(name), tmp_path / "m" / folder)
    found = here(
        "search", "--models", tmp_path / "m" / "base", tmp_path / "m" / "uniform", "--base", "zoo:base", "--evaluator",
        small_evaluator, "--budget", 2, "--workers", 0, "--out", tmp_path / "o", "--json",
    ).result["baselines"]  # fmt: skip
    assert list(found) == ["base", "m_base", "m_uniform", "uniform"]
    for name, model in (("base", "zoo:base"), ("m_base", "zoo:maths"), ("m_uniform", "zoo:sorting")):
        alone = here("evaluate", model, "--evaluator", small_evaluator, "--split", "test", "--json").result
        assert found[name]["test"]["score"] == alone["score"]


def test_an_evaluator_given_as_the_space_is_told_so(here, small_evaluator):
    done = here("search", small_evaluator, "--budget", 2, check=False)
    assert done.returncode == 2 and "is an evaluator, not a search space; give it as --evaluator" in done.stderr
