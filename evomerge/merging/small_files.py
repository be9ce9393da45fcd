"""Everything of a checkpoint but its weights, told from the plan alone: configurations, tokenizer, chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from evomerge.errors import SourceError
from evomerge.merging.config import merged_config
from evomerge.merging.plan import Plan
from evomerge.merging.tokens import set_special_ids, write_tokenizer

GENERATION = "generation_config.json"
# How images and sounds become a composite model's input: the business of its encoders, whosever the tokenizer is.
PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def write_small_files(plan: Plan, folder: Path) -> None:
    """Write config.json, generation_config.json and the tokenizer's files of a merge.

    Raises:
        SourceError: a file of a source that is needed for it is not JSON.
    """
    (folder / "config.json").write_text(_text(merged_config(plan)), encoding="utf-8")
    _write_generation(plan, folder)
    write_tokenizer(plan.recipe, plan.sources, plan.tokenizer, plan.vocabulary, folder)
    for name in PROCESSORS:
        file = plan.sources[plan.donor].path / name
        if file.is_file():
            shutil.copyfile(file, folder / name)


def _write_generation(plan: Plan, folder: Path) -> None:
    """The donor's generation_config.json, with the special tokens of the merged vocabulary."""
    donor, owner = plan.sources[plan.donor], plan.sources[plan.tokenizer]
    file = donor.path / GENERATION
    if not file.is_file():
        return
    if plan.vocabulary is None:
        shutil.copyfile(file, folder / GENERATION)
        return
    config = _json(file)
    set_special_ids(config, _json(owner.path / GENERATION) or owner.text_config, donor, owner, plan.vocabulary)
    (folder / GENERATION).write_text(_text(config), encoding="utf-8")


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as e:
        raise SourceError(f"{file}: not JSON ({e})") from None
    return data if isinstance(data, dict) else {}


def _text(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
