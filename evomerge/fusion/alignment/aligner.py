"""What every aligner offers, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from evomerge.fusion.tokenized import Tokenized

Array = np.ndarray[Any, Any]
NONE = -1


@dataclass(frozen=True)
class Alignment:
    """Of a document as the target and as a source reads it; all arrays of the target's length.

    Attributes:
        first, last: The source's tokens that are matched with a target's token, from the first to the last of them
            (matches never cross, so that they lie side by side); -1 where there are none. int32.
        rows: The source's position whose prediction of what comes next stands for the target's; -1 where none does:
            such positions learn from the text alone. int32.
    """

    first: Array
    last: Array
    rows: Array


class Aligner(Protocol):
    """Aligns the tokens of two models over one document."""

    def align(self, target: Tokenized, source: Tokenized) -> Alignment:
        """Match the target's tokens with the source's."""
