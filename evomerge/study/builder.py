"""Builds candidates into one live model and scores them. Knows nothing of Ray: a worker holds one of these."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import CandidateError, InputError
from evomerge.evaluation import EvaluatorFile, open_evaluator
from evomerge.score import Score
from evomerge.sources import Source
from evomerge.study.job import Answer, Job


class Builder:
    """Holds the sources, one live model and the evaluator's prepared tasks, across candidates.

    Args:
        sources: Every model that a recipe may name, by its reference; `base` among them.
        base: Reference of the model whose architecture the live model has.
        device: A torch device; default: the evaluator's, else "cuda" where there is one.
    """

    def __init__(
        self, sources: Mapping[str, Source], base: str, evaluator: EvaluatorFile, device: str | None = None
    ) -> None:
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        from evomerge.merging.engine import Engine
        from evomerge.merging.live import live_model, load_tokenizer

        self._sources = dict(sources)
        self._device = device or evaluator.config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if self._device == "cpu":
            # One thread: several processes on a few cores run up to ten times slower with more. And the sums inside a
            # model's forward pass depend on the number of threads (a merge's do not), so that scores, and with them the
            # search, would not be the same on another number of cores.
            torch.set_num_threads(1)
        self._dtype = _compute_dtype(evaluator.config.dtype, self._device)
        self._trust = evaluator.config.trust_remote_code
        self._evaluator = open_evaluator(evaluator)
        self._engine = Engine(self._sources, device=self._device)
        source = self._sources[base]
        self._model = live_model(source, dtype=self._dtype, device=self._device, trust_remote_code=self._trust)
        self._tokenizer = load_tokenizer(source, trust_remote_code=self._trust)

    def run(self, job: Job) -> Answer:
        """Build and score. What the candidate did wrong comes back as a reason.

        Raises:
            InputError: what the user gave is wrong, so that no candidate could do better.
        """
        seconds: dict[str, float] = {}
        try:
            score = self._exported(job, seconds) if job.exported or job.recipe is None else self._live(job, seconds)
        except InputError:
            raise
        except CandidateError as e:
            return Answer(None, str(e), seconds)
        except Exception as e:  # whatever an evaluator raises is this candidate's failure, not the search's end
            return Answer(None, f"{type(e).__name__}: {e}".strip().splitlines()[0][:500], seconds)
        return Answer(score, None, seconds)

    def _live(self, job: Job, seconds: dict[str, float]) -> Score:
        assert job.recipe is not None
        started = time.perf_counter()
        self._engine.build_into(job.recipe, self._model)
        return self._score(self._model, self._tokenizer, job, seconds, started)

    def _exported(self, job: Job, seconds: dict[str, float]) -> Score:
        started = time.perf_counter()
        if job.recipe is None:
            return self._checkpoint(self._sources[job.source or ""], job, seconds, started)
        folder = tempfile.mkdtemp(prefix="evomerge-")
        try:
            path = Path(folder) / "model"
            self._engine.write(job.recipe, path)
            return self._checkpoint(path, job, seconds, started)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _checkpoint(self, model: Path | Source, job: Job, seconds: dict[str, float], started: float) -> Score:
        # Two models may not fit on a GPU where one did.
        self._place("cpu")
        try:
            return self._loaded(model, job, seconds, started)
        finally:
            self._place(self._device)

    def _place(self, device: str) -> None:
        import torch

        if str(self._model.device) != device:
            torch.nn.Module.to(self._model, device)

    def _loaded(self, checkpoint: Path | Source, job: Job, seconds: dict[str, float], started: float) -> Score:
        from evomerge.merging.live import live_model, load_tokenizer

        model = live_model(checkpoint, dtype=self._dtype, device=self._device, trust_remote_code=self._trust)
        tokenizer = load_tokenizer(checkpoint, trust_remote_code=self._trust)
        return self._score(model, tokenizer, job, seconds, started)

    def _score(self, model: Any, tokenizer: Any, job: Job, seconds: dict[str, float], started: float) -> Score:
        """Evaluate a model that is built, keeping the time of both steps."""
        built = time.perf_counter()
        seconds["build"] = built - started
        score = self._evaluator.evaluate(model, tokenizer, job.split)
        seconds["evaluate"] = time.perf_counter() - built
        return score


def _compute_dtype(name: str, device: str) -> Any:
    """float32 on a CPU (16-bit arithmetic is slow or missing there), else the checkpoint's own."""
    import torch

    if name == "auto":
        return torch.float32 if device == "cpu" else None
    return getattr(torch, name)
