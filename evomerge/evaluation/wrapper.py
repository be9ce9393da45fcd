"""lm-eval's wrapper of the live model, and the batch that there is memory for."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from evomerge.errors import CandidateError
from evomerge.evaluation.config import EvaluatorConfig
from evomerge.evaluation.pictures import processor_of, tokenizer_of

CPU_BATCH = 64


class Wrapper:
    """Wraps live models for lm-eval, with batches that are halved where memory runs out.

    A smaller batch stays for all models that follow. Results do not depend on it: rows of a batch are padded, and what
    is padded is masked. (What is sampled does: a batch's rows share one stream of random numbers.)

    Args:
        seen_by: The evaluator's file, where models are shown pictures; they come with their processors.
    """

    def __init__(self, config: EvaluatorConfig, seen_by: str | None = None) -> None:
        self._config = config
        self._seen_by = seen_by
        self._harness: Any = None
        self._limit: int | None = None

    def wraps(self, model: Any) -> bool:
        """Whether this is the model that is wrapped now."""
        return self._harness is not None and self._harness.model is model

    def of(self, model: Any, tokenizer: Any) -> Any:
        """lm-eval's wrapper of a model; the same as long as the model is.

        Args:
            tokenizer: Where it sees, the model's processor.
        """
        if self.wraps(model):
            return self._harness
        kind: Any
        more: dict[str, Any] = {}
        if self._seen_by is not None:
            from evomerge.evaluation.seeing import SeeingLM

            kind, tokenizer = SeeingLM, processor_of(tokenizer, self._seen_by)
            given = self._config.model_args
            more = {"where": self._seen_by} | (given.given if given is not None else {})
        else:
            from lm_eval.models.huggingface import HFLM

            kind, tokenizer = HFLM, tokenizer_of(tokenizer)
        config = self._config
        self._harness = None
        size: int | str = config.batch_size
        if size == "auto" and model.device.type == "cpu":
            # lm-eval's search for the largest batch runs until memory is out, which on a CPU is the machine's.
            size = CPU_BATCH
        if size == "auto" and self._seen_by is not None:
            size = config.max_batch_size  # lm-eval has no search with pictures; where memory runs out it is halved
        if self._limit is not None:
            size = self._limit if size == "auto" else min(int(size), self._limit)
        with quiet():
            self._harness = kind(
                pretrained=model,
                tokenizer=tokenizer,
                batch_size=size,
                max_batch_size=config.max_batch_size,
                max_length=config.max_length,
                add_bos_token=config.add_bos_token,
                trust_remote_code=config.trust_remote_code,
                **more,
            )
            if size == "auto":
                # lm-eval would search again in every call; found once, a batch is the same for every candidate.
                self._harness.batch_size_per_gpu = self._harness._detect_batch_size()
        return self._harness

    @property
    def batch(self) -> int:
        """Items that are run at once."""
        return 1 if self._harness is None else int(self._harness.batch_size_per_gpu)

    def halve(self, why: str) -> None:
        """Use half of the batch from now on.

        Args:
            why: What the error said.

        Raises:
            CandidateError: the batch is one item already.
        """
        if self.batch <= 1:
            raise CandidateError(f"out of memory with batches of one item ({why})")
        self._limit = self._harness.batch_size_per_gpu = self.batch // 2


@contextmanager
def quiet() -> Iterator[None]:
    """lm-eval prints, logs and draws bars for every step: one line per candidate is enough here."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    sink = io.StringIO()
    with redirect_stdout(sink), redirect_stderr(sink):
        yield
