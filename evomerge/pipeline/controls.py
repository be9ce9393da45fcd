"""The searches that a study is compared with, at its budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from evomerge.optimizers.table import AUTO
from evomerge.pipeline.models import fits
from evomerge.pipeline.seeing import seeing
from evomerge.space import DataflowConfig, SearchSpace, default_space

if TYPE_CHECKING:
    from evomerge.pipeline.plan import Plan

# The control of paths that merges the same sources.
PARAMETER_SPACE = "parameter space"


@dataclass(frozen=True)
class Control:
    """A search to compare the main one with, at its budget."""

    name: str
    space: SearchSpace
    sampler: str


def control_searches(plan: Plan) -> list[Control]:
    """The searched controls.

    Of merges: each task vector alone. It only says something where its scale is searched: a normalised average of
    one source is that source, which is measured anyway. Of paths: the parameter space over the same sources, where
    they can be merged. Of both: random search.
    """
    if isinstance(plan.config, DataflowConfig):
        merged = _parameter_space(plan)
        beside = [Control(PARAMETER_SPACE, merged, _beside(plan, merged, AUTO))] if merged is not None else []
        return [*beside, Control("random paths", plan.space, "random")]
    searches: list[Control] = []
    names = [s.name for s in plan.config.sources]
    if len(names) > 1 and all(m.deltas and m.parameter("weight") for m in plan.config.methods):
        for name in names:
            alone = plan.bind(plan.config.only(name))
            searches.append(Control(f"vector {name}", alone, _beside(plan, alone, plan.options.sampler)))
    return [*searches, Control("random search", plan.space, "random")]


def _beside(plan: Plan, space: SearchSpace, asked: str) -> str:
    """The sampler of a search that a plan's is compared with: its own kind, where both are over numbers."""
    found = replace(plan.options, sampler=asked).sampler_for(space, 1, plan.evaluator.config.constraints)
    return plan.sampler if asked == AUTO and {found, plan.sampler} == {"cma", "thompson"} else found


def _parameter_space(plan: Plan) -> SearchSpace | None:
    """The space that merges these sources' weights; a hybrid's own, else the default one; None where none fits."""
    if plan.first is not None:
        return plan.first.plan.space
    merged = [s.model for s in plan.config.sources]
    models = {r: plan.sources[r] for r in [*merged, *([plan.config.base_model] if plan.config.base_model else [])]}
    if len(merged) < 2 or not fits(models):
        return None
    named = default_space(merged, plan.config.base_model)
    names = {s.model: s.name for s in plan.config.sources}
    sources = tuple(s.model_copy(update={"name": names[s.model]}) for s in named.sources)
    return plan.bind(seeing(named.model_copy(update={"sources": sources}), plan.sources))
