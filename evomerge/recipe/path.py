"""Paths of data-flow space: which layer follows which, as a plain `passthrough` recipe and back.

Scaling the residual stream by w_t where hop t begins equals leaving the stream alone and dividing what hop t adds to it
by C_t = w_1 * ... * w_t, for pre-normalisation does not see the scale of the stream (docs/decisions.md). So a path with
scales is a plain, deeper model whose layers write 1/C_t of what they wrote: mergekit's `scale`, filtered to the
projections that write to the stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from evomerge.errors import RecipeError
from evomerge.recipe.schema import Extras, InputSlice, OutputSlice, Recipe
from evomerge.recipe.values import Condition, Parameters

METHOD = "passthrough"


@dataclass(frozen=True, slots=True)
class Hop:
    """One layer of one source on a path.

    Attributes:
        factor: What the layer adds to the residual stream is multiplied by it: 1 / C_t.
    """

    model: str
    layer: int
    factor: float = 1.0


@dataclass(frozen=True)
class Path:
    """Layers in the order in which the residual stream passes them.

    Attributes:
        hops: At least one.
        embeddings: Model whose input embeddings (and everything else before the layers) the path begins with.
        head: Model whose final norm and output head it ends with. Where heads are tied to embeddings, its norm alone.

    Raises:
        RecipeError: no hop, a negative layer, or a factor that is not a positive finite number.
    """

    hops: tuple[Hop, ...]
    embeddings: str
    head: str

    def __post_init__(self) -> None:
        problems = [] if self.hops else ["the path is empty: expected at least one layer"]
        for number, hop in enumerate(self.hops):
            if hop.layer < 0:
                problems.append(f"hop {number}: layer {hop.layer} of {hop.model!r}: expected 0 or more")
            if not (math.isfinite(hop.factor) and hop.factor > 0):
                problems.append(f"hop {number}: scale leads to {hop.factor:g}: expected a positive finite number")
        if problems:
            raise RecipeError("\n".join(problems))

    @classmethod
    def scaled(
        cls,
        layers: Sequence[tuple[str, int]],
        scales: Sequence[float] | None = None,
        embeddings: str | None = None,
        head: str | None = None,
    ) -> Path:
        """A path from its hops' input scales.

        Args:
            layers: (model, layer) of each hop.
            scales: w_t of each hop: what the residual stream is multiplied by where the hop begins; default 1.
            embeddings: Default: the first hop's model.
            head: Default: that of the embeddings.

        Raises:
            RecipeError: no hop, another number of scales than hops, or a scale that is not a positive finite number.
        """
        scales = [1.0] * len(layers) if scales is None else scales
        problems = [
            f"hop {number}: scale {w:g}: expected a positive finite number"
            for number, w in enumerate(scales)
            if not (math.isfinite(w) and w > 0)
        ]
        if len(scales) != len(layers):
            problems.append(f"{len(scales)} scales for {len(layers)} hops: expected one for each")
        if problems:
            raise RecipeError("\n".join(problems))
        hops, product = [], 1.0
        for (model, layer), w in zip(layers, scales, strict=True):
            product *= w
            hops.append(Hop(model, layer, 1.0 / product if product else math.inf))
        first = embeddings if embeddings is not None else next((h.model for h in hops), "")
        return cls(tuple(hops), first, head if head is not None else first)

    @property
    def scales(self) -> tuple[float, ...]:
        """w_t of each hop (to rounding)."""
        before = [1.0, *(hop.factor for hop in self.hops[:-1])]
        return tuple(b / hop.factor for b, hop in zip(before, self.hops, strict=True))

    @property
    def models(self) -> list[str]:
        """Every model that gives something, the one of the embeddings first."""
        return list(dict.fromkeys((self.embeddings, *(hop.model for hop in self.hops), self.head)))

    def recipe(self, writers: Sequence[str], **settings: Any) -> Recipe:
        """The path as a recipe that any engine for mergekit's YAML builds.

        Runs of consecutive layers with one factor are one slice. A model that gives the embeddings, or norm and head,
        without being the first, or last, hop's stands in a slice of no layers, from which mergekit takes those.

        Args:
            writers: Substrings of the names of the tensors that write to the residual stream ("o_proj", "down_proj").
            settings: Further keys of the recipe (dtype, out_dtype, ...); `seed` goes to its extras.

        Raises:
            RecipeError: scales other than 1 without names of tensors to write them into.
        """
        scaled = [number for number, hop in enumerate(self.hops) if hop.factor != 1.0]
        if scaled and not writers:
            raise RecipeError(
                f"hop {scaled[0]}: scale {self.scales[scaled[0]]:g}: expected 1, for it is not known which tensors "
                f"of {self.hops[scaled[0]].model!r} write to the residual stream"
            )
        slices = []
        runs = [list(run) for _, run in groupby(enumerate(self.hops), key=lambda at: _run(*at))]
        if self.embeddings != self.hops[0].model:
            slices.append(_slice(self.embeddings, 0, 0))
        for run in runs:
            first = run[0][1]
            slices.append(_slice(first.model, first.layer, first.layer + len(run), first.factor, writers))
        if self.head != self.hops[-1].model:
            slices.append(_slice(self.head, 0, 0))
        extras = Extras(seed=settings.pop("seed", 0))
        return Recipe(merge_method=METHOD, slices=slices, evomerge=extras, **settings)

    @classmethod
    def read(cls, recipe: Recipe, writers: Sequence[str] | None = None) -> Path | None:
        """The path that a recipe is, or None where it is another merge.

        That is one with a tokenizer of its own too, or one whose embeddings go into another model than theirs.

        A scale is taken for a hop's where it is filtered and what no filter names keeps scale 1.

        Args:
            writers: The family's filters (see `recipe`): a scale with others is no hop's. None: they are not looked at.
        """
        if recipe.merge_method != METHOD or not recipe.slices or recipe.parameters or recipe.base_model:
            return None
        if recipe.tokenizer_source or recipe.tokenizer:
            return None
        if recipe.evomerge.into not in (None, recipe.slices[0].sources[0].model):
            return None
        hops: list[Hop] = []
        for piece in recipe.slices:
            if len(piece.sources) != 1 or piece.parameters or piece.base_model:
                return None
            source = piece.sources[0]
            factor = _factor(source, writers)
            if factor is None or not factor > 0:
                return None
            hops += [Hop(source.model, layer, factor) for layer in range(*source.layer_range)]
        if not hops:
            return None
        return cls(tuple(hops), recipe.slices[0].sources[0].model, recipe.slices[-1].sources[0].model)


def _run(number: int, hop: Hop) -> tuple[str, int, float]:
    """Equal for hops that follow each other as in their model, with one factor."""
    return hop.model, hop.layer - number, hop.factor


def _slice(model: str, first: int, end: int, factor: float = 1.0, writers: Sequence[str] = ()) -> OutputSlice:
    parameters: Parameters | None = None
    if factor != 1.0:
        parameters = {"scale": [*(Condition(filter=name, value=factor) for name in writers), Condition(value=1.0)]}
    return OutputSlice(sources=[InputSlice(model=model, layer_range=(first, end), parameters=parameters)])


def _factor(source: InputSlice, writers: Sequence[str] | None) -> float | None:
    """What a slice's layers write is multiplied by; None where its parameters are no hop's."""
    parameters = source.parameters or {}
    if not parameters:
        return 1.0
    setting = parameters.get("scale")
    if set(parameters) != {"scale"} or not isinstance(setting, list):
        return None
    conditions = [c for c in setting if isinstance(c, Condition)]
    if len(conditions) != len(setting) or len(conditions) < 2:
        return None
    *named, rest = conditions
    if writers is not None and {c.filter for c in named} != set(writers):
        return None
    values = {c.value for c in named if isinstance(c.value, int | float) and not isinstance(c.value, bool)}
    plain = rest.filter in (None, "*") and rest.value == 1.0
    if not plain or len(values) != 1 or any(c.filter in (None, "*") for c in named):
        return None
    (value,) = values
    return float(value) if all(c.value == value for c in named) else None
