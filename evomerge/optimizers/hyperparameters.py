"""What a Gaussian process is fitted by: its kernel, its likelihood and the most likely hyperparameters.

By hand where a library has it (GPyTorch, against which it is tested): the driver of a search fits again and again while
workers wait, and a gradient that is worked out on paper takes a sixth of the time. One fit at a time: how many threads
SciPy's BLAS has is the process's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits
from torch import Tensor

Numbers = npt.NDArray[np.float64]

STEPS = 50
# Of standardised values: what no score is nearer to the truth than.
LEAST_ERROR = 0.1
GREATEST_ERROR = 100.0  # as good as not known
SHORTEST, LONGEST = 0.025, 1e4  # length scales; a parameter with the latter makes no difference
# Variance of what remains beside the scores' own errors: the least, that of the start, and as much as is not known.
LEAST_NOISE, NOISE, MOST_NOISE = 1e-4, 0.01, GREATEST_ERROR**2
# Priors, of logarithms: mean and standard deviation. That of length scales is for one parameter.
LENGTHS, REMAINS = (math.sqrt(2), math.sqrt(3)), (-4.0, 1.0)


@dataclass(frozen=True)
class Hyperparameters:
    """What a process is fitted by.

    Attributes:
        lengths: Length scale of each parameter, in shares of its range.
        mean: Of the standardised values.
        error: Standard deviation of what remains beside the scores' own errors, of standardised values.
    """

    lengths: Numbers
    mean: float
    error: float


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, whatever the process's threads: the last bits of a proposal must not depend on them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def standardised(values: Numbers, errors: Numbers) -> tuple[Tensor, Tensor]:
    """Values and variances of their errors, in units of the values' own standard deviation."""
    deviation = float(values.std()) or 1.0
    y = torch.as_tensor((values - values.mean()) / deviation)
    return y, torch.as_tensor(errors / deviation).nan_to_num(GREATEST_ERROR).clamp(LEAST_ERROR, GREATEST_ERROR) ** 2


def distances(x: Tensor, y: Tensor) -> Tensor:
    """The root of 5 times the distances of points that are divided by the length scales.

    Args:
        x: Shape (n, parameters).
        y: Shape (m, parameters).

    Returns:
        Shape (n, m).
    """
    squares = torch.addmm((y**2).sum(1), x, y.T, alpha=-2).add_((x**2).sum(1, keepdim=True))
    return squares.clamp_min_(0).mul_(5).sqrt_()


def matern(apart: Tensor) -> Tensor:
    """The Matérn 5/2 kernel of variance 1 (Rasmussen and Williams 2006, eq. 4.17) of `distances`."""
    return torch.addcmul(1 + apart, apart, apart, value=1 / 3).mul_(torch.exp(-apart))


def matern_slopes(apart: Tensor) -> Tensor:
    """Its derivatives by the squared distances."""
    return torch.exp(-apart).mul_(1 + apart).mul_(-5 / 6)


class Likelihood:
    """How unlikely hyperparameters are, given scores: a process of constant mean.

    Length scales have the prior of Hvarfner et al. (2024), which grows with the square root of the parameters' number:
    without it a process of many parameters takes every point for far from every other.

    Args:
        points: In the unit cube, shape (scores, parameters).
        values: Shape (scores,).
        errors: Standard error of each.
    """

    def __init__(self, points: Numbers, values: Numbers, errors: Numbers) -> None:
        self._x = torch.as_tensor(points, dtype=torch.float64)
        self._y, self._noise = standardised(values, errors)
        self._lengths = (LENGTHS[0] + 0.5 * math.log(points.shape[1]), LENGTHS[1])

    @property
    def start(self) -> Numbers:
        """Where to begin, shape (parameters + 2,): the most probable length scales before there are scores."""
        middle, spread = self._lengths
        return np.array([middle - spread**2] * self._x.shape[1] + [0.0, math.log(NOISE)])

    @property
    def bounds(self) -> list[tuple[float | None, float | None]]:
        """Of each: a line search that steps far must not come to where exponentials overflow."""
        lengths = [(math.log(SHORTEST), math.log(LONGEST))] * self._x.shape[1]
        return [*lengths, (None, None), (math.log(LEAST_NOISE), math.log(MOST_NOISE))]

    def __call__(self, flat: Numbers) -> tuple[float, Numbers]:
        """The negative logarithm of the posterior density for each score, but for a constant, and its gradient.

        Rasmussen and Williams (2006), eq. 5.8 and 5.9.

        Args:
            flat: Logarithms of the length scales, the mean, and the logarithm of what remains (a variance).
        """
        lengths, mean, remains = flat[:-2], flat[-2], flat[-1]
        z = self._x * torch.as_tensor(np.exp(-lengths))
        apart = distances(z, z)
        kernel = matern(apart)
        kernel.diagonal().add_(self._noise + math.exp(remains))
        factor = torch.linalg.cholesky(kernel)
        residuals = (self._y - mean)[:, None]
        weighed = torch.cholesky_solve(residuals, factor)
        found = 0.5 * float((residuals * weighed).sum()) + float(factor.diagonal().log().sum())
        # Twice the derivatives by the covariances, and by the squared distances.
        by_kernel = torch.cholesky_inverse(factor) - weighed @ weighed.T
        by_squares = matern_slopes(apart).mul_(by_kernel)
        by_lengths = -2 * (by_squares.sum(1) @ z**2 - ((by_squares @ z) * z).sum(0))
        by_remains = 0.5 * float(by_kernel.diagonal().sum()) * math.exp(remains)
        surprise, by_prior = _log_normal(lengths, *self._lengths)
        more, by_more = _log_normal(remains, *REMAINS)
        grad = np.concatenate([by_lengths.numpy() + by_prior, [-float(weighed.sum()), by_remains + by_more]])
        return (found + float(surprise.sum()) + float(more)) / len(self._y), grad / len(self._y)


def _log_normal(logarithms: Numbers, mean: float, deviation: float) -> tuple[Numbers, Numbers]:
    """Negative logarithms of log-normal densities but for a constant, and the derivatives by the values' logarithms."""
    apart = (logarithms - mean) / deviation
    return logarithms + 0.5 * apart**2, 1 + apart / deviation


@one_thread()
def fit(points: Numbers, values: Numbers, errors: Numbers) -> Hyperparameters:
    """The most likely hyperparameters (maximum a posteriori).

    Args:
        points: In the unit cube, shape (scores, parameters).
        values: Shape (scores,).
        errors: Standard error of each.
    """
    likelihood = Likelihood(points, values, errors)
    # SciPy's BLAS has threads of its own, which wait busily for sums of a hundred numbers.
    with threadpool_limits(1, "blas"):
        found = minimize(
            likelihood, likelihood.start, jac=True, method="L-BFGS-B", bounds=likelihood.bounds,
            options={"maxiter": STEPS},
        ).x  # fmt: skip
    return Hyperparameters(np.exp(found[:-2]), float(found[-2]), math.exp(found[-1] / 2))
