"""How often 95 % intervals hold the true value, by kind of result and number of items: what chose those of the reports.

    python benchmarks/coverage.py            about four minutes on one core

Each figure is the share of 1,000 samples whose interval holds the true mean (0.95 is right; 0.014 is twice its
standard error). Scores: normal, percentiles and BCa of 1,000 resamples. Differences of right and wrong answers: normal,
BCa, and Tango's score interval, with the size of McNemar's exact test where there is no difference.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import binomtest

from evomerge.comparison import tango

SAMPLES, RESAMPLES = 1000, 1000
Z = ndtri(0.975)
Draw = Callable[[np.random.Generator, int], np.ndarray]

# Name: draws of n results, and their true mean.
SCORES: dict[str, tuple[Draw, float]] = {
    "losses: lognormal(0, 1)": (lambda g, n: g.lognormal(0, 1, n), float(np.exp(0.5))),
    "ROUGE-like: beta(.3, 1.5)": (lambda g, n: g.beta(0.3, 1.5, n), 0.3 / 1.8),
    "F1: 80 % zeros, else uniform": (lambda g, n: np.where(g.random(n) < 0.8, 0.0, g.random(n)), 0.1),
    "differences of lognormals": (lambda g, n: g.lognormal(0, 1, n) - 0.9 * g.lognormal(0, 1, n), 0.1 * np.exp(0.5)),
}
# Shares of items gained and lost.
PAIRS = [(0.01, 0.01), (0.03, 0.01), (0.05, 0.0), (0.1, 0.1), (0.1, 0.02), (0.3, 0.1)]


def intervals(x: np.ndarray, means: np.ndarray) -> list[tuple[float, float]]:
    """Normal, percentile and BCa intervals of a mean, the resamples' means given."""
    mean, error = x.mean(), x.std(ddof=1) / len(x) ** 0.5
    d = x - mean
    skew = (d**3).sum() / (6 * (d @ d) ** 1.5) if d.any() else 0.0
    below = np.clip(((means < mean).mean() + (means <= mean).mean()) / 2, 0.5 / len(means), 1 - 0.5 / len(means))
    at = ndtri(below) + np.array([-Z, Z])
    bca = np.quantile(means, ndtr(ndtri(below) + at / (1 - skew * at)))
    return [(mean - Z * error, mean + Z * error), tuple(np.quantile(means, [0.025, 0.975])), tuple(bca)]


def scores(seed: int) -> None:
    """Print the coverage of scores and differences that are no hits."""
    print("| results | items | normal | percentile | BCa |\n|---|---|---|---|---|")
    for name, (draw, true) in SCORES.items():
        for n in (50, 200, 1000):
            random, held = np.random.default_rng([seed, n]), np.zeros(3)
            for _ in range(SAMPLES):
                x = draw(random, n)
                means = x[random.integers(0, n, (RESAMPLES, n), np.int32)].mean(axis=1)
                held += [low <= true <= high for low, high in intervals(x, means)]
            print(f"| {name} | {n:,} | " + " | ".join(f"{h:.3f}" for h in held / SAMPLES) + " |", flush=True)


def pairs(seed: int) -> None:
    """Print the coverage of paired differences of hits."""
    print("\n| gained / lost | items | normal | BCa | Tango | McNemar rejects |\n|---|---|---|---|---|---|")
    for gain, loss in PAIRS:
        for n in (50, 200, 1000):
            random, held, rejected = np.random.default_rng([seed, n]), np.zeros(3), 0
            for counts in random.multinomial(n, [gain, loss, 1 - gain - loss], SAMPLES):
                x = np.repeat([1.0, -1.0, 0.0], counts)
                drawn = random.multinomial(n, counts / n, RESAMPLES)
                normal, _, bca = intervals(x, (drawn[:, 0] - drawn[:, 1]) / n)
                found = [normal, bca, tango(int(counts[0]), int(counts[1]), n)]
                held += [low <= gain - loss <= high for low, high in found]
                tested = int(counts[0] + counts[1])
                rejected += tested > 0 and binomtest(int(counts[0]), tested).pvalue <= 0.05
            size = f"{rejected / SAMPLES:.3f}" if gain == loss else ""
            figures = " | ".join(f"{h:.3f}" for h in held / SAMPLES)
            print(f"| {gain:g} / {loss:g} | {n:,} | {figures} | {size} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    scores(seed)
    pairs(seed)
