"""Multi-SLERP: the mean direction of several models or task vectors, with their mean norm (mergekit's method).

https://goddard.blog/posts/multislerp-wow-what-a-cool-idea: unit vectors u_i are projected into the tangent space at
their weighted mean m / |m|, m = sum w_i u_i, added up there, and taken back to the sphere. Projected orthogonally, they
add up to m - |m| m / |m| = 0, whatever the weights: what remains is the direction of m. (The mean on the sphere itself
is karcher.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from evomerge.errors import CandidateError
from evomerge.merging.group import Group
from evomerge.merging.methods.weights import check_weights, finite, products, weighted

# A mean of unit vectors shorter than this has no direction. (mergekit: 1e-8, which a float64 product cannot resolve.)
NO_DIRECTION = 1e-7


def multislerp(group: Group, *, weight: Sequence[float], normalize_weights: bool) -> Tensor:
    """m / |m| * sum w_i |v_i|, m = sum w_i v_i / |v_i|; v = W, or W_0 + with v = W - W_0. One source stays as it is.

    Args:
        normalize_weights: Divide the weights by their sum.

    Raises:
        CandidateError: weights to normalise that sum to 0; three or more unit vectors that cancel out.
    """
    if group.n == 1:
        return group.combine([1.0])
    total = check_weights("multislerp", weight, "normalize_weights") if normalize_weights else 1.0
    weights = [w / total for w in weight]
    used = [i for i, w in enumerate(weights) if w != 0.0]
    gram = products(group)
    if not finite([[gram[i][j] for j in used] for i in used]):
        return weighted(group, weights)  # so that it shows
    norms = [math.sqrt(gram[i][i]) if i in used else 0.0 for i in range(group.n)]
    shares = [w / norm if norm else 0.0 for w, norm in zip(weights, norms, strict=True)]
    square = math.fsum(shares[i] * shares[j] * gram[i][j] for i in used for j in used)
    if not any(shares):
        return weighted(group, [0.0] * group.n)
    if square < NO_DIRECTION**2:
        if len(used) == 2:
            return weighted(group, weights)
        raise CandidateError(
            f"multislerp: with the weights {list(weight)} the sources' directions cancel out, so that there is no "
            "mean; set other weights"
        )
    scale = math.fsum(w * norm for w, norm in zip(weights, norms, strict=True)) / math.sqrt(square)
    return weighted(group, [share * scale for share in shares])
