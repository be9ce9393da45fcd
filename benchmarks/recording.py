"""Records real merges of the zoo's task and fits the surrogate to them, for benchmarks/search.py.

    python -m benchmarks.recording WORK     about an hour; writes benchmarks/recorded/quickstart.npz

The shipped file was written before these searches had all ended: of wide-cma-22 it has 32 candidates, none of
wide-random-921, and 8 of another random search (seed 900). So running this again gives another, somewhat larger record.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.replayed import RECORDED
from benchmarks.surrogate import Record, fit, held_out_error
from evomerge import presets
from evomerge.score import Trial
from evomerge.study.budget import Budget
from evomerge.study.store import Store

SPACE = "quickstart"
# (kind of space, sampler, seed, candidates, first step).
SEARCHES = (
    *(("narrow", "cma", seed, 160, None) for seed in (1, 2, 4, 5)), ("narrow", "cma", 3, 160, 0.3),
    ("narrow", "cma", 6, 160, 0.3), ("narrow", "random", 901, 150, None), ("narrow", "tpe", 7, 150, None),
    ("wide", "cma", 21, 200, 0.1), ("wide", "cma", 22, 200, 0.1), ("wide", "random", 921, 60, None),
)  # fmt: skip
WIDE = (-1.5, 3.0, 1 / 3)


def everything(path: Path) -> Path:
    """Write an evaluator whose search items are nearly all there are; the surrogate's are these, in that order."""
    import yaml

    zoo = str(presets.folder("evaluators") / "zoo")
    task = {"name": "kovesh_problems", "metric": "exact_match", "greedy_likelihood": True}
    splits = {"search": {"share": 0.98}, "select": {"share": 0.01}, "test": {"share": 0.01}}
    path.write_text(yaml.safe_dump({"include_path": zoo, "tasks": [task], "splits": splits, "batch_size": 256}))
    return path


def record(work: Path) -> None:
    """Search with real merges, every candidate on nearly all items, fit the surrogate, and write both."""
    import yaml

    from evomerge.pipeline import Options, search
    from evomerge.study.workers import Cluster

    work.mkdir(parents=True, exist_ok=True)
    evaluator = everything(work / "all.yaml")
    space = yaml.safe_load((presets.folder("search_spaces") / f"{SPACE}.yaml").read_text())
    (work / "narrow.yaml").write_text(yaml.safe_dump(space))
    space["parameters"]["weight"] = dict(zip(("low", "high", "init"), WIDE, strict=True))
    (work / "wide.yaml").write_text(yaml.safe_dump(space))
    found: list[tuple[str, Trial]] = []
    for kind, sampler, seed, candidates, sigma in SEARCHES:
        name = f"{kind}-{sampler}-{seed}"
        search(Options(
            budget=Budget(candidates=candidates), space=str(work / f"{kind}.yaml"), evaluator=str(evaluator),
            study=name, out=work / name, cluster=Cluster(workers=0), sampler=sampler, seed=seed, sigma=sigma,
            fidelity="full",
        ))  # fmt: skip
        trials = Store(f"sqlite:///{work / name / 'study.db'}").open(name).trials()
        found += [(name, t) for t in trials if t.score is not None]
        print(f"{name}: {len(trials)} candidates", flush=True)
    names = tuple(found[0][1].params)
    write(
        Record(
            names,
            np.array([[float(t.params[n]) for n in names] for _, t in found]),
            np.stack([t.score.tasks[0].results > 0.5 for _, t in found if t.score is not None]),
            np.array([name for name, _ in found]),
        )
    )


def write(found: Record) -> None:
    """Fit the surrogate to a record, and write both with the error on merges that a fit had not seen."""
    error = held_out_error(found)
    surrogate = fit(found, np.ones(len(found.params), bool))
    half = {f"net_{n}": w.astype(np.float16) for n, w in surrogate.weights.items()}
    RECORDED.parent.mkdir(exist_ok=True)
    found.save(RECORDED, error=json.dumps(error), **half)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Record real merges and fit the surrogate.")
    parser.add_argument("work", type=Path, help="folder for the searches")
    record(parser.parse_args().work)
