"""Recipe files: YAML of one document, or of several that make a chain."""

from __future__ import annotations

from pathlib import Path

from evomerge.config import Document, parse_documents, read_text, validate
from evomerge.errors import RecipeError
from evomerge.recipe.chain import Chain, Step
from evomerge.recipe.consistency import inconsistencies
from evomerge.recipe.schema import Recipe


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file of one document.

    Raises:
        RecipeError: every problem of the file, one line each.
    """
    return parse_recipe(read_text(path, RecipeError), str(path))


def parse_recipe(text: str, file: str = "<recipe>") -> Recipe:
    """Read a recipe from text; `file` is what messages call it."""
    chain = parse_chain(text, file)
    if len(chain.steps) > 1:
        raise RecipeError(f"{file}: is a chain of {len(chain.steps)} recipes, expected one YAML document")
    return chain.final


def load_chain(path: str | Path) -> Chain:
    """Read a recipe file of one or more documents; a file of one is a chain of one.

    Raises:
        RecipeError: every problem of the file, one line each.
    """
    return parse_chain(read_text(path, RecipeError), str(path))


def parse_chain(text: str, file: str = "<recipe>") -> Chain:
    """Read a chain from text; `file` is what messages call it."""
    documents = parse_documents(text, file, RecipeError) or [Document(None, file)]
    steps: list[Step] = []
    problems: list[str] = []
    for document in documents:
        try:
            name = document.mapping(RecipeError).pop("name", None)
            if name is not None and not isinstance(name, str):
                raise RecipeError(f"{document.where(('name',))}: name = {name!r}: expected a text")
            steps.append(Step(name, validate(Recipe, document, RecipeError, inconsistencies)))
        except RecipeError as e:
            problems.append(str(e))
    if problems:
        raise RecipeError("\n".join(problems))
    try:
        return Chain.of(steps)
    except RecipeError as e:
        raise RecipeError("\n".join(f"{file}: {line}" for line in str(e).splitlines())) from None
