"""Scores of a fusion's models by its evaluator: measured once for each checkpoint, kept in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import EvoMergeError
from evomerge.evaluation import EvaluatorFile
from evomerge.fusion.files import key_of, read_json_object, write_json
from evomerge.fusion.workers import Watcher
from evomerge.score import Score, TaskScore
from evomerge.sources import Source
from evomerge.study.job import Job
from evomerge.study.workers import Cluster, LocalPool, Pool, RayPool

VERSION = 1


def score_all(
    models: Mapping[str, Source], evaluator: EvaluatorFile, definition: Mapping[str, Any], kept: Path, cluster: Cluster,
    watcher: Watcher,
) -> dict[str, Score]:  # fmt: skip
    """Every model on the evaluator's test items, as `evomerge evaluate` does it.

    Args:
        definition: What decides what the evaluator measures.
        kept: JSON file of what was measured before.

    Raises:
        EvoMergeError: a model cannot be scored.
    """
    keys = {
        n: key_of({"version": VERSION, "model": s.content_hash(), "evaluator": definition}) for n, s in models.items()
    }
    there = read_json_object(kept) or {}
    missing = {name: source for name, source in models.items() if keys[name] not in there}
    if missing:
        watcher.begin(f"scores by {evaluator.name}", len(missing), "models")
        pool = _pool(cluster, {s.reference: s for s in missing.values()}, evaluator, watcher)
        try:
            for name, source in missing.items():
                pool.submit(name, Job("test", source=source.reference))
            for _ in missing:
                done, answer = pool.wait()
                if answer.score is None:
                    raise EvoMergeError(f"{done}: {answer.reason}")
                there[keys[str(done)]] = _to_json(answer.score)
                write_json(kept, there)
                watcher.advance(1, str(done))
        finally:
            pool.close()
            watcher.end()
    return {name: _from_json(there[keys[name]]) for name in models}


def _to_json(score: Score) -> list[dict[str, Any]]:
    return [{**asdict(t), "results": t.results.tolist(), "items": list(t.items)} for t in score.tasks]


def _from_json(data: list[dict[str, Any]]) -> Score:
    return Score(
        tuple(
            TaskScore(**{**t, "results": np.array(t["results"], np.float32), "items": tuple(t["items"])}) for t in data
        )
    )


def _pool(cluster: Cluster, sources: Mapping[str, Source], file: EvaluatorFile, watcher: Watcher) -> Pool:
    base = next(iter(sources))
    if cluster.workers == 0:
        return LocalPool(sources, base, file)
    return RayPool(cluster, sources, base, file, say=watcher.say)
