"""Jobs and answers as text: what crosses between a driver and those that joined it. JSON, never pickle."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from evomerge.recipe import Recipe
from evomerge.score import Score, TaskScore
from evomerge.study.job import Answer, Job


def write_job(job: Job) -> str:
    """A job as text."""
    recipe = None if job.recipe is None else job.recipe.to_dict()
    only = None if job.only is None else {task: list(places) for task, places in job.only.items()}
    data = {
        "split": job.split, "recipe": recipe, "source": job.source, "exported": job.exported, "only": only,
        "hash": job.hash,
    }  # fmt: skip
    return json.dumps(data, separators=(",", ":"))


def read_job(text: str, references: Mapping[str, str]) -> Job:
    """A job.

    Args:
        references: What this process calls the models, by what the driver calls them.
    """
    data = json.loads(text)
    recipe = None if data["recipe"] is None else Recipe.model_validate(data["recipe"]).with_references(references)
    only = None if data["only"] is None else {task: tuple(places) for task, places in data["only"].items()}
    source = None if data["source"] is None else references.get(data["source"], data["source"])
    return Job(data["split"], recipe, source, data["exported"], only, data["hash"])


def write_answer(answer: Answer) -> str:
    """An answer as text. Results are float32, as the database keeps them; numbers keep every bit."""
    data = {
        "score": None if answer.score is None else [_write_task(t) for t in answer.score.tasks],
        "reason": answer.reason, "seconds": dict(answer.seconds), "layers": answer.layers,
        "notes": answer.notes,
    }  # fmt: skip
    return json.dumps(data, separators=(",", ":"))


def read_answer(text: str) -> Answer:
    """An answer."""
    data = json.loads(text)
    score = None if data["score"] is None else Score(tuple(_read_task(t) for t in data["score"]))
    layers = None if data["layers"] is None else (int(data["layers"][0]), int(data["layers"][1]))
    return Answer(score, data["reason"], data["seconds"], layers, tuple(data["notes"]))


def _write_task(task: TaskScore) -> dict[str, Any]:
    return {
        "task": task.task, "metric": task.metric, "value": task.value, "weight": task.weight, "flipped": task.flipped,
        "items": list(task.items), "results": base64.b64encode(task.results.astype("<f4").tobytes()).decode("ascii"),
    }  # fmt: skip


def _read_task(data: Mapping[str, Any]) -> TaskScore:
    results = np.frombuffer(base64.b64decode(data["results"]), "<f4").astype(np.float32)
    items = tuple(data["items"])
    return TaskScore(data["task"], data["metric"], data["value"], data["weight"], items, results, data["flipped"])
