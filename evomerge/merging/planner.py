"""From a recipe to its plan: structure once per shape of recipe, parameters for each candidate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from evomerge.errors import RecipeError, SourceError, choose
from evomerge.merging import structure
from evomerge.merging.plan import Plan
from evomerge.merging.small_files import copied_files
from evomerge.merging.statistics import Statistics, of_plan
from evomerge.merging.structure import Structure
from evomerge.merging.tokens import PlannedTokens, TokenPlanner, check_template, settings_of
from evomerge.merging.unopened import recipe_problems
from evomerge.merging.values import Resolver
from evomerge.recipe import BASE, UNION, Recipe
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
        self._readable: set[int] = set()

    def plan(self, recipe: Recipe, *, sums: bool = False) -> Plan:
        """Work out every output tensor.

        Args:
            sums: Whether weights that sum to 0 where they are divided by their sum are refused too. Otherwise building
                them is a CandidateError, which a search records before it goes on.

        Raises:
            RecipeError: every problem of the recipe, one line each.
            SourceError: the sources do not fit each other, or a small file of theirs cannot be used.
        """
        self._check_open(recipe)
        problems = _Problems()
        with problems.noted():
            check_template(recipe.chat_template)
        # Whether the vocabularies must agree is a matter of structure.
        key = (structure.key_of(recipe), settings_of(recipe) is None)
        plan: Plan | None = None
        with problems.noted():
            plan = self._plan(recipe, self._structure(recipe, key), key, problems, sums)
        if plan is None:
            # Without a structure there are no tensors whose parameters could be worked out.
            problems.add(recipe_problems(recipe))
            with problems.noted():
                self._tokens.vocabulary(recipe)
        elif recipe.method.statistics:
            with problems.noted():
                plan = replace(plan, statistics=self._statistics_of(plan, key, contents=not problems.found))
        problems.tell()
        assert plan is not None
        return plan

    def _check_open(self, recipe: Recipe) -> None:
        unknown = [r for r in recipe.references() if r not in self.sources]
        if unknown:
            merged = recipe.merged_models()
            lines = [
                f'model "{r}" is not open; {choose(r, list(self.sources))}'
                if r in merged or r == recipe.evomerge.into
                else f'tokenizer source "{r}" is not open; {choose(r, [UNION, BASE, *self.sources])}'
                for r in unknown
            ]
            raise RecipeError("\n".join([*lines, *recipe_problems(recipe)]))

    def _structure(self, recipe: Recipe, key: structure.Key) -> Structure:
        if key not in self._structures:
            self._structures[key] = structure.build(recipe, self.sources, vocabulary=bool(key[-1]))
        return self._structures[key]

    def _plan(self, recipe: Recipe, found: Structure, key: structure.Key, problems: _Problems, sums: bool) -> Plan:
        """The plan but for its statistics; what is wrong with its tokens, parameters and small files is noted."""
        pieces = structure.pieces_of(recipe, self.sources)
        tokens = PlannedTokens(found.donor, found)
        planned = False
        with problems.noted():
            tokens = self._tokens.plan(recipe, found, key, pieces)
            planned = True
        resolver = Resolver(recipe, self.sources, pieces, sums=sums)
        tensors = tuple(resolver.tensor(row) for row in tokens.structure.rows)
        problems.add(resolver.problems)
        plan = Plan(
            recipe, self.sources, tensors, found.donor, found.layers, tokens.owner, tokens.gathers, tokens.vocabulary
        )
        # Once for each that differs in them: they are remembered by the planner of tokens, which keeps them alive.
        if planned and id(tokens) not in self._readable:
            with problems.noted():
                copied_files(plan)
                self._readable.add(id(tokens))
        return plan

    def _statistics_of(self, plan: Plan, key: object, contents: bool) -> Mapping[str, Statistics]:
        named = (key, *plan.recipe.evomerge.statistics.items())
        if named not in self._statistics:
            found = of_plan(plan, self._root, contents=contents)
            if not contents:
                return found
            self._statistics[named] = found
        return self._statistics[named]


class _Problems:
    """What is wrong with a recipe and its models, collected before any of it is told."""

    def __init__(self) -> None:
        self.found: list[RecipeError | SourceError] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Errors inside are kept."""
        try:
            yield
        except (RecipeError, SourceError) as e:
            self.found.append(e)

    def add(self, lines: Sequence[str]) -> None:
        """Problems of the recipe."""
        if lines:
            self.found.append(RecipeError("\n".join(lines)))

    def tell(self) -> None:
        """Raise all of it at once, if there is any."""
        if self.found:
            kind = SourceError if all(isinstance(e, SourceError) for e in self.found) else RecipeError
            raise kind("\n".join(dict.fromkeys(line for e in self.found for line in str(e).splitlines())))
