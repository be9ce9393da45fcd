"""Every key that a YAML file may have, with type, default, bounds and meaning: from the models that read the files."""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from evomerge.evaluation.config import EvaluatorConfig, ModelArgs, SplitConfig, Splits, TaskConfig
from evomerge.evaluation.goals import Constraint
from evomerge.fusion.config import (
    AlignmentConfig,
    CorpusConfig,
    FunctionConfig,
    FusionConfig,
    LoraConfig,
    SearchConfig,
    TeacherConfig,
    ThenConfig,
    TrainingConfig,
)
from evomerge.fusion.preference_config import PreferenceConfig, StageConfig
from evomerge.images.config import (
    ImageFusionConfig,
    MeasureConfig,
    PictureConfig,
    StudentTraining,
    TeacherModel,
)
from evomerge.recipe.schema import Extras, InputModel, InputSlice, Module, OutputSlice, Recipe
from evomerge.recipe.tokenizer import ModelToken, TokenEmbedding, TokenizerSettings, ZeroToken
from evomerge.recipe.values import Condition
from evomerge.space.config import SpaceConfig
from evomerge.space.dataflow import DataflowConfig, Depth
from evomerge.space.granularity import Granularity
from evomerge.space.hybrid import HybridConfig
from evomerge.space.mergekit_evolve import Genome, MergekitEvolve, Task
from evomerge.space.range import Range
from evomerge.space.scale import Scale
from evomerge.space.skills import SkillsConfig
from evomerge.space.source import Source

Section = tuple[str, type[BaseModel]]
# Mappings that are a file of their own.
FILES = (
    SpaceConfig, DataflowConfig, HybridConfig, SkillsConfig, MergekitEvolve, EvaluatorConfig, FusionConfig,
    ImageFusionConfig, Recipe,
)  # fmt: skip
# The pages of the reference: file, title, what stands above, and the mappings that its file is made of.
PAGES: tuple[tuple[str, str, str, tuple[Section, ...]], ...] = (
    (
        "space.md",
        "Search space",
        "What may vary: the first argument of `evomerge search`. `evomerge init` writes one with comments, `evomerge "
        "check FILE` says everything that is wrong with one. [How a search spends its budget](../search.md) and "
        "[paths over layers](../dataflow.md) say when to use what; [mergekit-evolve's files]"
        "(mergekit-evolve.md) are read too.",
        (
            ("A merge of weights (`kind: parameter`)", SpaceConfig),
            ("`sources:` (each entry)", Source),
            ("`granularity:`", Granularity),
            ("`parameters:` (each value)", Range),
            ("A path over layers (`kind: dataflow`)", DataflowConfig),
            ("`scale:`", Scale),
            ("`depth:`", Depth),
            ("Both, one after the other (`kind: hybrid`)", HybridConfig),
            ("A library's adapters (`kind: skills`)", SkillsConfig),
        ),
    ),
    (
        "mergekit-evolve.md",
        "mergekit-evolve's configuration",
        "A file with a `genome:` key, which `evomerge search` takes as it is; [from mergekit-evolve]"
        "(../mergekit-evolve.md) says what is done in another way.",
        (
            ("The file", MergekitEvolve),
            ("`genome:`", Genome),
            ("`tasks:` (each entry)", Task),
        ),
    ),
    (
        "evaluator.md",
        "Evaluator",
        "What makes a model good: `--evaluator FILE`. lm-eval's options have lm-eval's own names. [Evaluators]"
        "(../evaluators.md) has an example of each kind.",
        (
            ("The file", EvaluatorConfig),
            ("`tasks:` (each entry)", TaskConfig),
            ("`model_args:`", ModelArgs),
            ("`splits:`", Splits),
            ("`search:`, `select:`, `test:` of `splits:`", SplitConfig),
            ("`constraints:` (each entry)", Constraint),
        ),
    ),
    (
        "fusion.md",
        "Fusion",
        "What learns from what: the first argument of `evomerge fuse`. `evomerge init --fusion` writes one with "
        "comments. [Fusion](../fusion.md) explains how it works.",
        (
            ("The file (`kind: fuse`)", FusionConfig),
            ("`sources:` (each entry)", Source),
            ("`corpus:`", CorpusConfig),
            ("`teachers:`", TeacherConfig),
            ("`alignment:`", AlignmentConfig),
            ("`fusion:`", FunctionConfig),
            ("`training:`", TrainingConfig),
            ("`lora:` of `training:`", LoraConfig),
            ("`then:`", ThenConfig),
            ("`search:` of `then:`", SearchConfig),
            ("`preferences:`", PreferenceConfig),
            ("`sft:`, `dpo:` of `preferences:`", StageConfig),
        ),
    ),
    (
        "image-fusion.md",
        "Fusion of image models",
        "Which diffusion models become one with the style of each: the first argument of `evomerge fuse`. "
        "[Image models](../images.md) explains how it works.",
        (
            ("The file (`kind: fuse_images`)", ImageFusionConfig),
            ("`teachers:` (each entry)", TeacherModel),
            ("`pictures:`", PictureConfig),
            ("`training:`", StudentTraining),
            ("`measure:`", MeasureConfig),
        ),
    ),
    (
        "recipe.md",
        "Recipe",
        "One merge, in mergekit's schema: the argument of `evomerge merge`, and what a search writes as `recipe.yaml`. "
        "What mergekit has no key for sits under `evomerge:`. [Recipes](../recipes.md) has examples and the order in "
        "which parameters are looked up; several documents in one file make a chain, each then has a `name`.",
        (
            ("The file", Recipe),
            ("`models:` (each entry)", InputModel),
            ("`slices:` (each entry)", OutputSlice),
            ("`sources:` of a slice (each entry)", InputSlice),
            ("`modules:` (each value)", Module),
            ("A filtered parameter (each entry)", Condition),
            ("`tokenizer:`", TokenizerSettings),
            ("`tokens:` of `tokenizer:` (each value)", TokenEmbedding),
            ("`source:` of a token, `kind: model_token`", ModelToken),
            ("`source:` of a token, `kind: zero`", ZeroToken),
            ("`evomerge:`", Extras),
        ),
    ),
)


@dataclass(frozen=True)
class Key:
    """One key: its name in the file and what the model says of it.

    Attributes:
        default: As YAML writes it; None where the key must be given.
        meaning: Empty where the model's docstring says nothing.
    """

    name: str
    type: str
    default: str | None
    bounds: str
    meaning: str


def keys(model: type[BaseModel]) -> Iterator[Key]:
    """The keys of one mapping, in the model's order."""
    said = attributes(inspect.getdoc(model) or "")
    for name, field in model.model_fields.items():
        default = None if field.is_required() else _yaml(field.get_default(call_default_factory=True))
        meaning = said.get(name, field.description or "")
        yield Key(field.alias or name, _words(field.annotation), default, _bounds(field), meaning)


def attributes(docstring: str) -> dict[str, str]:
    """What the section "Attributes:" of a docstring says of each name; one entry may be about several (`a, b: ...`)."""
    found: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line in docstring.splitlines():
        if not line.startswith(" "):
            inside = line.strip() == "Attributes:" or (inside and not line.strip())
        elif inside and (entry := re.match(r" {4}(\w+(?:, \w+)*): (.+)", line)):
            names = entry.group(1).split(", ")
            found |= dict.fromkeys(names, entry.group(2).strip())
        elif inside and names:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def page(title: str, above: str, sections: Sequence[Section]) -> str:
    """A page of the reference as Markdown."""
    out = [f"# {title}", "", above, ""]
    for words, model in sections:
        slug = model.__name__.removesuffix("Config").lower()
        # What a whole file is stands above already, for people; its docstring is for programmers.
        said = "" if model in FILES else summary(model)
        out += [f"## {words} {{#{slug}}}", "", said, ""]
        for key in keys(model):
            facts = [key.type, *([key.bounds] if key.bounds else [])]
            facts.append("**required**" if key.default is None else f"default: `{key.default}`")
            body = f":   <small>{' · '.join(facts)}</small><br>{key.meaning}"
            out += [f"`{key.name}`{{#{slug}-{key.name}}}", body, ""]
    return "\n".join(out)


def summary(model: type[BaseModel]) -> str:
    """What the docstring says before its sections."""
    return (inspect.getdoc(model) or "").partition("\nAttributes:")[0].strip()


def _words(annotation: Any) -> str:
    """A type as a writer of YAML knows it."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _words(inner[0])
    if origin is Literal:
        return " or ".join(f"`{v}`" for v in inner)
    if origin in (typing.Union, types.UnionType):
        parts = [_words(part) for part in inner if part is not type(None)]
        if {bool, int, float, str} <= {p for p in inner if isinstance(p, type)}:
            parts = ["number, word, true or false"]
        return " or ".join(dict.fromkeys(p for p in parts))
    if origin in (list, tuple) or annotation in (list, tuple):
        if origin is tuple and len(inner) == 2 and Ellipsis not in inner:
            return f"[{_words(inner[0])}, {_words(inner[1])}]"
        return f"list of {_words(inner[0])}" if inner else "list"
    if origin in (dict, Mapping) or annotation is dict:
        return f"mapping of names to {_words(inner[1])}" if inner else "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    simple = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "anything"}
    return simple.get(annotation, "text")


def _bounds(field: FieldInfo) -> str:
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most", "min_length": "entries: at least"}
    given = [(name, value) for m in field.metadata for name in words if (value := getattr(m, name, None)) is not None]
    return ", ".join(f"{words[name]} {value:g}" for name, value in given)


def _yaml(value: Any) -> str:
    if value is PydanticUndefined:
        return ""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, tuple):
        value = list(value)
    return json.dumps(value, ensure_ascii=False).replace('"', "") if value not in ("",) else '""'
