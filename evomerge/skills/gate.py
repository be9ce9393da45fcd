"""The gate: from what the base reads in a prompt to the weight of each skill (PSEC, arXiv 2502.05932).

    z     = mean over the prompt's tokens of the base's last hidden state, adapters off
    alpha = W_2 SiLU(W_1 z + b_1) + b_2,        W_2 = 0 and b_2 = 1/2 before training

There a multilayer perceptron of the state gives one vector for all layers, of any sign; so it is here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Gate(nn.Module):
    """Weights of skills, of any sign.

    Args:
        hidden_size: Of the base.
        skills: k, how many skills.
        groups: L, how many parts of the model have weights of their own: 1, or the number of layers.
        width: Hidden units.
        generator: Draws the first layer's weights.
    """

    def __init__(
        self, hidden_size: int, skills: int, groups: int = 1, width: int = 64, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.skills, self.groups = skills, groups
        self.inner = nn.Linear(hidden_size, width)
        self.outer = nn.Linear(width, groups * skills)
        with torch.no_grad():
            self.inner.weight.normal_(0.0, hidden_size**-0.5, generator=generator)
            self.inner.bias.zero_()
            self.outer.weight.zero_()
            self.outer.bias.fill_(0.5)

    def forward(self, pooled: Tensor) -> Tensor:
        """alpha.

        Args:
            pooled: z, [batch, hidden size].

        Returns:
            [batch, groups, skills], float32.
        """
        out: Tensor = self.outer(nn.functional.silu(self.inner(pooled.float())))
        return out.view(len(pooled), self.groups, self.skills)


def mean_pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """z: the mean over a prompt's tokens.

    Args:
        hidden: [batch, tokens, hidden size].
        mask: 1 where a token is the prompt's, [batch, tokens].

    Returns:
        [batch, hidden size], float32.
    """
    weights = mask.to(torch.float32).unsqueeze(-1)
    return (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0)
