"""An evaluator that is given more items: what was scored is read again, counted by what its function really gets."""

import json

import pytest
import yaml

from evomerge.evaluation import load_evaluator, open_evaluator
from evomerge.score import State
from evomerge.study.store import Store

BASELINES = 5  # base, three sources, uniform merge: measured before the first candidate
# Right or wrong by the weights and the item; each call is noted: which model, which items.
SCORE = """
import hashlib, json, os

def score(model, tokenizer, items):
    weights = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        weights.update(p.detach().numpy().tobytes())
    found = weights.hexdigest()
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps([found, [i["number"] for i in items]]) + "\\n")
    return [float(hashlib.sha256(f"{found}{i['number']}".encode()).digest()[0] < 128) for i in items]
"""


@pytest.fixture
def evaluator(tmp_path):
    """Writes it with so many items, and gives the numbers of those to search on, in order."""
    (tmp_path / "score.py").write_text(SCORE)

    def write(items):
        (tmp_path / "items.jsonl").write_text("".join(f'{{"number": {i}}}\n' for i in range(items)))
        data = {"kind": "python", "function": "score.py:score", "items": "items.jsonl", "tasks": ["t"],
                "splits": {"search": {"share": 0.6}, "select": {"share": 0.2}, "test": {"share": 0.2}}}  # fmt: skip
        path = tmp_path / "e.yaml"
        path.write_text(yaml.safe_dump(data))
        return [int(text) for text in open_evaluator(load_evaluator(path)).texts("search")["t"]]

    return write


RACED = pytest.param(150, 220, "race", marks=pytest.mark.slow)


@pytest.mark.ci
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("few", "many", "fidelity"), [(40, 70, "full"), RACED])
def test_of_a_grown_item_set_only_new_items_are_scored(here, evaluator, tmp_path, monkeypatch, few, many, fidelity):
    log, storage = tmp_path / "calls", f"sqlite:///{tmp_path / 'both.db'}"
    monkeypatch.setenv("CALLS", str(log))

    def search(name, items, budget=6, check=True):
        """(what was printed, of each model of a candidate the search items that it was asked, calls of others)."""
        log.write_text("")
        done = here("search", "--evaluator", tmp_path / "e.yaml", "--budget", budget, "--study", name, "--out",
                    tmp_path / name, "--storage", storage, "--workers", 0, "--fidelity", fidelity,
                    check=check)  # fmt: skip
        calls = [(m, i) for m, i in map(json.loads, log.read_text().splitlines()) if set(i) <= set(items)]
        asked = {}
        for model, some in calls[BASELINES:]:
            asked.setdefault(model, []).extend(some)
        return done, asked, [i for _, i in calls[:BASELINES]]

    old = evaluator(few)
    _, first, others = search("first", old)
    assert others == [old] * BASELINES and all(len(i) == len(set(i)) for i in first.values())
    items = evaluator(many)
    assert set(old) < set(items)

    # The same study is of the items that it was begun with.
    refused, asked, others = search("first", items, budget=8, check=False)
    assert refused.returncode == 2 and "was made with other settings" in refused.stderr and not asked and not others

    _, second, others = search("second", items)
    assert others == [items] * BASELINES  # of which each study has results of its own
    for model, some in second.items():
        assert not set(some) & set(first.get(model, ())) and len(some) == len(set(some))
    again = set(first) & set(second)
    assert len(again) >= 6  # whatever comes first
    trials = Store(storage).open("second").trials()
    whole = [t for t in trials if t.state is State.COMPLETE]
    assert whole and all(t.score.items == len(items) for t in whole)
    assert sum(t.cost for t in trials) * len(items) == pytest.approx(sum(map(len, second.values())))
    if fidelity == "full":
        new = set(items) - set(old)
        assert all(set(second[model]) == new for model in again)
        assert [t.cost for t in trials[: len(again)]] == [pytest.approx(len(new) / len(items))] * len(again)
