"""Where a search begins that knows the best of another: WS-CMA-ES (Nomura et al. 2021, arXiv 2012.06932)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

# Standard deviation of the prior around each good candidate, as a share of every range (the paper's alpha).
ALPHA = 0.1


def promising(points: Sequence[Sequence[float] | Numbers]) -> tuple[Numbers, float, Numbers]:
    """The normal distribution nearest to a mixture of equal ones around each of the best candidates (eq. 6).

    Args:
        points: The best of another search, in the unit cube, shape (candidates, parameters).

    Returns:
        Mean, step size, and covariance of determinant 1, shape (parameters, parameters).
    """
    found = np.asarray(points, dtype=np.float64)
    centred = found - found.mean(axis=0)
    covariance = ALPHA**2 * np.eye(found.shape[1]) + centred.T @ centred / len(found)
    # By its logarithm: the determinant itself is nothing from some hundred parameters on.
    sigma = float(np.exp(np.linalg.slogdet(covariance)[1] / (2 * found.shape[1])))
    return found.mean(axis=0), sigma, covariance / sigma**2
