"""Names of a checkpoint's tensors: which layer each belongs to, and what it is called in another layer.

No hand-written family files: the layers are the run of numbered modules as long as the configuration says
(`model.layers.N.`, `transformer.h.N.`, `gpt_neox.layers.N.`, `h.N.`, ...).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from evomerge.errors import SourceError

# The first number in a name is the layer's; later ones (experts) belong to what is inside the layer.
_NUMBERED = re.compile(r"(?P<prefix>(?:[^.]+\.)*?)(?P<index>\d+)\.(?P<rest>.+)")
_BEFORE = re.compile(r"embed(?!_out)|wte|wpe", re.IGNORECASE)
_AFTER = re.compile(r"norm|ln_f|head|embed_out|output|score|classifier", re.IGNORECASE)

Place = Literal["before", "layer", "after"]


@dataclass(frozen=True)
class Layout:
    """Where the layers of a checkpoint are.

    Attributes:
        prefix: What stands before the layer's number ("model.layers.").
        num_layers: How many there are.
    """

    prefix: str
    num_layers: int

    @classmethod
    def of(cls, names: Iterable[str], num_layers: int, model: str = "model") -> Layout:
        """Find the layers among tensor names; `model` is what messages call it.

        Raises:
            SourceError: no run of exactly `num_layers` numbered modules, or the headers and the configuration disagree.
        """
        found: dict[str, dict[int, int]] = {}
        for name in names:
            match = _NUMBERED.fullmatch(name)
            if match:
                counts = found.setdefault(match["prefix"], {})
                counts[int(match["index"])] = counts.get(int(match["index"]), 0) + 1
        runs = {p: sum(c.values()) for p, c in found.items() if sorted(c) == list(range(num_layers))}
        if not runs:
            seen = ", ".join(f"{p}N with {len(c)}" for p, c in found.items()) or "no numbered modules"
            raise SourceError(f"{model}: its configuration has {num_layers} layers, its tensors have {seen}")
        # A composite model has several stacks; the language model's is the one named so, else the larger.
        return cls(max(runs, key=lambda p: ("vision" not in p and "visual" not in p, runs[p])), num_layers)

    def layer(self, name: str) -> int | None:
        """The layer that a tensor belongs to, or None."""
        if not name.startswith(self.prefix):
            return None
        index, dot, _ = name[len(self.prefix) :].partition(".")
        return int(index) if dot and index.isdigit() else None

    def bare(self, name: str) -> str:
        """What a layer's tensor is called inside its layer ("mlp.up_proj.weight")."""
        return name[len(self.prefix) :].partition(".")[2]

    def named(self, bare: str, layer: int) -> str:
        """The name in the checkpoint of what is called `bare` inside a layer."""
        return f"{self.prefix}{layer}.{bare}"

    def moved(self, name: str, layer: int) -> str:
        """The name of a layer's tensor in another layer (other names are returned as they are)."""
        return name if self.layer(name) is None else self.named(self.bare(name), layer)

    def place(self, name: str) -> Place:
        """Whether a tensor is used before the layers (embeddings), in one, or after them (final norm, head)."""
        if self.layer(name) is not None:
            return "layer"
        if _BEFORE.search(name):
            return "before"
        return "after" if _AFTER.search(name) else "before"

    def inside(self, names: Iterable[str], layer: int) -> list[str]:
        """The tensors of one layer, in the order given."""
        return [name for name in names if self.layer(name) == layer]
