"""NaN or infinite logits are a failed candidate, not a score.

lm-eval would score them as something plausible: NaN compares false, so argmax and sums go on without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from safetensors import safe_open

from evomerge.errors import CandidateError
from evomerge.sources import Source
from evomerge.sources.diffusion import COMPONENTS

T = TypeVar("T")


class NotFiniteError(CandidateError):
    """The logits of a model hold NaN or infinite values."""


@contextmanager
def finite_logits(model: torch.nn.Module) -> Iterator[None]:
    """Watch every forward pass of a model inside the block; of a diffusion pipeline, of its denoiser.

    One flag lives on the model's device and is read once at the end: no synchronisation per pass. A -inf among finite
    logits is allowed: some models mask parts of their vocabulary with it.

    Raises:
        NotFiniteError: some logits were NaN or +inf, or all of a position's were -inf.
    """
    flags: dict[torch.device, torch.Tensor] = {}

    def watch(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        # transformers' models have this; what has not is a denoiser.
        logits = getattr(output, "logits", None) if hasattr(_module, "base_model_prefix") else _said(output)
        if isinstance(logits, torch.Tensor):
            # max() passes NaN on, so one reduction finds NaN, +inf, and rows that are -inf throughout.
            bad = ~torch.isfinite(logits.detach().amax(-1)).all()
            seen = flags.get(bad.device)
            flags[bad.device] = bad if seen is None else seen | bad

    handle = inner(model).register_forward_hook(watch)
    try:
        yield
    finally:
        handle.remove()
    if any(bool(flag) for flag in flags.values()):
        raise NotFiniteError("the logits hold NaN or infinite values")


def inner(model: Any) -> torch.nn.Module:
    """What of a model has the weights: itself, or the denoiser of a diffusion pipeline."""
    if isinstance(model, torch.nn.Module):
        return model
    found: torch.nn.Module = next(m for n in COMPONENTS if (m := getattr(model, n, None)) is not None)
    return found


def _said(output: Any) -> Any:
    """What a denoiser says."""
    return output[0] if isinstance(output, tuple) else getattr(output, "sample", None)


def not_finite_weight(model: torch.nn.Module) -> str | None:
    """Name of the first of a model's parameters that holds NaN or infinite values."""
    for name, weight in inner(model).named_parameters():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            return name
    return None


def check_finite(source: Source) -> None:
    """Look through a model's stored weights, for evaluators that do not see its logits.

    Raises:
        CandidateError: one of them holds NaN or infinite values.
    """
    for name, info in source.tensors.items():
        if info.is_float:
            with safe_open(info.file, framework="pt") as stored:
                if not bool(torch.isfinite(stored.get_tensor(name)).all()):
                    raise CandidateError(f'the weight "{name}" holds NaN or infinite values')


def first_not_finite(model: torch.nn.Module, parts: Sequence[T], run: Callable[[Sequence[T]], object]) -> T | None:
    """The first of some parts of an evaluation on which the logits are not finite.

    By halves, after a look at the first alone: where weights are to blame every part shows it. Takes at most as long
    as all parts together, once more, for a candidate that has failed.

    Args:
        run: Runs the model on some of the parts.

    Returns:
        None where no part shows it by itself.
    """

    def shows(some: Sequence[T]) -> bool:
        try:
            with finite_logits(model), torch.inference_mode():
                run(some)
        except NotFiniteError:
            return True
        return False

    try:
        if not parts or shows(parts[:1]):
            return parts[0] if parts else None
        low, high = 1, len(parts)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if shows(parts[low:middle]) else (middle, high)
        return parts[low] if low < high and shows(parts[low:high]) else None
    except Exception:
        return None  # an evaluator may not take a part of its items; the failure stands without the name


def where_not_finite(model: torch.nn.Module, item: str | None) -> str:
    """What stands behind the message about logits: the item, and the weight where one is to blame."""
    weight = not_finite_weight(model)
    blame = f'; the weight "{weight}" has them already' if weight is not None else ""
    return (f" ({item})" if item is not None else "") + blame
