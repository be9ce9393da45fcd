"""Diffusion models merged by the engine: groups of a UNet's and a DiT's tensors, against sums in float64."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, UNet2DModel
from safetensors.torch import load_file

from evomerge.errors import InputError, RecipeError, SourceError
from evomerge.merging.engine import Engine
from evomerge.recipe import parse_recipe
from evomerge.sources import open_source, open_sources
from tests.images import models
from tests.images.conftest import one_thread  # noqa: F401
from tests.images.test_pipelines import cached

NAMES = ("one", "two", "three", "four")
# EvoSDXL-JP's sibling as it was published: of four models, the attention layers' weights and all others'.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
PUBLISHED = {"attention": (0.188, 0.200, 0.392, 0.220), "rest": (0.159, 0.103, 0.650, 0.087)}
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pipelines of one UNet, and others that do not fit."""
    folder = tmp_path_factory.mktemp("sources")
    for i, name in enumerate(NAMES):
        models.save_unet(folder / name, models.moved(models.unet(0), i))
    (folder / "one" / "LICENSE").write_text("of one")
    (folder / "one" / "unet" / "old.bin").write_bytes(b"a pickle")
    models.save_unet(folder / "velocity", models.unet(9), prediction_type="v_prediction")
    for i, name in enumerate(("dit", "dit-2")):
        models.save_dit(folder / name, i)
    return folder


def recipe(folder: Path, names: tuple[str, ...], weights: dict[str | None, tuple[float, ...]], **more: Any) -> str:
    """A linear merge whose weights go by filters; None is the rest."""
    return yaml.safe_dump({
        "merge_method": "linear",
        "models": [
            {"model": str(folder / n), "parameters": {"weight": [
                {**({"filter": f} if f else {}), "value": w[i]} for f, w in weights.items()
            ]}}
            for i, n in enumerate(names)
        ],
        **more,
    })  # fmt: skip


def published(folder: Path) -> str:
    return recipe(folder, NAMES, {**dict.fromkeys(ATTENTION, PUBLISHED["attention"]), None: PUBLISHED["rest"]})


def tensors(folder: Path, component: str = "unet") -> dict[str, torch.Tensor]:
    return {n: t.double() for n, t in load_file(folder / component / FILE).items()}


def expected(folder: Path, weigh: Callable[[str], tuple[float, ...]], names: tuple[str, ...] = NAMES,
             component: str = "unet") -> dict[str, torch.Tensor]:  # fmt: skip
    found = [tensors(folder / n, component) for n in names]
    return {
        name: sum(w * f[name] for w, f in zip(weigh(name), found, strict=True)) / sum(weigh(name)) for name in found[0]
    }


def test_the_published_weights_of_evosdxl(sources: Path, tmp_path: Path, here: Callable) -> None:
    """A weighted average over sources for attention and for the rest; the first gives everything beside the UNet."""
    (tmp_path / "recipe.yaml").write_text(published(sources))
    said = here("check", tmp_path / "recipe.yaml").stdout
    assert f"linear: 145 tensors, 177,747 parameters; everything beside the denoiser of {sources / 'one'}" in said
    assert "tokenizer" not in said and "32 tensors, 16,896 parameters" in said
    done = here("merge", tmp_path / "recipe.yaml", tmp_path / "out", "--json")
    want = expected(sources, lambda n: PUBLISHED["attention" if any(f in n for f in ATTENTION) else "rest"])
    found = tensors(tmp_path / "out")
    assert sum(any(f in n for f in ATTENTION) for n in want) == 32 and len(want) == len(found) == 145
    for name, tensor in want.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-7, atol=3e-7)
    assert done.result["bytes"] == (tmp_path / "out" / "unet" / FILE).stat().st_size
    # diffusers alone loads it; nothing but safetensors, configurations and licences was copied.
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert all(torch.equal(t.double(), found[n]) for n, t in loaded.unet.state_dict().items())
    made = sorted(str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*") if f.is_file())
    assert made == [
        "LICENSE", "README.md", "model_index.json", "recipe.yaml", "scheduler/scheduler_config.json",
        "unet/config.json", f"unet/{FILE}",
    ]  # fmt: skip
    assert (tmp_path / "out" / "model_index.json").read_bytes() == (sources / "one" / "model_index.json").read_bytes()
    front = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])
    assert front["library_name"] == "diffusers"
    assert "`diffusers` loads it" in (tmp_path / "out" / "README.md").read_text()


def test_the_same_recipe_gives_the_same_bytes(sources: Path, tmp_path: Path, here: Callable) -> None:
    (tmp_path / "recipe.yaml").write_text(published(sources))
    for name, more in (("a", []), ("b", ["--threads", 2, "--shard-size", "100kB"])):
        here("merge", tmp_path / "recipe.yaml", tmp_path / name, *more)
    parts = sorted(f.name for f in (tmp_path / "b" / "unet").glob("*.safetensors"))
    assert len(parts) > 1 and parts[0].startswith("diffusion_pytorch_model-00001-of-")
    one, several = (UNet2DModel.from_pretrained(tmp_path / n / "unet").state_dict() for n in ("a", "b"))
    assert all(torch.equal(one[n], several[n]) for n in one)
    assert open_source(str(tmp_path / "a")).content_hash() == open_source(str(tmp_path / "b")).content_hash()
    here("merge", tmp_path / "a" / "recipe.yaml", tmp_path / "c")
    assert (tmp_path / "c" / "unet" / FILE).read_bytes() == (tmp_path / "a" / "unet" / FILE).read_bytes()
    here("merge", tmp_path / "recipe.yaml", tmp_path / "a", "--overwrite")


def test_groups_by_block_of_a_unet_and_of_a_dit(sources: Path) -> None:
    blocks = {"down_blocks.0.": (0.1, 0.9), "mid_block.": (0.4, 0.6), "up_blocks.1.": (0.7, 0.3), None: (0.5, 0.5)}
    layers = {"transformer_blocks.0.": (0.1, 0.9), "transformer_blocks.1.": (0.8, 0.2), None: (0.5, 0.5)}
    for names, component, weights in (
        (NAMES[:2], "unet", blocks),
        (("dit", "dit-2"), "transformer", layers),
    ):
        made = parse_recipe(recipe(sources, names, weights), "recipe")
        built = dict(Engine(open_sources(made.references()), threads=1).tensors(made))

        def weigh(name: str, weights: dict[str | None, tuple[float, ...]] = weights) -> tuple[float, ...]:
            return next(v for f, v in weights.items() if f is None or name.startswith(f))

        want = expected(sources, weigh, names, component)
        assert set(built) == set(want)
        for name, tensor in want.items():
            torch.testing.assert_close(built[name].double(), tensor, rtol=2e-7, atol=3e-7)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties", "slerp", "model_stock", "sce"])
def test_other_methods_hold(sources: Path, method: str) -> None:
    """Over task vectors too: every tensor, finite, and of equal sources the source."""
    base, *others = (str(sources / n) for n in NAMES)
    used = others[:1] if method == "slerp" else others[:2]
    data: dict[str, Any] = {"merge_method": method, "base_model": base, "models": [{"model": m} for m in used]}
    data["parameters"] = {"slerp": {"t": 0.5}, "model_stock": {}, "sce": {"select_topk": 0.5}}.get(
        method, {"weight": 0.5, **({"density": 0.5} if "ties" in method else {})}
    )
    made = parse_recipe(yaml.safe_dump(data), "recipe")
    built = dict(Engine(open_sources(made.references()), threads=1).tensors(made))
    own = tensors(Path(base))
    assert set(built) == set(own) and all(torch.isfinite(t).all() for t in built.values())
    if method == "task_arithmetic":
        given = [tensors(Path(m)) for m in used]
        for name, tensor in own.items():
            want = tensor + sum(0.5 * (g[name] - tensor) for g in given)
            torch.testing.assert_close(built[name].double(), want, rtol=2e-7, atol=3e-7)


def test_builds_into_a_live_denoiser(sources: Path) -> None:
    made = parse_recipe(published(sources), "recipe")
    engine = Engine(open_sources(made.references()), threads=1)
    live = UNet2DModel.from_pretrained(sources / "two" / "unet")
    engine.build_into(made, live)
    built = dict(engine.tensors(made))
    assert all(torch.equal(t, built[n]) for n, t in live.state_dict().items())
    with pytest.raises(RecipeError, match="does not fit the live model"):
        engine.build_into(made, models.dit(0))


def test_a_denoiser_alone_and_a_chain(sources: Path, tmp_path: Path, here: Callable) -> None:
    """A denoiser alone is merged into one; where a pipeline is among the models, it gives the rest."""
    alone = {"merge_method": "linear", "models": [
        {"model": str(sources / n / "unet"), "parameters": {"weight": 0.5}} for n in NAMES[:2]
    ]}  # fmt: skip
    mixed = {"merge_method": "linear", "models": [
        {"model": m, "parameters": {"weight": 0.5}} for m in ("half", str(sources / "three"))
    ]}  # fmt: skip
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(alone))
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump_all([{"name": "half", **alone}, {"name": "whole", **mixed}]))
    here("merge", tmp_path / "alone.yaml", tmp_path / "alone")
    assert {"config.json", FILE} <= {f.name for f in (tmp_path / "alone").iterdir()}
    assert UNet2DModel.from_pretrained(tmp_path / "alone").config.sample_size == 8
    here("merge", tmp_path / "chain.yaml", tmp_path / "chain")
    found = tensors(tmp_path / "chain")
    want = expected(sources, lambda n: (0.25, 0.25, 0.5), NAMES[:3])
    for name, tensor in want.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


def test_what_does_not_fit(sources: Path, tmp_path: Path, here: Callable) -> None:
    from evomerge import zoo

    def refused(names: tuple[str, ...]) -> str:
        made = parse_recipe(recipe(sources, names, {None: (0.5, 0.5)}), "recipe")
        with pytest.raises(InputError) as e:
            Engine(open_sources(made.references()), threads=1).plan(made)
        return str(e.value)

    assert (
        "scheduler: prediction_type 'v_prediction' against 'epsilon' (models that were taught another noise say "
        "another thing, and no average of them says either)"
    ) in refused(("one", "velocity"))
    assert "architecture DiTTransformer2DModel against UNet2DModel" in refused(("one", "dit"))

    def changed(name: str, of: str, file: str, **keys: Any) -> str:
        folder = tmp_path / name
        shutil.copytree(sources / of, folder)
        old = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({k: v for k, v in {**old, **keys}.items() if v is not None}))
        return str(folder)

    # Of equal shapes, and yet of another kind; what a file leaves out is diffusers' default.
    for of, file, keys, words in (
        ("two", "unet/config.json", {"attention_head_dim": 16}, "attention_head_dim 16 against 8"),
        ("two", "unet/config.json", {"act_fn": "mish"}, "act_fn 'mish' against 'silu'"),
        ("two", "unet/config.json", {"norm_num_groups": None}, "norm_num_groups 32 against 8"),
        ("dit-2", "transformer/config.json", {"num_attention_heads": 4}, "num_attention_heads 4 against 2"),
        ("dit-2", "vae/config.json", {"scaling_factor": 0.13}, "vae: scaling_factor 0.13 against 0.5"),
        ("velocity", "scheduler/scheduler_config.json", {"prediction_type": None}, None),
        ("two", "scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"},
         "scheduler: noise of FlowMatchEulerDiscreteScheduler against betas"),
    ):  # fmt: skip
        first = "dit" if of == "dit-2" else "one"
        other = changed(f"{of}-{next(iter(keys))}", of, file, **keys)
        if words is None:
            Engine(open_sources([str(sources / first), other]), threads=1).plan(
                parse_recipe(recipe(sources, (first, other), {None: (0.5, 0.5)}), "recipe")
            )
            continue
        assert refused((first, other)).count(words) == 1, refused((first, other))
    text = {"merge_method": "linear", "models": [
        {"model": m, "parameters": {"weight": 1}} for m in (str(sources / "one"), str(zoo.path("maths")))
    ]}  # fmt: skip
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(text))
    done = here("merge", tmp_path / "r.yaml", tmp_path / "out", check=False)
    assert done.returncode == 2 and "have nothing in common that could be merged" in done.stderr
    sliced = {"merge_method": "linear", "slices": [
        {"sources": [{"model": str(sources / "one"), "layer_range": [0, 1], "parameters": {"weight": 1}}]}
    ]}  # fmt: skip
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(sliced))
    done = here("merge", tmp_path / "r.yaml", tmp_path / "out", check=False)
    assert done.returncode == 2 and "has no text_decoder; it has denoiser" in done.stderr


def test_sources_in_the_hubs_cache(sources: Path, tmp_path: Path) -> None:
    home = cached(tmp_path, sources / "one")
    found = open_source(str(home))
    assert {f.split("/")[0] for f, _ in found.diffusion.others()} == {"model_index.json", "scheduler", "LICENSE"}
    made = parse_recipe(recipe(sources, (str(home), "two"), {None: (0.5, 0.5)}), "recipe")
    Engine(open_sources(made.references()), threads=1).write(made, tmp_path / "out")
    assert DiffusionPipeline.from_pretrained(tmp_path / "out").unet.config.sample_size == 8


def test_pipelines_that_are_refused(sources: Path, tmp_path: Path) -> None:
    def changed(name: str, **keys: Any) -> str:
        folder = tmp_path / name
        shutil.copytree(sources / "two", folder)
        index = json.loads((folder / "model_index.json").read_text())
        index = {k: v for k, v in {**index, **keys}.items() if v is not None}
        (folder / "model_index.json").write_text(json.dumps(index))
        return str(folder)

    for name, keys, words in (
        ("coded", {"_class_name": ["mine.py", "Mine"]}, "refused: a pipeline with code of its own"),
        ("component", {"scheduler": ["x/mine", "Mine"]}, 'refused: "scheduler" has code of its own'),
        ("library", {"scheduler": ["mine", "Mine"]}, 'refused: "scheduler" is of "mine", which would be imported'),
        ("escape", {"../one": ["diffusers", "X"]}, "is not the name of a folder in it"),
        ("none", {"unet": None}, r"names no denoiser \(unet or transformer\); it has scheduler"),
        ("gone", {"vae": ["diffusers", "AutoencoderKL"]}, "names vae, which is not there"),
    ):
        with pytest.raises(SourceError, match=words):
            open_source(changed(name, **keys))
    # An older diffusers runs a file of the component's folder that is called like the library.
    beside = Path(changed("beside"))
    (beside / "scheduler" / "diffusers.py").write_text("")
    with pytest.raises(SourceError, match='refused: "scheduler" has code of its own'):
        open_source(str(beside))
    safety = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    guarded = Path(changed("guarded", safety_checker=safety))
    shutil.copytree(guarded / "unet", guarded / "safety_checker")
    assert open_source(str(guarded)).diffusion is not None
    (guarded / "safety_checker" / FILE).rename(guarded / "safety_checker" / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"safety_checker: has only pytorch_model\.bin, a pickle"):
        open_source(str(guarded))
    pickled = Path(changed("pickled"))
    (pickled / "unet" / FILE).rename(pickled / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(SourceError, match="a pickle checkpoint"):
        open_source(str(pickled))
    strange = Path(changed("strange"))
    config = json.loads((strange / "unet" / "config.json").read_text())
    (strange / "unet" / "config.json").write_text(json.dumps({**config, "_class_name": "Kandinsky3UNet"}))
    with pytest.raises(SourceError, match="a Kandinsky3UNet; expected one of UNet2DModel"):
        open_source(str(strange))
