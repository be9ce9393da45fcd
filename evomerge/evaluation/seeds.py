"""One seed for everything an evaluation may draw from."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators, so that sampling draws the same for every candidate."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
