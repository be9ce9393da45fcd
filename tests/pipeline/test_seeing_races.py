"""lm-eval's picture task in races, over merges and over a router's model; a vision zoo that learned for seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evomerge.evaluation import load_evaluator, open_evaluator
from evomerge.merging.engine import Engine
from evomerge.merging.live import live_model, load_processor
from evomerge.recipe import Path as Route
from evomerge.routing import Router
from evomerge.sources import open_sources, writers
from evomerge.study.store import Store
from evomerge.zoo.plan import Schedule
from evomerge.zoo.vision.train import Plan, train

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SPACES: dict[str, dict[str, Any]] = {
    "parameter": {"method": "task_arithmetic", "parameters": {"weight": {"low": 0.0, "high": 1.5}}},
    "dataflow": {"kind": "dataflow", "depth": {"low": 1, "high": 3}},
}  # fmt: skip


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("zoo")
    some = Schedule(60, 3e-3, batch=24)
    train(folder, 0, Plan(tower=some, base=some, japanese=some, projector=some, seeing=some, width=32, layers=2))
    return folder


@pytest.fixture
def evaluator(tmp_path: Path) -> Path:
    data = {
        "include_path": str(ROOT / "evaluators" / "pictures"), "batch_size": 10,
        "tasks": [{"name": "pictures_en", "metric": "rouge_l"}],
        "splits": {"search": {"share": 0.4, "items": 100}, "select": {"share": 0.2, "items": 20},
                   "test": {"share": 0.3, "items": 20}},
    }  # fmt: skip
    file = tmp_path / "e.yaml"
    file.write_text(yaml.safe_dump(data))
    return file


def test_a_routers_model_scores_as_its_checkpoint_does(zoo: Path, evaluator: Path, tmp_path: Path) -> None:
    vlm, text = str(zoo / "seeing"), str(zoo / "japanese")
    sources = open_sources([vlm, text])
    opened = open_evaluator(load_evaluator(evaluator))
    processor = load_processor(zoo / "seeing")
    router = Router(sources, dtype=torch.float32, prefix_bytes=1 << 24)
    means = []
    for number, hops in enumerate(([(vlm, 0), (vlm, 1)], [(vlm, 0), (text, 1)], [(text, 0), (vlm, 0), (vlm, 1)])):
        path = Route.scaled(hops, [1.0, 0.9, 1.1][: len(hops)], embeddings=vlm)
        # In blocks, as a race asks; the second block of a path comes after another path's.
        live = [
            opened.evaluate(router.route(path), processor, "search", {"pictures_en": tuple(places)}).tasks[0].results
            for places in (range(10), range(10, 30))
        ]
        Engine(sources).write(path.recipe(writers(sources[vlm]).filters), tmp_path / f"{number}")
        folded = live_model(tmp_path / f"{number}", dtype=torch.float32)
        whole = opened.evaluate(folded, processor, "search", {"pictures_en": tuple(range(30))}).tasks[0].results
        found = [float(x) for part in live for x in part]
        # One greedy answer may turn at a tie, as the folded weights are rounded to the checkpoint's type.
        assert sum(abs(a - float(b)) > 1e-6 for a, b in zip(found, whole, strict=True)) <= 3
        means.append(sum(found) / len(found))
    assert max(means) > 0 and len({round(m, 6) for m in means}) > 1, "what is answered depends on the path"


@pytest.mark.parametrize("kind", SPACES)
def test_a_race(kind: str, here: Any, zoo: Path, evaluator: Path, tmp_path: Path) -> None:
    named = {"base_model": str(zoo / "base"), "sources": [str(zoo / "seeing"), str(zoo / "japanese")]}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACES[kind] | named))
    done = here(
        "search", tmp_path / "space.yaml", "--evaluator", evaluator, "--budget", 6, "--fidelity", "race",
        "--workers", 0, "--study", "s", "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert "candidates are raced" in done.stderr
    trials = Store(f"sqlite:///{tmp_path / 'run' / 'study.db'}").open("s").trials()
    assert done.result["candidates"]["failed"] == 0 and done.result["candidates"]["pruned"] > 0
    assert len({t.cost for t in trials}) > 1 and len({round(t.value or 0.0, 6) for t in trials}) > 1
    number = done.result["best"]["trial"]
    again = here(
        "evaluate", tmp_path / "run" / "model", "--evaluator", evaluator, "--split", "search", "--json"
    ).result
    found = next(t for t in trials if t.number == number)
    assert again["score"] == pytest.approx(found.value, abs=0.03)  # an answer or two may turn with the batch
