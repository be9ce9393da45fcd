"""Recipes that build on each other: mergekit-multi's YAML of several documents, in the order in which they are built.

Each document has a `name:` by which others use its result as a model; the one without a name is the result of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from evomerge.errors import RecipeError
from evomerge.recipe.consistency import ignored, unlike_mergekit
from evomerge.recipe.reference import ModelReference
from evomerge.recipe.schema import Recipe


@dataclass(frozen=True)
class Step:
    """One recipe of a chain; `name` is what the others call its result."""

    name: str | None
    recipe: Recipe


@dataclass(frozen=True)
class Chain:
    """Recipes in the order in which they are built: each after those that it uses, the final one last.

    Attributes:
        steps: At least one.
        unused: Names of documents whose result no other uses; they are not built.
    """

    steps: tuple[Step, ...]
    unused: tuple[str, ...] = ()

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Chain:
        """Put steps in order.

        Raises:
            RecipeError: two documents of one name, names that use each other in a circle, or no one final document;
                every problem, one line each.
        """
        problems: list[str] = []
        named: dict[str, Step] = {}
        for step in steps:
            if step.name is None:
                continue
            if step.name in named:
                problems.append(f'two documents have the name "{step.name}"')
            elif not step.name.strip() or "@" in step.name or "+" in step.name:
                problems.append(f'name "{step.name}": expected a name without "@" and "+"')
            named.setdefault(step.name, step)
        uses = {step.name: _uses(step.recipe, named) for step in steps}
        last = [step for step in steps if step.name is None]
        if not last:
            # mergekit-multi builds every document then; one folder can hold only the one that none other uses.
            used = {name for names in uses.values() for name in names}
            last = [step for step in steps if step.name not in used]
        order: list[str | None] = []
        try:
            order = list(TopologicalSorter(uses).static_order())
        except CycleError as e:
            problems.append(f"the documents use each other in a circle: {' > '.join(reversed(e.args[1]))}")
        else:
            if len(last) != 1:
                have = f"{len(last)} have none" if last and last[0].name is None else f"{len(last)} could be it"
                problems.append(f"expected one final document, which has no `name:`; {have}")
        if problems:
            raise RecipeError("\n".join(problems))
        final = last[0]
        needed = list(uses[final.name])
        for name in needed:  # grows while it is walked
            needed += [n for n in uses[name] if n not in needed]
        built = [named[name] for name in order if name is not None and name in needed]
        return cls((*built, final), tuple(n for n in named if n not in needed and n != final.name))

    @property
    def final(self) -> Recipe:
        """The recipe whose result is the chain's."""
        return self.steps[-1].recipe

    @property
    def names(self) -> list[str]:
        """Names of the steps before the final one."""
        return [str(step.name) for step in self.steps[:-1]]

    def ignored(self) -> list[str]:
        """What the recipes say that has no effect, a line each."""
        where = [f'"{step.name}": ' if step.name in self.names else "" for step in self.steps]
        return [f"{at}{line}" for at, step in zip(where, self.steps, strict=True) for line in ignored(step.recipe)]

    def unlike_mergekit(self) -> list[str]:
        """What mergekit builds in another way of these recipes, where they are mergekit's; a line each."""
        where = [f'"{step.name}": ' if step.name in self.names else "" for step in self.steps]
        steps = zip(where, self.steps, strict=True)
        return [f"{at}{line}" for at, step in steps for line in unlike_mergekit(step.recipe)]

    def references(self) -> list[str]:
        """Every model from outside the chain, in order of first mention."""
        every = [r for step in self.steps for r in step.recipe.references()]
        return [r for r in dict.fromkeys(every) if self.used(r) is None]

    def used(self, reference: str) -> str | None:
        """The name of the earlier step that a reference means, or None."""
        path = ModelReference.parse(reference).path
        return path if path in self.names else None

    def with_references(self, names: Mapping[str, str]) -> Chain:
        """A copy that calls the models by other references; results of steps and those not in `names` keep theirs."""
        outside = {r: new for r, new in names.items() if r not in self.names}
        return replace(self, steps=tuple(Step(s.name, s.recipe.with_references(outside)) for s in self.steps))

    def with_hashes(self, contents: Mapping[str, str]) -> Chain:
        """A copy in which every step holds the content hash of the outside models that it uses."""

        def held(recipe: Recipe) -> Recipe:
            named = [*recipe.references(), *recipe.evomerge.statistics.values()]
            return recipe.with_extras(sources={r: contents[r] for r in named if r in contents})

        return replace(self, steps=tuple(Step(s.name, held(s.recipe)) for s in self.steps))

    def with_folders(self, rename: Callable[[str], str]) -> Chain:
        """A copy whose steps call folders of statistics otherwise."""

        def renamed(recipe: Recipe) -> Recipe:
            return recipe.with_extras(statistics={m: rename(f) for m, f in recipe.evomerge.statistics.items()})

        return replace(self, steps=tuple(Step(s.name, renamed(s.recipe)) for s in self.steps))

    def with_extras(self, **values: Any) -> Chain:
        """A copy whose steps all have these values under their `evomerge:` key (the seed)."""
        return replace(self, steps=tuple(Step(s.name, s.recipe.with_extras(**values)) for s in self.steps))

    def hash(self, contents: Mapping[str, str] | None = None) -> str:
        """SHA-256 (hex) of what the chain means; of a chain of one, the recipe's.

        Args:
            contents: Content hash of each outside model. A step's result stands for the hash of its recipe, so that
                names do not count.
        """
        known = dict(contents or {})
        found = ""
        for step in self.steps:
            found = step.recipe.hash(known)
            if step.name is not None:
                known[step.name] = found
        return found

    def to_yaml(self) -> str:
        """mergekit-multi's YAML; of a chain of one without a name, the recipe's."""
        return "---\n".join(self._documents())

    def _documents(self) -> Iterator[str]:
        for i, step in enumerate(self.steps):
            # A final step that has a name keeps it off: nothing uses it, and its place makes it the final one.
            named = step.name is not None and i < len(self.steps) - 1
            yield step.recipe.to_yaml(name=step.name if named else None)


def _uses(recipe: Recipe, named: Mapping[str, Step]) -> list[str]:
    paths = (ModelReference.parse(r).path for r in recipe.references())
    return [name for name in dict.fromkeys(paths) if name in named]
