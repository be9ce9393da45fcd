"""The one table of merge methods: names, parameters, needs, and where each function lives.

It loads no torch, so that recipes, spaces and `--help` can be checked without it. The functions themselves are pure
functions of tensors in `evomerge.merging.methods`; a contract test holds the two together. docs/methods.md has each
one's formula and where it differs from mergekit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["float", "bool", "int", "choice"]
# Problems of one tensor's parameters, by the keyword of the method's function, in words.
Check = Callable[[Mapping[str, Any]], Iterator[str]]

# Below this a sum of weights counts as 0 (mergekit's limit).
NOTHING = 1e-8


@dataclass(frozen=True)
class Parameter:
    """One parameter of a merge method, by the name it has in mergekit's YAML.

    Attributes:
        default: None means that a recipe must give it.
        per_source: Given per source (and then, by precedence, per slice or globally); otherwise once per tensor.
        low, high: Values outside are refused (None: unbounded).
        choices: The words that a parameter of kind "choice" may be.
    """

    name: str
    default: float | bool | str | None
    per_source: bool = False
    kind: Kind = "float"
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def within(self, value: float) -> bool:
        """Whether a number is inside the bounds."""
        return (self.low is None or self.low <= value) and (self.high is None or value <= self.high)

    @property
    def expected(self) -> str:
        """What may be given, in words."""
        if self.kind == "bool":
            return "expected true or false"
        if self.kind == "choice":
            return f"expected one of {', '.join(self.choices)}"
        what = "a whole number" if self.kind == "int" else "a number"
        if self.low is not None and self.high is not None:
            return f"expected {what} from {self.low:g} to {self.high:g}"
        if self.low is not None:
            return f"expected {what} of at least {self.low:g}"
        return f"expected {what}" if self.high is None else f"expected {what} of at most {self.high:g}"


@dataclass(frozen=True)
class Method:
    """What a merge method takes.

    Attributes:
        function: `module:function` of the pure tensor function.
        base: What a `base_model` is. "required" and "optional": treated apart, without a weight of its own; task
            vectors are differences to it. "member": where it is given it is one more source, with a weight of its own.
            "none": meaningless.
        models: Exact number of models, a required base counted (an optional one not), or None for any.
        at_least: Least number of models, counted alike.
        deltas: Works on W_i - W_0 alone: equal sources give the base exactly, and so do none.
        random: Draws a mask, keyed by (seed, model, tensor).
        units: Needs sums over more than the tensor that it merges (see `evomerge.merging.units`).
        whole: Works on whole matrices in float64, so that it needs memory for them.
        statistics: What it must know about each source beyond its weights (collected by `evomerge statistics`).
        check: Problems of one source's parameters that lie in no single one of them.
        check_sum: Problems of all sources' weights together. A candidate of a search may have them, and fails: spaces
            do not ask for it.
        published: What the method's authors recommend or use, where they say so: parameters by name; without a weight,
            equal ones that add up to 1.
        ignored: Parameters that mergekit takes for this method and that change nothing, there or here: accepted.
    """

    name: str
    function: str
    parameters: tuple[Parameter, ...]
    base: Literal["required", "optional", "member", "none"]
    models: int | None = None
    at_least: int = 1
    deltas: bool = False
    random: bool = False
    units: bool = False
    whole: bool = False
    statistics: Literal["", "fisher", "gram"] = ""
    summary: str = ""
    check: Check | None = None
    check_sum: Check | None = None
    published: Mapping[str, float] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of that name, or None."""
        return next((p for p in self.parameters if p.name == name), None)

    @property
    def apart(self) -> bool:
        """Whether a base is treated apart from the sources."""
        return self.base in ("required", "optional")

    @property
    def room(self) -> tuple[int, int | None]:
        """Least and largest number of sources, a base that is treated apart not counted (None: any number)."""
        counted = int(self.base == "required")
        if self.models is not None:
            return self.models - counted, self.models - counted
        return max(self.at_least - counted, 0), None


def band_problems(parameters: Mapping[str, Any]) -> Iterator[str]:
    """DELLA's probabilities density +- epsilon must lie between 0 and 1 (a density of 0 or 1 draws nothing)."""
    for density, epsilon in dict.fromkeys(zip(parameters["density"], parameters["epsilon"], strict=True)):
        if 0.0 < density < 1.0 and not (density - epsilon > 0.0 and density + epsilon < 1.0):
            yield (
                f"density {density:g} with epsilon {epsilon:g}: density - epsilon and density + epsilon must lie "
                f"between 0 and 1; here epsilon must be less than {min(density, 1.0 - density):g}"
            )


def sum_problem(weights: Sequence[float], switch: str = "") -> str | None:
    """What is wrong with weights that are divided by their sum, or None.

    Args:
        switch: The parameter that turns normalising off, where there is one.
    """
    if abs(math.fsum(weights)) >= NOTHING:
        return None
    if not switch:
        return f"the weights {list(weights)} sum to 0: no source is left to average"
    return f"the weights {list(weights)} sum to 0, so they cannot be normalised; set `{switch}: false` or other weights"


def _dividing(switch: str = "", least: int = 1) -> Check:
    """The check of a method that divides weights by their sum, from `least` sources on."""

    def problems(parameters: Mapping[str, Any]) -> Iterator[str]:
        weights = parameters["weight"]
        if len(weights) >= least and (not switch or parameters[switch]):
            problem = sum_problem(weights, switch)
            if problem:
                yield problem

    return problems


_WEIGHT = Parameter("weight", None, per_source=True)
_DENSITY = Parameter("density", 1.0, per_source=True, low=0.0, high=1.0)
_GAMMA = Parameter("gamma", 0.01, per_source=True, low=0.0, high=1.0)
_EPSILON = Parameter("epsilon", 0.15, per_source=True, low=0.0, high=0.5)
_LAMBDA = Parameter("lambda", 1.0)
_SMALLEST = Parameter("epsilon", 1e-5, low=0.0)
# Methods that know themselves how far to trust a source need no weight, and take one on top.
_FACTOR = Parameter("weight", 1.0, per_source=True)
_IMPORTANCE = Parameter("weight", 1.0, per_source=True, low=0.0)


def _normalize(default: bool, name: str = "normalize") -> Parameter:
    return Parameter(name, default, kind="bool")


def _rescale(default: bool) -> Parameter:
    return Parameter("rescale", default, kind="bool")


# Published settings. arXiv 2212.04089 (several tasks added); 2306.01708 (the best 20 %); 2311.03099 (language models:
# a fifth is dropped, then the average); 2312.06795; 2408.07990, section 4.1.
_ILHARCO = {"weight": 0.4, "lambda": 1.0}
_YADAV = {"weight": 1.0, "density": 0.2, "lambda": 1.0}
_YU = {"density": 0.8, "lambda": 1.0}
_DAVARI = {"density": 0.9, "gamma": 0.01, "lambda": 1.0}
_WAN = {"select_topk": 0.1}

_IN = "evomerge.merging.methods"

METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("linear", f"{_IN}.linear:linear", (_WEIGHT, _normalize(True)), "member",
               check_sum=_dividing("normalize"), summary="weighted average of the sources"),
        Method("slerp", f"{_IN}.slerp:slerp", (Parameter("t", None),), "required", models=2,
               ignored=("normalize",),  # mergekit-evolve writes it into every recipe
               summary="spherical interpolation from the base to the other model"),
        Method("nuslerp", f"{_IN}.nuslerp:nuslerp",
               (_WEIGHT, Parameter("nuslerp_flatten", True, kind="bool"),
                Parameter("nuslerp_row_wise", False, kind="bool")), "optional", models=2,
               summary="spherical interpolation of two models, or of their task vectors"),
        Method("multislerp", f"{_IN}.multislerp:multislerp", (_WEIGHT, _normalize(True, "normalize_weights")),
               "optional", ignored=("eps",), check_sum=_dividing("normalize_weights", least=2),
               summary="weighted mean direction of the sources or task vectors, norms averaged"),
        Method("karcher", f"{_IN}.karcher:karcher",
               (Parameter("max_iter", 10, kind="int", low=0, high=1000), Parameter("tol", 1e-5, low=0.0, high=1.0)),
               "member", summary="the point of least squared angles to all sources (Riemannian mean)"),
        Method("task_arithmetic", f"{_IN}.task_arithmetic:task_arithmetic", (_WEIGHT, _LAMBDA, _normalize(False)),
               "required", deltas=True, published=_ILHARCO, ignored=("density", "rescale"),
               summary="base + weighted sum of task vectors"),
        Method("ties", f"{_IN}.ties:ties", (_WEIGHT, _DENSITY, _LAMBDA, _normalize(True), _rescale(False)),
               "required", deltas=True, published=_YADAV, summary="trim by magnitude, elect a sign, merge what agrees"),
        Method("dare_linear", f"{_IN}.dare:dare_linear",
               (_WEIGHT, _DENSITY, _LAMBDA, _normalize(False), _rescale(True)), "required", deltas=True, random=True,
               published=_YU, summary="drop and rescale at random, then task arithmetic"),
        Method("dare_ties", f"{_IN}.dare:dare_ties",
               (_WEIGHT, _DENSITY, _LAMBDA, _normalize(False), _rescale(True)), "required", deltas=True, random=True,
               published=_YU, summary="drop and rescale at random, then TIES's sign election"),
        Method("della_linear", f"{_IN}.della:della_linear",
               (_WEIGHT, _DENSITY, _EPSILON, _LAMBDA, _normalize(False), _rescale(True)), "required", deltas=True,
               random=True, check=band_problems,
               summary="drop at random, small elements rather, and rescale, then task arithmetic"),
        Method("della", f"{_IN}.della:della",
               (_WEIGHT, _DENSITY, _EPSILON, _LAMBDA, _normalize(True), _rescale(True)), "required", deltas=True,
               random=True, check=band_problems,
               summary="drop at random, small elements rather, and rescale, then TIES's sign election"),
        Method("breadcrumbs", f"{_IN}.breadcrumbs:breadcrumbs",
               (_WEIGHT, _DENSITY, _GAMMA, _LAMBDA, _normalize(False), _rescale(False)), "required", deltas=True,
               published=_DAVARI,
               summary="drop the largest and the smallest of each task vector, then task arithmetic"),
        Method("breadcrumbs_ties", f"{_IN}.breadcrumbs:breadcrumbs_ties",
               (_WEIGHT, _DENSITY, _GAMMA, _LAMBDA, _normalize(False), _rescale(False)), "required", deltas=True,
               published=_DAVARI,
               summary="drop the largest and the smallest of each task vector, then TIES's sign election"),
        Method("sce", f"{_IN}.sce:sce", (Parameter("select_topk", 1.0, low=0.0, high=1.0),), "required", deltas=True,
               published=_WAN,
               summary="select by variance, weigh by energy, erase minority signs: no weights to give"),
        Method("model_stock", f"{_IN}.model_stock:model_stock", (Parameter("filter_wise", False, kind="bool"),),
               "required", at_least=3, deltas=True,
               summary="between base and average, as far as the task vectors agree: no weights to give"),
        Method("nearswap", f"{_IN}.nearswap:nearswap", (Parameter("t", None, low=0.0),), "required", models=2,
               deltas=True, summary="the other model where it is near the base, at most t away from it elsewhere"),
        Method("ram", f"{_IN}.ram:ram", (_SMALLEST,), "required", deltas=True,
               summary="sum what one task vector changes alone, average what several change"),
        Method("ramplus_tl", f"{_IN}.ram:ramplus_tl",
               (_SMALLEST, Parameter("r", 0.1), Parameter("alpha", 0.2, low=0.0)), "required", deltas=True,
               summary="RAM that amplifies what one changes alone by how much it shares"),
        Method("arcee_fusion", f"{_IN}.arcee_fusion:arcee_fusion", (), "required", models=2, deltas=True,
               summary="of the other model only the changes that stand out"),
        Method("varm", f"{_IN}.varm:varm",
               (Parameter("unit", "matrix", kind="choice", choices=("model", "layer", "matrix", "element")),),
               "required", deltas=True, units=True,
               summary="average weighed by how far each source moved, per model, layer, matrix or element"),
        Method("fisher", f"{_IN}.fisher:fisher", (_IMPORTANCE,), "none", statistics="fisher",
               check_sum=_dividing(), summary="average of the sources, each element weighed by its Fisher information"),
        Method("regmean", f"{_IN}.regmean:regmean", (_IMPORTANCE, Parameter("alpha", 0.9, low=0.0, high=1.0)), "none",
               whole=True, statistics="gram", check_sum=_dividing(),
               summary="linear layers that answer as the sources do on their own inputs"),
        Method("tsv", f"{_IN}.tsv:tsv",
               (_FACTOR, Parameter("share", 0.0, low=0.0, high=1.0), _LAMBDA), "required", deltas=True, whole=True,
               summary="the first singular vectors of each task vector, made orthogonal to the others'"),
        Method("iso_c", f"{_IN}.tsv:iso_c", (_FACTOR, _LAMBDA), "required", whole=True, deltas=True,
               summary="sum of task vectors whose singular values are made equal"),
        Method("passthrough", f"{_IN}.passthrough:passthrough", (Parameter("scale", 1.0, per_source=True),), "none",
               models=1, summary="one source's tensor, scaled: for stacking layers"),
    )
}  # fmt: skip

# Parameters that mergekit knows and that change nothing here (its memory switches): accepted, never required.
IGNORED_PARAMETERS = ("int8_mask",)
