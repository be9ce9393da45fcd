"""Paths through a vision-language model and text models of its language model's shape."""

from __future__ import annotations

from pathlib import Path as Folder
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from evomerge.errors import RecipeError
from evomerge.merging.engine import Engine
from evomerge.recipe import Path
from evomerge.routing import Router
from evomerge.sources import Source, open_sources, writers
from tests.routing.conftest import LAYERS, SHAPE, Make
from tests.routing.distance import distance

pytestmark = pytest.mark.usefixtures("no_grad")
IMAGE = 5
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4, "projection_dim": 16,
}  # fmt: skip


@pytest.fixture(params=[False, True], ids=["head of its own", "tied"])
def both(request: pytest.FixtureRequest, make: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A LLaVA, and a text model of its language model's shape."""
    tied = request.param
    text = make("llama", 2, "tied" if tied else "plain", tie_word_embeddings=tied, attention_bias=False, mlp_bias=False)
    folder = tmp_path_factory.mktemp("llava") / "vlm"
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**SHAPE, num_key_value_heads=2, tie_word_embeddings=tied),
        vision_config=transformers.CLIPVisionConfig(**VISION), image_token_index=IMAGE, vision_feature_layer=-1,
        tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(0.25 * torch.randn(p.shape) + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    model.save_pretrained(folder)
    return str(folder), text


@pytest.fixture
def seen() -> dict[str, Tensor]:
    """Two prompts that begin with a picture of four patches."""
    tokens = torch.randint(8, 130, (2, 9), generator=torch.Generator().manual_seed(7))
    tokens[:, 1:5] = IMAGE
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(8))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "pixel_values": pixels}


def paths(vlm: str, text: str) -> dict[str, Path]:
    scaled = Path.scaled
    return {
        "itself": scaled([(vlm, i) for i in range(LAYERS)]),
        "swaps": scaled([(vlm, 0), (text, 1), (vlm, 2), (text, 3)], [1.0, 0.7, 1.5, 1.1]),
        "text first": scaled([(text, 0), (vlm, 1), (vlm, 1), (text, 3)], [1.2, 1, 0.8, 1], embeddings=vlm),
        "text alone": scaled([(text, i) for i in range(LAYERS)], embeddings=vlm),
        "its head": scaled([(vlm, 0), (text, 1)], embeddings=vlm, head=text),
    }  # fmt: skip


def folded(sources: dict[str, Source], path: Path, out: Folder) -> Any:
    filters = writers(sources[path.embeddings]).filters
    Engine(sources).write(path.recipe(filters), out)
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert isinstance(model, transformers.LlavaForConditionalGeneration)
    return model.eval()


@pytest.mark.parametrize("name", ["itself", "swaps", "text first", "text alone", "its head"])
def test_live_equals_folded(both: tuple[str, str], name: str, seen: dict[str, Tensor], tmp_path: Folder) -> None:
    sources = open_sources(both)
    path = paths(*both)[name]
    router = Router(sources, dtype=torch.float32, prefix_bytes=1 << 20)
    router.route(paths(*both)["swaps"])(**seen)
    live = router.route(path)
    saved = folded(sources, path, tmp_path / "out")
    assert distance(live(**seen).logits, saved(**seen).logits) < 1e-5
    blank = {**seen, "pixel_values": torch.zeros_like(seen["pixel_values"])}
    assert distance(live(**blank).logits, live(**seen).logits) > 1e-3, "the picture matters"
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(live.generate(**seen, **options), saved.generate(**seen, **options))
    text = saved.config.text_config
    assert text.num_hidden_layers == len(path.hops) and live.config.text_config.num_hidden_layers == len(path.hops)


def test_it_begins_with_the_embeddings_of_the_model_that_sees(both: tuple[str, str]) -> None:
    vlm, text = both
    with pytest.raises(RecipeError, match=r"begins with the embeddings of .* a text model"):
        Router(open_sources(both)).route(Path.scaled([(text, 0), (vlm, 1)]))


def test_a_recipe_into_another_model_is_no_path(both: tuple[str, str]) -> None:
    vlm, text = both
    recipe = Path.scaled([(text, 0), (text, 1)]).recipe(("o_proj", "down_proj"))
    assert Path.read(recipe) is not None
    assert Path.read(recipe.with_extras(into=vlm)) is None
