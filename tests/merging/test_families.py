"""Every family both ways: a written checkpoint that transformers loads as it is, and a live model of the same bits.

The oracle merges transformers' own state dicts by hand: nothing of the layout is known to it but the layer's number in
the live names.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from evomerge.errors import RecipeError
from evomerge.merging.engine import Engine
from evomerge.merging.live import live_model, live_model_for
from evomerge.recipe import Recipe, parse_recipe
from evomerge.sources import open_sources

Make = Callable[..., Path]
Kind = Any  # conftest's
State = dict[str, torch.Tensor]

LAYERS = 4
# What is used before the layers, in any family, and so takes the first value of a gradient.
BEFORE = ("embed_tokens", "embed_positions", "wte", "wpe", "embed_in", "word_embeddings")


def loaded(folder: Path | str, kind: Kind) -> Any:
    """The model as transformers loads it, with nothing missing, left over, or of another shape."""
    model, info = kind.loader.from_pretrained(folder, dtype="auto", output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[problem], (problem, info[problem])
    return model.eval()


def layer_of(name: str) -> int | None:
    """The language model's layer that a live parameter belongs to."""
    match = re.search(r"(?:^|\.)(?:layers|h)\.(\d+)\.", name)
    return int(match[1]) if match and not seeing(name) else None


def seeing(name: str) -> bool:
    """Whether a live parameter is the image encoder's."""
    return "vision" in name or "visual" in name


def state(model: Any) -> State:
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(8, 20)[None]
    with torch.no_grad():
        return model(input_ids=ids).logits.float()


def logits_of(state: State, like: Any) -> torch.Tensor:
    like.load_state_dict(state)
    return logits(like)


def both_ways(text: str, out: Path, kind: Kind) -> tuple[Any, Recipe]:
    """The written model, loaded; the live one has the same bits."""
    recipe = parse_recipe(text)
    engine = Engine(open_sources(recipe.references()))
    engine.write(recipe, out)
    written = loaded(out, kind)
    live = live_model_for(engine.plan(recipe))
    assert type(live) is type(written) and live.dtype == written.dtype
    for p in live.parameters():
        p.fill_(float("nan"))
    engine.build_into(recipe, live)
    assert_equal(state(live), state(written))
    assert torch.equal(logits(live), logits(written))
    assert_equal(state(live_model(out)), state(written))
    return written, recipe


def test_merged_layer_by_layer(kind: Kind, make: Make, tmp_path: Path) -> None:
    merged_layer_by_layer(kind, torch.bfloat16, make, tmp_path)


def test_merged_in_float32(promised: Kind, make: Make, tmp_path: Path) -> None:
    merged_layer_by_layer(promised, torch.float32, make, tmp_path)


def merged_layer_by_layer(kind: Kind, dtype: torch.dtype, make: Make, tmp_path: Path) -> None:
    """Two models with weights that run from all of one to all of the other, layer by layer."""
    tied = kind.tied
    base = make(kind.name, 0, 3, tied, dtype)
    a, b = (make(kind.name, seed, 3, tied, dtype, near=base) for seed in (1, 2))
    models = f"[{{model: {a}, parameters: {{weight: [0, 1]}}}}, {{model: {b}, parameters: {{weight: [1, 0]}}}}]"
    written, _ = both_ways(f"{{merge_method: linear, models: {models}}}", tmp_path / "out", kind)
    ours, theirs = (load_file(f / "model.safetensors") for f in (tmp_path / "out", a))
    assert {n: (t.shape, t.dtype) for n, t in ours.items()} == {n: (t.shape, t.dtype) for n, t in theirs.items()}
    configs = [json.loads((f / "config.json").read_text()) for f in (tmp_path / "out", a)]
    assert configs[0] == configs[1]
    first, second = (state(loaded(f, kind)) for f in (a, b))
    if tied:
        assert first.keys() == second.keys()

    def share(name: str) -> float:
        layer = layer_of(name)
        if layer is not None:
            return layer / 2
        if "projector" in name or "merger" in name:
            return 0.0  # it has no layers
        if seeing(name):
            return _vision_share(name)
        return 0.0 if any(part in name for part in BEFORE) or (tied and "head" in name) else 1.0

    by_hand = {n: (share(n) * x.double() + (1 - share(n)) * second[n].double()).to(x.dtype) for n, x in first.items()}
    assert_equal(state(written), by_hand)
    assert torch.equal(logits(written), logits_of(by_hand, loaded(a, kind)))


def _vision_share(name: str) -> float:
    """Towers of two layers, embeddings before, norms and pooling after."""
    layer = re.search(r"(?:layers|blocks)\.(\d)\.", name)
    return float(layer[1]) if layer else 0.0 if "embed" in name or "pre_" in name else 1.0


# Output layer -> the layer of A and that of B that it is made of.
MORE = [(0, 0), (1, 1), (2, 2), (1, 0), (2, 1), (3, 2)]
FEWER = [(0, 1), (2, 3), (3, 2)]


def slices_of(pairs: list[tuple[int, int]], a: Path, b: Path, extra: str = "") -> str:
    lines = []
    for i, j in pairs:
        lines.append(f"- sources: [{{model: {a}, layer_range: [{i}, {i + 1}]}}, {{model: {b}, layer_range: "
                     f"[{j}, {j + 1}]}}{extra}]")  # fmt: skip
    return "\n".join(lines)


def test_stacked(even: Kind, make: Make, tmp_path: Path) -> None:
    stacked(even, MORE, make, tmp_path)


def test_fewer_layers(promised: Kind, make: Make, tmp_path: Path) -> None:
    stacked(promised, FEWER, make, tmp_path)


def stacked(kind: Kind, pairs: list[tuple[int, int]], make: Make, tmp_path: Path) -> None:
    """The average of layers of other numbers, in slices of one layer."""
    tied = kind.tied
    a, b = (make(kind.name, seed, LAYERS, tied, torch.bfloat16) for seed in (1, 2))
    layers = slices_of(pairs, a, b)
    written, recipe = both_ways(
        f"merge_method: linear\nparameters: {{weight: 1}}\nslices:\n{layers}", tmp_path / "out", kind
    )
    text = written.config.get_text_config()
    assert text.num_hidden_layers == len(pairs)
    first, second = (loaded(f, kind) for f in (a, b))
    own = first.config.get_text_config()
    for key in ("layer_types", "mlp_layer_types", "no_rope_layers"):
        if getattr(own, key, None) is not None:
            assert getattr(text, key) == [getattr(own, key)[i] for i, _ in pairs], key
    x, y = state(first), state(second)

    def origin(name: str, side: int) -> str:
        layer = layer_of(name)
        if layer is None:
            return name
        return re.sub(r"((?:^|\.)(?:layers|h)\.)\d+\.", rf"\g<1>{pairs[layer][side]}.", name, count=1)

    by_hand = {
        n: t if _kept(n, kind) else ((x[origin(n, 0)].double() + y[origin(n, 1)].double()) / 2).to(t.dtype)
        for n, t in ((n, x.get(n, x[origin(n, 0)])) for n in state(written))
    }
    assert_equal(state(written), by_hand)
    assert torch.equal(logits(written), logits_of(by_hand, live_model_for(Engine(open_sources(
        recipe.references())).plan(recipe))))  # fmt: skip


def _kept(name: str, kind: Kind) -> bool:
    """Slices speak of the language model: the rest of a composite one stays."""
    return kind.composite and (seeing(name) or "projector" in name)


def trimmed(delta: torch.Tensor, density: float) -> torch.Tensor:
    """The largest `density` of a task vector by magnitude (TIES, equation 1)."""
    keep = round(density * delta.numel())
    order = delta.abs().reshape(-1).argsort(descending=True)
    mask = torch.zeros(delta.numel(), dtype=torch.bool)
    mask[order[:keep]] = True
    return delta * mask.reshape(delta.shape)


def ties(deltas: list[torch.Tensor]) -> torch.Tensor:
    """Elect a sign by the sum, and average what agrees with it."""
    together = torch.stack(deltas)
    agree = together.sign() == together.sum(0).sign()
    return (together * agree).sum(0) / agree.sum(0).clamp(min=1)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "qwen2", "mixtral", "gemma2"])
def test_stacked_ties(name: str, kinds: Callable[[str], Kind], make: Make, tmp_path: Path) -> None:
    """Task vectors of layers against a base's layer of another number, in the checkpoint's own names."""
    tied = name == "gemma2"
    base, a, b = (make(name, seed, LAYERS, tied) for seed in (0, 1, 2))
    slices = [((0, 0, 1), 2), ((2, 1, 0), 2), ((3, 3, 3), 1), ((1, 2, 2), 2)]
    written = "\n".join(
        "- sources: ["
        + ", ".join(
            f"{{model: {m}, layer_range: [{at}, {at + n}]}}" for m, at in zip((base, a, b), starts, strict=True)
        )
        + "]"
        for starts, n in slices
    )
    kind = kinds(name)
    both_ways(
        f"merge_method: ties\nbase_model: {base}\nparameters: {{weight: 1, density: 0.5}}\nslices:\n{written}",
        tmp_path / "out", kind,
    )  # fmt: skip
    got, *own = (load_file(f / "model.safetensors") for f in (tmp_path / "out", base, a, b))
    layers = [tuple(s + step for s in starts) for starts, n in slices for step in range(n)]
    number = re.compile(r"(layers\.)(\d+)(\.)")
    assert {int(m[2]) for n in got if (m := number.search(n))} == set(range(len(layers)))
    for tensor, x in got.items():
        match = number.search(tensor)
        at = layers[int(match[2])] if match else (0, 0, 0)
        x0, x1, x2 = (
            tensors[number.sub(rf"\g<1>{layer}\g<3>", tensor, count=1)].double()
            for tensors, layer in zip(own, at, strict=True)
        )
        expected = x0 + ties([trimmed(x1 - x0, 0.5), trimmed(x2 - x0, 0.5)])
        torch.testing.assert_close(x.double(), expected, rtol=1e-6, atol=1e-6, msg=lambda m, t=tensor: f"{t}: {m}")


def test_layers_that_are_not_alike(make: Make) -> None:
    """A dense layer has no experts to be merged with those of another."""
    folder = make("deepseek_v2 with a dense layer", 1, LAYERS)
    text = slices_of([(0, 1)], folder, folder)
    with pytest.raises(RecipeError, match=r"has no tensor for .*\(mlp.down_proj.weight\)"):
        recipe = parse_recipe(f"merge_method: linear\nparameters: {{weight: 1}}\nslices:\n{text}")
        Engine(open_sources(recipe.references())).plan(recipe)


@pytest.mark.parametrize("name", ["qwen2", "mixtral"])
def test_sharded_sources_and_a_sharded_merge(
    name: str, kinds: Callable[[str], Kind], make: Make, tmp_path: Path
) -> None:
    a, b = (make(name, seed, 3, dtype=torch.bfloat16) for seed in (1, 2))
    kind = kinds(name)
    cut = []
    for folder in (a, b):
        loaded(folder, kind).save_pretrained(tmp_path / folder.name, max_shard_size="9KB")
        assert len(list((tmp_path / folder.name).glob("*.safetensors"))) > 2
        cut.append(tmp_path / folder.name)
    states = []
    for folders, out in (((a, b), "whole"), (cut, "cut")):
        listed = ", ".join(f"{{model: {f}}}" for f in folders)
        recipe = parse_recipe(f"{{merge_method: linear, models: [{listed}], parameters: {{weight: 0.5}}}}")
        engine = Engine(open_sources(recipe.references()))
        engine.write(recipe, tmp_path / out, shard_bytes=9_000)
        index = json.loads((tmp_path / out / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == {t.name for t in engine.plan(recipe).tensors}
        states.append(state(loaded(tmp_path / out, kind)))
    assert_equal(*states)


def test_the_donors_generation_config_is_carried_over(kinds: Callable[[str], Kind], make: Make, tmp_path: Path) -> None:
    a, b = (Path(shutil.copytree(make(seed=s), tmp_path / str(s))) for s in (1, 2))
    for folder, temperature in ((a, 0.3), (b, 0.7)):
        (folder / "generation_config.json").write_text(json.dumps({"temperature": temperature, "do_sample": True}))
    for extra, temperature in (("", 0.3), (f", base_model: {b}", 0.7)):
        recipe = parse_recipe(
            f"{{merge_method: linear, models: [{{model: {a}}}, {{model: {b}}}], parameters: {{weight: 1}}{extra}}}"
        )
        out = tmp_path / f"out{temperature}"
        Engine(open_sources(recipe.references())).write(recipe, out)
        assert loaded(out, kinds("llama")).generation_config.temperature == temperature
