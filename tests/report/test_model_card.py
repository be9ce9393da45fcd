"""The model card is one that the Hub reads: parsed by huggingface_hub itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from huggingface_hub import ModelCard

from evomerge.recipe import parse_recipe
from evomerge.report import model_card
from evomerge.report.model_card import licence_of, model_name
from evomerge.study.outcome import Outcome


def test_front_matter_is_read_by_the_hub(outcome: Outcome) -> None:
    data = ModelCard(model_card(outcome)).data
    assert data.base_model == ["zoo:maths", "zoo:kovesh", "zoo:base"]
    assert data["base_model_relation"] == "merge"
    assert data.library_name == "transformers" and data.license == "apache-2.0"
    assert {"merge", "evomerge"} <= set(data.tags)
    assert data.eval_results is not None
    found = {r.dataset_type: (r.metric_type, r.metric_value) for r in data.eval_results}
    assert found == {"target": ("exact_match", 0.49), "other": ("error", 0.25)}


def test_body_has_the_table_the_rebuild_and_the_recipe(outcome: Outcome) -> None:
    text = model_card(outcome)
    assert "| maths | 0.360 | 0.273 .. 0.458 | +0.130 |" in text
    assert "| **best** | **0.490** |" in text
    assert "evomerge merge recipe.yaml OUT" in text and outcome.recipe_hash in text
    block = text.split("```yaml\n")[1].split("```")[0]
    assert parse_recipe(block) == outcome.recipe
    assert "4 candidates (1 of them failed) in 1 min 15 s; ended by: budget" in text


def test_looks_are_said(outcome: Outcome) -> None:
    assert "have been read 2 times" in model_card(replace(outcome, looks=2))


def test_folders_are_named_without_their_path(tmp_path: Path) -> None:
    assert model_name(str(tmp_path / "expert")) == "expert"
    assert model_name("org/model@main") == "org/model"
    assert model_name("zoo:base") == "zoo:base"


def test_licences(tmp_path: Path, outcome: Outcome) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# hello\n")
    assert licence_of(str(tmp_path)) == "mit"
    assert licence_of("org/somewhere-else") is None
    text = outcome.recipe.to_yaml().replace("zoo:maths", str(tmp_path))
    mixed = replace(outcome, recipe=parse_recipe(text))
    card = ModelCard(model_card(mixed))
    assert card.data.license is None  # two licences: none is claimed for the merge
    assert f"`{tmp_path.name}`: mit" in card.text and "`zoo:base` (base): apache-2.0" in card.text
