"""The checkpoints that ship with the package."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge import zoo
from evomerge.zoo.curriculum import held_out, tasks
from evomerge.zoo.model import load
from evomerge.zoo.scoring import exact


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", zoo.NAMES)
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


def test_generates_what_teacher_forcing_scores() -> None:
    """The cheap exact score equals greedy generation, right or wrong."""
    model = load(zoo.path("maths"))
    tokenizer = AutoTokenizer.from_pretrained(zoo.path("maths"))
    items = held_out()["kovesh_problems"][:40]
    inputs = tokenizer([item.prompt for item in items], return_tensors="pt", padding=True)
    written = model.generate(**inputs, max_new_tokens=7, do_sample=False)
    answers = tokenizer.batch_decode(
        written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
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


def test_figures_belong_to_the_checkpoints() -> None:
    figures = json.loads((zoo.path("base").parent / "figures.json").read_text())["scores"]
    assert set(zoo.NAMES) <= set(figures)
    assert all(set(row) == {task.name for task in tasks()} for row in figures.values())
    target = held_out()["kovesh_problems"]
    right = exact(load(zoo.path("kovesh")), target).float().mean().item()
    assert right == pytest.approx(figures["kovesh"]["kovesh_problems"], abs=0.003)
