"""A library's skills as a space of merges: `kind: skills`, read as task arithmetic over adapters.

W_0 + sum_i w_i B_i A_i with a weight for each skill, or for each layer group and skill, between the bounds of LoRAHub
(arXiv 2307.13269): -1.5 to 1.5. The engine sums the products exactly from the thin matrices.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from evomerge.config import Document, Frozen, validate
from evomerge.errors import SpaceError
from evomerge.library import LibraryError, find_library
from evomerge.space.config import Dtype, SpaceConfig
from evomerge.space.granularity import Granularity
from evomerge.space.range import Range

WEIGHT = Range(low=-1.5, high=1.5, init=0.0)


class SkillsConfig(Frozen):
    """A space over a skill library, as a file gives it.

    Attributes:
        name: What the space is called in a study's name; default: the file's name.
        kind: Says that the file is about a skill library.
        library: Folder of the library.
        skills: Names of those that take part, one at least; default: all.
        weight: Bounds of every weight, and where the search starts: 0 is the base; of k skills 1/k their mean.
        granularity: What has a weight of its own beside each skill: layer groups, modules. Default: nothing.
        dtype: Arithmetic type of recipes, as mergekit has it.
        out_dtype: Type that a checkpoint is saved in; default: dtype, else the base's own.
    """

    name: str = ""
    kind: str = "skills"
    library: str
    skills: tuple[str, ...] | None = Field(default=None, min_length=1)
    weight: Range = WEIGHT
    granularity: Granularity = Granularity()
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None


def read(document: Document) -> SpaceConfig:
    """The space of merges that a file of `kind: skills` describes.

    Raises:
        SpaceError: what is wrong with the file, or with the library that it names.
    """
    config = validate(SkillsConfig, document, SpaceError)
    try:
        # Where it was found, and its base from there: another model of the base's name may lie in the current folder.
        library = find_library(config.library, Path(document.file).parent)
        names = library.chosen(config.skills or ())
        sources = [{"model": library.reference(name), "name": name} for name in names]
    except LibraryError as e:
        key = "skills" if config.skills else "library"
        raise SpaceError(f"{document.where((key,))}: {key}: {e}") from None
    data: dict[str, Any] = {
        "name": config.name, "kind": "parameter", "method": "task_arithmetic", "base_model": library.base,
        "sources": sources, "granularity": _cut(config.granularity),
        "parameters": {"weight": config.weight.model_dump(exclude_unset=True), "normalize": False},
        "dtype": config.dtype, "out_dtype": config.out_dtype,
    }  # fmt: skip
    data = {k: v for k, v in data.items() if v not in (None, "")}
    space = validate(SpaceConfig, Document(data, document.file), SpaceError)
    space._library = library
    return space


def _cut(given: Granularity) -> dict[str, Any]:
    """The cut, with embeddings and head in no group of their own: no skill changes embeddings, and few the head.

    What a skill adds to a head (`lm_head`) has the weight of the last layer group.
    """
    data = given.model_dump(exclude_unset=True)
    return data if given.embeddings is not None else {**data, "embeddings": "layers"}
