"""The vocabulary of a merge: of all models together, of the base, or of one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from evomerge.errors import RecipeError, SourceError
from evomerge.merging.tokens.union import united
from evomerge.merging.tokens.vocabulary import Vocabulary, has_tokenizer
from evomerge.recipe import BASE, UNION, Recipe, TokenizerSettings
from evomerge.sources import Source


@dataclass(frozen=True, eq=False)
class MergedVocabulary:
    """What a recipe's tokenizer comes to.

    Attributes:
        owner: Reference of the model whose tokenizer files are the start.
        vocabulary: The merged tokenizer.
        changed: Whether it differs from the owner's file.
        own: Each model's vocabulary, by reference.
        size: Number of embedding rows: the highest id and one, rounded up as asked.
        settings: The recipe's.
    """

    owner: str
    vocabulary: Vocabulary
    changed: bool
    own: Mapping[str, Vocabulary]
    size: int
    settings: TokenizerSettings


def settings_of(recipe: Recipe) -> TokenizerSettings | None:
    """The recipe's `tokenizer:`, or what its `tokenizer_source:` is short for; None where it asks for nothing."""
    if recipe.tokenizer_source:
        return TokenizerSettings(source=recipe.tokenizer_source)
    return recipe.tokenizer


def merge_vocabularies(
    recipe: Recipe,
    sources: Mapping[str, Source],
    rows: Mapping[str, int],
    read: Callable[[Path], Vocabulary],
) -> MergedVocabulary | None:
    """Make the vocabulary that a recipe asks for; None where it asks for none.

    The base's tokens keep their ids; those that it lacks follow, model after model in the recipe's order, each model's
    in the order of its ids: first the plain ones, then those that are matched before the text is split (as mergekit has
    it, whose own order changes from run to run). A model without a tokenizer is taken to have the base's. The model
    that a merge is put into counts as the last of them: its processor writes its tokens.

    Args:
        sources: The recipe's models, that of `tokenizer_source` included, which need not be merged.
        rows: How many rows the embedding of each model has. Tokens beyond them have no embedding and are left out.

    Raises:
        RecipeError: every model without the tokenizer that is needed, or with one that cannot be read.
    """
    settings = settings_of(recipe)
    if settings is None:
        return None
    references = recipe.merged_models()
    key = "tokenizer_source" if recipe.tokenizer_source else "tokenizer.source"
    base = recipe.base_model or references[0]
    owner = base if settings.source in (UNION, BASE) else settings.source
    own = _vocabularies(sources, references, rows, base, owner, read, key)
    into = recipe.evomerge.into
    if into is not None and into not in own and has_tokenizer(sources[into].path):
        own[into] = _read_one(sources[into].path, read, key)
    start = own[owner]
    vocabulary = start if settings.source not in (UNION, BASE) else start.below(rows[base])
    own[base] = own[base].below(rows[base])
    put = [into] if into is not None and into in own else []
    others = dict.fromkeys((base, *references, *put)) if settings.source == UNION else ()
    more = list(settings.tokens or ())
    vocabulary = united(vocabulary, [(own[r], rows[r]) for r in others], more)
    changed = vocabulary is not start
    multiple = settings.pad_to_multiple_of or 1
    return MergedVocabulary(owner, vocabulary, changed, own, -(-vocabulary.size // multiple) * multiple, settings)


def _vocabularies(
    sources: Mapping[str, Source],
    references: list[str],
    rows: Mapping[str, int],
    base: str,
    owner: str,
    read: Callable[[Path], Vocabulary],
    key: str,
) -> dict[str, Vocabulary]:
    problems: list[str] = []
    found: dict[str, Vocabulary] = {}
    for reference in dict.fromkeys((base, owner, *references)):
        folder = sources[reference].path
        try:
            if has_tokenizer(folder) or reference in (base, owner):
                found[reference] = read(folder)
            elif base in found and rows[reference] == rows[base]:
                found[reference] = found[base]
            else:
                problems.append(f'{key}: "{reference}" has no tokenizer, and not as many embeddings as "{base}"')
        except SourceError as e:
            problems.append(f"{key}: {e}")
    if problems:
        raise RecipeError("\n".join(problems))
    return found


def _read_one(folder: Path, read: Callable[[Path], Vocabulary], key: str) -> Vocabulary:
    try:
        return read(folder)
    except SourceError as e:
        raise RecipeError(f"{key}: {e}") from None
