"""A merge of text models that is put into a vision-language model, which is not merged itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from evomerge.errors import InputError, RecipeError, SourceError
from evomerge.merging.engine import Engine
from evomerge.merging.live import live_model, live_model_for
from evomerge.publishing.lineage import lineage
from evomerge.recipe import Recipe, load_chain, parse_recipe
from evomerge.sources import open_sources

Make = Callable[..., Path]
State = dict[str, torch.Tensor]
TEXT = "language_model."


@pytest.fixture(scope="module")
def vlm(make: Make) -> Path:
    return make("llava", 1, 3, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def texts(make: Make) -> tuple[Path, Path]:
    """A text model of its language model's shape, and a fine-tune of that."""
    base = make("llama", 3, 3, dtype=torch.bfloat16)
    return base, make("llama", 4, 3, dtype=torch.bfloat16, near=base)


def engine_of(text: str) -> tuple[Engine, Recipe]:
    recipe = parse_recipe(text)
    return Engine(open_sources(recipe.references())), recipe


def tensors(folder: Path) -> State:
    return load_file(folder / "model.safetensors")


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8)


def said(base: Path, tuned: Path, into: Path | str, weight: float = 0.5) -> str:
    return f"""
merge_method: task_arithmetic
base_model: {base}
models: [{{model: {tuned}, parameters: {{weight: {weight}}}}}]
evomerge: {{into: {into}}}
"""


def seen(model: Any) -> torch.Tensor:
    """Logits over an image (4 patches) and some text."""
    ids = torch.tensor([[8, 5, 5, 5, 5, 9, 10, 11]])
    pixels = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8).to(model.dtype)
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, pixel_values=pixels).logits.float()
    return logits


def check_rest(got: State, own: State, language: State) -> None:
    """The language model is as expected, everything else the vision-language model's bit for bit."""
    assert got.keys() == own.keys()
    for name, x in own.items():
        if name.startswith(TEXT):
            expected = language[name.removeprefix(TEXT)].double()
            torch.testing.assert_close(got[name].double(), expected, rtol=2**-8, atol=1e-6)
        else:
            assert torch.equal(bits(got[name]), bits(x)), name


def test_text_models_merged_into_a_model_that_is_not(vlm: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = texts
    out = tmp_path / "out"
    engine, recipe = engine_of(said(base, tuned, vlm))
    assert engine.plan(recipe).summary()["configuration_of"] == str(vlm)
    engine.write(recipe, out)
    first, second = tensors(base), tensors(tuned)
    merged = {n: x.double() + 0.5 * (second[n].double() - x.double()) for n, x in first.items()}
    check_rest(tensors(out), tensors(vlm), merged)
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    live = live_model_for(engine.plan(recipe))
    engine.build_into(recipe, live)
    assert type(live) is type(model) and torch.equal(seen(live), seen(model.eval()))


def test_the_written_recipe_rebuilds_it_and_says_what_it_is_in(
    vlm: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    engine, recipe = engine_of(said(*texts, vlm))
    engine.write(recipe, tmp_path / "out")
    again = load_chain(tmp_path / "out" / "recipe.yaml").final
    assert again.evomerge.into == str(vlm) and set(again.evomerge.sources) == {str(vlm), *map(str, texts)}
    Engine(open_sources(again.references())).write(again, tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()
    roles = {origin.name: origin.role for origin in lineage(again).origins}
    assert roles[vlm.name] == "merged into" and roles[texts[0].name] == "base"


def test_the_files_of_its_processor_are_kept(vlm: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    own = Path(shutil.copytree(vlm, tmp_path / "own"))
    for name in ("processor_config.json", "preprocessor_config.json"):
        (own / name).write_text(f'{{"said_by": "{name}"}}')
    engine, recipe = engine_of(said(*texts, own))
    engine.write(recipe, tmp_path / "out")
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (own / name).read_bytes()


def test_a_text_model_alone_becomes_its_language_model(vlm: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    engine, recipe = engine_of(
        f"{{merge_method: passthrough, models: [{{model: {texts[1]}}}], evomerge: {{into: {vlm}}}}}"
    )
    engine.write(recipe, tmp_path / "out")
    check_rest(tensors(tmp_path / "out"), tensors(vlm), tensors(texts[1]))


def test_which_of_two_is_said(vlm: Path, texts: tuple[Path, Path], make: Make, tmp_path: Path) -> None:
    """Of two vision-language models that are merged with a text model, the encoder is the first one's or as said."""
    other = make("llava", 2, 3, dtype=torch.bfloat16, near=vlm)
    listed = ", ".join(f"{{model: {m}}}" for m in (vlm, other, texts[0]))
    plain = f"{{merge_method: linear, models: [{listed}], parameters: {{weight: 1}}"
    own, theirs = tensors(vlm), tensors(other)
    mean = {n: sum(s[p + n].double() for s, p in ((own, TEXT), (theirs, TEXT), (tensors(texts[0]), ""))) / 3
            for n in tensors(texts[0])}  # fmt: skip
    for end, expected in (("}", own), (f", evomerge: {{into: {other}}}}}", theirs)):
        engine, recipe = engine_of(plain + end)
        check_rest(dict(engine.tensors(recipe)), expected, mean)


def test_the_language_models_alone_of_two_that_both_see(vlm: Path, make: Make, tmp_path: Path) -> None:
    """What is said to be put into keeps encoder and projector, whether it is merged or not."""
    other = make("llava", 2, 3, dtype=torch.bfloat16, near=vlm)
    plain = f"{{merge_method: linear, models: [{{model: {vlm}}}, {{model: {other}}}], parameters: {{weight: 1}}"
    own, theirs = tensors(vlm), tensors(other)
    mean = {n.removeprefix(TEXT): (own[n].double() + theirs[n].double()) / 2 for n in own if n.startswith(TEXT)}
    engine, recipe = engine_of(f"{plain}, evomerge: {{into: {vlm}}}}}")
    check_rest(dict(engine.tensors(recipe)), own, mean)
    engine, recipe = engine_of(f"{plain}, evomerge: {{into: {other}}}}}")
    check_rest(dict(engine.tensors(recipe)), theirs, mean)
    engine, recipe = engine_of(f"{plain}}}")  # without it all that they have in common is merged
    assert any(not torch.equal(x, own[n]) for n, x in engine.tensors(recipe) if not n.startswith(TEXT))


def test_the_recipes_file_is_named(vlm: Path, texts: tuple[Path, Path], here: Any, tmp_path: Path) -> None:
    file = tmp_path / "r1.yaml"
    file.write_text(said(*texts, texts[0]))
    for command in (("check", file), ("merge", file, tmp_path / "out")):
        done = here(*command, check=False)
        assert done.returncode == 2 and f'{file}: evomerge.into: "{texts[0]}" is a text model' in done.stderr


def test_what_transformers_refuses_is_said_with_the_folder(
    vlm: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    """The shell for candidates is made by transformers, which has its own way of saying no."""
    odd = Path(shutil.copytree(vlm, tmp_path / "odd"))
    config = json.loads((odd / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "no such function"
    (odd / "config.json").write_text(json.dumps(config))
    engine, recipe = engine_of(said(*texts, odd))
    with pytest.raises(SourceError, match=r"transformers cannot load it: .*no such function"):
        live_model_for(engine.plan(recipe))


def test_slices_too(vlm: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = texts
    engine, recipe = engine_of(f"""
merge_method: passthrough
slices:
- sources: [{{model: {tuned}, layer_range: [0, 3]}}]
- sources: [{{model: {base}, layer_range: [1, 2]}}]
evomerge: {{into: {vlm}}}
""")  # fmt: skip
    engine.write(recipe, tmp_path / "out")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers) == (4, 2)
    live = live_model_for(engine.plan(recipe))
    engine.build_into(recipe, live)
    assert torch.equal(seen(live), seen(live_model(tmp_path / "out")))


def test_its_content_is_a_part_of_what_the_recipe_means(vlm: Path, texts: tuple[Path, Path]) -> None:
    plain, into = (parse_recipe(said(*texts, vlm).replace(f"into: {vlm}", key)) for key in ("", f"into: {vlm}"))
    assert plain.hash() != into.hash() != into.hash({str(vlm): "0" * 64})
    moved = into.with_references({str(vlm): "elsewhere"})
    assert into.hash({str(vlm): "0" * 64}) == moved.hash({"elsewhere": "0" * 64})
    assert moved.evomerge.into == "elsewhere"
    assert parse_recipe(into.to_yaml()) == into


def narrow(make: Make, folder: Path) -> Path:
    """A text model of another width."""
    config = transformers.LlamaConfig.from_pretrained(make("llama", 3, 3, dtype=torch.bfloat16))
    config.hidden_size, config.head_dim = 8, 4
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_refused_before_any_work(vlm: Path, texts: tuple[Path, Path], make: Make, tmp_path: Path) -> None:
    base, tuned = texts

    def message(text: str) -> str:
        with pytest.raises(InputError) as e:
            engine, recipe = engine_of(text)
            engine.plan(recipe)
        assert isinstance(e.value, RecipeError | SourceError)
        return str(e.value)

    assert f'evomerge.into: "{base}" is a text model; expected a vision-language model' in message(
        said(base, tuned, base)
    )
    small = narrow(make, tmp_path / "narrow")
    found = message(f"{{merge_method: passthrough, models: [{{model: {small}}}], evomerge: {{into: {vlm}}}}}")
    assert f'"{small}" does not fit "{vlm}"' in found and "hidden_size 8 against 16" in found
    assert f'"{base}" does not fit "{small}": hidden_size 16 against 8' in message(said(base, small, vlm))
    # One with more tokens than the configuration that it gets would say.
    more = Path(shutil.copytree(base, tmp_path / "more"))
    config = json.loads((more / "config.json").read_text())
    (more / "config.json").write_text(json.dumps(config | {"vocab_size": 136}))
    state = tensors(more)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], state[name][:2]])
    save_file(state, more / "model.safetensors", {"format": "pt"})
    found = message(f"{{merge_method: passthrough, models: [{{model: {more}}}], evomerge: {{into: {vlm}}}}}")
    assert "vocab_size 136 against 134" in found and "tokenizer_source" in found


def test_a_model_that_cannot_be_opened_is_named_with_its_key(texts: tuple[Path, Path], tmp_path: Path) -> None:
    from evomerge.merging.chain import OpenChain
    from evomerge.recipe import parse_chain

    with pytest.raises(SourceError, match=r"evomerge\.into: "):
        OpenChain.open(parse_chain(said(*texts, tmp_path / "nowhere")), root=tmp_path)
