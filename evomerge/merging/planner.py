"""From a recipe to its plan: structure once per shape of recipe, parameters for each candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from evomerge.errors import RecipeError, choose
from evomerge.merging import structure
from evomerge.merging.plan import Plan
from evomerge.merging.statistics import Statistics, of_plan
from evomerge.merging.structure import Structure
from evomerge.merging.tokens import TokenPlanner, settings_of
from evomerge.merging.values import Resolver
from evomerge.recipe import Recipe
from evomerge.sources import Source


class Planner:
    """Plans recipes over a fixed set of sources.

    Args:
        sources: By the reference that recipes use.
        root: Where relative folders of statistics are looked for, beside the current one.
    """

    def __init__(self, sources: Mapping[str, Source], root: Path | None = None) -> None:
        self.sources = sources
        self._root = root
        self._statistics: dict[tuple[object, ...], Mapping[str, Statistics]] = {}
        self._structures: dict[structure.Key, Structure] = {}
        self._tokens = TokenPlanner(sources)

    def plan(self, recipe: Recipe) -> Plan:
        """Work out every output tensor.

        Raises:
            RecipeError: every problem of the recipe, one line each.
            SourceError: the sources do not fit each other.
        """
        unknown = [r for r in recipe.references() if r not in self.sources]
        if unknown:
            raise RecipeError("\n".join(f'model "{r}" is not open; {choose(r, list(self.sources))}' for r in unknown))
        # Whether the vocabularies must agree is a matter of structure.
        apart = settings_of(recipe) is None
        key = (structure.key_of(recipe), apart)
        if key not in self._structures:
            self._structures[key] = structure.build(recipe, self.sources, vocabulary=apart)
        pieces = structure.pieces_of(recipe, self.sources)
        tokens = self._tokens.plan(recipe, self._structures[key], key, pieces)
        found = tokens.structure
        resolver = Resolver(recipe, self.sources, found.donor, pieces)
        tensors = tuple(resolver.tensor(row) for row in found.rows)
        if resolver.problems:
            raise RecipeError("\n".join(resolver.problems))
        plan = Plan(
            recipe, self.sources, tensors, found.donor, found.layers, tokens.owner, tokens.gathers, tokens.vocabulary
        )
        return replace(plan, statistics=self._statistics_of(plan, key)) if recipe.method.statistics else plan

    def _statistics_of(self, plan: Plan, key: object) -> Mapping[str, Statistics]:
        named = (key, *plan.recipe.evomerge.statistics.items())
        if named not in self._statistics:
            self._statistics[named] = of_plan(plan, self._root)
        return self._statistics[named]
