"""NaN and infinite logits: the reason names the task, the item and, where one is to blame, the weight."""

import json
import re

import pytest
import torch
import yaml

from evomerge import presets
from evomerge.errors import CandidateError
from evomerge.evaluation import load_evaluator, open_evaluator
from evomerge.evaluation.finite import check_finite, first_not_finite
from evomerge.sources import open_source


def harness(folder, *tasks):
    splits = {s: {"share": 0.3, "items": 30} for s in ("search", "select", "test")}
    data = {"include_path": str(presets.folder("evaluators") / "zoo"), "tasks": list(tasks), "splits": splits}
    (folder / "e.yaml").write_text(yaml.safe_dump(data))
    return open_evaluator(load_evaluator(folder / "e.yaml"))


def spoil(model, token):
    """Logits are NaN wherever a token was read, and nowhere else: the weights are all finite."""

    def hook(_module, inputs, output):
        return torch.where((inputs[0] == token).unsqueeze(-1), torch.full_like(output, torch.nan), output)

    model.get_input_embeddings().register_forward_hook(hook)


def told(evaluator, model, tokenizer, split="search"):
    with pytest.raises(CandidateError) as raised:
        evaluator.evaluate(model, tokenizer, split)
    return str(raised.value)


@pytest.mark.parametrize(
    "task", ["kovesh_problems", "kovesh_direction", {"name": "kovesh_problems", "greedy_likelihood": True}]
)
def test_a_weight_that_is_nan_is_named_with_the_first_item(tmp_path, maths, tokenizer, task):
    evaluator = harness(tmp_path, task)
    with torch.no_grad():
        maths.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    name = task if isinstance(task, str) else task["name"]
    first = evaluator._tasks[0].items["search"][0].index
    expected = f'the logits hold NaN or infinite values (task "{name}", item {first}); the weight '
    assert told(evaluator, maths, tokenizer) == f'{expected}"model.layers.1.mlp.down_proj.weight" has them already'


def test_an_item_among_many_is_found(tmp_path, maths, tokenizer):
    """The one item of the second task whose prompt has a word that no other has."""
    evaluator = harness(tmp_path, "kovesh_problems", "kovesh_direction")
    prepared = evaluator._tasks[1]
    texts = evaluator.texts("search")["kovesh_direction"]
    ids = [set(tokenizer(t).input_ids) for t in texts]
    others = [set(tokenizer(t).input_ids) for t in evaluator.texts("search")["kovesh_problems"]]
    alone = [(n, t) for n, own in enumerate(ids) for t in own
             if sum(t in i for i in ids) == 1 and not any(t in i for i in others)]  # fmt: skip
    if not alone:
        pytest.skip("no item has a token of its own")
    place, token = alone[0]
    spoil(maths, token)
    expected = f'(task "kovesh_direction", item {prepared.items["search"][place].index})'
    assert told(evaluator, maths, tokenizer).endswith(expected)


def test_the_item_of_a_function(tmp_path, maths, tokenizer):
    (tmp_path / "score.py").write_text(
        "def score(model, tokenizer, items):\n"
        "    return [float(model(tokenizer(i['prompt'], return_tensors='pt').input_ids).logits.mean() > 9)\n"
        "            for i in items]\n"
    )
    items = [{"prompt": f"strun kunt {i} nesh"} for i in range(10)] + [{"prompt": "Z"}]
    (tmp_path / "items.jsonl").write_text("\n".join(json.dumps(i) for i in items))
    data = {"kind": "python", "function": "score.py:score", "items": "items.jsonl", "tasks": ["t"]}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(data))
    evaluator = open_evaluator(load_evaluator(tmp_path / "p.yaml"))
    split = next(s for s in ("search", "select", "test") if 10 in [i.index for i in evaluator._items._split[s]])
    only = set(tokenizer("Z").input_ids) - {t for i in items[:10] for t in tokenizer(i["prompt"]).input_ids}
    spoil(maths, only.pop())
    assert told(evaluator, maths, tokenizer, split).endswith('(task "t", item 10 of items.jsonl)')


def test_halving_finds_the_first_and_gives_up_where_none_shows_it(maths):
    bad = torch.full((1, 1), 5)
    spoil(maths, 5)
    ran = []

    def run(parts):
        ran.append(len(parts))
        maths(bad if any(p >= 37 for p in parts) else bad + 1)

    assert first_not_finite(maths, range(100), run) == 37
    assert sum(ran) <= 200
    assert first_not_finite(maths, range(30), run) is None
    assert first_not_finite(maths, [], run) is None
    assert not maths._forward_hooks


def test_stored_weights_of_a_source(tmp_path, maths, tokenizer):
    check_finite(open_source("zoo:maths"))
    with torch.no_grad():
        maths.model.norm.weight[3] = float("inf")
    maths.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    with pytest.raises(CandidateError, match=re.escape('the weight "model.norm.weight" holds NaN')):
        check_finite(open_source(str(tmp_path / "m")))
