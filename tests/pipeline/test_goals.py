"""Several objectives and constraints, on real models and tasks."""

import shutil

import pytest
import yaml

from evomerge import presets
from evomerge.score import State
from evomerge.study.store import Store

EVALUATOR = {
    "include_path": str(presets.folder("evaluators") / "zoo"),
    "tasks": [
        {"name": "kovesh_problems", "metric": "exact_match"},
        {"name": "ambri_problems", "metric": "exact_match", "weight": 0},
        {"name": "kovesh_direction", "metric": "acc", "weight": 0},
    ],
    "splits": {
        "search": {"share": 0.3, "items": 40},
        "select": {"share": 0.3, "items": 30},
        "test": {"share": 0.3, "items": 40},
    },
    "batch_size": 128,
}


@pytest.fixture
def search(here, tmp_path):
    def run(*more, evaluator=None, check=True, budget=14, out="out"):
        path = tmp_path / "e.yaml"
        path.write_text(yaml.safe_dump(EVALUATOR | (evaluator or {})))
        return here("search", "--evaluator", path, "--budget", budget, "--study", "s", "--out", tmp_path / out,
                    "--workers", 0, "--json", *more, check=check)  # fmt: skip

    return run


def study(tmp_path, out="out"):
    return Store(f"sqlite:///{tmp_path / out / 'study.db'}").open("s")


@pytest.mark.ci
@pytest.mark.timeout(300)
def test_a_front_of_two_tasks_with_its_hypervolume(search, tmp_path):
    done = search("--objective", "kovesh_problems", "ambri_problems")
    result = done.result
    assert result["objectives"] == ["kovesh_problems", "ambri_problems"]
    trials = study(tmp_path).trials()
    values = {t.number: [t.score.task(n).value for n in result["objectives"]] for t in trials}
    for entry in result["front"]:
        own = values[entry["trial"]]
        assert [entry[n] for n in result["objectives"]] == own
        assert not any(all(a >= b for a, b in zip(v, own, strict=True)) and v != own for v in values.values())
    volumes = [v for _, v in result["hypervolume"]["history"]]
    assert volumes == sorted(volumes) and volumes[-1] == result["hypervolume"]["value"]
    assert set(result["hypervolume"]["reference"]) == set(result["objectives"])
    # Both make up the score, and no other task was run on the search items.
    assert [(t.task, t.weight) for t in trials[0].score.tasks] == [("kovesh_problems", 1.0), ("ambri_problems", 1.0)]

    import optuna

    shown = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'out' / 'study.db'}")
    assert shown.metric_names == result["objectives"]
    assert {t.number for t in shown.best_trials} >= {e["trial"] for e in result["front"]}


@pytest.mark.ci
@pytest.mark.timeout(300)
def test_what_must_not_be_forgotten_is_kept(search, tmp_path):
    """The sources are starts: of these alone some forget, so the constraint has something to do."""
    constraints = [{"of": "ambri_problems", "keep": 0.9}, {"of": "kovesh_problems.length", "at_most": 60}]
    result = search(evaluator={"constraints": constraints}).result
    trials = study(tmp_path).trials()
    assert all(t.state is State.COMPLETE for t in trials)
    floor, length = result["constraints"]
    assert floor["of"] == "ambri_problems" and floor["at_least"] > 0 and length["at_most"] == 60
    missed = [t for t in trials if t.score.task("ambri_problems").value < floor["at_least"]]
    assert missed and all(t.violation > 0 for t in missed)
    assert all(t.score.task("kovesh_problems.length").shown > 0 for t in trials)
    kept = [t for t in trials if not t.violation]
    assert kept
    best = next(t for t in trials if t.number == result["best"]["trial"])
    assert not best.violation and floor["search"] >= floor["at_least"] and isinstance(floor["kept"], bool)
    # Measured on test too, for every model.
    assert set(result["tasks"]["kovesh_problems.length"]) >= {"base", "best", "maths"}
    # Of what the base has on the same items, split by split.
    for split, found in floor["limits"].items():
        base = study(tmp_path).scores.read(split)["model/base"].task("ambri_problems").value
        assert found == pytest.approx(0.9 * base)
    assert floor["at_least"] == floor["limits"]["search"] and floor["limits"]["test"] == pytest.approx(
        0.9 * result["tasks"]["ambri_problems"]["base"]["score"]
    )
    assert floor["kept"] == (floor["test"] >= floor["limits"]["test"])
    assert set(length["limits"].values()) == {60}
    again = search(evaluator={"constraints": constraints}).result
    assert again["best"] == result["best"] and len(study(tmp_path).trials()) == len(trials)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_is_measured_of_answers_is_scored_once_by_item_too(search, tmp_path):
    storage = f"sqlite:///{tmp_path / 'both.db'}"
    length = {"constraints": [{"of": "kovesh_problems.length", "at_most": 60}]}
    search("--storage", storage, budget=6)
    search("--storage", storage, "--study", "t", evaluator=length, budget=6, out="t")
    search("--storage", storage, "--study", "u", evaluator=length, budget=2, out="u")
    first, second, third = (Store(storage).open(name).trials() for name in "stu")
    assert dict(first[0].params) == dict(second[0].params)
    # What was scored without lengths does not say them.
    assert all(t.cost == 1.0 for t in second[:6])
    assert [t.cost for t in third[:6]] == [0.0] * 6
    for one, other in zip(second[:6], third[:6], strict=True):
        for name in ("kovesh_problems", "kovesh_problems.length"):
            assert one.score.task(name).value == other.score.task(name).value
            assert one.score.task(name).results.tolist() == other.score.task(name).results.tolist()
        assert one.violation == other.violation


@pytest.fixture
def grouped(tmp_path):
    """Tasks of the zoo, two of them as a group of lm-eval."""
    folder = tmp_path / "tasks"
    shutil.copytree(presets.folder("evaluators") / "zoo", folder)
    (folder / "both.yaml").write_text("group: both\ntask: [ambri_direction, kovesh_direction]\n")
    tasks = [{"name": "kovesh_problems", "metric": "exact_match"}, {"name": "both", "weight": 0}]
    return {"include_path": str(folder), "tasks": tasks}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_member_of_a_group_is_an_objective_and_a_constraint(search, tmp_path, grouped):
    constraints = [{"of": "ambri_direction", "keep": 0.9}]
    result = search(evaluator=grouped | {"constraints": constraints}, budget=6).result
    # The other member is measured at the end alone.
    found = study(tmp_path).trials()[0].score
    assert [(t.task, t.weight) for t in found.tasks] == [("kovesh_problems", 1.0), ("ambri_direction", 0.0)]
    assert result["constraints"][0]["at_least"] > 0
    assert set(result["tasks"]) == {"kovesh_problems", "ambri_direction", "kovesh_direction"}
    result = search(
        "--objective", "score", "kovesh_direction", "--study", "two", evaluator=grouped, budget=6, out="two"
    ).result
    assert result["objectives"] == ["score", "kovesh_direction"] and result["front"]


@pytest.mark.parametrize("of", ["both", "both.length"])
def test_a_group_is_refused_with_the_names_of_its_members(search, here, tmp_path, grouped, of):
    bad = grouped | {"constraints": [{"of": of, "at_least": 0.9}]}
    for done in (search(evaluator=bad, check=False), here("check", tmp_path / "e.yaml", "--json", check=False)):
        assert done.returncode == 2, done.stderr
        members = [f"{name}{of.removeprefix('both')}" for name in ("ambri_direction", "kovesh_direction")]
        assert f"constraints: {of}: a group of 2 tasks" in done.result["error"]
        assert f"expected one of {', '.join(members)}" in done.result["error"]


@pytest.mark.ci
@pytest.mark.timeout(300)
def test_where_nothing_keeps_the_constraints_the_nearest_is_chosen_and_said_so(search, tmp_path):
    done = search(evaluator={"constraints": [{"of": "kovesh_problems", "at_least": 1.0}]}, budget=6)
    assert "no candidate keeps all constraints (kovesh_problems >= 1)" in done.stderr
    assert done.result["constraints"][0]["kept"] is False


@pytest.mark.ci
@pytest.mark.timeout(300)
def test_depth_is_an_objective_and_a_constraint_of_paths(search, tmp_path):
    constraints = [{"of": "depth", "at_most": 4}]
    result = search("dataflow", "--objective", "score", "depth", evaluator={"constraints": constraints}).result
    assert result["objectives"] == ["score", "depth"]
    trials = {t.number: t for t in study(tmp_path).trials()}
    assert all(trials[e["trial"]].attributes["depth"] == e["depth"] <= 4 for e in result["front"])
    assert any(t.violation for t in trials.values())


@pytest.mark.parametrize(
    ("args", "evaluator", "words"),
    [
        (["--objective", "kovesh_problem"], {}, ["objectives: kovesh_problem", 'did you mean "kovesh_problems"']),
        (["--objective", "score", "depth"], {}, ["objectives: depth", "only paths have one"]),
        (["dataflow", "--objective", "depth"], {}, ["objectives: depth alone", "expected score beside it"]),
        (["--objective", "score", "score"], {}, ["objectives named twice: score"]),
        (["--objective", "score", "kovesh_direction.length"], {}, ["kovesh_direction.length", "generate_until"]),
        ([], {"constraints": [{"of": "ambri", "at_least": 1}]}, ["constraints: ambri", "ambri_problems"]),
        ([], {"constraints": [{"of": "kovesh_problems"}]}, ["expected one of at_least, at_most and keep"]),
        (["dataflow"], {"constraints": [{"of": "depth", "keep": 0.9}]}, ["depth: keep = 0.9", "at_most or at_least"]),
        ([], {"splits": {"search": {"share": 0.3, "items": 3000}}}, ["splits.search: items = 3,000", "a share of 0."]),
        (["--objective", "score", "ambri_problems", "--sampler", "cma"], {}, ["one objective", "evolution"]),
        (["--objective", "score", "ambri_problems", "--fidelity", "race"], {}, ["--fidelity race", "objectives"]),
    ],
)
def test_bad_goals_are_one_message(search, tmp_path, args, evaluator, words):
    done = search(*args, evaluator=evaluator, check=False)
    assert done.returncode == 2, done.stderr
    assert len(done.result["error"].splitlines()) == 1
    for word in words:
        assert word in done.result["error"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("evaluator", "words"),
    [
        ({"objectives": ["score", "kovesh_problem"]}, ["objectives: kovesh_problem: not", '"kovesh_problems"?']),
        (
            {"objectives": ["score", "depth"], "constraints": [{"of": "depth", "at_most": 5}]},
            [],  # of an evaluator alone nobody knows whether it is for paths
        ),
        ({"constraints": [{"of": "ambri_sorting", "keep": 0.9}]}, ["constraints: ambri_sorting: not"]),
        ({"constraints": [{"of": "kovesh_problems.len", "at_most": 9}]}, ["kovesh_problems.len: not"]),
        ({"constraints": [{"of": "a", "at_most": 9}, {"of": "b", "at_most": 9}]}, ["constraints: a: not", "b: not"]),
    ],
)
def test_check_looks_at_objectives_and_constraints(here, tmp_path, evaluator, words):
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump(EVALUATOR | evaluator))
    done = here("check", path, "--json", check=False)
    assert done.returncode == (2 if words else 0), done.stderr
    for word in words:
        assert word in done.result["error"]
