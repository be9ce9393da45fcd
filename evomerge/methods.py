"""The one table of merge methods: names, parameters, needs, and where each function lives.

It loads no torch, so that recipes, spaces and `--help` can be checked without it. The functions themselves are pure
functions of tensors in `evomerge.merging.methods`; a contract test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["float", "bool", "int"]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a merge method, by the name it has in mergekit's YAML.

    Attributes:
        default: None means that a recipe must give it.
        per_source: Given per source (and then, by precedence, per slice or globally); otherwise once per tensor.
        low, high: Values outside are refused (None: unbounded).
    """

    name: str
    default: float | bool | None
    per_source: bool = False
    kind: Kind = "float"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Method:
    """What a merge method takes.

    Attributes:
        function: `module:function` of the pure tensor function.
        base: Whether a `base_model` is needed ("required"), taken when given ("optional") or meaningless ("none").
        models: Exact number of models (the base counted where it is one of them), or None for any.
        deltas: Works on W_i - W_0; the base itself takes no weight.
        random: Draws a mask, keyed by (seed, model, tensor).
    """

    name: str
    function: str
    parameters: tuple[Parameter, ...]
    base: Literal["required", "optional", "none"]
    models: int | None = None
    deltas: bool = False
    random: bool = False
    summary: str = ""

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of that name, or None."""
        return next((p for p in self.parameters if p.name == name), None)


_WEIGHT = Parameter("weight", None, per_source=True)
_DENSITY = Parameter("density", 1.0, per_source=True, low=0.0, high=1.0)
_LAMBDA = Parameter("lambda", 1.0)
_RESCALE = Parameter("rescale", True, kind="bool")


def _normalize(default: bool) -> Parameter:
    return Parameter("normalize", default, kind="bool")


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("linear", "evomerge.merging.methods.linear:linear", (_WEIGHT, _normalize(True)), "optional",
               summary="weighted average of the sources"),
        Method("slerp", "evomerge.merging.methods.slerp:slerp", (Parameter("t", None),), "required", models=2,
               summary="spherical interpolation from the base to the other model"),
        Method("task_arithmetic", "evomerge.merging.methods.task_arithmetic:task_arithmetic",
               (_WEIGHT, _LAMBDA, _normalize(False)), "required", deltas=True,
               summary="base + weighted sum of task vectors"),
        Method("ties", "evomerge.merging.methods.ties:ties", (_WEIGHT, _DENSITY, _LAMBDA, _normalize(True)),
               "required", deltas=True, summary="trim by magnitude, elect a sign, merge what agrees"),
        Method("dare_linear", "evomerge.merging.methods.dare:dare_linear",
               (_WEIGHT, _DENSITY, _LAMBDA, _normalize(False), _RESCALE), "required", deltas=True, random=True,
               summary="drop and rescale at random, then task arithmetic"),
        Method("dare_ties", "evomerge.merging.methods.dare:dare_ties",
               (_WEIGHT, _DENSITY, _LAMBDA, _normalize(False), _RESCALE), "required", deltas=True, random=True,
               summary="drop and rescale at random, then TIES's sign election"),
        Method("passthrough", "evomerge.merging.methods.passthrough:passthrough",
               (Parameter("scale", 1.0, per_source=True),), "none", models=1,
               summary="one source's tensor, scaled: for stacking layers"),
    )
}  # fmt: skip

# Parameters that mergekit knows and that change nothing here (its memory switches): accepted, never required.
IGNORED_PARAMETERS = ("int8_mask",)
