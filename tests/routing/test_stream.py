"""What the fold leaves out: pre-normalisation sees the scale of the stream through its epsilon, and in no other way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path as Folder
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evomerge.recipe import Path
from tests.routing.conftest import Pair
from tests.routing.distance import distance

pytestmark = pytest.mark.usefixtures("no_grad")


def scaled_stream(pair: Pair, path: Path, tokens: Tensor, prepare: Callable[[nn.Module], None]) -> Tensor:
    """Logits where the hidden states themselves are multiplied by w_t at the input of hop t."""

    def multiplied(w: float) -> Any:
        return lambda _module, args: (args[0] * w, *args[1:])

    plain = Path.scaled([(hop.model, hop.layer) for hop in path.hops], None, path.embeddings, path.head)
    model = pair.router().route(plain)
    prepare(model)
    (layers,) = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == len(path.hops)]
    for layer, w in zip(layers, path.scales, strict=True):
        layer.register_forward_pre_hook(multiplied(w))
    logits: Tensor = model(tokens).logits
    return logits


def without_epsilon(model: nn.Module) -> None:
    for module in model.modules():
        for name in ("variance_epsilon", "eps"):
            if hasattr(module, name):
                setattr(module, name, 0.0)


def as_it_is(_model: nn.Module) -> None:
    pass


@pytest.mark.parametrize("name", ["repeats", "swaps", "backwards", "other ends"])
def test_the_epsilon_is_all_that_differs(pair: Pair, name: str, tokens: Tensor, tmp_path: Folder) -> None:
    path = pair.paths()[name]
    live, folded = pair.router().route(path), pair.folded(path, tmp_path / "out")
    reference = scaled_stream(pair, path, tokens, as_it_is)
    apart = {"live": distance(live(tokens).logits, reference), "folded": distance(folded(tokens).logits, reference)}
    told = ", ".join(f"{what} {value:.1e}" for what, value in apart.items())
    print(f"{pair.kind}, {name}: relative distance from scaling the stream itself: {told}")
    assert max(apart.values()) < 1e-2

    for model in (live, folded):
        without_epsilon(model)
    reference = scaled_stream(pair, path, tokens, without_epsilon)
    assert distance(live(tokens).logits, reference) < 1e-5
    assert distance(folded(tokens).logits, reference) < 1e-5


def test_small_activations_feel_the_epsilon(make: Callable[..., str], tokens: Tensor) -> None:
    """The bound is no accident of large activations: with an epsilon of their size the two are apart."""
    from evomerge.sources import open_sources

    coarse = make("llama", 1, name="-coarse", rms_norm_eps=0.1)
    pair = Pair("llama", coarse, coarse, open_sources([coarse]))
    path = Path.scaled([(coarse, i) for i in range(4)], [0.5, 0.8, 1.2, 0.6])
    far = distance(pair.router().route(path)(tokens).logits, scaled_stream(pair, path, tokens, as_it_is))
    assert far > 1e-2
    assert torch.isfinite(torch.tensor(far))
