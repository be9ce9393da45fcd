"""Paths on a GPU: what they are there equals the checkpoint, and states that are kept change nothing."""

from __future__ import annotations

from pathlib import Path as Folder

import pytest
import torch

from evomerge.routing import Router
from tests.routing.conftest import Pair
from tests.routing.test_reuse import MEGABYTE, batches, walk

pytestmark = pytest.mark.gpu


def test_a_path_equals_its_checkpoint(pair: Pair, tmp_path: Folder) -> None:
    router = pair.router(device="cuda")
    for name, path in pair.paths().items():
        live, folded = router.route(path), pair.folded(path, tmp_path / name).to("cuda")
        ids = batches(1)[0]["input_ids"].to("cuda")
        with torch.inference_mode():
            ours, theirs = live(ids).logits, folded(ids).logits
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
        options = {"max_new_tokens": 16, "do_sample": False}
        assert torch.equal(live.generate(ids, **options), folded.generate(ids, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_states_change_nothing(pair: Pair, dtype: torch.dtype) -> None:
    reusing = Router(pair.sources, dtype=dtype, device="cuda", prefix_bytes=MEGABYTE)
    plain = Router(pair.sources, dtype=dtype, device="cuda")
    asked = run = 0
    for path in walk(pair, 15):
        model, expected = reusing.route(path), plain.route(path)
        for batch in batches():
            there = {name: value.to("cuda") for name, value in batch.items()}
            with torch.inference_mode():
                assert torch.equal(model(**there).logits, expected(**there).logits)
        asked, run = asked + reusing.counts.asked, run + reusing.counts.run
    assert run < asked
