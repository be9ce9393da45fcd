"""Live models and tokenizers from folders, and what they refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import RecipeError, SourceError
from evomerge.merging.engine import Engine
from evomerge.merging.live import live_model, live_model_for, load_tokenizer
from evomerge.recipe import parse_recipe
from evomerge.sources import open_source, open_sources


def test_ready_for_inference(family: tuple[str, str, str]) -> None:
    model = live_model(open_source(family[0]))
    assert model.dtype == torch.bfloat16 and not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert live_model(Path(family[0]), torch.float32).dtype == torch.float32


def test_building_does_not_touch_the_checkpoint(family: tuple[str, str, str]) -> None:
    file = Path(family[0]) / "model.safetensors"
    before = file.read_bytes()
    recipe = parse_recipe(
        f"{{merge_method: passthrough, models: [{{model: {family[1]}}}], parameters: {{scale: 0.5}}}}"
    )
    live = live_model(family[0])  # in the checkpoint's own type: nothing forces a copy
    Engine(open_sources(recipe.references())).build_into(recipe, live)
    assert file.read_bytes() == before
    assert torch.equal(live.state_dict()["model.norm.weight"], load_file(f"{family[1]}/model.safetensors")[
        "model.norm.weight"] / 2)  # fmt: skip


def test_code_in_a_checkpoint_is_not_run(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make(seed=1), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(SourceError, match="transformers cannot load it"):
        live_model(folder)
    assert not (tmp_path / "ran").exists()


def test_no_tokenizer(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make(seed=1), tmp_path / "model"))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(SourceError, match="its tokenizer cannot be loaded"):
        load_tokenizer(folder)


def test_a_checkpoint_saved_without_its_prefix(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make(seed=1, tied=True), tmp_path / "model"))
    tensors = {n.removeprefix("model."): t for n, t in load_file(folder / "model.safetensors").items()}
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # as old checkpoints have
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    recipe = parse_recipe(f"{{merge_method: passthrough, models: [{{model: {folder}}}], parameters: {{scale: 0.5}}}}")
    live = live_model(make(seed=2, tied=True))
    Engine(open_sources(recipe.references())).build_into(recipe, live)
    assert torch.equal(live.state_dict()["model.norm.weight"], tensors["norm.weight"] / 2)


def test_a_tensor_too_many_or_too_few(make: Callable[..., Path], tmp_path: Path) -> None:
    live = live_model(make(seed=2))
    for change, words in (("extra", "no place for tensor"), ("lack", 'no tensor for its "model.norm.weight"')):
        folder = Path(shutil.copytree(make(seed=1), tmp_path / change))
        tensors = load_file(folder / "model.safetensors")
        if change == "extra":
            tensors["model.layers.0.more.weight"] = torch.ones(3)
        else:
            del tensors["model.norm.weight"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        recipe = parse_recipe(f"{{merge_method: passthrough, models: [{{model: {folder}}}]}}")
        with pytest.raises(RecipeError, match=words):
            Engine(open_sources(recipe.references())).build_into(recipe, live)


def test_a_checkpoint_that_lacks_a_weight_is_not_loaded_with_random_ones(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(make(seed=1), tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"], tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=r'lacks "lm_head.weight" \(and 1 more\) of a LlamaForCausalLM'):
        live_model(folder)


def test_a_model_with_an_image_encoder(make: Callable[..., Path]) -> None:
    model = live_model(make("gemma3", seed=1, layers=2, tied=True))
    assert type(model).__name__ == "Gemma3ForConditionalGeneration" and not model.training


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_a_head_of_its_own_under_a_configuration_that_ties_it(
    kind: str, make: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(make(kind, seed=1, layers=2, tied=True), tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    embedding = next(t for n, t in tensors.items() if n.endswith(("embed_tokens.weight", "wte.weight")))
    tensors["lm_head.weight"] = -2 * embedding
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    recipe = parse_recipe(f"{{merge_method: passthrough, models: [{{model: {folder}}}]}}")
    engine = Engine(open_sources(recipe.references()))
    engine.write(recipe, tmp_path / "out")
    built = live_model_for(engine.plan(recipe))
    engine.build_into(recipe, built)

    expected, written = live_model(folder), live_model(tmp_path / "out")
    assert torch.equal(expected.get_output_embeddings().weight, tensors["lm_head.weight"]), "as transformers has it"
    assert written.config.tie_word_embeddings is False
    tokens = torch.tensor([[3, 8, 11]])
    for model in (written, built):
        assert torch.equal(model(tokens).logits, expected(tokens).logits)


def test_an_own_head_is_not_built_into_a_tied_one(make: Callable[..., Path]) -> None:
    recipe = parse_recipe(f"{{merge_method: passthrough, models: [{{model: {make(seed=1)}}}]}}")
    with pytest.raises(RecipeError, match="ties"):
        Engine(open_sources(recipe.references())).build_into(recipe, live_model(make(seed=2, tied=True)))


@pytest.mark.parametrize("equal", [False, True])
def test_a_family_that_ties_where_its_configuration_says_nothing(
    equal: bool, make: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(make("gpt2", seed=1, layers=2), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    if equal:
        tensors = load_file(folder / "model.safetensors")
        save_file(tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}, folder / "model.safetensors")
    # A merge of the two may give them other values.
    parameters = "parameters: {scale: [{filter: lm_head, value: 2}, {value: 1}]}"
    recipe = parse_recipe(f"{{merge_method: passthrough, models: [{{model: {folder}}}], {parameters}}}")
    engine = Engine(open_sources(recipe.references()))
    engine.write(recipe, tmp_path / "out")
    expected = live_model(open_source(str(folder)))
    tokens = torch.tensor([[3, 8, 11]])
    assert torch.equal(expected(tokens).logits, live_model(folder)(tokens).logits)
    for built in (live_model_for(engine.plan(recipe)), expected):
        engine.build_into(recipe, built)
        assert torch.equal(built(tokens).logits, live_model(tmp_path / "out")(tokens).logits)
