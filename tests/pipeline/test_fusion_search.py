"""The search over a fusion's targets: the options of `evomerge search` that its file names reach it."""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml

from evomerge import presets
from evomerge.pipeline.warm_start import NOTE
from evomerge.study.candidates import best
from evomerge.study.store import Store
from tests.pipeline.fusions import fusion_file

pytestmark = [pytest.mark.xdist_group("fusion")]

SPLITS = {n: {"share": share, "items": 8} for n, share in (("search", 0.4), ("select", 0.2), ("test", 0.4))}


@pytest.fixture
def fused(here, tmp_path):
    """fused(keys of the search): what the command printed, always into the same folder, and the search's study."""
    torch.set_num_threads(1)
    tasks = {"include_path": str(presets.folder("evaluators") / "zoo"), "tasks": ["tides_text", "roads_text"]}
    (tmp_path / "texts.yaml").write_text(yaml.safe_dump(tasks | {"splits": SPLITS}))

    def run(check=True, **search):
        file = fusion_file(tmp_path, fusion={"mode": "pairwise"}, evaluator="texts.yaml", then={"search": search})
        done = here("fuse", file, tmp_path / "out", "--workers", 0, "--json", check=check)
        store = Store(f"sqlite:///{tmp_path}/out/search/study.db")
        return done, store.open("fusion-search")

    return run


@pytest.mark.slow
def test_options_reach_the_search(fused, tmp_path):
    _, first = fused(budget=6, restarts="ipop", estimates="plain", fidelity="full", sampler="cma")
    assert first.fingerprint["sampler"]["restarts"] == "ipop" and first.fingerprint["sampler"]["name"] == "cma"
    assert first.notes()["fidelity"] == "full"
    begun = [dict(t.params) for t in best(first.trials())[:4]]
    shutil.move(tmp_path / "out" / "search", tmp_path / "first")

    # The targets are there; the search begins anew, from the best of the one before.
    search = {"objectives": ["tides_text", "roads_text"], "warm_start": "first", "starts": []}
    done, second = fused(budget=6, **search)
    assert done.result["search"]["objectives"] == ["tides_text", "roads_text"] and done.result["search"]["front"]
    assert second.fingerprint["sampler"]["name"] == "evolution"
    assert second.notes()[NOTE] == begun and dict(second.trials()[0].params) == begun[0]
    before = len(second.trials())

    # It keeps what it began from, so that it goes on without the other one.
    shutil.rmtree(tmp_path / "first")
    done, grown = fused(budget=8, **search)
    assert done.returncode == 0 and len(grown.trials()) > before
    done, _ = fused(check=False, budget=7, **search | {"objectives": ["roads_text", "tides_text"]})
    assert done.returncode == 2 and "was made with other settings" in done.stderr
