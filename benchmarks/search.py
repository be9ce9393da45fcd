"""Item evaluations until the same held-out score: our search, its parts switched off, and a plain CMA-ES.

    python benchmarks/search.py                 replays searches on a surrogate of the zoo's task; no models
    python benchmarks/search.py --record WORK   records real merges anew and fits the surrogate (about an hour)

The plain one is mergekit-evolve's way: pycma with a first step of 1/6, no bounds, weights from 1/n, every candidate on
all items. The held-out score is the surrogate's mean probability over items that no search sees, of the candidate that
a search would hand on at that time: the best of its complete ones.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.surrogate import Numbers, Record, Surrogate, fit, held_out_error
from evomerge.evaluation.draw import Draw
from evomerge.optimizers import Optimizer, make_optimizer
from evomerge.optimizers.protocol import Told
from evomerge.recipe import InputModel, Recipe
from evomerge.score import Score, State, TaskScore, Trial, Value
from evomerge.space import Float
from evomerge.study.budget import Budget
from evomerge.study.contest import DROP, RELIABILITY, Rules
from evomerge.study.estimator.told import Estimates
from evomerge.study.job import Answer, Job
from evomerge.study.known import KnownResults
from evomerge.study.loop import Search
from evomerge.study.raced import Raced
from evomerge.study.scoring import Scoring
from evomerge.study.store import Store
from evomerge.study.watcher import Silent

RECORDED = Path(__file__).parent / "recorded" / "quickstart.npz"
SPACE = "quickstart"
LOW, HIGH, INIT, SOURCES = 0.0, 1.5, 0.5, 3  # as the preset has them
ITEMS = 800  # that a search has; the others are held out
SHARE = 0.95
TASK = "items"
# (kind of space, sampler, seed, candidates, first step).
SEARCHES = (
    *(("narrow", "cma", seed, 160, None) for seed in (1, 2, 4, 5)), ("narrow", "cma", 3, 160, 0.3),
    ("narrow", "cma", 6, 160, 0.3), ("narrow", "random", 901, 150, None), ("narrow", "tpe", 7, 150, None),
    ("wide", "cma", 21, 200, 0.1), ("wide", "cma", 22, 200, 0.1), ("wide", "random", 921, 60, None),
)  # fmt: skip
WIDE = (-1.5, 3.0, 1 / 3)


class Plain:
    """CMA-ES as mergekit-evolve runs it; see `Optimizer`."""

    name = "plain"
    elitist = False
    whole = False

    def __init__(self, parameters: Sequence[Float], seed: int) -> None:
        import cma

        from evomerge.optimizers.cma_es import _Normal

        self._names = [p.name for p in parameters]
        never = {"tolx": 0.0, "tolfun": 0.0, "tolfunhist": 0.0, "tolflatfitness": math.inf, "tolstagnation": math.inf}
        self._es: Any = cma.CMAEvolutionStrategy(
            np.full(len(parameters), 1 / SOURCES), 1 / 6,
            {"seed": float("nan"), "randn": _Normal(seed), "verbose": -9, "signals_filename": "", **never},
        )  # fmt: skip
        self.generation = int(self._es.popsize)
        self.parents = self.generation // 2
        self.done = False

    def ask(self, n: int) -> list[dict[str, Value]]:
        self._points = self._es.ask()
        return [dict(zip(self._names, map(float, x), strict=True)) for x in self._points]

    def tell(self, params: Sequence[Mapping[str, Value]], scores: Sequence[Told], behaviours: object = None) -> None:
        # On the surrogate no candidate fails: pycma refuses a list of another length.
        self._es.tell(self._points, [-s for s in scores if isinstance(s, float)])

    def enqueue(self, params: Mapping[str, Value]) -> None:
        raise NotImplementedError("mergekit-evolve tries no recipes of one's own")


class Replay:
    """A pool that answers from the surrogate."""

    size = 1

    def __init__(self, surrogate: Surrogate, places: Numbers) -> None:
        self._surrogate = surrogate
        self._places = places
        self._queue: deque[tuple[Hashable, Job]] = deque()
        self._held: dict[bytes, Numbers] = {}

    def submit(self, key: Hashable, job: Job) -> None:
        self._queue.append((key, job))

    def wait(self) -> tuple[Hashable, Answer]:
        key, job = self._queue.popleft()
        params = point(job.recipe)
        if params.tobytes() not in self._held:
            self._held = {**dict(list(self._held.items())[-50:]), params.tobytes(): self._answers(params)}
        answers = self._held[params.tobytes()]
        only = tuple(range(ITEMS)) if job.only is None else job.only[TASK]
        found = answers[list(only)].astype(np.float32)
        return key, Answer(
            Score((TaskScore(TASK, "acc", float(found.mean()), 1.0, tuple(f"{i}" for i in only), found),))
        )

    def _answers(self, params: Numbers) -> Numbers:
        found: Numbers = self._surrogate.answers(params)[self._places].astype(np.float64)
        return found

    def close(self) -> None:
        pass


def point(recipe: Recipe | None) -> Numbers:
    """The parameters of a stand-in recipe."""
    assert recipe is not None and recipe.models is not None
    return np.array([m.parameters["weight"] for m in recipe.models if m.parameters], dtype=np.float64)


def decode(params: Mapping[str, Value]) -> Recipe:
    """A stand-in recipe that holds the parameters."""
    return Recipe(
        merge_method="linear",
        models=[InputModel(model=name, parameters={"weight": float(v)}) for name, v in params.items()],
    )


def replay(
    surrogate: Surrogate,
    names: Sequence[str],
    seed: int,
    budget: int,
    make: Callable[[Sequence[Float], int], Optimizer],
    bounds: tuple[float, float],
    rules: Callable[[Numbers], Rules] | None,
    modelled: bool,
) -> list[Trial]:
    """One search, its study in a database of its own."""
    parameters = [Float(name, *bounds, INIT) for name in names]
    places = np.random.default_rng([0, seed]).permutation(surrogate.items)
    items = {TASK: tuple(f"{i}" for i in range(ITEMS))}
    draw = Draw.of(items, {TASK: 1.0}, seed)
    with tempfile.TemporaryDirectory() as folder:
        study = Store(f"sqlite:///{folder}/study.db", create=True).create("s", parameters, {})
        like = Score((TaskScore(TASK, "acc", 0.0),))
        known = KnownResults(study.results, draw, {TASK: "surrogate"}, like)
        race = None
        if rules is not None:
            race = Raced(draw, rules(draw.weights))
            if modelled:
                race = Raced(draw, race.rules, Estimates(draw, race.rules.ends, sources(surrogate, places[:ITEMS])))
        trials, _ = Search(
            study, make(parameters, seed), decode, lambda r: r.hash(),
            Scoring(Replay(surrogate, places[:ITEMS]), known), Budget(candidates=budget), Silent(), race=race,
        ).run()  # fmt: skip
        if race is not None and race.estimates is not None:
            print(f"seed {seed}: {race.estimates.choice}", flush=True)
    return trials


def sources(surrogate: Surrogate, places: Numbers) -> list[Score]:
    """Base, each source and the uniform merge, which a search scores before its first candidate."""
    each = surrogate.weights["w1"].shape[1] // SOURCES
    points = [np.zeros(each * SOURCES), *np.repeat(np.eye(SOURCES), each, axis=1), np.full(each * SOURCES, 1 / SOURCES)]
    items = tuple(f"{i}" for i in range(ITEMS))
    found = [surrogate.answers(p)[places].astype(np.float32) for p in points]
    return [Score((TaskScore(TASK, "acc", float(a.mean()), 1.0, items, a),)) for a in found]


def curve(surrogate: Surrogate, trials: Sequence[Trial], seed: int) -> tuple[list[float], list[float]]:
    """What was spent, in items, and the held-out score of what would be handed on, after each better candidate."""
    held = np.random.default_rng([0, seed]).permutation(surrogate.items)[ITEMS:]
    spent, best, spends, scores = 0.0, -math.inf, [], []
    for trial in trials:
        spent += trial.cost * ITEMS
        if trial.state is State.COMPLETE and trial.value is not None and trial.value > best:
            best = trial.value
            params = np.array([float(v) for v in trial.params.values()])
            spends.append(spent)
            scores.append(float(surrogate.probabilities(params)[0][held].mean()))
    return spends, scores


def best_known(surrogate: Surrogate, dimensions: int) -> float:
    """The largest mean probability over all items within the preset's bounds, of five long searches without noise."""
    import cma

    found = 0.0
    for seed in range(1, 6):
        options = {"bounds": [LOW, HIGH], "seed": seed, "verbose": -9, "maxfevals": 30_000}
        start = np.random.default_rng(seed).uniform(LOW, HIGH, dimensions)
        _, es = cma.fmin2(lambda x: -float(surrogate.probabilities(x)[0].mean()), start, 0.4, options)
        found = max(found, -float(es.result.fbest))
    return found


def ours(parameters: Sequence[Float], seed: int) -> Optimizer:
    """What `evomerge search` takes for this space."""
    return make_optimizer("auto", parameters, seed)


BOUNDED, FREE = (LOW, HIGH), (-1e6, 1e6)
WAYS: dict[
    str, tuple[Callable[[Sequence[Float], int], Any], tuple[float, float], Callable[[Numbers], Rules] | None, bool]
] = {
    "plain CMA-ES": (Plain, FREE, None, False),
    "ours": (ours, BOUNDED, Rules.over, True),
    "ours, plain estimates": (ours, BOUNDED, Rules.over, False),
    "ours, every candidate on all items": (ours, BOUNDED, None, False),
    "ours, plain estimates, nobody raced out": (ours, BOUNDED, lambda w: Rules.over(w, 0.0, RELIABILITY), False),
    "ours, plain estimates, order never settled": (ours, BOUNDED, lambda w: Rules.over(w, DROP, 2.0), False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--record", type=Path, metavar="WORK", help="record merges anew, in this folder")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), metavar="WAY", help=f"of: {'; '.join(WAYS)}")
    parser.add_argument("--budget", type=int, default=400, help="candidates of each search (default: 400)")
    parser.add_argument("--json", type=Path, help="write curves there")
    args = parser.parse_args()
    if args.record is not None:
        record(args.record)
    with np.load(RECORDED) as data:
        surrogate = Surrogate({n.removeprefix("net_"): data[n].astype(np.float32) for n in data.files if "net_" in n})
        error = json.loads(str(data["error"]))
    names = Record.load(RECORDED).names
    print("surrogate, on merges that it was not fitted to:", ", ".join(f"{k} {v:.3g}" for k, v in error.items()))
    top = best_known(surrogate, len(names))
    level = SHARE * top
    print(f"best known {top:.3f}; items until {level:.3f}, {args.seeds} seeds, at most {args.budget} candidates' items")
    curves: dict[str, Any] = {}
    for name in args.ways or WAYS:
        make, bounds, rules, modelled = WAYS[name]
        found = [
            curve(surrogate, replay(surrogate, names, seed, args.budget, make, bounds, rules, modelled), seed)
            for seed in range(args.first, args.first + args.seeds)
        ]
        curves[name] = found
        needed = [next((s for s, v in zip(*c, strict=True) if v >= level), math.inf) for c in found]
        last = [c[1][-1] if c[1] else 0.0 for c in found]
        print(
            f"{name:44} median {np.median(needed):9,.0f}   reached in {sum(map(math.isfinite, needed))} of {args.seeds}"
            f"   held-out at the end {np.mean(last):.3f} ({min(last):.3f} .. {max(last):.3f})", flush=True,
        )  # fmt: skip
    if args.json is not None:
        args.json.write_text(json.dumps({"best_known": top, "curves": curves}))


def record(work: Path) -> None:
    """Search with real merges, every candidate on nearly all items, fit the surrogate, and write both."""
    import yaml

    from evomerge import presets
    from evomerge.pipeline import Options, search
    from evomerge.study.workers import Cluster

    work.mkdir(parents=True, exist_ok=True)
    zoo = str(presets.folder("evaluators") / "zoo")
    task = {"name": "kovesh_problems", "metric": "exact_match", "greedy_likelihood": True}
    splits = {"search": {"share": 0.98}, "select": {"share": 0.01}, "test": {"share": 0.01}}
    evaluator = work / "all.yaml"
    evaluator.write_text(yaml.safe_dump({"include_path": zoo, "tasks": [task], "splits": splits, "batch_size": 256}))
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
    main()
