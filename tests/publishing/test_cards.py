"""Cards of what is written: read by huggingface_hub itself, and taken by a hub that checks what the real one checks."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load

from evomerge import zoo
from evomerge.recipe import parse_recipe
from tests.hub_server import Hub
from tests.publishing.conftest import card

pytestmark = pytest.mark.xdist_group("publishing")


def loaded(folder: Path) -> ModelCard:
    """A folder's card, after the hub has taken it."""
    found = ModelCard.load(folder / "README.md")
    found.validate()
    return found


def test_the_winners_card_is_the_searchs_own(study: Path, served: Hub, here, tmp_path: Path) -> None:
    done = here("export", study, tmp_path / "made", "--json")
    assert (tmp_path / "made" / "README.md").read_text() == (study / "README.md").read_text()
    found = loaded(tmp_path / "made")
    assert found.data.eval_results is not None and found.data.model_name == "s"
    (result,) = found.data.eval_results
    assert result.dataset_type == "norm" and result.dataset_split == "test"
    assert found.data.base_model is None and found.data["base_model_relation"] == "merge"
    assert metadata_load(tmp_path / "made" / "README.md")["library_name"] == "transformers"
    assert "| random search |" in found.text and "ended by: budget" in found.text and "evaluator `e`" in found.text
    # Two of the user's folders, one of which says nothing, beside the zoo's base.
    assert found.data.license is None and done.result["lineage"]["license"] is None
    kinds = [c["kind"] for c in done.result["lineage"]["conflicts"]]
    assert kinds == ["differ", "unknown", "non-commercial"]
    for conflict in done.result["lineage"]["conflicts"]:
        assert f"licence: {conflict['text']}" in done.stderr and conflict["text"] in found.text
    origins = {o["model"]: o for o in done.result["lineage"]["sources"]}
    assert origins["maths"]["made_from"][0]["hub_id"] == "org/base" and origins["zoo:base"]["role"] == "base"
    assert str(study.parent) not in found.content


def test_another_candidate_is_not_shown_as_evidence(study: Path, served: Hub, here, tmp_path: Path) -> None:
    winner = here("export", study, tmp_path / "winner", "--json").result["trial"]
    other = next(n for n in range(4) if n != winner)
    here("export", study, tmp_path / "made", "--trial", other)
    found = loaded(tmp_path / "made")
    assert found.data.eval_results is None and "model-index" not in found.content
    assert f"candidate {other} of the search `s`, and not its winner, which is candidate {winner}" in found.text
    assert "The search score is no held-out evidence" in found.text and "not measured on the test items" in found.text
    assert "| **this model**, search items | 40 |" in found.text and "| base, search items | 40 |" in found.text
    assert "Held-out results" not in found.text
    block = found.text.split("```yaml\n")[1].split("```")[0]
    assert parse_recipe(block).evomerge.provenance["trial"] == other


def test_a_control_is_called_one(study: Path, served: Hub, here, tmp_path: Path) -> None:
    here("export", f"{study}/random search", tmp_path / "made")
    text = loaded(tmp_path / "made").text
    assert "It is the winner of a control, `random search`: searched at the same budget as `s`" in text
    assert "## Held-out results" in text
    here("export", f"{study}/random search", tmp_path / "first", "--trial", 0)
    assert "control `random search` of the search `s`" in loaded(tmp_path / "first").text or (
        "winner of a control" in loaded(tmp_path / "first").text
    )


def test_a_merge_of_the_hubs_models_names_them(served: Hub, here, tmp_path: Path) -> None:
    for name, front in (("maths", {"license": "apache-2.0", "base_model": "org/base"}), ("base", {"license": "mit"})):
        shutil.copytree(zoo.path(name), served.root / "org" / name)
        card(served.root / "org" / name, **front)
    shutil.copytree(zoo.path("kovesh"), tmp_path / "mine" / "kovesh")
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": "org/base@main",
        "models": [{"model": m, "parameters": {"weight": 0.5}} for m in ("org/maths", str(tmp_path / "mine/kovesh"))],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    here("merge", tmp_path / "recipe.yaml", tmp_path / "made")
    found = loaded(tmp_path / "made")
    assert found.data.base_model == ["org/maths", "org/base"] and found.data.license is None
    assert found.data.eval_results is None and "Nothing was measured" in found.text
    assert "# task_arithmetic of maths and kovesh\n" in found.text
    commit = served.commit("org/base")
    assert f"`org/base` (base): mit; revision `main`; commit `{commit[:12]}`" in found.text
    assert "  - made from `org/base`, says its card: mit" in found.text
    assert "kovesh states no licence" in found.text and str(tmp_path) not in found.content


def test_a_merge_writes_no_card_where_none_is_wanted_and_keeps_what_is_there(here, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("merge_method: passthrough\nmodels: [{model: 'zoo:base'}]\n")
    here("merge", tmp_path / "recipe.yaml", tmp_path / "made", "--no-model-card")
    assert not (tmp_path / "made" / "README.md").exists()
    (tmp_path / "made" / "README.md").write_text("mine")
    refused = here("merge", tmp_path / "recipe.yaml", tmp_path / "made", check=False)
    assert refused.returncode == 2 and (tmp_path / "made" / "README.md").read_text() == "mine"
    here("merge", tmp_path / "recipe.yaml", tmp_path / "made", "--overwrite")
    assert ModelCard.load(tmp_path / "made" / "README.md").data.license == "apache-2.0"


def test_chains_and_folders_of_one_name(here, tmp_path: Path) -> None:
    for part in ("a", "b"):
        shutil.copytree(zoo.path("maths"), tmp_path / part / "expert")
    first = {"name": "both", "merge_method": "linear", "models": [
        {"model": str(tmp_path / p / "expert"), "parameters": {"weight": 0.5}} for p in ("a", "b")
    ]}  # fmt: skip
    second = {"merge_method": "slerp", "base_model": "both", "models": [{"model": "zoo:base"}], "parameters": {"t": 1}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump_all([first, second]))
    done: SimpleNamespace = here("merge", tmp_path / "recipe.yaml", tmp_path / "made", "--json")
    text = (tmp_path / "made" / "README.md").read_text()
    assert "Made in 2 steps: `both` is merged from 2 models by `linear`" in text
    assert done.result["recipe_hash"] in text and str(tmp_path) not in text
    assert "model: expert\n" in text and "model: expert-2\n" in text
