"""How far the surrogate of benchmarks/search.py is from real searches that it was not fitted to.

    evomerge search quickstart --evaluator quickstart_likelihood --budget 100 --seed 0 --out runs/r0
    python benchmarks/surrogate_error.py runs/r0 ...

Whole searches, unlike the merges that benchmarks/recording.py leaves out: those have neighbours, from their own search,
among the fitted ones. Of each search: candidates that have all items, on the search items that both know.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.recording import everything
from benchmarks.replayed import load, names
from benchmarks.surrogate import Numbers, Surrogate
from evomerge.evaluation import load_evaluator, open_evaluator
from evomerge.score import State
from evomerge.study.store import Store


def places() -> dict[str, int]:
    """Of the zoo's items by id: which of the surrogate's it is."""
    with tempfile.TemporaryDirectory() as folder:
        file = everything(Path(folder) / "all.yaml")
        (found,) = open_evaluator(load_evaluator(str(file))).items("search").values()
    return {item: place for place, item in enumerate(found)}


def compared(out: Path, surrogate: Surrogate, at: dict[str, int]) -> tuple[Numbers, Numbers, float]:
    """Of a search's complete candidates: their scores, the surrogate's, and the share of items that it has right."""
    store = Store(f"sqlite:///{out / 'study.db'}")
    real, told, right = [], [], []
    for trial in store.open(store.names()[0]).trials():
        if trial.state is not State.COMPLETE or trial.score is None:
            continue
        (task,) = trial.score.tasks
        known = [(i, at[item]) for i, item in enumerate(task.items) if item in at]
        mine, theirs = (list(column) for column in zip(*known, strict=True))
        found = surrogate.probabilities(np.array([float(trial.params[n]) for n in names()]))[0][theirs]
        answers = task.results[mine]
        real.append(answers.mean())
        told.append(found.mean())
        right.append(((found > 0.5) == (answers > 0.5)).mean())
    return np.array(real), np.array(told), float(np.mean(right))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("out", nargs="+", type=Path, help="output folders of searches over quickstart")
    surrogate, at = load()[0], places()
    for out in parser.parse_args().out:
        real, told, right = compared(out, surrogate, at)
        off, best = told - real, int(real.argmax())
        print(
            f"{out}: {len(real)} candidates, items right {right:.3f}; score: rmse {np.sqrt(np.mean(off**2)):.3f}, mean "
            f"error {off.mean():+.3f}, correlation {np.corrcoef(real, told)[0, 1]:.2f}; best {real[best]:.3f}, the "
            f"surrogate says {told[best]:.3f}"
        )


if __name__ == "__main__":
    main()
