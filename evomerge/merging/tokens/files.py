"""The small files of a checkpoint that depend on its vocabulary: the tokenizer's, and ids in configurations."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import SourceError
from evomerge.merging.tokens import template
from evomerge.merging.tokens.merged import MergedVocabulary
from evomerge.merging.tokens.vocabulary import CONFIG
from evomerge.merging.tokens.vocabulary import FILE as TOKENIZER
from evomerge.recipe import Recipe
from evomerge.sources import Source, read_object, small_file

FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tekken.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
# What says again, in another form, what tokenizer.json says: wrong once that has changed.
_OLD_FORMS = (
    "tokenizer.model", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tekken.json",
)  # fmt: skip
_ID_KEY = re.compile(r"_token_(?:id|ids|index)$")


def tokenizer_files(
    recipe: Recipe, sources: Mapping[str, Source], owner: str, merged: MergedVocabulary | None
) -> dict[str, Path | str]:
    """A checkpoint's tokenizer files and chat template, by name: the file to copy, or the text to write.

    Args:
        owner: The model whose files are copied.
        merged: The vocabulary where the recipe asks for one.

    Raises:
        SourceError: every file that is needed and cannot be read, or is a link out of its model's folder.
    """
    folder = sources[owner].path
    changed = merged is not None and merged.changed
    found: dict[str, Path | str] = {}
    problems: list[str] = []
    for name in FILES:
        try:
            file = small_file(folder, name)
        except SourceError as e:
            problems.append(str(e))
            continue
        if file is not None and not (changed and name in _OLD_FORMS):
            found[name] = file
    if problems:
        raise SourceError("\n".join(problems))
    said_elsewhere: list[str] = []
    if merged is not None and changed:
        found[TOKENIZER] = merged.vocabulary.text
        # The added tokens stand in tokenizer.json; a second list of them would be believed first.
        said_elsewhere.append("added_tokens_decoder")
    text = template.template_of(recipe, sources)
    if text is not None:
        found[template.FILE] = text
        found.pop("chat_template.json", None)
        said_elsewhere.append("chat_template")
    if CONFIG in found:
        config = read_object(folder, CONFIG)
        if any(config.get(key) is not None for key in said_elsewhere):  # else it is copied, byte for byte
            kept = {key: value for key, value in config.items() if key not in said_elsewhere}
            found[CONFIG] = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
    return found


def set_vocabulary(config: dict[str, Any], text: dict[str, Any], donor: Source, owner: Source,
                   merged: MergedVocabulary) -> None:  # fmt: skip
    """Write a merged vocabulary into a configuration: its size, and the ids of special tokens.

    Args:
        config: The merge's configuration, the donor's so far.
        text: Its part for the language model (`config` itself, unless it is a composite model).
    """
    text["vocab_size"] = merged.size
    if "vocab_size" in config:
        config["vocab_size"] = merged.size
    set_special_ids(config, owner.config, donor, owner, merged)
    if text is not config:
        set_special_ids(text, owner.text_config, donor, owner, merged)


def set_special_ids(
    part: dict[str, Any], owned: Mapping[str, Any], donor: Source, owner: Source, merged: MergedVocabulary
) -> None:
    """Set `bos_token_id` and its like in a part of a configuration.

    They are those of the model whose tokenizer is taken, because generation must end at that tokenizer's end token;
    what only the donor has is looked up by its token. Ids without a token in the merged vocabulary become null.

    Args:
        part: The donor's, changed here.
        owned: The same part of the owner's configuration.
    """
    for key in part:
        if _ID_KEY.search(key):
            mine = owner is donor or key in owned
            value = owned[key] if mine and key in owned else part[key]
            part[key] = _mapped(value, None if mine else donor.reference, merged)


def _mapped(value: Any, of: str | None, merged: MergedVocabulary) -> Any:
    """Ids in the merged vocabulary; `of` is the model whose ids they are, None where those are kept."""
    if isinstance(value, list):
        found = [_mapped(v, of, merged) for v in value]
        return [v for v in found if v is not None] or None
    if type(value) is not int or value < 0:
        return value
    if of is None or of not in merged.own:
        return value if value < merged.size else None
    token = merged.own[of].tokens.get(value)
    return merged.vocabulary.ids.get(token) if token is not None else None
