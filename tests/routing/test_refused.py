"""What a path cannot be: one clear line each."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path as Folder

import pytest
import torch

from evomerge.errors import CandidateError, RecipeError, SourceError
from evomerge.recipe import Path
from evomerge.routing import Router
from evomerge.routing.passes import Passes
from evomerge.sources import open_sources
from tests.routing.conftest import Pair
from tests.test_sources_residual import FOLD, REFUSED, made

Make = Callable[..., str]


def test_layers_that_do_not_exist_and_models_that_are_not_open(llama: Pair) -> None:
    path = Path.scaled([(llama.a, 0), (llama.b, 4), (llama.a, 9), ("zoo:mats", 1)])
    with pytest.raises(RecipeError) as e:
        llama.router().route(path)
    assert str(e.value).splitlines() == [
        f'path: model "zoo:mats" is not open; Valid: {llama.a}, {llama.b}',
        f'path: hop 1: layer 4 of "{llama.b}": the model has 4 layers; expected 0 to 3',
        f'path: hop 2: layer 9 of "{llama.a}": the model has 4 layers; expected 0 to 3',
    ]


def test_a_router_goes_on_after_a_refusal(llama: Pair) -> None:
    router = llama.router()
    tokens = torch.tensor([[5, 6, 7]])
    before = router.route(llama.identity(llama.a))
    with torch.no_grad():
        logits = before(tokens).logits
        with pytest.raises(RecipeError):
            router.route(Path.scaled([(llama.b, 7)]))
        assert torch.equal(before(tokens).logits, logits)


def test_sources_that_do_not_fit(make: Make) -> None:
    a, wide = make(), make(name="-wide", hidden_size=64)
    sources = open_sources([a, wide])
    router = Router(sources)
    with pytest.raises(SourceError, match="hidden_size 64 against 32"):
        router.route(Path.scaled([(a, 0), (wide, 1)]))
    router.route(Path.scaled([(a, 0)]))  # alone it is fine


def test_another_epsilon_would_be_another_model_when_folded(make: Make) -> None:
    a, other = make(), make(name="-eps", rms_norm_eps=0.1)
    with pytest.raises(SourceError, match=r"rms_norm_eps 0\.1 against 1e-06"):
        Router(open_sources([a, other])).route(Path.scaled([(a, 0), (other, 1)]))


@pytest.mark.parametrize("kind", ["gemma2", "olmo2"])
def test_scales_where_the_fold_does_not_hold(kind: str, tmp_path: Folder) -> None:
    model = str(made(*REFUSED[kind], tmp_path / kind))
    router = Router(open_sources([model]), dtype=torch.float32)
    router.route(Path.scaled([(model, 2), (model, 0)]))
    with pytest.raises(SourceError) as e:
        router.route(Path.scaled([(model, 0), (model, 1)], [1.0, 0.5]))
    reason = "normalis" if kind == "gemma2" else "post-normalisation"
    assert f'hop 1: layer 1 of "{model}" has scale 0.5 (what it writes is multiplied by 2); only scale 1' in str(
        e.value
    )
    assert reason in str(e.value) and "\n" not in str(e.value)


def test_attention_that_depends_on_the_place(make: Make) -> None:
    model = make("gpt2", name="-by-place", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(SourceError, match="cannot be run as a path of layers: scale_attn_by_inverse_layer_idx = True"):
        Router(open_sources([model])).route(Path.scaled([(model, 0)]))


def test_kinds_of_layers_that_go_by_their_number(tmp_path: Folder) -> None:
    """deepseek_v2: the first layers are dense because they are the first."""
    model = str(made(*FOLD["deepseek_v2"], tmp_path / "model"))
    router = Router(open_sources([model]), dtype=torch.float32)
    live = router.route(Path.scaled([(model, 0), (model, 2), (model, 1), (model, 1)]))
    assert live.config.num_hidden_layers == 4
    for hops in ([1, 0], [1, 2], [0, 0]):
        with pytest.raises(CandidateError, match="tells a layer's kind"):
            router.route(Path.scaled([(model, layer) for layer in hops]))


def test_a_family_that_skips_layers_by_itself(llama: Pair) -> None:
    """Whatever a model's code does with its list of layers: a hop that is left out is no score."""
    model = llama.router().route(llama.identity(llama.a))
    model.config.num_hidden_layers = 3
    with torch.no_grad(), pytest.raises(SourceError, match="it ran 3 of 4 hops"):
        model(torch.tensor([[5, 6]]))
    passes = Passes()
    passes.follow(llama.identity(llama.a))
    passes._begin(model, (), {})
    with pytest.raises(SourceError, match="runs hop 2 where hop 0 is due"):
        passes.at(2, lambda x: x, (torch.zeros(1, 2, 3),), {})


def test_a_model_that_transformers_does_not_know(make: Make, tmp_path: Folder) -> None:
    folder = Folder(shutil.copytree(make(), tmp_path / "strange"))
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "strange"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=re.escape(f"{folder}: transformers cannot load it")):
        Router(open_sources([str(folder)])).route(Path.scaled([(str(folder), 0)]))
