"""Searches over paths and hybrid searches, end to end: real models, a real task, the command line."""

import json

import pytest
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.recipe import Path, load_chain, load_recipe
from evomerge.study.store import Store
from tests.study.recorded import sequence

pytestmark = pytest.mark.xdist_group("paths")
BUDGET = 24


@pytest.fixture(scope="module")
def by_likelihood(small_evaluator, tmp_path_factory):
    """The small evaluator, its search items by their greedy likelihood."""
    data = yaml.safe_load(small_evaluator.read_text())
    data["tasks"][0]["greedy_likelihood"] = True
    path = tmp_path_factory.mktemp("evaluator") / "likelihood.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture(scope="module")
def asked(by_likelihood):
    """A search's arguments."""

    def made(space, out, *more, budget=BUDGET):
        return ["search", space, "--evaluator", by_likelihood, "--budget", budget, "--study", "s", "--out", out,
                "--workers", 0, *more, "--json"]  # fmt: skip

    return made


@pytest.fixture(scope="module")
def paths(here, asked, tmp_path_factory):
    """A data-flow search with the compact preset."""
    out = tmp_path_factory.mktemp("paths") / "out"
    return out, here(*asked("dataflow", out)).result


@pytest.fixture(scope="module")
def hybrid(here, asked, tmp_path_factory):
    """A hybrid search with its preset and its controls."""
    out = tmp_path_factory.mktemp("hybrid") / "out"
    return out, here(*asked("hybrid", out, "--controls")).result


def test_a_search_over_paths_reports_what_it_found(paths):
    out, result = paths
    counts = result["candidates"]
    # Of two parameters that make the same path the second costs nothing.
    hashes = {t.attributes["recipe_hash"] for t in Store(f"sqlite:///{out / 'study.db'}").open("s").trials()}
    assert counts["complete"] >= len(hashes) == BUDGET and counts["pruned"] == counts["failed"] == 0
    assert list(result["baselines"]) == ["base", "maths_upper", "kovesh_lower", "uniform"]
    assert {p.name for p in out.iterdir()} >= {"model", "recipe.yaml", "path.png", "history.png", "README.md"}
    layers = result["layer_evaluations"]
    assert 0 < layers["run"] < layers["asked"] and layers["saved"] == 1 - layers["run"] / layers["asked"]
    study = Store(f"sqlite:///{out / 'study.db'}").open("s")
    assert study.notes()["layer_evaluations"] == {k: layers[k] for k in ("asked", "run")}
    depths = [t.attributes["depth"] for t in study.trials()]
    assert min(depths) >= 3 and max(depths) <= 7  # the preset's bounds
    path = Path.read(load_recipe(out / "recipe.yaml"))
    assert path is not None and result["path"].startswith("embeddings ")
    assert result["path"] in (out / "README.md").read_text()
    front = result["front"]
    assert [f["depth"] for f in front] == sorted({f["depth"] for f in front})
    assert max(f["search"] for f in front) == max(t.value for t in study.trials())


@pytest.mark.ci
def test_without_memory_for_prefixes_every_candidate_scores_the_same(paths, here, asked, tmp_path):
    out, result = paths
    plain = here(*asked("dataflow", tmp_path, "--prefix-memory", 0)).result
    assert sequence(tmp_path) == sequence(out)
    assert plain["layer_evaluations"]["saved"] == 0
    assert plain["best"] == result["best"]


@pytest.mark.slow
def test_with_workers_the_sequence_is_the_same(paths, evomerge, asked, tmp_path):
    """Two Ray workers, each with prefixes of its own."""
    out, _ = paths
    args = [2 if a == 0 else a for a in asked("dataflow", tmp_path)]
    evomerge(*args)
    assert sequence(tmp_path) == sequence(out)


@pytest.mark.ci
def test_a_search_over_paths_goes_on(paths, here, asked, tmp_path):
    """Cut short in the middle of a generation, then extended: the same as in one go."""
    out, result = paths
    here(*asked("dataflow", tmp_path, budget=11))
    again = here(*asked("dataflow", tmp_path)).result
    assert sequence(tmp_path) == sequence(out)
    assert again["best"]["trial"] == result["best"]["trial"]


def test_any_candidate_is_exported_as_a_plain_checkpoint_that_mergekit_builds_too(paths, here, tmp_path):
    out, _ = paths
    study = Store(f"sqlite:///{out / 'study.db'}").open("s")
    deepest = max(study.trials(), key=lambda t: (t.attributes["depth"], t.number))
    done = here("export", out, tmp_path / "folded", "--trial", deepest.number, "--json").result
    assert (tmp_path / "folded" / "path.png").stat().st_size > 1000 and done["path"].startswith("embeddings ")
    recipe = load_recipe(tmp_path / "folded" / "recipe.yaml")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "folded")
    assert len(model.model.layers) == model.config.num_hidden_layers == deepest.attributes["depth"]
    ids = AutoTokenizer.from_pretrained(tmp_path / "folded")("drevin kunt 5 nesh .", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=4).shape[1] > ids.input_ids.shape[1]
    plain = recipe.with_references({r: str(_folder(r)) for r in recipe.references()}).to_dict()
    plain.pop("evomerge")
    run_merge(MergeConfiguration.model_validate(plain), str(tmp_path / "mergekit"), MergeOptions())
    ours, theirs = (load_file(tmp_path / n / "model.safetensors") for n in ("folded", "mergekit"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.ci
def test_the_papers_slots_are_searched_by_cma(here, asked, tmp_path):
    space = tmp_path / "slots.yaml"
    space.write_text(
        "kind: dataflow\nencoding: slots\nrepetitions: 2\nsources: [zoo:maths_upper, zoo:kovesh_lower]\n"
        "depth: {low: 2, high: 6}\nembeddings: kovesh_lower\n"
    )
    result = here(*asked(space, tmp_path / "out", budget=14)).result
    study = Store(f"sqlite:///{tmp_path / 'out' / 'study.db'}").open("s")
    assert study.fingerprint["sampler"]["name"] == "cma"
    # 8 layers twice, and a scale for every pair of them.
    assert len(study.trials()[0].params) == 16 + 64
    assert result["candidates"]["complete"] == 14
    assert "base" not in result["baselines"] and "uniform" in result["baselines"]


@pytest.mark.ci
def test_fewer_layers_can_be_an_objective(here, asked, tmp_path):
    import optuna

    space = tmp_path / "space.yaml"
    space.write_text(
        "kind: dataflow\nsources: [zoo:maths_upper, zoo:kovesh_lower]\ndepth: {low: 1, high: 6, objective: true}\n"
    )
    result = here(*asked(space, tmp_path / "out")).result
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'out' / 'study.db'}")
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["score", "depth"]
    assert all(t.values[1] == t.user_attrs["depth"] for t in study.trials)
    assert {t.number for t in study.best_trials} >= {f["trial"] for f in result["front"]}


def test_a_hybrid_search_is_a_chain_that_rebuilds(hybrid, here, tmp_path):
    out, result = hybrid
    assert list(result["baselines"]) == [
        "base", "merged", "maths_upper", "kovesh_lower", "uniform", "parameter space", "random paths",
    ]  # fmt: skip
    chain = load_chain(out / "recipe.yaml")
    assert chain.final.merge_method == "passthrough" and chain.names in (["merged"], [])
    here("merge", out / "recipe.yaml", tmp_path / "rebuilt")
    here("export", out, tmp_path / "exported")
    made = (out / "model" / "model.safetensors").read_bytes()
    assert (tmp_path / "rebuilt" / "model.safetensors").read_bytes() == made
    assert (tmp_path / "exported" / "model.safetensors").read_bytes() == made
    assert (tmp_path / "exported" / "recipe.yaml").read_text() == (out / "recipe.yaml").read_text()


def test_the_first_stage_and_the_controls_can_be_exported_too(hybrid, here, tmp_path):
    out, result = hybrid
    assert result["candidates"] == {"complete": BUDGET // 2, "pruned": 0, "failed": 0, "first_stage": BUDGET // 2}
    here("export", out / "parameter", tmp_path / "merged")
    made = (out / "parameter" / "model" / "model.safetensors").read_bytes()
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == made
    card = (tmp_path / "merged" / "README.md").read_text()
    # It was never measured on the test items, so that its card claims nothing.
    assert "the winner of `parameter`, a stage of the search `s`" in card and "model-index" not in card
    done = here("export", f"{out}/random paths", tmp_path / "random", "--json").result
    assert done["study"] == "s/random paths" and (tmp_path / "random" / "path.png").exists()
    card = (tmp_path / "random" / "README.md").read_text()
    assert "the winner of a control, `random paths`" in card and "](path.png)" in card and "model-index" in card
    here("export", f"{out}/parameter space", tmp_path / "control")
    assert load_recipe(tmp_path / "control" / "recipe.yaml").merge_method == "task_arithmetic"
    wrong = here("export", out / "nothing", tmp_path / "x", check=False)
    assert wrong.returncode == 2 and "s/parameter" in wrong.stderr


def test_the_budget_of_a_hybrid_is_split_and_its_controls_have_all_of_it(hybrid):
    out, _ = hybrid
    store = Store(f"sqlite:///{out / 'study.db'}")
    counts = {name: len(store.open(name).trials()) for name in store.names()}
    half = BUDGET // 2
    assert counts == {"s/parameter": half, "s": half, "s/parameter space": BUDGET, "s/random paths": BUDGET}
    first = store.open("s/parameter")
    assert first.scores.read("test") == {}  # the first stage never looks at the test items
    # The second stage starts from the first one's winner as it is, so that it can only be improved upon.
    start = store.open("s").trials()[0]
    assert start.value == pytest.approx(first.trials()[first.notes()["winner"]].value, abs=0.026)  # one item of 40


@pytest.mark.ci
def test_a_hybrid_goes_on_in_its_second_stage(hybrid, here, asked, tmp_path):
    """Killed in either stage, or extended: the first stage's winner stays."""
    out, _ = hybrid
    here(*asked("hybrid", tmp_path / "out"))
    more = here(*asked("hybrid", tmp_path / "out", budget=BUDGET + 6)).result
    assert more["candidates"]["complete"] == BUDGET // 2 + 6
    assert sequence(tmp_path / "out", "s/parameter") == sequence(out, "s/parameter")
    assert sequence(tmp_path / "out")[: BUDGET // 2] == sequence(out)


BAD = {
    "no such layer": ("insertions: -1", "insertions"),
    "a depth below 1": ("depth: {low: 0}", "depth.low"),
    "scale 0": ("scale: {low: 0, high: 1}", "scale.low"),
    "an unknown encoding": ("encoding: paper", "encoding"),
    "an unknown source": ("embeddings: kovesh", "embeddings"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_space_is_one_message(case, here, asked, tmp_path):
    line, key = BAD[case]
    space = tmp_path / "space.yaml"
    space.write_text(f"kind: dataflow\nsources: [zoo:maths_upper, zoo:kovesh_lower]\n{line}\n")
    done = here(*asked(space, tmp_path / "out"), check=False)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    told = done.stderr.strip().splitlines()[-1]
    assert str(space) in told and key in told


def test_sources_of_another_width_are_refused_with_what_differs(here, asked, tmp_path):
    from evomerge.zoo.model import build_model, save

    save(build_model(48, 4, torch.Generator().manual_seed(0)), tmp_path / "narrow")
    done = here(*asked("dataflow", tmp_path / "out", "--models", "zoo:maths_upper", tmp_path / "narrow"), check=False)
    assert done.returncode == 2
    assert "hidden_size" in done.stderr and "48" in done.stderr and "96" in done.stderr


HYBRID = """\
kind: hybrid
parameter:
  method: task_arithmetic
  base_model: zoo:base
  sources: [zoo:maths_upper, zoo:kovesh_lower]
  parameters: {weight: {low: 0, high: 1.5}}
dataflow: {depth: {low: 3, high: 7, objective: true}}
"""


@pytest.mark.parametrize(
    ("sampler", "told"), [("cma", "cannot take categorical parameters"), ("catcma", "one objective, 2 are asked for")]
)
def test_a_sampler_that_cannot_take_the_second_stage_is_refused_before_the_first(sampler, told, here, asked, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text(HYBRID)
    done = here(*asked(space, tmp_path / "out", "--sampler", sampler), check=False)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert f"--sampler {sampler}" in done.stderr and told in done.stderr


def test_a_hybrid_leaves_alone_a_folder_that_is_not_its_own(here, asked, tmp_path):
    (tmp_path / "README.md").write_text("mine\n")
    done = here(*asked("hybrid", tmp_path), check=False)
    assert done.returncode == 2 and "README.md" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]


def test_a_hybrid_does_not_begin_beside_another_study_of_its_name(paths, here, asked):
    """Its first stage would be searched before the second could not go on."""
    out, _ = paths
    done = here(*asked("hybrid", out), check=False)
    assert done.returncode == 2 and 'study "s"' in done.stderr and "not that of a hybrid search" in done.stderr
    assert not (out / "parameter").exists()


def test_a_study_name_with_a_slash_is_refused(here, asked, tmp_path):
    """Such names are those of first stages and controls."""
    done = here(*["a/b" if a == "s" else a for a in asked("dataflow", tmp_path / "out")], check=False)
    assert done.returncode == 2 and '--study "a/b"' in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.ci
def test_other_models_leave_the_presets_base_behind(here, asked, tmp_path):
    """It is only measured beside paths, and says nothing of other models."""
    models = ["--models", "zoo:maths", "zoo:kovesh"]
    result = here(*asked("dataflow", tmp_path / "out", *models, budget=2)).result
    assert list(result["baselines"]) == ["maths", "kovesh", "uniform"]


def _folder(reference):
    from evomerge.sources import open_source

    return open_source(reference).path


def test_json_is_all_of_stdout(paths):
    _, result = paths
    assert json.loads(json.dumps(result)) == result
