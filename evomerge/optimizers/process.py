"""A Gaussian process on the unit cube, by GPyTorch, and functions drawn from it (Wilson et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gpytorch  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor

Numbers = npt.NDArray[np.float64]

# Random Fourier features of a function drawn from the prior.
FEATURES = 1024
# A function's maximum is looked for at the best scores, around the very best of them and anywhere, and climbed to from
# the highest of these places.
TOP, VERY_BEST, AROUND, ANYWHERE, CLIMBED = 32, 4, 64, 64, 2
SPREAD = 0.1  # of those around, as a share of every range
STEPS = 50
# Of standardised values: what no score is nearer to the truth than.
LEAST_ERROR = 0.1
GREATEST_ERROR = 100.0  # as good as not known
SHORTEST = 0.025  # length scale


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


class _Model(gpytorch.models.ExactGP):  # type: ignore[misc]
    """Constant mean, and a Matérn 5/2 kernel of variance 1 with a length scale for each parameter.

    Length scales have the prior of Hvarfner et al. (2024), which grows with the square root of the parameters' number:
    without it a process of many parameters takes every point for far from every other.
    """

    def __init__(self, x: Tensor, y: Tensor, likelihood: Any) -> None:
        super().__init__(x, y, likelihood)
        size = x.shape[1]
        prior = gpytorch.priors.LogNormalPrior(math.sqrt(2) + 0.5 * math.log(size), math.sqrt(3))
        self.mean_module = gpytorch.means.ConstantMean()
        least = gpytorch.constraints.GreaterThan(SHORTEST)
        self.covar_module = gpytorch.kernels.MaternKernel(
            nu=2.5, ard_num_dims=size, lengthscale_prior=prior, lengthscale_constraint=least
        )
        self.covar_module.lengthscale = prior.mode

    def forward(self, x: Tensor) -> Any:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def _standardised(values: Numbers, errors: Numbers) -> tuple[Tensor, Tensor]:
    """Values and variances of their errors, in units of the values' own standard deviation."""
    deviation = float(values.std()) or 1.0
    y = torch.as_tensor((values - values.mean()) / deviation)
    return y, torch.as_tensor(errors / deviation).nan_to_num(GREATEST_ERROR).clamp(LEAST_ERROR, GREATEST_ERROR) ** 2


@one_thread()
def fit(points: Numbers, values: Numbers, errors: Numbers) -> Hyperparameters:
    """The most likely hyperparameters (maximum a posteriori).

    Args:
        points: In the unit cube, shape (scores, parameters).
        values: Shape (scores,).
        errors: Standard error of each.
    """
    x = torch.as_tensor(points, dtype=torch.float64)
    y, noise = _standardised(values, errors)
    likelihood = gpytorch.likelihoods.FixedNoiseGaussianLikelihood(noise, learn_additional_noise=True).double()
    model = _Model(x, y, likelihood).double()
    likelihood.second_noise = 0.01
    likelihood.second_noise_covar.register_prior(
        "noise_prior", gpytorch.priors.LogNormalPrior(-4.0, 1.0), lambda m: m.noise
    )
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]

    def loss(flat: Numbers) -> tuple[float, Numbers]:
        torch.nn.utils.vector_to_parameters(torch.as_tensor(flat), parameters)
        for p in parameters:
            p.grad = None
        value = -objective(model(x), y)
        value.backward()
        grad = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])
        return float(value.detach()), grad.numpy().astype(np.float64)

    start = torch.nn.utils.parameters_to_vector(parameters).detach().numpy().copy()
    with gpytorch.settings.max_cholesky_size(100_000):
        found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
    torch.nn.utils.vector_to_parameters(torch.as_tensor(found.x), parameters)
    with torch.no_grad():
        return Hyperparameters(
            model.covar_module.lengthscale[0].numpy().copy(), float(model.mean_module.constant),
            math.sqrt(float(likelihood.second_noise)),
        )  # fmt: skip


class Process:
    """What is known of a function from some scores of it.

    Args:
        points: In the unit cube, shape (scores, parameters).
        values: Shape (scores,).
        errors: Standard error of each.
    """

    @one_thread()
    def __init__(self, points: Numbers, values: Numbers, errors: Numbers, hyperparameters: Hyperparameters) -> None:
        self._lengths = torch.as_tensor(hyperparameters.lengths)
        self._x = torch.as_tensor(points, dtype=torch.float64) / self._lengths
        y, noise = _standardised(values, errors)
        self._y = y - hyperparameters.mean
        self._noise = noise + hyperparameters.error**2
        kernel = self._kernel(self._x)
        self._factor = torch.linalg.cholesky(kernel + torch.diag(self._noise))
        # The mean at the scores' own places, from the best of which maxima are looked for.
        self._expected = kernel @ torch.cholesky_solve(self._y[:, None], self._factor)[:, 0]

    def functions(self, means: Sequence[bool], random: np.random.Generator) -> Callable[[Tensor], Tensor]:
        """Functions drawn from the process, or its mean, of standardised values.

        A function is drawn as one of the prior, by random Fourier features, to which is added what moves it to the
        scores (Matheron's rule, Wilson et al. 2020, eq. 10): the mean is what has nothing of the prior.

        Args:
            means: Of each function, whether it is the mean.

        Returns:
            Of points of shape (points, parameters), or (n, points, parameters) with other points for each, values of
            shape (n, points).
        """

        def normal(*shape: int) -> Tensor:
            return torch.as_tensor(random.standard_normal(shape))

        n = len(means)
        drawn = 1.0 - torch.as_tensor(means, dtype=torch.float64)[:, None]
        # The kernel's spectrum is Student's t with 5 degrees of freedom.
        heavy = torch.as_tensor(np.sqrt(5 / random.chisquare(5, (FEATURES, 1))))
        frequencies = normal(FEATURES, self._x.shape[1]) * heavy
        phases = torch.as_tensor(random.uniform(0, 2 * math.pi, FEATURES))
        weights = normal(n, FEATURES) * drawn * math.sqrt(2 / FEATURES)
        errors = normal(n, len(self._y)) * drawn * self._noise.sqrt()

        def prior(x: Tensor) -> Tensor:
            return torch.cos(x @ frequencies.T + phases)

        residuals = self._y - weights @ prior(self._x).T - errors
        updates = torch.cholesky_solve(residuals.T, self._factor).T

        def values(points: Tensor) -> Tensor:
            x = points / self._lengths
            if x.dim() == 2:
                return weights @ prior(x).T + updates @ self._kernel(x).T
            return torch.einsum("fm,fpm->fp", weights, prior(x)) + torch.einsum("fn,fpn->fp", updates, self._kernel(x))

        return values

    @one_thread()
    def maxima(self, means: Sequence[bool], random: np.random.Generator) -> Numbers:
        """Where functions drawn from the process, or its mean, have their maxima, shape (functions, parameters)."""
        n, functions = len(means), self.functions(means, random)
        best = (self._x * self._lengths)[self._expected.topk(min(TOP, len(self._expected))).indices]
        size = best.shape[1]
        middles = best[torch.as_tensor(random.integers(min(VERY_BEST, len(best)), size=AROUND))]
        near = middles + SPREAD * torch.as_tensor(random.standard_normal((AROUND, size)))
        pool = torch.cat([best, near.clamp(0, 1), torch.as_tensor(random.uniform(size=(ANYWHERE, size)))])
        with torch.no_grad():
            starts = pool[functions(pool).topk(CLIMBED, dim=1).indices]

        def loss(flat: Numbers) -> tuple[float, Numbers]:
            x = torch.as_tensor(flat.reshape(starts.shape)).requires_grad_(True)
            value = -functions(x).sum()
            (grad,) = torch.autograd.grad(value, x)
            return float(value.detach()), grad.numpy().reshape(-1)

        # All at once: the sum has its minimum where each has its own.
        bounds = [(0.0, 1.0)] * starts.numel()
        found = minimize(
            loss, starts.numpy().reshape(-1), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": STEPS}
        )
        climbed = torch.as_tensor(found.x.reshape(starts.shape))
        with torch.no_grad():
            highest = functions(climbed).argmax(dim=1)
        chosen: Numbers = climbed[torch.arange(n), highest].numpy()
        return chosen

    def _kernel(self, x: Tensor) -> Tensor:
        """Covariances of scaled points with those of the scores."""
        squares = (x**2).sum(-1, keepdim=True) + (self._x**2).sum(-1) - 2 * x @ self._x.T
        # Above 0, where the root has no derivative.
        apart = (5 * squares.clamp_min(1e-15)).sqrt()
        return (1 + apart + apart**2 / 3) * torch.exp(-apart)
