"""Trials as pandas frames: what trials.parquet and items.parquet hold."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.score import Trial

if TYPE_CHECKING:
    import pandas as pd


def trials_frame(trials: Iterable[Trial]) -> pd.DataFrame:
    """One row per candidate, in the order given.

    Columns: `number`, `state`, `value` (NaN unless complete), `reason`; then `params.NAME` for every parameter,
    `tasks.NAME` for every task's value (higher is better), `seconds.STEP`, `attributes.NAME` (JSON text where it is
    no plain value). Columns appear in the order of first mention.
    """
    import pandas as pd

    fixed = ["number", "state", "value", "reason"]
    records = [_record(t) for t in trials]
    groups = ("params.", "tasks.", "seconds.", "attributes.")
    rest = list(dict.fromkeys(k for group in groups for r in records for k in r if k.startswith(group)))
    frame = pd.DataFrame.from_records(records, columns=[*fixed, *rest])
    return frame.astype({"number": "int64", "value": "float64", "state": "str"})


def _record(trial: Trial) -> dict[str, Any]:
    record: dict[str, Any] = {
        "number": trial.number,
        "state": trial.state.value,
        "value": trial.value,
        "reason": trial.reason,
    }
    record |= {f"params.{k}": v for k, v in trial.params.items()}
    if trial.score is not None:
        record |= {f"tasks.{t.task}": t.value for t in trial.score.tasks}
    record |= {f"seconds.{k}": float(v) for k, v in trial.seconds.items()}
    record |= {f"attributes.{k}": _scalar(v) for k, v in trial.attributes.items()}
    return record


def _scalar(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return json.dumps(value, sort_keys=True, default=str)


def items_frame(trials: Iterable[Trial]) -> pd.DataFrame:
    """One row per candidate, task and item: `trial`, `task`, `metric`, `item` (content hash), `result` (float32).

    Tasks whose metric has no form per item have no rows here; their value is in `trials_frame`.
    """
    import pandas as pd

    found = [(t.number, s) for t in trials if t.score is not None for s in t.score.tasks if s.by_item]
    lengths = [len(s.results) for _, s in found]
    numbers = np.repeat(np.array([n for n, _ in found], np.int64), lengths)
    results = np.concatenate([s.results for _, s in found]) if found else np.zeros(0)
    return pd.DataFrame(
        {
            "trial": numbers,
            "task": pd.Categorical(np.repeat(np.array([s.task for _, s in found], object), lengths)),
            "metric": pd.Categorical(np.repeat(np.array([s.metric for _, s in found], object), lengths)),
            "item": pd.Categorical([item for _, s in found for item in s.items]),
            "result": results.astype(np.float32),
        }
    )
