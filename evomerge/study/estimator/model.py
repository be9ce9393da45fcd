"""A multidimensional two-parameter logistic item-response model of who answered which items right.

    P(responder r answers item i) = sigmoid(a_i . θ_r − b_i)

(M. D. Reckase, Multidimensional Item Response Theory, Springer 2009, chapter 4; −b is its intercept.) Fitted by its
penalised likelihood: abilities θ have a standard normal prior, and discriminations a normal one whose mean is the Rasch
model (1 in the first dimension, 0 in the others), so that a few responders give no more than an order of abilities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

DIMENSIONS = 3
# Ridges: 1 / variance of the priors of discriminations and of difficulties around their mean.
DISCRIMINATION_RIDGE, DIFFICULTY_RIDGE = 3.0, 0.1
STEPS, TOLERANCE = 200, 1e-7


@dataclass(frozen=True)
class ItemResponse:
    """A fitted model.

    Attributes:
        abilities: Of the responders it was fitted to, shape (responders, dimensions).
        discriminations: a, shape (items, dimensions).
        difficulties: b, shape (items,).
    """

    abilities: Numbers
    discriminations: Numbers
    difficulties: Numbers

    @property
    def items(self) -> int:
        """Number of items."""
        return len(self.difficulties)

    def probabilities(self, abilities: Numbers) -> Numbers:
        """Of right answers, shape (len(abilities), items), for abilities of shape (responders, dimensions)."""
        return sigmoid(product(abilities, self.discriminations) - self.difficulties)


def sigmoid(x: Numbers) -> Numbers:
    """1 / (1 + exp(−x)), without overflow."""
    found: Numbers = 0.5 + 0.5 * np.tanh(0.5 * x)
    return found


def product(left: Numbers, right: Numbers) -> Numbers:
    """left @ right.T over the few columns of both.

    Not by BLAS, whose sums depend on the number of threads: a search that goes on elsewhere must find the same.
    """
    found: Numbers = np.zeros((len(left), len(right)))
    for x, y in zip(left.T, right.T, strict=True):
        found += x[:, None] * y
    return found


def fit(
    answers: Numbers,
    dimensions: int = DIMENSIONS,
    discrimination_ridge: float = DISCRIMINATION_RIDGE,
    difficulty_ridge: float = DIFFICULTY_RIDGE,
) -> ItemResponse:
    """Fit a model; the same answers give the same model.

    Args:
        answers: From 0 to 1, NaN where an item was not seen, shape (responders, items).

    Raises:
        ValueError: an answer is not between 0 and 1, or there is none at all.
    """
    from scipy.optimize import minimize

    answers = np.asarray(answers, dtype=np.float64)
    seen = ~np.isnan(answers)
    right = np.where(seen, answers, 0.0)
    if not seen.any() or not ((right >= 0) & (right <= 1)).all():
        raise ValueError("an item-response model needs answers from 0 to 1")
    responders, items = answers.shape
    rasch = np.zeros(dimensions)
    rasch[0] = 1.0
    ability = _logits(right.sum(axis=1), seen.sum(axis=1))
    difficulty = -_logits(right.sum(axis=0), seen.sum(axis=0))
    middle = float(difficulty.mean())
    # At zero the further dimensions have no slope.
    random = np.random.default_rng(0)
    start_abilities = 0.1 * random.standard_normal((responders, dimensions))
    start_abilities[:, 0] = ability - ability.mean()
    start_discriminations = rasch + 0.1 * random.standard_normal((items, dimensions)) * (rasch == 0)

    def parts(x: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        a, b = responders * dimensions, (responders + items) * dimensions
        return x[:a].reshape(responders, dimensions), x[a:b].reshape(items, dimensions), x[b:]

    def loss(x: Numbers) -> tuple[float, Numbers]:
        theta, a, b = parts(x)
        logits = product(theta, a) - b
        off, beside = a - rasch, b - middle
        value = float((seen * (np.logaddexp(0.0, logits) - right * logits)).sum())
        value += 0.5 * float((theta**2).sum())
        value += 0.5 * discrimination_ridge * float((off**2).sum()) + 0.5 * difficulty_ridge * float((beside**2).sum())
        wrong = seen * (sigmoid(logits) - right)
        slope_theta = np.stack([(wrong * column).sum(axis=1) for column in a.T], axis=1) + theta
        slope_a = np.stack([(wrong * column[:, None]).sum(axis=0) for column in theta.T], axis=1)
        slope_b = difficulty_ridge * beside - wrong.sum(axis=0)
        slopes = [slope_theta.ravel(), (slope_a + discrimination_ridge * off).ravel(), slope_b]
        return value, np.concatenate(slopes)

    start = np.concatenate([start_abilities.ravel(), start_discriminations.ravel(), difficulty])
    options = {"maxiter": STEPS, "ftol": TOLERANCE}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    return ItemResponse(*(part.copy() for part in parts(np.asarray(found.x, dtype=np.float64))))


def _logits(right: Numbers, seen: npt.NDArray[np.int_]) -> Numbers:
    share = (right + 0.5) / (seen + 1.0)
    found: Numbers = np.log(share / (1.0 - share))
    return found
