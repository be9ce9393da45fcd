"""The model card is one that the Hub reads: parsed by huggingface_hub itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path as Folder

from huggingface_hub import ModelCard

from evomerge.recipe import Chain, Path, Step, parse_chain, parse_recipe
from evomerge.report import model_card
from evomerge.study.outcome import Outcome


def test_front_matter_is_read_by_the_hub(outcome: Outcome) -> None:
    data = ModelCard(model_card(outcome)).data
    assert data.base_model is None  # the zoo's are no models of the Hub, which refuses anything else there
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
    assert "4 candidates (1 of them stopped early, 1 of them failed) in 1 min 15 s; ended by: budget" in text


def test_looks_are_said(outcome: Outcome) -> None:
    assert "have been read 2 times" in model_card(replace(outcome, looks=2))


def test_licences(tmp_path: Folder, outcome: Outcome) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# hello\n")
    text = outcome.recipe.to_yaml().replace("zoo:maths", str(tmp_path))
    mixed = replace(outcome, recipe=parse_recipe(text))
    card = ModelCard(model_card(mixed))
    assert card.data.license is None  # two licences: none is claimed for the merge
    assert f"`{tmp_path.name}` (source): cc-by-nc-4.0" in card.text and "`zoo:base` (base): apache-2.0" in card.text
    assert "The licences differ (cc-by-nc-4.0:" in card.text and "allows no commercial use" in card.text
    assert "no legal advice" in card.text and "no legal advice" not in model_card(outcome)


def of_path(outcome: Outcome) -> Outcome:
    """The search's winner as a path over layers, in a study that calls its sources by short names."""
    layers = [("zoo:kovesh_lower", 0), ("zoo:kovesh_lower", 1), ("/disk/maths_upper", 2), ("/disk/maths_upper", 3)]
    path = Path.scaled(layers, [1, 1, 0.9, 1], "zoo:kovesh_lower")
    recipe = path.recipe(("o_proj", "down_proj"), dtype="bfloat16")
    recipe = recipe.with_extras(sources={"zoo:kovesh_lower": "a" * 64})
    return replace(outcome, recipe=recipe, path=path, names={"/disk/maths_upper": "upper"})


def test_a_path_is_said_in_words_and_shown(outcome: Outcome) -> None:
    card = ModelCard(model_card(of_path(outcome)))
    assert "`zoo:kovesh_lower` (source)" in card.text and "`maths_upper` (source)" in card.text
    assert "A path of 4 layers over those of 2 models. The recipe was found by evolutionary search" in card.text
    assert "`embeddings kovesh_lower > kovesh_lower 0-1 > upper 2-3 x0.9 > head kovesh_lower`" in card.text
    assert "](path.png)" in card.text and "content sha256 `aaaaaaaaaaaaaaaa`" in card.text
    assert "/disk" not in card.text  # where a folder lies is private
    block = card.text.split("```yaml\n")[1].split("```")[0]
    again = Path.read(parse_recipe(block))
    assert again is not None and [h.layer for h in again.hops] == [0, 1, 2, 3]


def test_a_merge_of_weights_has_no_path(outcome: Outcome) -> None:
    text = model_card(outcome)
    assert "Merged from 3 models by `task_arithmetic`. The recipe was found by evolutionary search" in text
    assert "path.png" not in text and "## The path" not in text


def test_what_else_was_kept_is_listed(outcome: Outcome, mapped: Outcome, shared: Outcome) -> None:
    assert "What else was kept" not in model_card(outcome)
    text = model_card(mapped)
    assert "| candidate | score | one | two | cell |" in text
    assert "| 3 | 0.750 | 0.500 | 1.000 | 3, 9 |\n| 0 | 0.000 | 0.250 | -0.250 | 0, 0 |" in text
    assert "| 0 | 0.250 | 0.250 | 0.500 |" in model_card(shared) and "more" not in text.split("What else")[1]
    assert mapped.archive is not None
    many = replace(mapped.archive, members=mapped.archive.members * 10)
    text = model_card(replace(mapped, archive=many))
    assert text.count(" 3, 9 |") == 6 and text.endswith("and 8 more\n")


def test_a_chain_is_said_step_by_step(outcome: Outcome) -> None:
    """What a hybrid search ends with: merged weights, then a path over the merge and a source."""
    path = Path.scaled([("merged", 0), ("zoo:maths", 1), ("merged", 1)])
    signed = {"zoo:base": "b" * 64, "zoo:maths": "c" * 64, "zoo:kovesh": "d" * 64}
    steps = [Step("merged", outcome.recipe), Step(None, path.recipe(("o_proj",), dtype="bfloat16"))]
    chain = Chain.of(steps).with_hashes(signed)
    card = ModelCard(model_card(replace(outcome, recipe=chain, path=path)))
    sources = card.text.split("## Sources")[1].split("## Licences")[0]
    assert [line.split("`")[1] for line in sources.strip().splitlines()] == ["zoo:maths", "zoo:kovesh", "zoo:base"]
    words = "Made in 2 steps: `merged` is merged from 3 models by `task_arithmetic`; the model is a path of 3 layers"
    assert words in card.text
    assert "`embeddings merged > merged 0 > maths 1 > merged 1 > head merged`" in card.text
    assert "`zoo:base` (base): apache-2.0; content sha256 `bbbbbbbbbbbbbbbb`" in card.text
    assert "mergekit-multi's YAML" in card.text
    assert parse_chain(card.text.split("```yaml\n")[1].split("```")[0]) == chain
