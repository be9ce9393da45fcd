"""Recipes into live models and into checkpoints: the same bits by every way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.errors import CandidateError, RecipeError, SourceError
from evomerge.merging.engine import Engine
from evomerge.merging.live import live_model, live_model_for, load_tokenizer
from evomerge.methods import METHODS
from evomerge.recipe import Recipe, parse_recipe
from evomerge.sources import open_sources

Family = tuple[str, str, str]
# Those that need collected statistics are built in statistics/test_merges.py.
PLAIN = [name for name, method in METHODS.items() if not method.statistics]


def recipe_of(method: str, family: Family, extra: str = "", density: float = 0.6, weight: float = 0.4) -> Recipe:
    """A recipe of any method over a base and two fine-tunes."""
    base, a, b = family
    entry = METHODS[method]
    models = [a, b][: entry.room[1]]
    lines = [f"merge_method: {method}", "models:"]
    for i, m in enumerate(models):
        given = {"weight": weight + 0.3 * i, "density": density, "scale": 0.9}
        own = {k: v for k, v in given.items() if entry.parameter(k)}
        lines.append(f"- {{model: {m}, parameters: {own or '{}'}}}")
    if entry.base == "required":
        lines.append(f"base_model: {base}")
    if entry.parameter("t"):
        lines.append("parameters: {t: [0.2, 0.7]}")
    return parse_recipe("\n".join([*lines, extra]))


def engine_of(recipe: Recipe, **options: Any) -> Engine:
    return Engine(open_sources(recipe.references()), **options)


def state(model: Any) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize("extra", ["", "out_dtype: float32"])
def test_the_live_model_equals_the_exported_one(method: str, extra: str, family: Family, tmp_path: Path) -> None:
    recipe = recipe_of(method, family, extra)
    engine = Engine(open_sources(family))
    live = live_model(family[0], torch.float32)
    before = state(live)
    engine.build_into(recipe, live)
    engine.write(recipe, tmp_path / "out")
    exported = live_model(tmp_path / "out", torch.float32)
    assert_equal(state(live), state(exported))
    assert any(not torch.equal(before[n], v) for n, v in state(live).items())
    # Another candidate between leaves no trace, and neither does the cache.
    engine.build_into(recipe_of("linear", family), live)
    engine.build_into(recipe, live)
    assert_equal(state(live), state(exported))
    assert_equal(dict(engine_of(recipe).tensors(recipe)), dict(load_file(tmp_path / "out" / "model.safetensors")))
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "out").config
    assert config.dtype == (torch.float32 if extra else torch.bfloat16)


def test_the_numbers(exact_family: Family) -> None:
    """One merge against NumPy from the files: names, sources and weights meet as they should."""
    base, a, b = exact_family
    recipe = parse_recipe(f"""
merge_method: task_arithmetic
base_model: {base}
models:
- {{model: {a}, parameters: {{weight: [0.0, 1.0]}}}}
- {{model: {b}, parameters: {{weight: [{{filter: mlp, value: 0.25}}, {{value: -0.5}}]}}}}
""")
    files = [load_file(Path(f) / "model.safetensors") for f in exact_family]
    merged = dict(engine_of(recipe).tensors(recipe))
    assert merged.keys() == files[0].keys()
    for name, tensor in merged.items():
        w0, wa, wb = (f[name].double().numpy() for f in files)
        t = 0.0 if "embed" in name else int(name.split(".")[2]) / 2 if ".layers." in name else 1.0
        expected = w0 + t * (wa - w0) + (0.25 if "mlp" in name else -0.5) * (wb - w0)
        np.testing.assert_allclose(tensor.double().numpy(), expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_masks_depend_on_seed_content_and_tensor_alone(family: Family, tmp_path: Path) -> None:
    import shutil

    recipe = recipe_of("dare_linear", family)
    engine = engine_of(recipe)
    first = dict(engine.tensors(recipe))
    moved = tuple(str(shutil.copytree(f, tmp_path / str(i))) for i, f in enumerate(family))
    again = recipe_of("dare_linear", moved)  # type: ignore[arg-type]
    assert_equal(first, dict(engine_of(again).tensors(again)))
    other = recipe.with_extras(seed=1)
    changed = dict(engine.tensors(other))
    assert not torch.equal(first["lm_head.weight"], changed["lm_head.weight"])
    base = load_file(Path(family[0]) / "model.safetensors")
    kept = [(first[f"model.layers.{i}.mlp.up_proj.weight"] != base[f"model.layers.{i}.mlp.up_proj.weight"])
            for i in range(2)]  # fmt: skip
    assert not torch.equal(*kept), "two tensors must not share a mask"


@pytest.mark.parametrize("method", PLAIN)
def test_threads_and_pieces_change_no_bit(method: str, family: Family, tmp_path: Path) -> None:
    """Nor does what an engine remembers from earlier candidates."""
    recipe = recipe_of(method, family)
    expected = dict(engine_of(recipe, threads=1).tensors(recipe))
    for threads, chunk in ((2, 1 << 15), (5, 1 << 16)):
        engine = engine_of(recipe, threads=threads, chunk=chunk)
        for _ in range(2):
            assert_equal(dict(engine.tensors(recipe)), expected)
        engine.write(recipe, tmp_path / str(threads))
        assert_equal(load_file(tmp_path / str(threads) / "model.safetensors"), expected)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt_neox"])
@pytest.mark.parametrize("tied", [False, True])
def test_stacking_a_deeper_model(kind: str, tied: bool, make: Callable[..., Path], tmp_path: Path) -> None:
    a, b = (make(kind, seed=s, tied=tied) for s in (3, 4))
    recipe = parse_recipe(f"""
merge_method: passthrough
slices:
- {{sources: [{{model: {a}, layer_range: [0, 2]}}]}}
- sources:
  - model: {b}
    layer_range: [1, 3]
    parameters: {{scale: [{{filter: down_proj, value: 0.5}}, {{filter: dense_4h_to_h, value: 0.5}}, {{value: 1.0}}]}}
- {{sources: [{{model: {a}, layer_range: [0, 3]}}]}}
""")
    engine = engine_of(recipe)
    engine.write(recipe, tmp_path / "deep")
    deep = AutoModelForCausalLM.from_pretrained(tmp_path / "deep")
    assert deep.config.num_hidden_layers == 7
    if kind == "qwen2":
        one = AutoModelForCausalLM.from_pretrained(a).config.layer_types
        assert len(set(one)) == 2
        assert deep.config.layer_types == [*one[0:2], *one[1:3], *one]
    merged = load_file(tmp_path / "deep" / "model.safetensors")
    file_a, file_b = (load_file(f / "model.safetensors") for f in (a, b))
    prefix = "gpt_neox.layers" if kind == "gpt_neox" else "model.layers"
    out = "mlp.dense_4h_to_h.weight" if kind == "gpt_neox" else "mlp.down_proj.weight"
    factor = (1, 1, 0.5, 0.5, 1, 1, 1)
    origin = [(file_a, 0), (file_a, 1), (file_b, 1), (file_b, 2), (file_a, 0), (file_a, 1), (file_a, 2)]
    for i, (file, layer) in enumerate(origin):
        assert torch.equal(merged[f"{prefix}.{i}.{out}"], file[f"{prefix}.{layer}.{out}"] * factor[i])

    live = live_model_for(engine.plan(recipe), torch.float32)
    engine.build_into(recipe, live)
    assert_equal(state(live), state(deep))
    ids = torch.tensor([[5, 9, 23, 7]])
    assert torch.equal(live(ids).logits, deep.eval()(ids).logits)
    cached = live.generate(ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(cached, live.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False))
    with pytest.raises(RecipeError, match="the recipe has 7 layers and the live model 3"):
        engine.build_into(recipe, live_model(a))


def test_fewer_layers(family: Family, tmp_path: Path) -> None:
    recipe = parse_recipe(f"""
merge_method: linear
slices: [{{sources: [{{model: {family[0]}, layer_range: [0, 1]}}, {{model: {family[1]}, layer_range: [2, 3]}}]}}]
parameters: {{weight: 1.0}}
""")
    engine = engine_of(recipe)
    engine.write(recipe, tmp_path / "out")
    assert live_model(tmp_path / "out").config.num_hidden_layers == 1
    with pytest.raises(RecipeError, match="the recipe has 1 layers and the live model 3"):
        engine.build_into(recipe, live_model(family[0]))


def test_the_output_loads_and_generates(tmp_path: Path) -> None:
    recipe = parse_recipe("""
merge_method: dare_ties
base_model: zoo:base
models:
- {model: zoo:maths, parameters: {weight: 0.6, density: 0.8}}
- {model: zoo:kovesh, parameters: {weight: 0.6, density: 0.8}}
""")
    engine_of(recipe).write(recipe, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").get_vocab() == tokenizer.get_vocab()
    prompt = torch.tensor([tokenizer.convert_tokens_to_ids(["3", "+", "4", "="])])
    assert model.generate(prompt, max_new_tokens=3, do_sample=False).shape[1] > 4
    assert model.dtype == torch.bfloat16 and model.config.tie_word_embeddings


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_a_failed_candidate(bad: float, family: Family, tmp_path: Path) -> None:
    import shutil

    broken = Path(shutil.copytree(family[1], tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = bad
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    recipe = recipe_of("ties", (family[0], str(broken), family[2]))
    engine = engine_of(recipe)
    live = live_model(family[0], torch.float32)
    for way in (lambda: engine.build_into(recipe, live), lambda: engine.write(recipe, tmp_path / "out"),
                lambda: list(engine.tensors(recipe))):  # fmt: skip
        with pytest.raises(CandidateError, match=r'"model.layers.1.mlp.up_proj.weight" .* NaN or infinite'):
            way()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken"]
    good = recipe_of("ties", family)
    engine_of(good).build_into(good, live)
    assert all(bool(torch.isfinite(v).all()) for v in state(live).values())


def test_overflow_of_the_output_type_is_a_failed_candidate(family: Family) -> None:
    recipe = recipe_of("linear", family, "parameters: {normalize: false}\nout_dtype: float16", weight=1e6)
    with pytest.raises(CandidateError, match="NaN or infinite"):
        engine_of(recipe).build_into(recipe, live_model(family[0], torch.float32))


def test_weights_that_cancel_are_a_failed_candidate(family: Family) -> None:
    recipe = recipe_of("linear", family, weight=-0.15)
    with pytest.raises(CandidateError, match="sum to 0"):
        engine_of(recipe).build_into(recipe, live_model(family[0], torch.float32))


def test_a_recipe_of_other_sources_is_refused(family: Family, tmp_path: Path) -> None:
    recipe = recipe_of("linear", family)
    engine = engine_of(recipe)
    engine.write(recipe, tmp_path / "out")
    from evomerge.recipe import load_recipe

    written = load_recipe(tmp_path / "out" / "recipe.yaml")
    assert written.evomerge.sources == {r: s.content_hash() for r, s in engine.sources.items()}
    assert engine.hashes(written) == written.evomerge.sources
    engine.write(written, tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()
    wrong = written.with_extras(sources={**written.evomerge.sources, family[1]: "0" * 64})
    with pytest.raises(SourceError, match="its content is not what the recipe was made with"):
        engine.write(wrong, tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_double_precision_is_computed_in_double_precision(exact_family: Family) -> None:
    recipe = recipe_of("linear", exact_family, "dtype: float64")
    files = [load_file(Path(f) / "model.safetensors") for f in exact_family[1:]]
    merged = dict(engine_of(recipe).tensors(recipe))
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = (0.4 * files[0][name].double() + 0.7 * files[1][name].double()) / 1.1
    torch.testing.assert_close(merged[name], expected, rtol=1e-15, atol=1e-16)


@pytest.mark.gpu
@pytest.mark.parametrize("method", PLAIN)
def test_on_a_gpu(method: str, family: Family) -> None:
    recipe = recipe_of(method, family, "out_dtype: float32")
    live = live_model(family[0], torch.float32, "cuda")
    Engine(open_sources(family), device="cuda").build_into(recipe, live)
    on_cpu = dict(engine_of(recipe).tensors(recipe))
    for name, tensor in live.state_dict().items():
        here, there = on_cpu[name].view(torch.int32), tensor.cpu().view(torch.int32)
        assert int((here - there).abs().max()) <= 1, name


def test_after_an_error_no_thread_goes_on(family: Family, tmp_path: Path) -> None:
    """A failed candidate's threads must not write into the next one's weights."""
    import shutil

    broken = Path(shutil.copytree(family[1], tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    tensors["lm_head.weight"][0, 0] = torch.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    bad = recipe_of("linear", (family[0], str(broken), family[2]))
    good = recipe_of("linear", family)
    engine = Engine(open_sources([*family, str(broken)]), threads=4)
    live = live_model(family[0], torch.bfloat16)
    for _ in range(20):
        with pytest.raises(CandidateError, match=r'"lm_head.weight" of ".*broken" has them already'):
            engine.build_into(bad, live)
        engine.build_into(good, live)
        assert_equal(state(live), dict(Engine(engine.sources, threads=1).tensors(good)))


@pytest.mark.parametrize("method", PLAIN)
def test_what_is_remembered_does_not_reach_another_type_of_computation(method: str, family: Family) -> None:
    wide, narrow = (recipe_of(method, family, extra=f"dtype: {d}") for d in ("float64", "float32"))
    engine = engine_of(wide)
    for recipe in (wide, narrow, wide):
        assert_equal(dict(engine.tensors(recipe)), dict(engine_of(recipe).tensors(recipe)))


@pytest.mark.parametrize("method", ["ties", "slerp", "model_stock", "sce", "arcee_fusion"])
def test_what_is_remembered_does_not_reach_another_vocabulary(method: str, family: Family) -> None:
    plain = recipe_of(method, family)
    source = f"{{source: {family[0]}, force: true}}"
    token = next(t for t in load_tokenizer(family[0]).get_vocab() if t.isalpha())
    other = recipe_of(method, family, extra=f"tokenizer: {{source: union, tokens: {{{token}: {source}}}}}")
    engine = engine_of(plain)
    for recipe in (plain, other, plain):
        assert_equal(dict(engine.tensors(recipe)), dict(engine_of(recipe).tensors(recipe)))


def test_large_tensors_are_shared_by_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every method on tensors that the pool splits, with what makes methods look more than once (rescale, topk)."""
    from evomerge.merging import engine as module

    monkeypatch.setattr(module, "SHARED_ELEMENTS", 1 << 14)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 1,
              "intermediate_size": 700, "num_attention_heads": 2, "num_key_value_heads": 1,
              "vocab_size": 300}  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    base = {
        "model.embed_tokens.weight": torch.randn(300, 256, generator=generator),
        "model.layers.0.mlp.up_proj.weight": torch.randn(700, 256, generator=generator),
        "model.norm.weight": torch.randn(256, generator=generator),
        "lm_head.weight": torch.randn(300, 256, generator=generator),
    }
    folders = []
    for i in range(3):
        folder = tmp_path / str(i)
        folder.mkdir()
        noise = {n: (x + 0.1 * (i > 0) * torch.randn(x.shape, generator=generator)).bfloat16() for n, x in base.items()}
        save_file(noise, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config))
        folders.append(str(folder))
    named: Family = tuple(folders)  # type: ignore[assignment]
    for method in PLAIN:
        entry = METHODS[method]
        flags = [p.name for p in entry.parameters if p.kind == "bool"]
        variants = [{}, *({flag: not entry.parameter(flag).default} for flag in flags)]  # type: ignore[union-attr]
        if entry.parameter("select_topk"):
            variants.append({"select_topk": 0.3})
        for given in variants:
            extra = f"parameters: {json.dumps(given)}" if given and not entry.parameter("t") else ""
            recipe = recipe_of(method, named, extra)
            expected = dict(engine_of(recipe, threads=1).tensors(recipe))
            for threads, chunk in ((2, 1 << 15), (3, 1 << 16)):
                engine = engine_of(recipe, threads=threads, chunk=chunk)
                engine.write(recipe, tmp_path / "out", overwrite=True)
                assert_equal(load_file(tmp_path / "out" / "model.safetensors"), expected)
