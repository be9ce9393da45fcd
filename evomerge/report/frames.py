"""Trials as pandas frames: what trials.parquet and items.parquet hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.recipe import Path
from evomerge.report.path import short_name
from evomerge.report.result import rows
from evomerge.score import Score, Trial
from evomerge.study.outcome import Outcome
from evomerge.study.record import Record

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
        "cost": trial.cost,
        "estimate": trial.estimate,
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


def coefficients_frame(record: Record) -> pd.DataFrame:
    """One row per number of the best candidate's that lies over the model, and one for each that holds for all of it.

    Columns: `parameter`, `source` ("all sources" where they share it), `where` (a category in the order of depth, the
    input first), `module`, `value`, `low`, `high` (bounds that were searched; NaN of what holds for the whole model).
    """
    import pandas as pd

    from evomerge.report.page.coefficients import fields_of

    fields, single = fields_of(record)
    rows: list[tuple[str, str, str, str, float, float, float]] = []
    places: dict[str, None] = {}
    for f in fields:
        places |= dict.fromkeys(f.rows)
        rows += [(f.name, *where, f.low, f.high) for where in f.values()]
    numbers = {n: float(v) for n, v in single.items() if isinstance(v, float | int)}
    rows += [(name, "all sources", "all", "all", value, np.nan, np.nan) for name, value in numbers.items()]
    if numbers:
        places["all"] = None
    made = pd.DataFrame(rows, columns=["parameter", "source", "where", "module", "value", "low", "high"])
    ordered = [*(p for p in places if p != "head"), *(p for p in places if p == "head")]
    made["where"] = pd.Categorical(made["where"], ordered, ordered=True)
    return made.astype({"value": "float64", "low": "float64", "high": "float64"})


def path_frame(path: Path, names: Mapping[str, str]) -> pd.DataFrame:
    """One row per layer of a path, in order.

    Args:
        names: Short names of the sources by reference.

    Columns: `hop`, `source`, `layer` (of that source), `scale` (what the residual stream is multiplied by where the
    hop begins). The frame's `attrs` name whose `embeddings` and `head` the path has.
    """
    import pandas as pd

    def called(model: str) -> str:
        return short_name(model, names)

    hops = [
        (k, called(hop.model), hop.layer, scale)
        for k, (hop, scale) in enumerate(zip(path.hops, path.scales, strict=True))
    ]
    made = pd.DataFrame(hops, columns=["hop", "source", "layer", "scale"])
    made.attrs = {"embeddings": called(path.embeddings), "head": called(path.head)}
    return made


def results_frame(outcome: Outcome) -> pd.DataFrame:
    """The held-out table: one row per measured model, the winner last.

    Columns: `model`, `role`, `score`, `low`, `high` (95 %), `difference` (winner minus this one, paired by item),
    `difference.low`, `difference.high`, `p` (corrected for all comparisons), `tasks.NAME`. NaN where there is none.
    """
    import pandas as pd

    records = []
    for row in rows(outcome):
        d = row.difference
        record: dict[str, Any] = {
            "model": row.name, "role": row.role, "score": row.test.mean, "low": row.test.low, "high": row.test.high,
            "difference": d and d.mean, "difference.low": d and d.low, "difference.high": d and d.high,
            "p": d and (d.holm if d.holm is not None else d.p),
        }  # fmt: skip
        records.append(record | {f"tasks.{name}": i.mean for name, i in row.tasks.items()})
    made = pd.DataFrame.from_records(records)
    return made.astype({c: "float64" for c in made.columns if c not in ("model", "role")})


def items_frame(scores: Iterable[tuple[str, str, Score]]) -> pd.DataFrame:
    """One row per item of everything that was scored: what every table and paired difference can be computed from.

    Args:
        scores: (subject, split, score): a subject is "trial/NUMBER", "source/NAME", "model/base" or "model/uniform".

    Returns:
        Columns `subject`, `split`, `task`, `metric`, `item` (content hash), `result` (float32, higher is better). Tasks
        whose metric has no form per item have no rows; their value is in `trials_frame` and result.json.
    """
    import pandas as pd

    found = [(subject, split, t) for subject, split, score in scores for t in score.tasks if t.by_item]
    lengths = [len(t.results) for _, _, t in found]

    def column(values: list[str]) -> pd.Categorical:
        return pd.Categorical(np.repeat(np.array(values, object), lengths))

    results = np.concatenate([t.results for _, _, t in found]) if found else np.zeros(0)
    return pd.DataFrame(
        {
            "subject": column([subject for subject, _, _ in found]),
            "split": column([split for _, split, _ in found]),
            "task": column([t.task for _, _, t in found]),
            "metric": column([t.metric for _, _, t in found]),
            "item": pd.Categorical([item for _, _, t in found for item in t.items]),
            "result": results.astype(np.float32),
        }
    )


def outcome_scores(outcome: Outcome) -> Iterator[tuple[str, str, Score]]:
    """Every score of an outcome, as `items_frame` takes them."""
    for trial in outcome.trials:
        score = trial.score or trial.part
        if score is not None:
            yield f"trial/{trial.number}", "search", score
    for measured in outcome.measured:
        subject = {"best": f"trial/{outcome.best.number}", "source": f"source/{measured.name}"}.get(
            measured.role, f"model/{measured.name}"
        )
        if measured.select is not None:
            yield subject, "select", measured.select
        yield subject, "test", measured.test
