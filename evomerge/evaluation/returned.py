"""What code of the user's own gives back (numbers by task, by item or alone) becomes scores, or a reason why not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from evomerge.errors import CandidateError
from evomerge.evaluation.config import TaskConfig
from evomerge.score import TaskScore


def score_of(task: TaskConfig, returned: Any, ids: Sequence[str] | None, split: str, who: str) -> TaskScore:
    """One task's score.

    Args:
        returned: A number for the whole task (only without `ids`), a number per item in order, or a mapping from
            items' ids to numbers.
        ids: Of the items that were asked for; None where the code brings its own.
        who: What gave it, which messages begin with.

    Raises:
        CandidateError: it is something else. Of a candidate, whose weights may be to blame; where a source as it is
            meets it, the search is refused.
    """
    higher = task.higher_is_better is not False
    sign = 1.0 if higher else -1.0
    found: tuple[str, ...] = tuple(ids or ())
    if isinstance(returned, Mapping):
        found, values = tuple(str(k) for k in returned), list(returned.values())
    elif isinstance(returned, Sequence | np.ndarray | torch.Tensor) and not isinstance(returned, str):
        values = list(returned)
        if ids is None:
            found = tuple(f"{split}-{i}" for i in range(len(values)))
    elif ids is not None:
        raise CandidateError(f"{who} returned {kind(returned)} for {len(ids)} items; expected one result for each")
    else:
        found, values = (), [returned]
    if found and len(found) != len(values):
        raise CandidateError(f"{who} returned {len(values)} results for {len(found)} items; expected one for each")
    try:
        numbers = np.array([float(v) for v in values])
    except (TypeError, ValueError):
        raise CandidateError(f"{who} returned {kind(returned)}; expected numbers") from None
    if not len(numbers):
        raise CandidateError(f'{who} returned no result for task "{task.name}"')
    if not np.isfinite(numbers).all():
        bad = int((~np.isfinite(numbers)).argmax())
        which = f'{numbers[bad]} for task "{task.name}", item {bad + 1} of {len(numbers)}'
        raise CandidateError(f"{who} returned {which}; expected finite numbers")
    value = float(numbers.mean())
    results = (sign * numbers).astype(np.float32) if found else np.zeros(0, np.float32)
    return TaskScore(task.name, task.metric or "score", sign * value, task.weight, found, results, not higher)


def kind(value: Any) -> str:
    """What something is, in a few words."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return f"{type(value).__name__} {str(value)[:60]}"
