"""Recipes of paths: mergekit's own build of them has the same bits, and what their models need to have in common."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

from evomerge.errors import RecipeError, SourceError
from evomerge.merging.engine import Engine
from evomerge.merging.unopened import misfits
from evomerge.recipe import Path as LayerPath
from evomerge.recipe import Recipe, parse_recipe
from evomerge.sources import TEXT, Place, open_source, open_sources, writers

pytest.importorskip("mergekit")

Make = Callable[..., Path]
Tensors = dict[str, torch.Tensor]

# Which of three models, and which of its layers: repeats, layers in another order, and every model's last.
LAYERS = [(0, 0), (0, 1), (1, 1), (0, 1), (1, 2), (1, 2), (0, 0)]
SCALES = [1, 0.9, 1.2, 0.7, 1, 1.3, 0.55]
# Models of the embeddings, and of norm and head: those of the first and last hop, one of them not, neither.
ENDS = [(0, 0), (2, 0), (0, 2), (2, 1), (1, 1)]


def path_over(
    folders: Sequence[Path], embeddings: int = 0, head: int = 0, scales: Sequence[float] | None = SCALES
) -> LayerPath:
    names = [str(folder) for folder in folders]
    return LayerPath.scaled([(names[m], layer) for m, layer in LAYERS], scales, names[embeddings], names[head])


def recipe_of(path: LayerPath, **settings: Any) -> Recipe:
    return path.recipe(writers(open_source(path.embeddings)).filters, **settings)


def read(folder: Path) -> Tensors:
    return {name: t for part in folder.glob("*.safetensors") for name, t in load_file(part).items()}


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def built(recipe: Recipe, out: Path) -> Path:
    Engine(open_sources(recipe.references())).write(recipe, out)
    return out


def built_by_mergekit(recipe: Recipe, out: Path) -> Path:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(quiet=True, write_model_card=False, copy_tokenizer=False)
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(recipe.to_yaml())), str(out), options)
    return out


def assert_same(ours: Tensors, theirs: Tensors) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_mergekit_builds_the_same_bits(
    family: str, dtype: str, tied: bool, ends: tuple[int, int], make: Make, tmp_path: Path
) -> None:
    models = [make(family, seed, 3, tied, getattr(torch, dtype)) for seed in range(3)]
    recipe = recipe_of(path_over(models, *ends), dtype=dtype)
    ours, theirs = built(recipe, tmp_path / "ours"), built_by_mergekit(recipe, tmp_path / "theirs")
    assert_same(read(ours), read(theirs))
    a, b = config_of(ours), config_of(theirs)
    assert a["num_hidden_layers"] == b["num_hidden_layers"] == len(LAYERS)
    assert a["tie_word_embeddings"] == b["tie_word_embeddings"] == tied
    # The ends are those that were asked for.
    made, embeddings, head = read(ours), read(models[ends[0]]), read(models[ends[1]])
    assert torch.equal(made["model.embed_tokens.weight"], embeddings["model.embed_tokens.weight"])
    assert torch.equal(made["model.norm.weight"], head["model.norm.weight"])
    assert ("lm_head.weight" in made) is not tied
    if not tied:
        assert torch.equal(made["lm_head.weight"], head["lm_head.weight"])


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_mergekit_builds_the_same_bits_in_another_type(dtype: str | None, make: Make, tmp_path: Path) -> None:
    models = [make("llama", seed, 3, False, torch.bfloat16) for seed in range(3)]
    recipe = recipe_of(path_over(models, 2, 1), dtype=dtype)
    ours, theirs = (read(b(recipe, tmp_path / b.__name__)) for b in (built, built_by_mergekit))
    assert_same(ours, theirs)
    assert {t.dtype for t in ours.values()} == {torch.float32 if dtype else torch.bfloat16}


def test_a_narrower_type_is_rounded_to_once(make: Make, tmp_path: Path) -> None:
    """mergekit rounds before it scales, and after."""
    models = [make("llama", seed) for seed in range(3)]
    path = path_over(models)
    recipe = recipe_of(path, dtype="bfloat16")
    ours, theirs = (read(b(recipe, tmp_path / b.__name__)) for b in (built, built_by_mergekit))
    name = "mlp.down_proj.weight"
    stored = read(models[1])[f"model.layers.1.{name}"]
    factor = path.hops[2].factor
    assert torch.equal(ours[f"model.layers.2.{name}"], (stored * factor).bfloat16())
    assert torch.equal(theirs[f"model.layers.2.{name}"], stored.bfloat16() * factor)
    unscaled = [n for n in ours if not any(f in n for f in ("o_proj.", "down_proj."))]
    assert_same({n: ours[n] for n in unscaled}, {n: theirs[n] for n in unscaled})


@pytest.mark.parametrize("family", ["phi", "starcoder2", "gpt2"])
def test_biases_are_scaled_as_mergekit_does(family: str, make: Make, tmp_path: Path) -> None:
    models = [make(family, seed, 3, family == "gpt2") for seed in range(3)]
    path = path_over(models, 2, 1)
    recipe = recipe_of(path)
    ours = read(built(recipe, tmp_path / "ours"))
    assert_same(ours, read(built_by_mergekit(recipe, tmp_path / "theirs")))
    filters = writers(open_source(str(models[0]))).filters
    layout = open_source(str(tmp_path / "ours")).layout
    scaled = 0
    for number, hop in enumerate(path.hops):
        stored, names = read(Path(hop.model)), open_source(hop.model).layout
        for place in layout.inside(TEXT, number):
            name = layout.named(place)
            if name.endswith(".bias") and any(f in name for f in filters):
                before = stored[names.named(Place(TEXT, hop.layer, place.bare))]
                assert bool(before.any()) and torch.equal(ours[name], before * hop.factor), name
                scaled += hop.factor != 1
    assert scaled == 2 * sum(hop.factor != 1 for hop in path.hops)


def test_the_whole_of_one_model_is_that_model(make: Make, tmp_path: Path) -> None:
    model = make("llama", 0, 3)
    recipe = recipe_of(LayerPath.scaled([(str(model), layer) for layer in range(3)]))
    assert_same(read(built(recipe, tmp_path / "out")), read(model))
    assert config_of(tmp_path / "out") == config_of(model)


def resized(model: Path, rows: int, out: Path) -> Path:
    """A copy of a model with another vocabulary."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    loaded.resize_token_embeddings(rows)
    loaded.save_pretrained(out)
    return out


def test_a_model_between_the_ends_may_have_another_vocabulary(make: Make, tmp_path: Path) -> None:
    first, last = make("llama", 0), make("llama", 2)
    models = [resized(first, 150, tmp_path / "wide"), make("llama", 1), last]
    recipe = recipe_of(path_over(models, 2, 1))
    ours, theirs = (read(b(recipe, tmp_path / b.__name__)) for b in (built, built_by_mergekit))
    assert_same(ours, theirs)
    same = recipe_of(path_over([first, *models[1:]], 2, 1))
    assert_same(ours, read(built(same, tmp_path / "same")))


@pytest.mark.parametrize("ends", [(0, 1), (1, 0), (0, 2)])
def test_the_ends_must_have_one_vocabulary(ends: tuple[int, int], make: Make, tmp_path: Path) -> None:
    models = [resized(make("llama", 0), 150, tmp_path / "wide"), make("llama", 1), make("llama", 2)]
    recipe = recipe_of(path_over(models, *ends))
    with pytest.raises(SourceError) as e:
        built(recipe, tmp_path / "out")
    assert "vocab_size" in str(e.value) and "150" in str(e.value) and "\n" not in str(e.value)


def test_a_model_between_the_ends_may_have_a_tied_head(make: Make, tmp_path: Path) -> None:
    models = [make("llama", 0, 3, True), make("llama", 1, 3, False), make("llama", 2, 3, False)]
    ours = read(built(recipe_of(path_over(models, 1, 2)), tmp_path / "out"))
    assert torch.equal(ours["lm_head.weight"], read(models[2])["lm_head.weight"])
    for ends in ((0, 1), (1, 0)):
        with pytest.raises(SourceError, match=f'"{models[0]}" has no output head of its own'):
            built(recipe_of(path_over(models, *ends)), tmp_path / "refused")


def test_merges_still_need_one_vocabulary(make: Make, tmp_path: Path) -> None:
    wide = resized(make("llama", 0), 150, tmp_path / "wide")
    other = make("llama", 1)
    text = (
        "{merge_method: linear, parameters: {weight: 1}, slices: [{sources: [{model: <A>, layer_range: [0, 1]}]}, "
        "{sources: [{model: <B>, layer_range: [0, 1]}, {model: <A>, layer_range: [0, 1]}]}]}"
    )
    with pytest.raises(SourceError, match="vocab_size 150 against 134"):
        built(parse_recipe(text.replace("<A>", str(other)).replace("<B>", str(wide))), tmp_path / "out")


def test_the_tokenizer_is_that_of_the_embeddings(make: Make, tmp_path: Path) -> None:
    models = [make("llama", seed) for seed in range(2)]
    other = tmp_path / "other"
    shutil.copytree(make("llama", 2), other)
    said = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({**said, "of": "the embeddings"}))
    out = built(recipe_of(path_over([*models, other], 2, 0)), tmp_path / "out")
    assert json.loads((out / "tokenizer_config.json").read_text())["of"] == "the embeddings"


def test_a_layer_that_does_not_exist(make: Make, tmp_path: Path) -> None:
    model = str(make("llama", 0, 3))
    recipe = LayerPath.scaled([(model, 0), (model, 3), (model, 1)]).recipe(())
    with pytest.raises(RecipeError) as e:
        built(recipe, tmp_path / "out")
    assert str(e.value) == (
        f'slices[1]: layer_range [3, 4] of "{model}": the model has 3 layers; expected [first, end] within [0, 3]'
    )


def test_models_of_another_width(make: Make, tmp_path: Path) -> None:
    model = make("llama", 0, 3)
    config = transformers.LlamaConfig(**{**config_of(model), "hidden_size": 32, "head_dim": 16})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "wide")
    recipe = LayerPath.scaled([(str(model), 0), (str(tmp_path / "wide"), 1)]).recipe(())
    with pytest.raises(SourceError, match="hidden_size 32 against 16, head_dim 16 against 8"):
        built(recipe, tmp_path / "out")


@pytest.mark.parametrize("middle", [True, False])
def test_models_that_open_are_compared_where_others_do_not(middle: bool, make: Make, tmp_path: Path) -> None:
    """What `check` says of a path one of whose models is missing: only the ends have vocabularies here too."""
    models = [make("llama", 0), resized(make("llama", 1), 150, tmp_path / "wide"), tmp_path / "missing"]
    names = [str(model) for model in models]
    hops = [(name, 0) for name in (names if middle else [names[0], names[2], names[1]])]
    recipe = LayerPath.scaled(hops, embeddings=names[0], head=hops[-1][0]).recipe(())
    for said in (recipe, yaml.safe_load(recipe.to_yaml())):
        told = misfits(said, (), None)
        assert told == [] if middle else ["vocab_size 150 against 134" in line for line in told] == [True]
