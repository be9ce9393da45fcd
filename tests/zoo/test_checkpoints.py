"""The checkpoints that ship with the package."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge import zoo
from evomerge.zoo.curriculum import held_out, tasks
from evomerge.zoo.model import load
from evomerge.zoo.plan import Part, Plan
from evomerge.zoo.scoring import exact


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", zoo.FAMILY)
def test_checkpoint_is_small_and_plain(name: str) -> None:
    folder = zoo.path(name)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2_500_000
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.bfloat16
    assert all(p.isfinite().all() for p in model.parameters())


def test_unknown_name() -> None:
    with pytest.raises(KeyError, match="maths"):
        zoo.path("math")


@pytest.mark.parametrize("name", zoo.FAMILY[1:])
def test_what_is_frozen_is_the_bases_to_the_byte(name: str) -> None:
    base, tuned = (load_file(zoo.path(n) / "model.safetensors") for n in ("base", name))
    assert base.keys() == tuned.keys()
    part = Plan().part(name)
    for tensor, weights in base.items():
        same = torch.equal(weights.view(torch.int16), tuned[tensor].view(torch.int16))
        assert same != part.holds(tensor, Plan().layers), tensor
    assert part is Part.ALL or name in ("kovesh_lower", "maths_upper")


def test_generates_what_teacher_forcing_scores() -> None:
    """The cheap exact score equals greedy generation, right or wrong."""
    model = load(zoo.path("maths"))
    tokenizer = AutoTokenizer.from_pretrained(zoo.path("maths"))
    items = held_out()["kovesh_problems"][:40]
    inputs = tokenizer([item.prompt for item in items], return_tensors="pt", padding=True)
    written = model.generate(**inputs, max_new_tokens=7, do_sample=False)
    answers = tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [answer == item.answer for answer, item in zip(answers, items, strict=True)]
    assert 0 < sum(right) < len(items)
    assert exact(model, items).tolist() == right


def test_a_prompt_is_its_words() -> None:
    tokenizer = AutoTokenizer.from_pretrained(zoo.path("base"))
    for items in held_out().values():
        text = f"{items[0].prompt} {items[0].answer}"
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert len(ids) == len(text.split())
        assert tokenizer.decode(ids) == text


def recorded() -> dict[str, dict[str, float]]:
    return json.loads((zoo.path("base").parent / "figures.json").read_text())["scores"]


def test_figures_are_of_every_model_and_task() -> None:
    figures = recorded()
    assert set(zoo.FAMILY) <= set(figures)
    assert all(set(row) == {task.name for task in tasks()} for row in figures.values())


@pytest.mark.parametrize("name", ["kovesh", "kovesh_lower", "maths_upper"])
def test_figures_belong_to_the_checkpoints(name: str) -> None:
    right = exact(load(zoo.path(name)), held_out()["kovesh_problems"]).float().mean().item()
    assert right == pytest.approx(recorded()[name]["kovesh_problems"], abs=0.003)


def test_a_path_over_both_layer_local_experts_beats_both() -> None:
    """Embeddings and layers 0-1 of one, layers 2-3 of the other: what data-flow search has to find."""
    figures = recorded()
    stack, upper = (load(zoo.path(name)) for name in ("kovesh_lower", "maths_upper"))
    for layer in (2, 3):
        stack.model.layers[layer] = upper.model.layers[layer]
    right = exact(stack, held_out()["kovesh_problems"]).float().mean().item()
    assert right > max(figures[name]["kovesh_problems"] for name in ("kovesh_lower", "maths_upper")) + 0.1
