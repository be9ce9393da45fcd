"""A search over groups of a UNet's tensors: the function gets the live pipeline, the winner is a plain pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DDIMPipeline, DiffusionPipeline

from evomerge.errors import InputError
from evomerge.evaluation.finite import NotFiniteError, finite_logits, inner, not_finite_weight
from evomerge.images.live import LivePipelines, pictures
from evomerge.pipeline.export import holds_model
from evomerge.sources import open_source
from tests.images import models
from tests.images.conftest import one_thread  # noqa: F401

SCORE = '''
import torch

def score(pipeline, tokenizer, items):
    """Minus the squared distance of what the denoiser says to what it should."""
    assert type(pipeline).__name__ == "DDIMPipeline" and tokenizer is None
    found = []
    for item in items:
        x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(item["seed"]))
        t = pipeline.scheduler.timesteps[item["seed"] % 10]
        said = pipeline.unet(x, t, class_labels=torch.tensor([item["label"]])).sample
        found.append(-float((said.mean() - item["wanted"]) ** 2))
    return found
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pipelines, a space over two groups, and an evaluator."""
    made = tmp_path_factory.mktemp("search")
    for i, name in enumerate(("one", "two")):
        models.save_unet(made / name, models.moved(models.unet(0), i))
    space = {
        "kind": "parameter", "method": "linear", "sources": ["one", "two"],
        "granularity": {
            "modules": {"attention": ["to_q", "to_k", "to_v", "to_out.0"], "rest": "*"}, "embeddings": "layers",
        },
        "parameters": {"weight": {"low": 0, "high": 1, "init": 0.5}},
    }  # fmt: skip
    evaluator = {"kind": "python", "function": "score.py:score", "items": "items.jsonl", "tasks": ["near"]}
    (made / "space.yaml").write_text(yaml.safe_dump(space))
    (made / "evaluator.yaml").write_text(yaml.safe_dump(evaluator))
    (made / "score.py").write_text(SCORE)
    rows = [json.dumps({"seed": i, "label": i % 4, "wanted": 0.1}) for i in range(20)]
    (made / "items.jsonl").write_text("\n".join(rows))
    return made


def test_the_space_has_a_weight_for_each_source_and_group(folder: Path, here: Callable) -> None:
    found = here("check", folder / "space.yaml", "--json").result
    assert found["parameters"] == [
        f"weight.{s}.{g}" for s in ("one", "two") for g in ("attention", "rest")
    ]  # fmt: skip


def test_by_block(folder: Path, here: Callable, tmp_path: Path) -> None:
    space: dict[str, Any] = yaml.safe_load((folder / "space.yaml").read_text())
    blocks = {f"down_{i}": f"down_blocks.{i}." for i in range(2)} | {"middle": "mid_block."}
    space["granularity"]["modules"] = blocks | {f"up_{i}": f"up_blocks.{i}." for i in range(2)} | {"ends": "*"}
    (folder / "blocks.yaml").write_text(yaml.safe_dump(space))
    found = here("check", folder / "blocks.yaml", "--json").result
    assert len(found["parameters"]) == 2 * 6 and "weight.two.middle" in found["parameters"]
    space["granularity"] = {"layer_groups": 2}
    (folder / "layers.yaml").write_text(yaml.safe_dump(space))
    done = here("check", folder / "layers.yaml", check=False)
    assert done.returncode == 2 and "the models have only 0 layers" in done.stderr


@pytest.mark.ci
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_search_in_a_type_of_its_own(folder: Path, here: Callable, tmp_path: Path, dtype: str) -> None:
    """Every candidate, source and exported model is scored in it, and by the pipeline around it."""
    (tmp_path / "items.jsonl").write_text("\n".join(json.dumps({"seed": i, "label": i % 4}) for i in range(20)))
    (tmp_path / "score.py").write_text(f'''
from evomerge.images.live import pictures

def score(pipeline, tokenizer, items):
    assert str(pipeline.unet.dtype) == "torch.{dtype}"
    made = [pictures(pipeline, [i["label"]], seed=i["seed"], inference_steps=1) for i in items]
    return [float(m.mean()) for m in made]
''')
    evaluator = {"kind": "python", "function": "score.py:score", "items": "items.jsonl", "tasks": ["red"]}
    evaluator["dtype"] = dtype
    (tmp_path / "evaluator.yaml").write_text(yaml.safe_dump(evaluator))
    out = tmp_path / "run"
    here(
        "search", folder / "space.yaml", "--evaluator", tmp_path / "evaluator.yaml", "--workers", 0, "--budget", 4,
        "--fidelity", "full", "--out", out,
    )  # fmt: skip
    found = json.loads((out / "result.json").read_text())
    asked = ("--evaluator", tmp_path / "evaluator.yaml", "--split", "test", "--json")
    again = here("evaluate", out / "model", *asked).result
    assert again["score"] == pytest.approx(found["best"]["test"]["score"], abs=1e-2)


@pytest.mark.slow
def test_searches_exports_and_rebuilds(folder: Path, here: Callable, tmp_path: Path) -> None:
    evaluator = folder / "evaluator.yaml"
    common = ["--evaluator", evaluator, "--workers", 0, "--fidelity", "full"]
    here("search", folder / "space.yaml", *common, "--budget", 6, "--out", tmp_path / "run", "--study", "images")
    model = tmp_path / "run" / "model"
    loaded = DiffusionPipeline.from_pretrained(model)
    assert isinstance(loaded, DDIMPipeline) and holds_model(model)
    # The exported checkpoint scores what the live one did, and the recipe gives its bytes again.
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    again = here("evaluate", model, "--evaluator", evaluator, "--split", "test", "--json").result
    assert again["score"] == pytest.approx(result["best"]["test"]["score"], abs=1e-6)
    here("merge", tmp_path / "run" / "recipe.yaml", tmp_path / "again")
    weights = Path("unet") / "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (model / weights).read_bytes()
    here("export", tmp_path / "run", tmp_path / "second", "--trial", 1)
    assert DiffusionPipeline.from_pretrained(tmp_path / "second").unet.config.sample_size == 8
    here("report", tmp_path / "run")
    card = (tmp_path / "run" / "README.md").read_text()
    assert card.count("unconditional-image-generation") == 2 and "text-generation" not in card
    assert "library_name: diffusers" in card and "`diffusers` loads it" in card
    # The same command again has nothing to do.
    done = here("search", folder / "space.yaml", *common, "--budget", 6, "--out", tmp_path / "run", "--study", "images")
    assert "6 candidates" in done.stderr


def test_who_cannot_score_them(folder: Path, here: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = ["--out", tmp_path / "run", "--budget", 2, "--workers", 0]
    done = here("search", folder / "space.yaml", "--tasks", "kovesh_problems", *out, check=False)
    assert done.returncode == 2 and 'kind = "lm_eval": asks language models, and ' in done.stderr
    asked = ["--evaluator", folder / "evaluator.yaml", *out]
    done = here("search", folder / "space.yaml", *asked, "--address", "auto", check=False)
    assert done.returncode == 2 and "searches over diffusion models run on this machine alone" in done.stderr
    monkeypatch.setattr("evomerge.images.extra.find_spec", lambda name: None)
    done = here("search", folder / "space.yaml", *asked, check=False)
    assert done.returncode == 2 and "pip install 'evomerge[diffusion]'" in done.stderr
    done = here("evaluate", folder / "one", "--evaluator", folder / "evaluator.yaml", check=False)
    assert done.returncode == 2 and "pip install 'evomerge[diffusion]'" in done.stderr
    assert not (tmp_path / "run").exists()


def test_candidates_go_through_one_pipeline(folder: Path) -> None:
    live = LivePipelines(open_source(str(folder / "one")), "cpu")
    first, second = live.denoiser(), live.denoiser(open_source(str(folder / "two")))
    assert live.around(first).unet is first
    around = live.around(second)
    assert around.unet is second and not around.unet.training
    alone = LivePipelines(open_source(str(folder / "one" / "unet")), "cpu")
    assert alone.around(first) is first


@torch.no_grad()
def test_what_is_not_finite_is_found_inside_a_pipeline(folder: Path) -> None:
    live = LivePipelines(open_source(str(folder / "one")), "cpu")
    pipeline = live.around(live.denoiser())
    asked = (torch.zeros(1, 3, 8, 8), torch.tensor([1]), torch.tensor([0]))
    with finite_logits(pipeline):
        pipeline.unet(asked[0], asked[1], class_labels=asked[2])
    pipeline.unet.conv_in.weight[0, 0, 0, 0] = float("nan")
    assert not_finite_weight(pipeline) == "conv_in.weight" and inner(pipeline) is pipeline.unet
    for as_tuple in (False, True):
        with pytest.raises(NotFiniteError), finite_logits(pipeline):
            pipeline.unet(asked[0], asked[1], class_labels=asked[2], return_dict=not as_tuple)


def test_pictures_of_a_pipeline_for_an_evaluator(folder: Path) -> None:
    live = LivePipelines(open_source(str(folder / "one")), "cpu")
    pipeline = live.around(live.denoiser())
    asked = {"seed": 2, "inference_steps": 2}
    one = pictures(pipeline, [0, 1], **asked)
    assert one.shape == (2, 3, 8, 8) and torch.equal(one, pictures(pipeline, [0, 1], **asked))
    assert not torch.equal(one, pictures(pipeline, [0, 1], seed=3, inference_steps=2))
    with pytest.raises(InputError, match="7: expected a class, a whole number from 0 to 4"):
        pictures(pipeline, [7])
