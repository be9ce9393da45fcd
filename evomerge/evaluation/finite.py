"""NaN or infinite logits are a failed candidate, not a score.

lm-eval would score them as something plausible: NaN compares false, so argmax and sums go on without an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from evomerge.errors import CandidateError


@contextmanager
def finite_logits(model: torch.nn.Module) -> Iterator[None]:
    """Watch every forward pass of a model inside the block.

    One flag lives on the model's device and is read once at the end: no synchronisation per pass. A -inf among finite
    logits is allowed: some models mask parts of their vocabulary with it.

    Raises:
        CandidateError: some logits were NaN or +inf, or all of a position's were -inf.
    """
    flags: dict[torch.device, torch.Tensor] = {}

    def watch(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        logits = getattr(output, "logits", None)
        if isinstance(logits, torch.Tensor):
            # max() passes NaN on, so one reduction finds NaN, +inf, and rows that are -inf throughout.
            bad = ~torch.isfinite(logits.detach().amax(-1)).all()
            seen = flags.get(bad.device)
            flags[bad.device] = bad if seen is None else seen | bad

    handle = model.register_forward_hook(watch)
    try:
        yield
    finally:
        handle.remove()
    if any(bool(flag) for flag in flags.values()):
        raise CandidateError("the logits hold NaN or infinite values")
