"""Weights that are the same for every prompt, against explicit dense sums in float64: a checkpoint, and one adapter."""

from __future__ import annotations

import json
import math
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from evomerge.errors import InputError, SourceError
from evomerge.library import Library, LibraryError
from evomerge.merging.engine import Engine
from evomerge.merging.planner import Planner
from evomerge.recipe import Recipe, parse_recipe
from evomerge.skills.opened import open_library
from evomerge.skills.static import OneAdapter, one_adapter, recipe_of
from evomerge.sources import open_sources
from tests.skills.conftest import make_base, make_lora

WEIGHTS = {"two": 0.7, "four": -1.4, "eight": 1.2}
# What the engine must keep to, in float32 on values of this size (below 4).
EXACT = 1e-6


def dense(library: Library, weights: dict[str, float]) -> dict[str, torch.Tensor]:
    """W_0 + sum w s B A, multiplied out in float64 by the rules of PEFT's own files (an oracle without evomerge)."""
    out = {n: t.double() for n, t in load_file(Path(library.base) / "model.safetensors").items()}
    for skill, weight in weights.items():
        config = json.loads((library.place(skill) / "adapter_config.json").read_text())
        tensors = load_file(library.place(skill) / "adapter_model.safetensors")
        for name, a in tensors.items():
            if not name.endswith("lora_A.weight"):
                continue
            b = tensors[name.replace("lora_A", "lora_B")]
            scale = config["lora_alpha"] / (math.sqrt(len(a)) if config["use_rslora"] else len(a))
            target = name.removeprefix("base_model.model.").replace(".lora_A", "")
            out[target] += weight * scale * (b.double() @ a.double())
    return out


def built(recipe: Recipe) -> dict[str, torch.Tensor]:
    return dict(Engine(open_sources(recipe.references()), threads=1).tensors(recipe))


def planned(recipe: Recipe) -> OneAdapter:
    return one_adapter(Planner(open_sources(recipe.references())).plan(recipe))


def loaded(base: str, adapter: Path) -> dict[str, torch.Tensor]:
    """What PEFT makes of an adapter, in float64."""
    live = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    adapted = peft.PeftModel.from_pretrained(live, adapter, autocast_adapter_dtype=False)
    return dict(adapted.merge_and_unload().state_dict())


def test_negative_weights_mixed_ranks_and_layers_that_some_have(shared: Library) -> None:
    expected, merged = dense(shared, WEIGHTS), built(recipe_of(shared, WEIGHTS))
    assert merged.keys() == expected.keys()
    base = load_file(Path(shared.base) / "model.safetensors")
    changed = {n for n in merged if not torch.equal(merged[n], base[n])}
    kinds = {n.split(".")[-2] for n in changed}
    assert kinds == {"q_proj", "v_proj", "down_proj", "up_proj"} and len(changed) == 12
    for name, tensor in merged.items():
        assert tensor.dtype == torch.float32
        assert float((tensor.double() - expected[name]).abs().max()) <= EXACT, name
    # The check can fail: one weight of another sign is far off.
    other = dense(shared, WEIGHTS | {"two": -0.7})
    assert max(float((merged[n].double() - other[n]).abs().max()) for n in changed) > 1e-2


@pytest.mark.filterwarnings("ignore")
def test_one_adapter_that_peft_loads(shared: Library, tmp_path: Path) -> None:
    recipe = recipe_of(shared, WEIGHTS)
    one = planned(recipe)
    one.write(tmp_path / "one", recipe)
    assert {p.name for p in (tmp_path / "one").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "recipe.yaml",
    }  # fmt: skip
    ranks = {m.removeprefix("model.layers."): r for m, r in one.ranks.items()}
    assert ranks["0.self_attn.q_proj"] == 2 + 4 + 8 and ranks["1.self_attn.q_proj"] == 2 + 3 + 8
    assert ranks["0.self_attn.v_proj"] == 2 + 8 and ranks["0.mlp.down_proj"] == 4 and ranks["2.mlp.up_proj"] == 8
    expected = dense(shared, WEIGHTS)
    for name, tensor in loaded(shared.base, tmp_path / "one").items():
        assert float((tensor - expected[name]).abs().max()) <= EXACT, name
    said = parse_recipe((tmp_path / "one" / "recipe.yaml").read_text())
    assert all(Path(part).is_absolute() for r in said.references() for part in r.split("+"))
    assert said.evomerge.sources == {r: s.content_hash() for r, s in open_sources(said.references()).items()}
    assert said.evomerge.sources.keys() == set(said.references()) and len(said.references()) == 4
    # It is a source like any adapter, with the same content whatever is done with it.
    again = built(parse_recipe(json.dumps({
        "merge_method": "task_arithmetic", "base_model": shared.base,
        "models": [{"model": f"{shared.base}+{tmp_path / 'one'}", "parameters": {"weight": 1.0}}],
    })))  # fmt: skip
    for name, tensor in again.items():
        assert float((tensor.double() - expected[name]).abs().max()) <= EXACT, name


@pytest.mark.filterwarnings("ignore")
def test_weights_by_layer(shared: Library, tmp_path: Path) -> None:
    """Of a search per layer group each layer has weights of its own; one adapter can say that too."""
    text = recipe_of(shared, {"two": 1.0, "eight": 1.0}).to_yaml()
    layers = [{"two": 1.5, "eight": -0.25}, {"two": 0.0, "eight": 1.0}, {"two": -1.5, "eight": 0.0}]
    data = parse_recipe(text).to_dict()
    data.pop("models")
    data["slices"] = [
        {
            "sources": [
                *({"model": shared.reference(n), "layer_range": [i, i + 1], "parameters": {"weight": w}}
                  for n, w in weights.items()),
                {"model": shared.base, "layer_range": [i, i + 1]},
            ]
        }
        for i, weights in enumerate(layers)
    ]  # fmt: skip
    recipe = parse_recipe(json.dumps(data))
    one = planned(recipe)
    one.write(tmp_path / "one", recipe)
    assert "model.layers.2.mlp.up_proj" not in one.ranks, "its one weight is 0"
    found, merged = loaded(shared.base, tmp_path / "one"), built(recipe)
    by_layer = [dense(shared, weights) for weights in layers]
    for name, tensor in merged.items():
        part = name.split(".")
        expected = by_layer[int(part[2]) if part[1] == "layers" else 0][name]
        assert float((tensor.double() - expected).abs().max()) <= EXACT, name
        assert float((found[name] - expected).abs().max()) <= EXACT, name


@pytest.mark.filterwarnings("ignore")
def test_conv1d_layers(tmp_path: Path) -> None:
    """GPT-2 stores [in, out]; PEFT's thin matrices are as ever."""
    import shutil

    from evomerge import zoo
    from evomerge.skills import add

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=134, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(zoo.path("base") / file, tmp_path / "gpt2" / file)
    for name, targets in (("a", ["c_attn", "c_proj"]), ("b", ["c_attn", "c_fc"])):
        folder = make_lora(tmp_path / "gpt2", tmp_path / name, len(name), r=3, target_modules=targets)
        library = add(tmp_path / "library", name, folder)
    recipe = recipe_of(library, {"a": 0.5, "b": -2.0})
    planned(recipe).write(tmp_path / "one", recipe)
    merged = built(recipe)
    found = loaded(library.base, tmp_path / "one")
    for name, tensor in merged.items():
        assert float((tensor.double() - found[name]).abs().max()) <= EXACT, name
    live = transformers.AutoModelForCausalLM.from_pretrained(library.base, dtype=torch.float64)
    adapted = peft.PeftModel.from_pretrained(live, tmp_path / "a", "a", autocast_adapter_dtype=False)
    adapted.load_adapter(tmp_path / "b", "b", autocast_adapter_dtype=False)
    name = "transformer.h.0.attn.c_attn"
    layer = adapted.get_submodule(f"base_model.model.{name}")
    expected = layer.base_layer.weight + 0.5 * layer.get_delta_weight("a") - 2.0 * layer.get_delta_weight("b")
    assert float((merged[f"{name}.weight"].double() - expected).abs().max()) <= EXACT


@pytest.mark.parametrize("weights", [{"two": 0.0}, {"two": 0.0, "eight": -0.0}])
def test_all_weights_0_are_the_base_and_no_adapter(shared: Library, weights: dict[str, float]) -> None:
    recipe = recipe_of(shared, weights)
    base = load_file(Path(shared.base) / "model.safetensors")
    assert all(torch.equal(t, base[n]) for n, t in built(recipe).items())
    with pytest.raises(InputError, match="every weight is 0"):
        planned(recipe)


def test_weights_are_checked(shared: Library) -> None:
    with pytest.raises(LibraryError, match='has no skill "egiht"; did you mean "eight"'):
        recipe_of(shared, {"egiht": 1.0})
    with pytest.raises(LibraryError, match="no weights; expected NAME=WEIGHT"):
        recipe_of(shared, {})
    with pytest.raises(LibraryError, match="expected a finite number"):
        recipe_of(shared, {"two": float("nan")})


@pytest.mark.filterwarnings("ignore")
def test_what_is_no_sum_of_adapters(shared: Library, base: Path, tmp_path: Path) -> None:
    opened = open_library(shared)
    other = str(make_base(tmp_path / "other", seed=5))
    whole = f"{shared.base}+{make_lora(base, tmp_path / 'whole', modules_to_save=['lm_head'])}"
    sources = {shared.base: opened.base, shared.reference("two"): opened.skills["two"], **open_sources([other, whole])}

    def refused(words: str, **recipe: object) -> None:
        with pytest.raises(InputError, match=words):
            one_adapter(Planner(sources).plan(parse_recipe(json.dumps(recipe))))

    models = [{"model": shared.reference("two"), "parameters": {"weight": 1.0}}]
    refused("only a weighted sum of adapters", merge_method="linear", models=models)
    refused("expected a LoRA adapter on the base_model", merge_method="task_arithmetic", models=[
        {"model": shared.base, "parameters": {"weight": 1.0}}], base_model=shared.reference("two"))  # fmt: skip
    refused("expected a LoRA adapter on the base_", merge_method="task_arithmetic", base_model=shared.base, models=[
        *models, {"model": other, "parameters": {"weight": 1.0}}])  # fmt: skip
    refused("the recipe merges tokenizers", merge_method="task_arithmetic", base_model=shared.base, models=models,
            tokenizer_source="union")  # fmt: skip
    refused(r'brings "lm_head.weight" whole', merge_method="task_arithmetic", base_model=shared.base, models=[
        {"model": whole, "parameters": {"weight": 1.0}}])  # fmt: skip
    refused('moves "model.layers.0.self_attn.q_proj.weight" to "model.layers.1', merge_method="task_arithmetic",
            base_model=shared.base, slices=[{"sources": [
                {"model": shared.reference("two"), "layer_range": [0, 1], "parameters": {"weight": 1.0}},
                {"model": shared.base, "layer_range": [0, 1]}]}] * 2)  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_embeddings_that_are_adapted_are_no_linear_layer(shared: Library, base: Path, tmp_path: Path) -> None:
    """No skill has them, and any adapter may be in a recipe."""
    reference = f"{base}+{make_lora(base, tmp_path / 'tokens', target_modules=['embed_tokens'])}"
    with pytest.raises(InputError, match="expected a linear layer's lora_A; write a checkpoint"):
        planned(parse_recipe(json.dumps({
            "merge_method": "task_arithmetic", "base_model": str(base),
            "models": [{"model": reference, "parameters": {"weight": 1.0}}],
        })))  # fmt: skip


def test_nothing_of_a_library_is_overwritten(library: Library, tmp_path: Path) -> None:
    recipe = recipe_of(library, {"eight": 1.0})
    one = planned(recipe)
    before = {p: p.read_bytes() for p in library.folder.rglob("*") if p.is_file()}
    for out, words in (
        (library.place("two"), "lies in the skill library"),
        (library.place("eight"), "holds the source model"),
        (library.folder / "new", "lies in the skill library"),
        (Path(library.base), "holds the source model"),
    ):
        with pytest.raises(InputError, match=words):
            one.write(out, recipe, overwrite=True)
    assert {p: p.read_bytes() for p in library.folder.rglob("*") if p.is_file()} == before
    one.write(tmp_path / "one", recipe)
    one.write(tmp_path / "one", recipe, overwrite=True)
    # A space of that name makes no library of its folder.
    (tmp_path / "skills.yaml").write_text(f"kind: skills\nlibrary: {library.folder}\n")
    one.write(tmp_path / "other", recipe)


def test_other_sources_than_the_recipe_s_are_refused(library: Library, tmp_path: Path) -> None:
    recipe = recipe_of(library, {"two": 1.0})
    signed = recipe.with_extras(sources={library.reference("two"): "0" * 64})
    with pytest.raises(SourceError, match="its content is not what the recipe was made with"):
        planned(recipe).write(tmp_path / "one", signed)
    assert not (tmp_path / "one").exists()


def test_an_adapter_with_nan_is_refused(library: Library) -> None:
    weights = library.place("two") / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors[next(iter(tensors))][0, 0] = float("inf")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r'lora_A of "model.layers.0.self_attn.q_proj.weight" holds NaN or infinity'):
        planned(recipe_of(library, {"two": 1.0}))
