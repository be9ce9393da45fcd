"""How well full scores, and the order of candidates, are told from a part of the items: replays of recorded searches.

    python benchmarks/estimators.py [--searches NAME ...] [--every 3] [--seed 0]
    python benchmarks/estimators.py --record        scores the sources on the recorded items again (two minutes)

Each generation of a recorded search is looked at as a race leaves it: of earlier generations the best two have all
items, of this one the best; with base, sources and uniform merge they are what the item-response model is fitted to.
The others are estimated from 10 to 75 % of 800 items. "random": the first so many of a random order; "informative":
those with most Fisher information; "anchors": items that stand for clusters; both by a model of the sources' answers
alone, or of everybody's that has all items, chosen again for each generation.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.surrogate import Numbers, Record
from evomerge.study.estimator import ItemResponse, Prior, anchors, fit, informative, means, paired, predicted

FOLDER = Path(__file__).parent / "recorded"
ITEMS, GENERATION, COMPLETE = 800, 12, 2
SHARES = (0.1, 0.2, 0.35, 0.5, 0.75)
MEAN, PAIRED = "plain mean", "paired difference"


def sources() -> Numbers:
    """Answers of base, maths, kovesh, sorting and the uniform merge to the record's items, shape (5, items)."""
    with np.load(FOLDER / "quickstart_sources.npz") as data:
        return np.unpackbits(data["answers"], axis=1, count=int(data["items"])).astype(np.float64)


def order_of(values: Numbers, truth: Numbers) -> tuple[float, float]:
    """Kendall's tau-b, and the share of the better half that is found."""
    from scipy.stats import kendalltau

    half = len(truth) // 2
    best = set(np.argsort(-truth, kind="stable")[:half].tolist())
    found = set(np.argsort(-values, kind="stable")[:half].tolist())
    return float(kendalltau(values, truth).statistic), len(best & found) / half


def estimates(model: ItemResponse, answers: Numbers, anchor: Numbers, few: int) -> dict[str, Numbers]:
    """By kind, of candidates of which only some answers are there (NaN).

    Args:
        few: How many sources the model was fitted to, before all others.
    """
    weights = np.full(answers.shape[1], 1 / answers.shape[1])
    found = {MEAN: means(answers, weights), PAIRED: paired(answers, weights, anchor)}
    found |= predicted(model, answers, weights, Prior.population(model))
    for ridge in (1.0, 10.0) if few else ():
        prior = Prior.combinations(model, range(few), ridge)
        named = predicted(model, answers, weights, prior)
        found |= {f"{kind}, λ over sources, ridge {ridge:g}": v for kind, v in named.items()}
    return found


def generation(
    table: Numbers, known: Numbers, done: Sequence[int], first: int, size: int
) -> dict[tuple[str, int, str], tuple[float, float, float]]:
    """(squared error, tau, better half found) by (which items, how many, kind), of one generation.

    Args:
        table: A search's answers, shape (candidates, items), the items in random order.
        known: The sources' answers, shape (sources, items).
        done: Earlier candidates that have all items.
    """
    truth = table.mean(axis=1)
    best = first + int(np.argmax(truth[first : first + size]))
    others = [i for i in range(first, first + size) if i != best]
    before = np.concatenate([known, table[list(done)]])
    model, alone, whole = fit(before), fit(known), fit(np.concatenate([before, table[[best]]]))
    most = round(SHARES[-1] * ITEMS)
    chosen = {
        "random": np.arange(ITEMS),
        "informative, sources": informative(alone, most),
        "informative, complete": informative(model, most, model.abilities[-20:]),
    }
    found = {}
    for share in SHARES:
        count = round(share * ITEMS)
        equal = np.full(ITEMS, 1 / ITEMS)
        clusters = {f"anchors, {n}": anchors(m, count, equal) for n, m in (("sources", alone), ("complete", model))}
        for name, order in (chosen | {n: at for n, (at, _) in clusters.items()}).items():
            at = order[:count]
            few = np.full((len(others), ITEMS), np.nan)
            few[:, at] = table[np.ix_(others, at)]
            values = estimates(whole, few, table[best], len(known) if name == "random" else 0)
            if name in clusters:
                values["by cluster"] = table[np.ix_(others, at)] @ clusters[name][1]
            for kind, v in values.items():
                error = float(np.mean((v - truth[others]) ** 2))
                found[name, count, kind] = (error, *order_of(v, truth[others]))
    return found


def replay(record: Record, name: str, every: int, seed: int) -> dict[tuple[str, int, str], list[tuple[float, ...]]]:
    """One recorded search; of its generations every so-manyth is looked at."""
    place = list(dict.fromkeys(record.searches.tolist())).index(name)  # each search has its own items, in its own order
    order = np.random.default_rng([seed, place]).permutation(record.answers.shape[1])[:ITEMS]
    table = record.answers[record.searches == name][:, order].astype(np.float64)
    known = sources()[:, order]
    truth = table.mean(axis=1)
    done: list[int] = []
    found = defaultdict(list)
    for g, first in enumerate(range(0, len(table) - GENERATION + 1, GENERATION)):
        if g and g % every == seed % every:
            for key, figures in generation(table, known, done, first, GENERATION).items():
                found[key].append(figures)
        done += (first + np.argsort(-truth[first : first + GENERATION], kind="stable")[:COMPLETE]).tolist()
    return found


def show(found: Mapping[tuple[str, int, str], Sequence[tuple[float, ...]]]) -> None:
    """A table: rmse, tau, better half found."""
    counts = list(dict.fromkeys(n for _, n, _ in found))
    print(f"{'rmse / tau / share of the better half':60}" + "".join(f"{n:>21}" for n in counts))
    for name, kind in dict.fromkeys((name, kind) for name, _, kind in found):
        cells = []
        for n in counts:
            error, tau, half = np.nanmean(np.array(found[name, n, kind]), axis=0)
            cells.append(f"{np.sqrt(error):.4f} {tau:.3f} {half:.3f}")
        print(f"{name:24}{kind:36}" + "".join(f"{c:>21}" for c in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--searches", nargs="+", metavar="NAME", help="default: all with at least 100 candidates")
    parser.add_argument("--every", type=int, default=3, help="look at every so-manyth generation (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the items' order, and which generations")
    parser.add_argument("--each", action="store_true", help="also print each search by itself")
    parser.add_argument("--record", action="store_true", help="score the sources again, and write their answers")
    args = parser.parse_args()
    if args.record:
        record_sources()
    record = Record.load(FOLDER / "quickstart.npz")
    names = dict.fromkeys(record.searches.tolist())
    wanted = args.searches or [n for n in names if (record.searches == n).sum() >= 100]
    together = defaultdict(list)
    for name in wanted:
        found = replay(record, name, args.every, args.seed)
        for key, figures in found.items():
            together[key] += figures
        if args.each:
            print(name)
            show(found)
    print(f"{len(wanted)} searches, {len(next(iter(together.values())))} generations of {GENERATION}")
    show(together)


def record_sources() -> None:
    """Score base, sources and uniform merge on the record's items, checking one recorded merge against it."""
    import yaml

    from evomerge import presets
    from evomerge.pipeline import Options
    from evomerge.pipeline.plan import Plan
    from evomerge.study.budget import Budget
    from evomerge.study.builder import Builder
    from evomerge.study.job import Job
    from evomerge.study.workers import Cluster

    record = Record.load(FOLDER / "quickstart.npz")
    with tempfile.TemporaryDirectory() as folder:
        evaluator = Path(folder) / "all.yaml"
        task = {"name": "kovesh_problems", "metric": "exact_match", "greedy_likelihood": True}
        splits = {"search": {"share": 0.98}, "select": {"share": 0.01}, "test": {"share": 0.01}}
        include = str(presets.folder("evaluators") / "zoo")
        evaluator.write_text(
            yaml.safe_dump({"include_path": include, "tasks": [task], "splits": splits, "batch_size": 256})
        )
        plan = Plan(Options(
            budget=Budget(candidates=1), space="quickstart", evaluator=str(evaluator), study="sources",
            out=Path(folder) / "out", cluster=Cluster(workers=0),
        ))  # fmt: skip
        builder = Builder(plan.sources, plan.live, plan.evaluator)
        params = dict(zip(record.names, map(float, record.params[0]), strict=True))
        jobs = [Job("search", recipe=plan.decode(plan.space)(params))]
        jobs += [Job("search", recipe=b.recipe, source=b.source) for b in plan.baselines()]
        rows = []
        for job in jobs:
            answer = builder.run(job)
            assert answer.score is not None, answer.reason
            rows.append(answer.score.tasks[0].results > 0.5)
    assert (rows[0] == record.answers[0]).all(), "the evaluator is not that of the record any more"
    answers = np.array(rows[1:])
    names = np.array([b.name for b in plan.baselines()])
    np.savez_compressed(
        FOLDER / "quickstart_sources.npz", names=names, answers=np.packbits(answers, axis=1), items=answers.shape[1]
    )


if __name__ == "__main__":
    main()
