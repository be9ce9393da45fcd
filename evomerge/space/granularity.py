"""How finely the models are cut, as a file says it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from evomerge.config import Frozen
from evomerge.space.grid import EMBEDDING_FILTERS, EMBEDDINGS, HEAD, HEAD_FILTERS, OTHER
from evomerge.space.source import NAME

REST = "*"
TAKEN = (EMBEDDINGS, HEAD, OTHER, "layers")


class Granularity(Frozen):
    """How finely a model is cut: layer groups x modules.

    Attributes:
        layer_groups: Number of groups of consecutive layers, as even as possible.
        layers_per_group: Or the size of a group (the last one may be smaller). Neither: one group of all layers.
        modules: Name -> substrings of tensor names, the first that matches decides; "*" is the rest. Without a "*",
            what matches none is the module `other`.
        embeddings: `own`: input embeddings, and final norm with head, are two groups of their own; `together`: they
            are one; `layers`: they go with the first and the last layer group. Default: own where the layers are
            more than one group or are cut into modules, else layers.
        splits: Or how many points of the depth, searched too, cut the layers into segments (one more than points).
        smooth: Interpolate between the groups' values over the layers (mergekit's gradients) instead of steps.
    """

    layer_groups: int | None = Field(default=None, ge=1)
    layers_per_group: int | None = Field(default=None, ge=1)
    modules: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    embeddings: Literal["own", "together", "layers"] | None = None
    smooth: bool = False
    splits: int | None = Field(default=None, ge=1)

    @field_validator("modules", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: (v,) if isinstance(v, str) else v for k, v in value.items()}

    @property
    def edges(self) -> Literal["own", "together", "layers"]:
        """`embeddings`, its default filled in."""
        if self.embeddings is not None:
            return self.embeddings
        whole = self.layers_per_group is None and self.layer_groups in (None, 1) and not self.modules
        return "layers" if whole else "own"

    @model_validator(mode="after")
    def _consistent(self) -> Granularity:
        if self.layer_groups is not None and self.layers_per_group is not None:
            raise ValueError('"layer_groups" and "layers_per_group" cannot both be given')
        given = [k for k in ("layer_groups", "layers_per_group", "smooth") if getattr(self, k)]
        if self.splits is not None and given:
            raise ValueError(f'"splits" and "{given[0]}" cannot both be given')
        problems = list(self._module_problems())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _module_problems(self) -> Iterator[str]:
        edge = () if self.edges == "layers" else HEAD_FILTERS + EMBEDDING_FILTERS
        seen: list[tuple[str, str]] = []
        for name, filters in self.modules.items():
            if not NAME.fullmatch(name) or name in TAKEN:
                yield f'modules: "{name}" is no name to take: letters, digits and _ . + -, not {", ".join(TAKEN)}'
            if not filters:
                yield f"modules.{name}: expected a substring of tensor names"
            for text in filters:
                over = next((f"{f} of {m}" for f, m in seen if f in text), None)
                if not text:
                    yield f'modules.{name}: an empty filter matches everything; the rest is "*"'
                elif text == REST and any(f == REST for f, _ in seen):
                    yield f'modules.{name}: "*" is given twice'
                elif over:
                    yield f'modules.{name}: "{text}" is never reached, {over} matches first: put the longer one first'
                elif hit := next((f for f in edge if f in text), None):
                    yield f'modules.{name}: "{text}": "{hit}" has its own group; set embeddings: layers to cut it here'
                seen.append((text, name))
