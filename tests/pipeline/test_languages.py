"""A search that keeps to a language: `TASK.language` as a constraint, on models that answer in two."""

import pytest
import yaml

from evomerge.score import State
from evomerge.study.store import Store
from tests.evaluation.told import ENGLISH, RIGHT, WRONG, evaluator, model, tokenizer

TASK = "mgsm_ja_steps"
# What keeps to Japanese is right on a quarter of the items, what answers in English too on half of them.
SOURCES = {
    "japanese": {"one": RIGHT, "two": WRONG, "three": WRONG, "four": WRONG},
    "mixed": {"one": RIGHT, "two": RIGHT, "three": ENGLISH, "four": ENGLISH},
}


@pytest.fixture
def search(here, tmp_path):
    words = tokenizer()
    for name, answers in SOURCES.items():
        model(answers).save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
    space = {"kind": "parameter", "method": "linear", "sources": [str(tmp_path / n) for n in SOURCES],
             "parameters": {"weight": {"low": 0.0, "high": 1.0, "init": 0.5}}}  # fmt: skip
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))

    def run(study, constraints):
        splits = {"search": {"share": 0.4}, "select": {"share": 0.3}, "test": {"share": 0.3}}
        file = evaluator(tmp_path, 80, {"splits": splits, "constraints": constraints}, language="ja")
        done = here("search", tmp_path / "space.yaml", "--evaluator", file, "--budget", 6, "--study", study, "--out",
                    tmp_path / study, "--workers", 0, "--fidelity", "full", "--json")  # fmt: skip
        return done.result, Store(f"sqlite:///{tmp_path / study / 'study.db'}").open(study).trials()

    return run


@pytest.mark.ci
@pytest.mark.timeout(300)
def test_who_answers_in_another_language_is_infeasible_however_good_it_is(search):
    name = f"{TASK}.language"
    result, trials = search("held", [{"of": name, "at_least": 0.9}])
    assert all(t.state is State.COMPLETE for t in trials)
    for t in trials:
        share = t.score.task(name).value
        # Of the limit, as a share.
        assert t.violation == pytest.approx(max(0.0, 0.9 - share) / 0.9)
    missed, kept = [t for t in trials if t.violation], [t for t in trials if not t.violation]
    assert missed and kept and max(t.value for t in missed) > max(t.value for t in kept)
    best = next(t for t in trials if t.number == result["best"]["trial"])
    assert not best.violation and best.score.task(name).value == 1.0
    (limit,) = result["constraints"]
    assert (limit["of"], limit["at_least"], limit["kept"]) == (name, 0.9, True)
    assert limit["search"] == limit["select"] == limit["test"] == 1.0
    # Measured on test of every model.
    assert result["tasks"][name]["best"]["score"] == 1.0 and result["tasks"][name]["mixed"]["score"] < 0.9

    # Without the constraint the other one is found.
    free, trials = search("free", [])
    best = next(t for t in trials if t.number == free["best"]["trial"])
    assert best.value == pytest.approx(max(t.value for t in missed))
