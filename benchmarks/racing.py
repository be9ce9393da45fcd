"""Races on recorded answers of real merges: what they cost, and what becomes of each generation's best.

    python benchmarks/racing.py

The recorded searches (benchmarks/recording.py) scored every candidate on every item. Their generations are raced again
by the rules of `evomerge search`, on 800 random items each, in a random order: the share of the item evaluations that
it takes, and how often the best over all items is told below the parents, or stopped before it has all items. No
surrogate takes part.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from benchmarks.replayed import ITEMS, RECORDED
from benchmarks.surrogate import Numbers, Record
from evomerge.study.contest import RACED_OUT, Contest, Rules, below

GENERATION, PARENTS = 12, 6
WAYS: dict[str, Callable[[Numbers], Rules]] = {
    "raced out and settled (the default)": lambda w: Rules.over(w),
    "raced out only": lambda w: Rules.over(w, reliability=2.0),
    "settled only": lambda w: Rules.over(w, drop=0.0),
}


def generations(record: Record) -> list[Numbers]:
    """Answers of each generation of the recorded CMA-ES searches, shape (12, items)."""
    found = []
    for search in dict.fromkeys(record.searches.tolist()):
        rows = np.flatnonzero(record.searches == search)
        if "random" not in str(search):
            ends = range(GENERATION, len(rows) + 1, GENERATION)
            found += [record.answers[rows[end - GENERATION : end]].astype(np.float64) for end in ends]
    return found


def raced(answers: Numbers, rules: Rules, parents: int = PARENTS) -> tuple[float, bool, bool]:
    """One generation's race: (share of the items, whether its best is told below the parents, whether it is stopped).

    Its best is whichever has the highest score over all items; where several tie, whichever of them fares best.
    """
    contest = Contest(rules, len(answers), parents)
    for start, end in contest.blocks():
        contest.see({c: answers[c, start:end] for c in contest.left})
    seen = [contest.seen(c) for c in range(len(answers))]
    dropped = {c: seen[c] for c, why in contest.stopped.items() if why == RACED_OUT}
    anchor = max(range(len(answers)), key=lambda c: seen[c])
    shifts = {n: answers[anchor].mean() - answers[anchor, :n].mean() for n in seen}
    told = below([contest.estimate(c) + shifts[seen[c]] for c in range(len(answers))], dropped)
    place = {c: i for i, c in enumerate(sorted(range(len(answers)), key=lambda c: -(told[c] or 0.0)))}
    scores = answers.mean(axis=1)
    best = [c for c in range(len(answers)) if scores[c] == scores.max()]
    return (
        sum(seen) / answers.size,
        all(place[c] >= parents for c in best),
        all(seen[c] < answers.shape[1] for c in best),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=10, help="orders of the items for each generation (default: 10)")
    args = parser.parse_args()
    found = generations(Record.load(RECORDED))
    print(f"{len(found)} generations of {GENERATION}, {ITEMS} items each, {args.repeats} orders")
    for name, rules in WAYS.items():
        random = np.random.default_rng(0)
        rows = []
        for answers in found:
            for _ in range(args.repeats):
                some = random.permutation(answers.shape[1])[:ITEMS]
                rows.append(raced(answers[:, some], rules(np.full(ITEMS, 1 / ITEMS))))
        share, lost, stopped = np.mean(np.array(rows, dtype=np.float64), axis=0)
        print(
            f"{name:38} {share:.3f} of the items: {1 / share:.2f} times fewer; the generation's best is told below the "
            f"parents in {lost:.1%}, stopped early in {stopped:.1%}", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
