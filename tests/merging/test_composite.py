"""Vision-language models: both merged, one module of them, or their language model with a text model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from evomerge.errors import InputError, RecipeError, SourceError
from evomerge.merging.engine import Engine
from evomerge.merging.live import live_model, live_model_for
from evomerge.recipe import parse_recipe
from evomerge.sources import open_sources

Make = Callable[..., Path]
State = dict[str, torch.Tensor]

TEXT, TOWER, PROJECTOR = "language_model.", "vision_tower.", "multi_modal_projector."
MODULES = {"text_decoder": TEXT, "vision_tower": TOWER, "multi_modal_projector": PROJECTOR}


@pytest.fixture(scope="module")
def vlms(make: Make) -> tuple[Path, Path, Path]:
    """A vision-language model and two fine-tunes of it."""
    base = make("llava", 0, 3, dtype=torch.bfloat16)
    return (
        base,
        make("llava", 1, 3, dtype=torch.bfloat16, near=base),
        make("llava", 2, 3, dtype=torch.bfloat16, near=base),
    )


@pytest.fixture(scope="module")
def text(make: Make) -> Path:
    """A text model of the shape of their language models."""
    return make("llama", 3, 3, dtype=torch.bfloat16)


def engine_of(text: str) -> tuple[Engine, Any]:
    recipe = parse_recipe(text)
    return Engine(open_sources(recipe.references())), recipe


def merged(text: str, out: Path) -> State:
    """The written tensors; transformers loads them, and the live model has the same bits."""
    engine, recipe = engine_of(text)
    engine.write(recipe, out)
    model, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        out, dtype="auto", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    live = live_model_for(engine.plan(recipe))
    assert type(live) is type(model)
    engine.build_into(recipe, live)
    assert live.state_dict().keys() == model.state_dict().keys()
    for name, x in model.state_dict().items():
        assert torch.equal(live.state_dict()[name], x), name
    assert torch.equal(seen(live), seen(model.eval()))
    return load_file(out / "model.safetensors")


def seen(model: Any) -> torch.Tensor:
    """Logits over an image (4 patches) and some text."""
    ids = torch.tensor([[8, 5, 5, 5, 5, 9, 10, 11]])
    pixels = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8).to(model.dtype)
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixels).logits.float()


def tensors(folder: Path) -> State:
    return load_file(folder / "model.safetensors")


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8)


def half(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return ((a.double() + b.double()) / 2).to(a.dtype)


def test_every_module_of_two_models(vlms: tuple[Path, ...], tmp_path: Path) -> None:
    _, a, b = vlms
    got = merged(f"{{merge_method: linear, models: [{{model: {a}}}, {{model: {b}}}], parameters: {{weight: 1}}}}",
                 tmp_path / "out")  # fmt: skip
    first, second = tensors(a), tensors(b)
    assert got.keys() == first.keys()
    for name, x in first.items():
        assert torch.equal(got[name], half(x, second[name])), name


@pytest.mark.parametrize("module", [*MODULES, "language_model", "vision_model", "vision_tower.encoder"])
def test_one_module_and_the_rest_of_the_base(module: str, vlms: tuple[Path, ...], tmp_path: Path) -> None:
    base, a, b = vlms
    got = merged(f"""
merge_method: task_arithmetic
base_model: {base}
modules:
  {module}:
    models: [{{model: {a}, parameters: {{weight: 0.5}}}}, {{model: {b}}}]
    parameters: {{weight: 0.5}}
""", tmp_path / "out")  # fmt: skip
    prefix = MODULES.get(module) or {"language_model": TEXT}.get(module, TOWER)
    x0, x1, x2 = tensors(base), tensors(a), tensors(b)
    changed = 0
    for name, x in x0.items():
        if name.startswith(prefix):
            delta = (x1[name].double() - x.double()) / 2 + (x2[name].double() - x.double()) / 2
            torch.testing.assert_close(got[name].double(), x.double() + delta, rtol=2**-8, atol=1e-6)
            changed += not torch.equal(got[name], x)
        else:
            assert torch.equal(bits(got[name]), bits(x)), name
    assert changed


def test_each_module_with_parameters_of_its_own(vlms: tuple[Path, ...], tmp_path: Path) -> None:
    _, a, b = vlms
    pair = f"models: [{{model: {a}}}, {{model: {b}, parameters: {{weight: 0}}}}]"
    swapped = f"models: [{{model: {a}, parameters: {{weight: 0}}}}, {{model: {b}}}]"
    got = merged(f"""
merge_method: linear
modules:
  vision_tower: {{ {swapped} }}
  text_decoder: {{ {pair}, parameters: {{weight: [1, 1]}} }}
parameters: {{weight: 1}}
""", tmp_path / "out")  # fmt: skip
    first, second = tensors(a), tensors(b)
    for name, x in got.items():
        assert torch.equal(x, (second if name.startswith(TOWER) else first)[name]), name


def test_a_gradient_runs_over_each_modules_own_layers(vlms: tuple[Path, ...]) -> None:
    _, a, b = vlms
    engine, recipe = engine_of(f"""
merge_method: linear
models: [{{model: {a}}}, {{model: {b}}}]
parameters: {{weight: [0, 1]}}
""")  # fmt: skip
    got = {t.name: t.parameters["weight"][0] for t in engine.plan(recipe).tensors}  # type: ignore[index]
    layer = "{}.layers.{}.self_attn.q_proj.weight".format
    assert [got[layer("language_model.model", i)] for i in range(3)] == [0.0, 0.5, 1.0]
    assert [got[layer("vision_tower.encoder", i)] for i in range(2)] == [0.0, 1.0]
    assert (got["vision_tower.pre_layrnorm.weight"], got["vision_tower.post_layernorm.weight"]) == (0.0, 1.0)
    assert (got["multi_modal_projector.linear_1.weight"], got["language_model.lm_head.weight"]) == (0.0, 1.0)


@pytest.mark.parametrize("order", ["vlm first", "text first"])
def test_the_language_model_with_a_text_model(order: str, vlms: tuple[Path, ...], text: Path, tmp_path: Path) -> None:
    vlm = vlms[1]
    models = [vlm, text] if order == "vlm first" else [text, vlm]
    listed = ", ".join(f"{{model: {m}}}" for m in models)
    got = merged(f"{{merge_method: linear, models: [{listed}], parameters: {{weight: 1}}}}", tmp_path / "out")
    own, alone = tensors(vlm), tensors(text)
    assert got.keys() == own.keys()
    for name, x in own.items():
        if name.startswith(TEXT):
            assert torch.equal(got[name], half(x, alone[name.removeprefix(TEXT)])), name
        else:
            assert torch.equal(bits(got[name]), bits(x)), name


def test_task_vectors_of_a_text_base(vlms: tuple[Path, ...], text: Path, make: Make, tmp_path: Path) -> None:
    """The usual case: a language model was made to see, and another fine-tune of it learnt something else."""
    vlm, tuned = vlms[1], make("llama", 4, 3, dtype=torch.bfloat16, near=text)
    got = merged(f"""
merge_method: task_arithmetic
base_model: {text}
models: [{{model: {vlm}, parameters: {{weight: 1.0}}}}, {{model: {tuned}, parameters: {{weight: 0.5}}}}]
""", tmp_path / "out")  # fmt: skip
    own, base, other = tensors(vlm), tensors(text), tensors(tuned)
    for name, x in own.items():
        if name.startswith(TEXT):
            bare = name.removeprefix(TEXT)
            expected = x.double() + 0.5 * (other[bare].double() - base[bare].double())
            torch.testing.assert_close(got[name].double(), expected, rtol=2**-8, atol=1e-6)
        else:
            assert torch.equal(bits(got[name]), bits(x)), name


def test_a_tokenizer_with_tokens_for_images(make: Make, text: Path, tmp_path: Path) -> None:
    """The model that sees has tokens that its language model's relatives lack, and a padded vocabulary."""
    folder = make("llava", 5, 3, dtype=torch.bfloat16)
    model = live_model(folder)
    model.resize_token_embeddings(144, mean_resizing=False)
    vlm = tmp_path / "vlm"
    model.save_pretrained(vlm)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 134 and tokenizer.add_tokens(["<image>"]) == 1
    tokenizer.save_pretrained(vlm)
    (vlm / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    plain = f"""
merge_method: task_arithmetic
base_model: {text}
models: [{{model: {vlm}, parameters: {{weight: 0.5}}}}]
"""
    engine, recipe = engine_of(plain)
    with pytest.raises(SourceError, match="tokenizer_source: union"):
        engine.plan(recipe)
    got = merged(f"{plain}tokenizer_source: {vlm}\n", tmp_path / "out")
    assert got["language_model.lm_head.weight"].shape[0] in (135, 144)
    assert "<image>" in transformers.AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    assert (tmp_path / "out" / "preprocessor_config.json").read_text() == (vlm / "preprocessor_config.json").read_text()
    own, base = tensors(vlm), tensors(text)
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        assert torch.equal(got[name][:134], half(own[name][:134], base[name.removeprefix(TEXT)])), name
    for name, x in own.items():
        if not name.startswith(TEXT):
            assert torch.equal(bits(got[name]), bits(x)), name


def test_a_text_model_in_one_module(vlms: tuple[Path, ...], text: Path, tmp_path: Path) -> None:
    _, a, b = vlms
    got = merged(f"""
merge_method: linear
modules:
  text_decoder: {{models: [{{model: {text}}}]}}
  vision_tower: {{models: [{{model: {a}}}, {{model: {b}}}]}}
parameters: {{weight: 1}}
""", tmp_path / "out")  # fmt: skip
    alone, first, second = tensors(text), tensors(a), tensors(b)
    for name, x in first.items():
        expected = alone[name.removeprefix(TEXT)] if name.startswith(TEXT) else x
        assert torch.equal(got[name], half(x, second[name]) if name.startswith(TOWER) else expected), name


def test_slices_speak_of_the_language_model(vlms: tuple[Path, ...], text: Path, tmp_path: Path) -> None:
    _, a, _ = vlms
    got = merged(f"""
merge_method: passthrough
slices:
- sources: [{{model: {a}, layer_range: [0, 2]}}]
- sources: [{{model: {text}, layer_range: [0, 3]}}]
""", tmp_path / "out")  # fmt: skip
    own, alone = tensors(a), tensors(text)
    layers = [own] * 2 + [{TEXT + n: x for n, x in alone.items()}] * 3
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers) == (5, 2)
    for i, (source, at) in enumerate(zip(layers, (0, 1, 0, 1, 2), strict=True)):
        name = "language_model.model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(got[name.format(i)], source[name.format(at)])
    for name, x in own.items():
        if not name.startswith(TEXT):
            assert torch.equal(bits(got[name]), bits(x)), name


def renamed(folder: Path, out: Path) -> Path:
    """The same model as transformers 4.52 to 4.57 saved it."""
    out.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (out / file.name).write_bytes(file.read_bytes())
    new = {}
    for name, x in tensors(folder).items():
        name = name.replace("language_model.lm_head.", "lm_head.").replace("language_model.model.", "language_model.")
        name = name.replace("vision_tower.", "vision_tower.vision_model.")
        new[name if name.startswith("lm_head") else f"model.{name}"] = x
    save_file(new, out / "model.safetensors", {"format": "pt"})
    return out


def test_sources_saved_by_different_versions(vlms: tuple[Path, ...], tmp_path: Path) -> None:
    _, a, b = vlms
    old = renamed(b, tmp_path / "old")
    text = f"{{merge_method: linear, models: [{{model: {a}}}, {{model: {old}}}], parameters: {{weight: 1}}}}"
    got = merged(text, tmp_path / "out")
    first, second = tensors(a), tensors(b)
    for name, x in first.items():
        assert torch.equal(got[name], half(x, second[name])), name
    # And the older one's names where it comes first.
    other = merged(text.replace(str(a), "<>").replace(str(old), str(a)).replace("<>", str(old)), tmp_path / "older")
    assert other.keys() == tensors(old).keys()
    live, again = (live_model(tmp_path / f).state_dict() for f in ("out", "older"))
    assert all(torch.equal(live[n], again[n]) for n in live)


def test_copied_bits_survive(vlms: tuple[Path, ...], text: Path, tmp_path: Path) -> None:
    """A signed zero in the encoder is not a sum that happens to be zero, and its type is its own."""
    own = tensors(vlms[1])
    own["vision_tower.pre_layrnorm.bias"][:3] = torch.tensor([-0.0, 0.0, 1e-40])
    own["vision_tower.post_layernorm.weight"] = own["vision_tower.post_layernorm.weight"].float() + 1e-6
    folder = tmp_path / "model"
    folder.mkdir()
    for file in vlms[1].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    save_file(own, folder / "model.safetensors", {"format": "pt"})
    got = merged(f"{{merge_method: linear, models: [{{model: {folder}}}, {{model: {text}}}], dtype: bfloat16, "
                 f"parameters: {{weight: 1}}}}", tmp_path / "out")  # fmt: skip
    for name, x in own.items():
        if not name.startswith(TEXT):
            assert got[name].dtype == x.dtype and torch.equal(bits(got[name]), bits(x)), name


BAD = {
    'unknown module "audio_tower" of "<A>"; did you mean': "modules: {audio_tower: {models: [{model: <A>}]}}",
    '"language_model" and "text_decoder" are both the text_decoder; name it once': "modules: {text_decoder: {models: "
    "[{model: <A>}]}, language_model: {models: [{model: <A>}]}}",
    'modules.vision_tower: "<T>" has no vision_tower; it has text_decoder': "modules: {vision_tower: {models: "
    "[{model: <A>}, {model: <T>}]}}",
    "vision_tower would have 1 layers instead of 2; only the text_decoder can have another number": "modules: "
    "{vision_tower: {slices: [{sources: [{model: <A>, layer_range: [0, 1]}]}]}}",
    'modules.vision_tower.slices[0]: layer_range [0, 3] of "<A>": the model has 2 layers': "modules: "
    "{vision_tower: {slices: [{sources: [{model: <A>, layer_range: [0, 3]}]}]}}",
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_refused_before_any_work(message: str, vlms: tuple[Path, ...], text: Path) -> None:
    recipe = "{merge_method: linear, parameters: {weight: 1}, " + BAD[message] + "}"
    for short, folder in (("<A>", vlms[1]), ("<T>", text)):
        recipe, message = recipe.replace(short, str(folder)), message.replace(short, str(folder))
    with pytest.raises(InputError) as e:
        engine, parsed = engine_of(recipe)
        engine.plan(parsed)
    assert message in str(e.value) and isinstance(e.value, RecipeError | SourceError)


def test_a_text_model_of_another_shape(vlms: tuple[Path, ...], make: Make) -> None:
    deep = make("llama", 3, 4, dtype=torch.bfloat16)
    with pytest.raises(SourceError, match="4 layers against 3"):
        engine, recipe = engine_of(f"{{merge_method: linear, models: [{{model: {vlms[1]}}}, {{model: {deep}}}], "
                                   "parameters: {weight: 1}}")  # fmt: skip
        engine.plan(recipe)


def test_equals_mergekit(make: Make, tmp_path: Path) -> None:
    """mergekit knows gemma3's modules by the names of transformers 4.51, and leaves the tower's pooling head out."""
    pytest.importorskip("mergekit")
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    folders = []
    for seed in (1, 2):
        folder = Path(shutil.copytree(make("gemma3", seed, 3, True), tmp_path / str(seed)))
        old = {n.replace("vision_tower.", "vision_tower.vision_model."): x for n, x in tensors(folder).items()}
        save_file(old, folder / "model.safetensors", {"format": "pt"})
        folders.append(folder)
    a, b = folders
    text = f"""
merge_method: linear
modules:
  text_decoder:
    models:
    - {{model: {a}, parameters: {{weight: [{{filter: mlp, value: [0.1, 0.9]}}, {{value: 0.2}}]}}}}
    - {{model: {b}}}
  vision_tower:
    models: [{{model: {a}, parameters: {{weight: 0.4}}}}, {{model: {b}, parameters: {{weight: 0.7}}}}]
    parameters: {{normalize: false}}
  multi_modal_projector: {{models: [{{model: {a}}}, {{model: {b}}}], parameters: {{weight: 0.3, normalize: false}}}}
parameters: {{weight: 0.5}}
"""
    run_merge(
        MergeConfiguration.model_validate(yaml.safe_load(text)), str(tmp_path / "theirs"),
        MergeOptions(quiet=True, write_model_card=False, copy_tokenizer=False),
    )  # fmt: skip
    theirs: State = {}
    for file in (tmp_path / "theirs").glob("*.safetensors"):
        theirs.update(load_file(file))
    engine, recipe = engine_of(text)
    ours = dict(engine.tensors(recipe))
    assert {n for n in ours if n not in theirs} == {n for n in ours if ".vision_model.head." in n}
    assert len(theirs) > 60
    for name, x in theirs.items():
        torch.testing.assert_close(ours[name], x, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
