"""The `tokenizer:` key: which vocabulary a merge has, and whose embeddings tokens get."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from evomerge.config import Frozen
from evomerge.recipe.reference import UNION, Reference

# Hardware asks for multiples of 8 to some hundreds; more would only make rows that are nobody's.
MOST_PADDING = 65536


class ModelToken(Frozen):
    """The embedding that another token, or a row, has in one of the models.

    Attributes:
        kind: Says that the embedding is another token's.
        model: Whose embedding is taken.
        token_id: Number of its row; one of token and token_id is given.
        token: The token itself.
    """

    kind: Literal["model_token"]
    model: Reference
    token_id: int | None = Field(default=None, ge=0)
    token: str | None = None

    @model_validator(mode="after")
    def _one(self) -> ModelToken:
        if (self.token is None) == (self.token_id is None):
            raise ValueError('expected exactly one of "token" and "token_id"')
        return self


class ZeroToken(Frozen):
    """An embedding of zeros.

    Attributes:
        kind: Says that the embedding is zeros.
    """

    kind: Literal["zero"]


def _kind(value: Any) -> str | None:
    """Which kind of source is meant, so that a wrong one has one message."""
    if isinstance(value, str):
        return "(model)"
    kind = getattr(value, "kind", None)
    if isinstance(value, Mapping):
        kind = value.get("kind", "model" if "model" in value else None)
    return f"({kind})" if kind in ("model_token", "zero", "model") else None


_TokenSource = Annotated[
    Annotated[ModelToken, Tag("(model_token)")]
    | Annotated[ZeroToken, Tag("(zero)")]
    | Annotated[Reference, Tag("(model)")],
    Discriminator(
        _kind,
        custom_error_type="token",
        custom_error_message="expected a model, {kind: zero}, or {kind: model_token, model, token or token_id}",
    ),
]


class TokenEmbedding(Frozen):
    """Where a token's embedding comes from, in models that lack it (`force`: in every model).

    Attributes:
        source: A model (its embedding of this token), another token of a model, or zero. None: as for any token.
        force: Take it in every model, also in those that have the token.
    """

    source: _TokenSource | None = None
    force: bool = False

    @model_validator(mode="after")
    def _forced(self) -> TokenEmbedding:
        if self.force and self.source is None:
            raise ValueError('"force" needs a "source"')
        return self


class TokenizerSettings(Frozen):
    """mergekit's `tokenizer:`.

    Attributes:
        source: "union" of all vocabularies, "base" (the base model's), or a model's.
        tokens: Tokens whose embedding is said; those that the vocabulary lacks are added to it.
        pad_to_multiple_of: The number of rows is rounded up to one, by rows that have the mean of all others.
    """

    source: Reference = UNION
    tokens: dict[str, TokenEmbedding] | None = None
    pad_to_multiple_of: int | None = Field(default=None, ge=1, le=MOST_PADDING)
