"""How recipes name models, and where in a recipe names of models stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator

from evomerge.errors import RecipeError

# The keys whose value is a model reference, wherever they stand.
MODEL_KEYS = ("model", "base_model", "tokenizer_source", "source", "into")
# What stands for no model where a tokenizer is chosen.
UNION, BASE = "union", "base"
WORDS = (UNION, BASE)
# What a name of a model can be, or be in: numbers are passed over, for most of a recipe are.
_INSIDE = (str, dict, list)
# The keys whose value has names for keys (of modules, of tokens), so that "parameters" may be one.
_NAMED = (("modules",), ("tokens",))
_WORD_KEYS = (("tokenizer_source",), ("tokenizer", "source"))


@dataclass(frozen=True)
class ModelReference:
    """`path@revision+lora@revision`, mergekit's way to name a model.

    `path` is a folder, a hub id or `zoo:NAME`; the adapter after `+` is optional.
    """

    path: str
    revision: str | None = None
    lora: str | None = None
    lora_revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelReference:
        """Split a reference; raises RecipeError where a part is empty."""
        model, plus, lora = text.partition("+")
        path, at, revision = model.partition("@")
        lora_path, lora_at, lora_revision = lora.partition("@")
        for part, given in ((path, True), (revision, at), (lora_path, plus), (lora_revision, lora_at)):
            if given and not part.strip():
                raise RecipeError(f'model reference "{text}": expected path[@revision][+lora[@revision]]')
        return cls(path, revision or None, lora_path or None, lora_revision or None)

    def __str__(self) -> str:
        text = self.path + (f"@{self.revision}" if self.revision else "")
        if self.lora:
            text += f"+{self.lora}" + (f"@{self.lora_revision}" if self.lora_revision else "")
        return text


def flat(value: Any) -> Any:
    """mergekit's long form {model: {path, revision}, lora: {path, revision}} as one string; others as they are."""
    if not isinstance(value, dict):
        return value
    if value.get("override_architecture"):
        raise ValueError("override_architecture is not supported: correct the model's config.json instead")
    unknown = [k for k in value if k not in ("model", "lora", "override_architecture")]
    if unknown or "model" not in value:
        raise ValueError("expected path[@revision][+lora[@revision]], or {model: ..., lora: ...}")
    parts = [_path(value[k]) for k in ("model", "lora") if value.get(k) is not None]
    return "+".join(parts)


def _path(value: Any) -> str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, dict) and isinstance(value.get("path"), str) and set(value) <= {"path", "revision"}:
        return f"{value['path']}@{value['revision']}" if value.get("revision") else str(value["path"])
    raise ValueError("expected a path, or {path: ..., revision: ...}")


Reference = Annotated[str, BeforeValidator(flat)]


def renamed(data: Any, rename: Callable[[str], str], path: tuple[str, ...] = ()) -> Any:
    """A recipe's plain data with every model reference in it replaced by what `rename` makes of it."""
    if isinstance(data, dict):
        if path == ("evomerge", "provenance"):
            return data
        # Under `evomerge: sources:` (content hashes) and `statistics:` (folders) the references are the keys.
        keys = rename if path in (("evomerge", "sources"), ("evomerge", "statistics")) else str
        # Parameters of methods name no model, and are most of a recipe.
        named = path[-1:] in _NAMED
        return {
            keys(k): renamed(v, rename, (*path, k)) if isinstance(v, _INSIDE) and (named or k != "parameters") else v
            for k, v in data.items()
        }
    if isinstance(data, list):
        return [renamed(v, rename, path) if isinstance(v, _INSIDE) else v for v in data]
    if isinstance(data, str) and path and path[-1] in MODEL_KEYS:
        return data if path in _WORD_KEYS and data in WORDS else rename(data)
    return data
