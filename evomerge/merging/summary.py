"""What a plan says in words and sums: the data behind `evomerge check RECIPE`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from evomerge.sources import Place

if TYPE_CHECKING:
    from evomerge.merging.plan import Plan, TensorPlan

# Runs of layers that are told one by one.
_SHOWN = 6


class _Treatment(NamedTuple):
    """What is done to a tensor, but for its numbers."""

    copied: bool
    base: str | None
    models: tuple[str, ...]


@dataclass
class _Group:
    """Kinds of tensors that are treated alike, layer by layer; `sample` are the tensors of the first kind."""

    sample: list[TensorPlan]
    kinds: list[Place] = field(default_factory=list)
    tensors: int = 0
    elements: int = 0


def summary(plan: Plan) -> dict[str, Any]:
    """Plain data: sizes in bytes, and `groups` of tensors that are treated alike, each with its `words`."""
    return {
        "method": plan.recipe.merge_method,
        "layers": len(plan.layers),
        "tensors": len(plan.tensors),
        "parameters": sum(t.elements for t in plan.tensors),
        "bytes_read": plan.bytes_read,
        "bytes_written": plan.bytes_written,
        "configuration_of": plan.donor,
        "tokenizer_of": plan.tokenizer,
        "groups": [_described(plan, group) for group in _groups(plan)],
    }


def _groups(plan: Plan) -> list[_Group]:
    """Tensors of one kind in all layers belong together; kinds with the same numbers in all layers too."""
    kinds: dict[Place, list[TensorPlan]] = {}
    for t in plan.tensors:
        lead = t.reads[0]
        place = plan.sources[lead.model].layout.places[lead.tensor]
        layer = None if place.layer is None else 0
        kinds.setdefault(Place(place.module, layer, place.bare), []).append(t)
    found: dict[object, _Group] = {}
    for kind, tensors in kinds.items():
        states = [(_treatment(t), tuple(t.parameters.items())) for t in tensors]
        # Where all layers are alike it does not matter how many there are.
        alike = all(state == states[0] for state in states)
        group = found.setdefault(states[0] if alike else tuple(states), _Group(tensors))
        group.kinds.append(kind)
        group.tensors += len(tensors)
        group.elements += sum(t.elements for t in tensors)
    return list(found.values())


def _treatment(t: TensorPlan) -> _Treatment:
    return _Treatment(t.copied, t.base.model if t.base else None, tuple(i.model for i in t.inputs))


def _described(plan: Plan, group: _Group) -> dict[str, Any]:
    first = group.sample[0]
    runs = [_words(plan, treatment, list(run)) for treatment, run in groupby(group.sample, _treatment)]
    more = f"; and {len(runs) - _SHOWN} more" if len(runs) > _SHOWN else ""
    return {
        "tensors": group.tensors,
        "elements": group.elements,
        "first": first.name,
        "modules": list(dict.fromkeys(kind.module for kind in group.kinds)),
        "kinds": [kind.bare for kind in group.kinds],
        "models": [i.model for i in first.reads],
        "copied": first.copied,
        "gathered": any(item in plan.gathers for item in first.reads),
        "parameters": {k: list(v) if isinstance(v, tuple) else v for k, v in first.parameters.items()},
        "words": "; ".join(runs[:_SHOWN]) + more,
    }


def _words(plan: Plan, treatment: _Treatment, run: Sequence[TensorPlan]) -> str:
    """One run of layers: "ties of A (weight 0.4 to 0.9, density 0.5) and B (...) on BASE, lambda 1"."""
    names = {reference: source.name for reference, source in plan.sources.items()}
    named = {r: n if list(names.values()).count(n) == 1 else r for r, n in names.items()}
    if treatment.copied:
        return f"copied from {named[treatment.models[0]]}"
    values: dict[str, list[Any]] = {}
    for t in run:
        for name, value in t.parameters.items():
            values.setdefault(name.rstrip("_"), []).append(value)
    own = {name: v for name, v in values.items() if isinstance(v[0], tuple)}
    shared = {name: v for name, v in values.items() if name not in own}
    listed = [
        named[model] + _numbers({name: [x[i] for x in v] for name, v in own.items()}, " ({})")
        for i, model in enumerate(treatment.models)
    ]
    base = f" on {named[treatment.base]}" if treatment.base else ""
    return f"{plan.recipe.merge_method} of {' and '.join(listed)}{base}{_numbers(shared, ', {}')}"


def _numbers(values: Mapping[str, Sequence[Any]], form: str) -> str:
    """Parameters with what they are from the first to the last layer."""
    words = [f"{name} {_range(listed)}" for name, listed in values.items()]
    return form.format(", ".join(words)) if words else ""


def _range(listed: Sequence[Any]) -> str:
    low, high = (listed[0], listed[-1]) if listed[0] != listed[-1] else (min(listed), max(listed))
    return _number(low) if low == high else f"{_number(low)} to {_number(high)}"


def _number(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool | str) else f"{value:.4g}"
