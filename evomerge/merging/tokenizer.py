"""The merged checkpoint's tokenizer: whose it is, and its files. Vocabularies that differ are refused for now."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import RecipeError, SourceError, choose
from evomerge.recipe import Recipe
from evomerge.sources import Source

FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
TEMPLATE = "chat_template.jinja"


def choose_source(recipe: Recipe, sources: Mapping[str, Source], donor: str) -> str:
    """Reference of the model whose tokenizer the merge gets.

    Raises:
        RecipeError: a tokenizer that would need the embeddings rearranged (vocabularies differ, tokens changed), a
            source that is no model of the recipe, or a chat template that is none.
    """
    problems: list[str] = []
    references = recipe.references()
    asked: Any = recipe.tokenizer_source
    key = "tokenizer_source"
    if recipe.tokenizer:
        key = "tokenizer.source"
        asked = recipe.tokenizer.get("source", "union")
        rest = [k for k in recipe.tokenizer if k != "source" and recipe.tokenizer[k]]
        if rest:
            problems.append(f'tokenizer.{rest[0]}: changing tokens is not supported yet; only "source" is')
    found = donor
    if isinstance(asked, dict):
        asked = asked.get("model", asked)
    if asked not in (None, "union", "base"):
        if asked in references:
            found = str(asked)
        else:
            problems.append(f'{key}: "{asked}" is no model of this recipe; {choose(str(asked), ["base", *references])}')
    if asked is not None and not problems:
        try:
            odd = [r for r in references if vocabulary(sources[r].path) != vocabulary(sources[found].path)]
        except SourceError as e:
            odd = []
            problems.append(f"{key}: {e}")
        if odd:
            problems.append(
                f'{key}: the vocabularies of "{odd[0]}" and "{found}" differ; merging over different vocabularies is '
                "not supported yet"
            )
    template = recipe.chat_template
    if template is not None and template != "auto" and "{" not in template:
        problems.append(f'chat_template = "{template}": expected the text of a Jinja template, or "auto"')
    if problems:
        raise RecipeError("\n".join(problems))
    return found


def vocabulary(folder: Path) -> dict[str, int]:
    """Token ids by token.

    Raises:
        SourceError: no vocabulary that can be read without running the tokenizer.
    """
    try:
        if (folder / "tokenizer.json").is_file():
            data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            vocab = data["model"]["vocab"]
            ids = dict(vocab) if isinstance(vocab, dict) else {piece[0]: i for i, piece in enumerate(vocab)}
            ids.update({token["content"]: token["id"] for token in data.get("added_tokens") or ()})
            return ids
        if (folder / "vocab.json").is_file():
            return dict(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
        if (folder / "tokenizer.model").is_file():
            # A sentencepiece file is compared as a whole.
            return {(folder / "tokenizer.model").read_bytes().hex(): 0}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as e:
        raise SourceError(f"{folder}: its tokenizer cannot be read ({type(e).__name__}: {e})") from None
    raise SourceError(f"{folder}: has no tokenizer (tokenizer.json, vocab.json or tokenizer.model)")


def write_tokenizer(recipe: Recipe, sources: Mapping[str, Source], chosen: str, out: Path) -> None:
    """Copy the chosen model's tokenizer files, with the recipe's chat template in the place of its own."""
    folder = sources[chosen].path
    for name in FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    template = recipe.chat_template
    if template == "auto":
        found = [t for r in recipe.references() if (t := chat_template(sources[r].path))]
        template = Counter(found).most_common(1)[0][0] if found else None
    if template is None:
        return
    (out / TEMPLATE).write_text(template, encoding="utf-8")
    (out / "chat_template.json").unlink(missing_ok=True)
    config = out / "tokenizer_config.json"
    if config.is_file():
        data = json.loads(config.read_text(encoding="utf-8"))
        if data.pop("chat_template", None) is not None:
            config.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def chat_template(folder: Path) -> str | None:
    """A model's chat template, or None."""
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8").strip()
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return None
    template = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    if isinstance(template, list):
        template = next((t.get("template") for t in template if t.get("name") == "default"), None)
    return template.strip() if isinstance(template, str) else None
