"""Items that stand in what a fused source learned from are found, for the corpus lies beside its checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from evomerge import zoo
from evomerge.evaluation import SPLITS, load_evaluator, open_evaluator
from evomerge.fusion.prepared import Prepared, prepare
from evomerge.pipeline import FusionPlan
from evomerge.pipeline.trained_on import corpora, shared
from evomerge.sources import open_source
from tests.pipeline.fusions import fusion_file

SCORE = "def score(model, tokenizer, items):\n    return [0.5 for _ in items]\n"


def prepared(plan: FusionPlan, out: Path) -> Prepared:
    """A fusion's output folder as it is once the text is prepared."""
    out.mkdir()
    plan.record(out)
    config = plan.config
    return prepare(config.corpus, plan.root, plan.readers, plan.limit, config.teachers.shard_tokens, out / "corpus")


@pytest.fixture
def evaluator(tmp_path: Path) -> Path:
    """Items of one's own, the first ten of them documents that are learned."""
    folder = tmp_path / "items"
    folder.mkdir()
    text = zoo.fusion.corpus("chains").read_text(encoding="utf-8").splitlines()[:10]
    items = [{"text": json.loads(line)["text"]} for line in text]
    items += [{"text": f"item {i} that no corpus of the zoo has, for it is written in English"} for i in range(30)]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    (folder / "mine.py").write_text(SCORE)
    data = {"kind": "python", "function": "mine.py:score", "items": "items.jsonl", "tasks": ["mine"]}
    (folder / "mine.yaml").write_text(yaml.safe_dump(data))
    return folder / "mine.yaml"


def test_of_a_fused_source_the_corpus_is_known(tmp_path: Path, evaluator: Path) -> None:
    plan = FusionPlan(fusion_file(tmp_path / "f"))
    corpus = prepared(plan, tmp_path / "out")
    for model in ("model", "models/a", "models/b"):
        shutil.copytree(zoo.path("pivot"), tmp_path / "out" / model)
    sources = [open_source(str(tmp_path / "out" / m)) for m in ("model", "models/a", "models/b")]
    found = corpora([*sources, open_source("zoo:pivot")])
    assert list(found) == ["the corpus of out"]
    learned = [d.text for i in range(len(corpus.shards)) for d in corpus.documents(i)]
    assert list(found["the corpus of out"]) == learned == list(found["the corpus of out"])  # it can be read twice
    opened = open_evaluator(load_evaluator(evaluator))
    hit = [o for o in shared(opened, sources, SPLITS).found if o.also == "the corpus of out"]
    assert sum(o.exact for o in hit) == 10 and all(o.task == "mine" for o in hit)
    assert not shared(opened, [open_source("zoo:pivot")], SPLITS).found


def test_a_fusion_looks_for_its_evaluators_test_items(tmp_path: Path, evaluator: Path) -> None:
    plan = FusionPlan(fusion_file(tmp_path / "f", evaluator=str(evaluator)))
    found = plan.overlaps(prepared(plan, tmp_path / "out"))
    assert found is not None
    texts = open_evaluator(load_evaluator(evaluator)).texts("test")["mine"]
    (overlap,) = found.found
    assert overlap.also == "the corpus" and overlap.exact == sum("English" not in t for t in texts) > 0
    assert FusionPlan(fusion_file(tmp_path / "g")).overlaps(prepared(plan, tmp_path / "again")) is None
