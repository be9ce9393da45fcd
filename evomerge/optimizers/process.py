"""A Gaussian process on the unit cube, and functions drawn from it with their maxima (Wilson et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from evomerge.optimizers.hyperparameters import (
    Hyperparameters,
    Numbers,
    distances,
    matern,
    matern_slopes,
    one_thread,
    standardised,
)

# Random Fourier features of a function drawn from the prior.
FEATURES = 512
# A function's maximum is looked for at the best scores, around the very best of them and anywhere, and climbed to from
# the highest of these places.
TOP, VERY_BEST, AROUND, ANYWHERE, CLIMBED = 32, 4, 64, 64, 2
SPREAD = 0.1  # of those around, as a share of every range
# Steps of Adam: how many, the first and the last as shares of every range, and how long it remembers.
STEPS, FIRST_STEP, LAST_STEP, BETAS = 20, 0.1, 0.001, (0.7, 0.9)


class Functions:
    """Functions drawn from a process, or its mean, of standardised values less the constant mean of the prior.

    A function is drawn as one of the prior, by random Fourier features, to which is added what moves it to the scores
    (Matheron's rule, Wilson et al. 2020, eq. 10): the mean is what has nothing of the prior.

    Args:
        scaled: Points of the scores divided by the length scales, shape (scores, parameters).
        residuals: Standardised scores less that mean, shape (scores,).
        noise: Variance of each score's error.
        factor: Cholesky's of the scores' covariances.
        lengths: Length scales, shape (parameters,).
        means: Of each function, whether it is the mean.
    """

    def __init__(
        self, scaled: Tensor, residuals: Tensor, noise: Tensor, factor: Tensor, lengths: Tensor, means: Sequence[bool],
        random: np.random.Generator,
    ) -> None:  # fmt: skip
        kind = scaled.dtype

        def normal(*shape: int) -> Tensor:
            return torch.as_tensor(random.standard_normal(shape, dtype=np.float32)).to(kind)

        self._scaled, self._lengths = scaled, lengths
        drawn = 1.0 - torch.as_tensor(means, dtype=kind)[:, None]
        # The kernel's spectrum is Student's t with 5 degrees of freedom.
        heavy = torch.as_tensor(np.sqrt(5 / random.chisquare(5, (FEATURES, 1)))).to(kind)
        self._frequencies = normal(FEATURES, scaled.shape[1]) * heavy
        self._phases = torch.as_tensor(random.uniform(0, 2 * math.pi, FEATURES)).to(kind)
        self._weights = normal(len(means), FEATURES) * drawn * math.sqrt(2 / FEATURES)
        errors = normal(len(means), len(residuals)) * drawn * noise.sqrt()
        left = residuals - self._weights @ torch.cos(self._turned(scaled)).T - errors
        self._updates = torch.cholesky_solve(left.T, factor).T.contiguous()

    def __call__(self, points: Tensor) -> Tensor:
        """Values of all functions at the same points of shape (points, parameters): shape (functions, points)."""
        x = points / self._lengths
        return self._weights @ torch.cos(self._turned(x)).T + self._updates @ matern(distances(x, self._scaled)).T

    def each(self, points: Tensor) -> Tensor:
        """Values of each function at points of its own, shape (functions, points, parameters): (functions, points)."""
        n, many, size = points.shape
        x = (points / self._lengths).reshape(-1, size)
        prior = torch.cos(self._turned(x)).reshape(n, many, -1) @ self._weights[:, :, None]
        moved = matern(distances(x, self._scaled)).reshape(n, many, -1) @ self._updates[:, :, None]
        return (prior + moved)[:, :, 0]

    def gradients(self, points: Tensor) -> Tensor:
        """The same of gradients, of the points' own shape."""
        n, many, size = points.shape
        x = (points / self._lengths).reshape(-1, size)
        sines = torch.sin(self._turned(x)).reshape(n, many, -1).mul_(self._weights[:, None])
        pulls = matern_slopes(distances(x, self._scaled)).reshape(n, many, -1).mul_(2 * self._updates[:, None])
        pulls = pulls.reshape(len(x), -1)
        slopes = x * pulls.sum(1, keepdim=True) - pulls @ self._scaled - sines.reshape(len(x), -1) @ self._frequencies
        return (slopes / self._lengths).reshape(points.shape)

    def climbed(self, starts: Tensor) -> Tensor:
        """Where functions are higher than at starts of shape (functions, starts, parameters), in the unit cube.

        By Adam (Kingma and Ba 2015), for each function by itself, and not to the very top: with more steps, or by
        L-BFGS-B, functions come higher, and searches to nothing better.
        """
        places = starts.clone()
        adam = torch.optim.Adam([places], betas=BETAS, maximize=True, fused=True)
        for step in np.geomspace(FIRST_STEP, LAST_STEP, STEPS):
            adam.param_groups[0]["lr"] = float(step)
            places.grad = self.gradients(places)
            adam.step()
            places.clamp_(0, 1)
        return places

    def _turned(self, x: Tensor) -> Tensor:
        """What features are cosines of, shape (points, features)."""
        return torch.addmm(self._phases, x, self._frequencies.T)


class Process:
    """What is known of a function from some scores of it.

    Args:
        points: In the unit cube, shape (scores, parameters).
        values: Shape (scores,).
        errors: Standard error of each.
        kind: Of the numbers that it reckons with: single precision, against errors of a tenth and more.
    """

    @one_thread()
    def __init__(
        self, points: Numbers, values: Numbers, errors: Numbers, hyperparameters: Hyperparameters,
        kind: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        y, noise = standardised(values, errors)
        noise = noise + hyperparameters.error**2
        try:
            self._scaled, kernel, self._factor = _factored(points, hyperparameters.lengths, noise, kind)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # public, but not in what torch.linalg exports
            # Places many length scales from 0, some of them alike: no digits are left for how far these are apart.
            self._scaled, kernel, self._factor = _factored(points, hyperparameters.lengths, noise, torch.float64)
        self._points, self._lengths, self._noise, self._residuals = (
            torch.as_tensor(t).to(kernel) for t in (points, hyperparameters.lengths, noise, y - hyperparameters.mean)
        )
        # The mean at the scores' own places, from the best of which maxima are looked for.
        self._expected = kernel @ torch.cholesky_solve(self._residuals[:, None], self._factor)[:, 0]

    def functions(self, means: Sequence[bool], random: np.random.Generator) -> Functions:
        """Functions drawn from the process, or its mean where that is asked for."""
        return Functions(self._scaled, self._residuals, self._noise, self._factor, self._lengths, means, random)

    @one_thread()
    def maxima(self, means: Sequence[bool], random: np.random.Generator) -> Numbers:
        """Where functions drawn from the process, or its mean, have their maxima, shape (functions, parameters)."""
        functions = self.functions(means, random)
        best = self._points[self._expected.topk(min(TOP, len(self._expected))).indices]
        size = best.shape[1]
        middles = best[torch.as_tensor(random.integers(min(VERY_BEST, len(best)), size=AROUND))]
        near = middles + SPREAD * torch.as_tensor(random.standard_normal((AROUND, size))).to(best)
        pool = torch.cat([best, near.clamp(0, 1), torch.as_tensor(random.uniform(size=(ANYWHERE, size))).to(best)])
        climbed = functions.climbed(pool[functions(pool).topk(CLIMBED, dim=1).indices])
        highest = functions.each(climbed).argmax(dim=1)
        chosen: Numbers = climbed[torch.arange(len(means)), highest].double().numpy()
        return chosen


def _factored(points: Numbers, lengths: Numbers, noise: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled points, their covariances, and Cholesky's factor of these with the noise.

    Raises:
        torch.linalg.LinAlgError: they have no factor by numbers of this kind.
    """
    scaled = torch.as_tensor(points).to(kind) / torch.as_tensor(lengths).to(kind)
    kernel = matern(distances(scaled, scaled))
    return scaled, kernel, torch.linalg.cholesky(kernel + torch.diag(noise.to(kind)))
