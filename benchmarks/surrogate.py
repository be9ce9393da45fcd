"""A surrogate of a merge landscape at item level: parameters of a merge -> the probability that each item is right.

Ability and items as in a multidimensional item response model (two-parameter logistic), the ability of a merge being a
small network of its parameters: logit p_i(x) = a_i . f(x) + b_i. Fitted to recorded answers of real merges.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
DIMENSIONS, HIDDEN, STEPS, BATCH, DECAY, RATE = 24, 96, 2500, 128, 1e-2, 3e-3


@dataclass(frozen=True)
class Record:
    """Answers of real merges.

    Attributes:
        names: Of the parameters.
        params: Shape (merges, parameters).
        answers: Whether each item was answered right, shape (merges, items).
        searches: Which search each merge is from.
    """

    names: tuple[str, ...]
    params: Numbers
    answers: npt.NDArray[np.bool_]
    searches: npt.NDArray[np.str_]

    def save(self, path: Path, **more: Any) -> None:
        """Write it, bit by bit."""
        np.savez_compressed(
            path, names=np.array(self.names), params=self.params.astype(np.float32),
            answers=np.packbits(self.answers, axis=1), items=self.answers.shape[1], searches=self.searches, **more,
        )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read it."""
        with np.load(path) as data:
            answers = np.unpackbits(data["answers"], axis=1, count=int(data["items"])).astype(bool)
            return cls(tuple(data["names"].tolist()), data["params"].astype(np.float64), answers, data["searches"])


class Surrogate:
    """Probabilities by item; see the module. Weights by name, as `fit` makes them."""

    def __init__(self, weights: dict[str, npt.NDArray[np.float32]]) -> None:
        self.weights = weights

    @property
    def items(self) -> int:
        """Number of items."""
        return int(self.weights["b"].shape[0])

    def probabilities(self, params: Numbers) -> Numbers:
        """Shape (merges, items)."""
        w = self.weights
        hidden = np.tanh(np.atleast_2d(params) @ w["w1"].T + w["b1"])
        ability = np.tanh(hidden @ w["w2"].T + w["b2"]) @ w["w3"].T + w["b3"]
        found: Numbers = 1.0 / (1.0 + np.exp(-(ability @ w["a"] + w["b"])))
        return found

    def answers(self, params: Numbers) -> npt.NDArray[np.float32]:
        """One merge's answers, the same whenever it is asked, shape (items,)."""
        seed = hashlib.sha256(np.round(params, 9).tobytes()).digest()
        drawn = np.random.default_rng(list(seed)).random(self.items)
        return (drawn < self.probabilities(params)[0]).astype(np.float32)


def fit(record: Record, rows: npt.NDArray[np.bool_], seed: int = 0) -> Surrogate:
    """Fit it to some of the recorded merges."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    x = torch.tensor(record.params[rows], dtype=torch.float32)
    y = torch.tensor(record.answers[rows], dtype=torch.float32)
    network = torch.nn.Sequential(
        torch.nn.Linear(x.shape[1], HIDDEN), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.Tanh(),
        torch.nn.Linear(HIDDEN, DIMENSIONS),
    )  # fmt: skip
    a = torch.nn.Parameter(0.3 * torch.randn(DIMENSIONS, y.shape[1]))
    b = torch.nn.Parameter(torch.zeros(y.shape[1]))
    optimizer = torch.optim.AdamW([*network.parameters(), a, b], lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        some = torch.randint(0, len(x), (BATCH,))
        logits = network(x[some]) @ a + b
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    layers = [(network[i].weight, network[i].bias) for i in (0, 2, 4)]
    named = {f"{kind}{i}": t for i, pair in enumerate(layers, 1) for kind, t in zip("wb", pair, strict=True)}
    return Surrogate({n: t.detach().numpy() for n, t in {**named, "a": a, "b": b}.items()})


def held_out_error(record: Record, share: float = 0.15) -> dict[str, float]:
    """Fit without a share of the merges, and compare with those: figures that say how far to trust a replay."""
    held = np.random.default_rng(0).random(len(record.params)) < share
    found = fit(record, ~held).probabilities(record.params[held])
    right = record.answers[held]
    scores, predicted = right.mean(axis=1), found.mean(axis=1)
    pairs = np.random.default_rng(1).integers(held.sum(), size=(2, 500))
    one, other = found[pairs[0]], found[pairs[1]]
    return {
        "merges": float(held.sum()),
        "items right": float(((found > 0.5) == right).mean()),
        "score rmse": float(np.sqrt(np.mean((predicted - scores) ** 2))),
        "score correlation": float(np.corrcoef(predicted, scores)[0, 1]),
        "pairs differ on": float((right[pairs[0]] != right[pairs[1]]).mean()),
        "surrogate's pairs differ on": float((one * (1 - other) + other * (1 - one)).mean()),
    }
