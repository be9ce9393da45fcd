"""What a recipe's tokenizer means for its plan, worked out once for all recipes that ask for the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from evomerge.errors import RecipeError
from evomerge.merging.modules import is_composite
from evomerge.merging.plan import Input
from evomerge.merging.structure import Piece, Row, Structure
from evomerge.merging.tokens.gather import Gather, Gatherer
from evomerge.merging.tokens.merged import MergedVocabulary, merge_vocabularies
from evomerge.merging.tokens.place import embedding_rows, is_vocabulary
from evomerge.merging.tokens.vocabulary import Vocabulary, reader
from evomerge.recipe import Recipe
from evomerge.sources import Source


@dataclass(frozen=True)
class PlannedTokens:
    """The part of a plan that is about tokens.

    Attributes:
        owner: Reference of the model whose tokenizer files are the start.
        structure: The structure, its tensors with a row for each token in their new size.
        vocabulary: The merged vocabulary, or None where the recipe asks for none.
        gathers: How inputs are laid out for it; those that stay as they are are left out.
    """

    owner: str
    structure: Structure
    vocabulary: MergedVocabulary | None = None
    gathers: Mapping[Input, Gather] = field(default_factory=dict)


class TokenPlanner:
    """Plans vocabularies over a fixed set of sources."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = sources
        self._read: Callable[[Path], Vocabulary] = reader()
        self._planned: dict[tuple[Hashable, ...], PlannedTokens] = {}

    def plan(self, recipe: Recipe, structure: Structure, key: Hashable, pieces: Sequence[Piece]) -> PlannedTokens:
        """The tokens of a recipe.

        Args:
            key: Equal for recipes of equal structure.
            pieces: The recipe's.

        Raises:
            RecipeError: every problem of the recipe's tokenizer, one line each.
        """
        asked = recipe.tokenizer.model_dump_json() if recipe.tokenizer else None
        # Not only a matter of structure: the order of the models is that of new tokens.
        whole = (key, recipe.tokenizer_source, asked, recipe.chat_template, *recipe.references())
        if whole not in self._planned:
            self._planned[whole] = self._plan(recipe, structure, pieces)
        return self._planned[whole]

    def vocabulary(self, recipe: Recipe) -> MergedVocabulary | None:
        """The vocabulary that a recipe asks for.

        Raises:
            RecipeError, SourceError: every model whose tokenizer or embedding is not as it must be.
        """
        rows = {r: embedding_rows(self._sources[r]) for r in recipe.references()}
        return merge_vocabularies(recipe, self._sources, rows, self._read)

    def _plan(self, recipe: Recipe, structure: Structure, pieces: Sequence[Piece]) -> PlannedTokens:
        merged = self.vocabulary(recipe)
        if merged is None:
            return PlannedTokens(structure.donor, structure)
        gatherer = Gatherer(merged)
        problems: list[str] = []
        gathers: dict[Input, Gather] = {}
        laid_out: list[Row] = []
        for row in structure.rows:
            if not is_vocabulary(self._sources[row.inputs[0].model], row.inputs[0].tensor):
                laid_out.append(row)
                continue
            fills = self._fills(row, structure.donor, merged)
            inputs = (*row.inputs, *fills)
            have = [self._sources[item.model].tensors[item.tensor].shape[0] for item in inputs]
            base = pieces[row.piece].base_model
            found = gatherer.gathers(inputs, have, base, problems, len(fills))
            for item, n, gather in zip(row.inputs, have, found, strict=False):
                if not gather.is_identity(n):
                    gathers[item] = gather
            laid_out.append(replace(row, shape=(merged.size, *row.shape[1:])))
        if problems:
            raise RecipeError("\n".join(dict.fromkeys(problems)))
        return PlannedTokens(merged.owner, replace(structure, rows=tuple(laid_out)), merged, gathers)

    def _fills(self, row: Row, donor: str, merged: MergedVocabulary) -> tuple[Input, ...]:
        """The tensor of the vision-language model that a merge is put into, where it is not merged: nobody else has
        embeddings for the tokens that its processor writes."""
        source = self._sources[donor]
        beside = is_composite(source) and donor in merged.own and all(item.model != donor for item in row.inputs)
        return (Input(donor, row.name),) if beside and row.name in source.tensors else ()
