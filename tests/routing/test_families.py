"""Every family whose residual writers are known: live paths against their folded checkpoints, cached and not."""

from __future__ import annotations

from pathlib import Path as Folder

import pytest
import torch

from evomerge.recipe import Path
from evomerge.routing import Router
from evomerge.sources import open_sources
from tests.routing.conftest import Pair
from tests.routing.distance import distance
from tests.test_sources_residual import FOLD, REFUSED, SCALES, made

pytestmark = pytest.mark.usefixtures("no_grad")
KINDS = {**FOLD, **{f"{kind}, scale 1": own for kind, own in REFUSED.items()}}


@pytest.mark.ci
@pytest.mark.parametrize("kind", KINDS)
def test_live_equals_folded(kind: str, tmp_path: Folder) -> None:
    a, b = (str(made(*KINDS[kind], tmp_path / name, seed)) for seed, name in enumerate("ab"))
    pair = Pair(kind, a, b, open_sources([a, b]))
    scales = None if kind not in FOLD else [0.7, 1.4, 0.9, 1.2]
    path = Path.scaled([(a, 0), (b, 1), (b, 2), (a, 2)], scales, embeddings=b, head=a)
    router: Router = pair.router(prefix_bytes=1_000_000)
    tokens = torch.arange(5, 29).reshape(2, 12)
    whole = Path.scaled([(b, layer) for layer in range(len(SCALES))])
    source = pair.folded(whole, tmp_path / "whole")
    assert torch.equal(router.route(whole)(tokens).logits, source(tokens).logits)

    live, folded = router.route(path), pair.folded(path, tmp_path / "out")
    logits = live(tokens).logits
    assert distance(logits, folded(tokens).logits) < 1e-5
    assert torch.equal(live(tokens).logits, logits), "from what was kept"
    made_tokens = live.generate(tokens, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0,
                                attention_mask=torch.ones_like(tokens), output_logits=True,
                                return_dict_in_generate=True)  # fmt: skip
    again = live(made_tokens.sequences, use_cache=False).logits[:, tokens.shape[1] - 1 : -1]
    assert distance(torch.stack(made_tokens.logits, 1), again) < 1e-5
