"""Everything of a checkpoint but its weights, told from the plan alone: configurations, tokenizer, chat template."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import SourceError
from evomerge.merging.config import merged_config
from evomerge.merging.plan import Plan
from evomerge.merging.tokens import set_special_ids, tokenizer_files
from evomerge.sources import INDEX, SINGLE, read_object, small_file
from evomerge.sources.diffusion import PIPELINE
from evomerge.sources.files import DENOISER_INDEX, DENOISER_SINGLE

GENERATION = "generation_config.json"
# How images and sounds become a composite model's input: the business of its encoders, whosever the tokenizer is.
PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def small_files(plan: Plan) -> dict[str, Path | str]:
    """config.json, generation_config.json and the tokenizer's files of a merge, as `copied_files`.

    Raises:
        SourceError: a file of a source that is needed for it cannot be read.
    """
    return {**copied_files(plan), f"{inside(plan)}config.json": _text(merged_config(plan))}


def inside(plan: Plan) -> str:
    """What stands before the names of a checkpoint's own files: of a pipeline, the folder of its denoiser."""
    diffusion = plan.sources[plan.donor].diffusion
    return f"{diffusion.component}/" if diffusion is not None and diffusion.component is not None else ""


def marker_of(plan: Plan) -> str:
    """The file by which a folder is known to hold a checkpoint of this kind."""
    return PIPELINE if inside(plan) else "config.json"


def names_of(plan: Plan) -> tuple[str, str]:
    """What the weights file of a checkpoint, and the index of several, are called."""
    return (SINGLE, INDEX) if plan.sources[plan.donor].diffusion is None else (DENOISER_SINGLE, DENOISER_INDEX)


def write_small_files(files: Mapping[str, Path | str], folder: Path) -> None:
    """Copy or write what `small_files` gives."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, folder / name)
        else:
            (folder / name).write_text(content, encoding="utf-8")


def copied_files(plan: Plan) -> dict[str, Path | str]:
    """The small files beside config.json, by name: the file to copy, or the text to write.

    Raises:
        SourceError: every file of a source that is needed and cannot be read, or is a link out of its model's folder.
    """
    diffusion = plan.sources[plan.donor].diffusion
    if diffusion is not None:
        return dict(diffusion.others())
    found: dict[str, Path | str] = {}
    problems: list[str] = []
    for part in (_generation, _tokenizer, _processors):
        try:
            found |= part(plan)
        except SourceError as e:
            problems.append(str(e))
    if problems:
        raise SourceError("\n".join(dict.fromkeys(problems)))
    return found


def _tokenizer(plan: Plan) -> dict[str, Path | str]:
    return tokenizer_files(plan.recipe, plan.sources, plan.tokenizer, plan.vocabulary)


def _processors(plan: Plan) -> dict[str, Path | str]:
    named = {name: small_file(plan.sources[plan.donor].path, name) for name in PROCESSORS}
    return {name: file for name, file in named.items() if file is not None}


def _generation(plan: Plan) -> dict[str, Path | str]:
    """The donor's generation_config.json, with the special tokens of the merged vocabulary."""
    donor, owner = plan.sources[plan.donor], plan.sources[plan.tokenizer]
    file = small_file(donor.path, GENERATION)
    if file is None:
        return {}
    config = read_object(donor.path, GENERATION)
    if plan.vocabulary is None:
        return {GENERATION: file}
    set_special_ids(config, read_object(owner.path, GENERATION) or owner.text_config, donor, owner, plan.vocabulary)
    return {GENERATION: _text(config)}


def _text(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
