"""Simulated responders whose abilities, and items whose parameters, are known."""

import numpy as np


def simulated(seed, responders=60, items=300, dimensions=2, spread=1.0):
    """(answers, probabilities, abilities, discriminations, difficulties)."""
    random = np.random.default_rng(seed)
    abilities = random.normal(0, spread, (responders, dimensions))
    discriminations = random.normal(0, 0.6, (items, dimensions))
    discriminations[:, 0] += 1.2
    difficulties = random.normal(0.3, 1.3, items)
    p = 1 / (1 + np.exp(difficulties - abilities @ discriminations.T))
    return (random.random(p.shape) < p) * 1.0, p, abilities, discriminations, difficulties
