"""`evomerge check FILE`: is a space, a recipe or an evaluator right, and what would it do? Nothing is built."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.cli.commands import Parser, Subparsers, add_command
from evomerge.cli.output import emit, say
from evomerge.errors import InputError

if TYPE_CHECKING:
    from evomerge.space import SearchSpace

DESCRIPTION = """\
Check a file before time is spent on it: a search space, a recipe (or a chain of them), a fusion or an evaluator, told
apart by their keys. Its models and tasks are looked up too, and of a recipe it is said what would be done: the method
of each group of tensors, bytes to read and write, memory, tokenizer. Exit code 0 when it is right; 2, with every
problem on a line of its own, when it is not.

  evomerge check space.yaml
  evomerge check search_spaces/quickstart.yaml        a preset, from any folder
  evomerge check recipe.yaml --json"""

# A key that only one kind of file has tells which it is; asked in this order.
_KEYS: tuple[tuple[str, str], ...] = (
    ("merge_method", "recipe"),
    ("target", "fusion"),
    ("genome", "space"),  # mergekit-evolve's own configuration, whose `tasks:` would look like an evaluator's
    ("sources", "space"),
    ("library", "space"),
    ("granularity", "space"),
    ("tasks", "evaluator"),
    ("function", "evaluator"),
    ("command", "evaluator"),
)
_SPACES = ("parameter", "dataflow", "hybrid", "skills")


def add_parser(subparsers: Subparsers[Parser]) -> None:
    """Register the command."""
    parser = add_command(subparsers, "check", "check a space, a recipe, a fusion or an evaluator", DESCRIPTION)
    parser.add_argument("file", metavar="FILE", help="YAML file, or a preset (search_spaces/NAME, evaluators/NAME)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Find out what the file is, check it, print what it would do."""
    path = locate(args.file)
    kind = kind_of(path)
    say(args, f"looking at the {kind}")  # tasks and headers take seconds
    checks = {
        "recipe": _recipe, "space": _space, "evaluator": _evaluator, "fusion": _fusion, "image fusion": _images,
    }  # fmt: skip
    facts, text = checks[kind](path)
    emit(args, {"file": path, "kind": kind, "ok": True, **facts}, f"{path}: {kind}, in order\n{text}".rstrip())
    return 0


def locate(name: str) -> Path:
    """The file that is meant: a path, or a preset by its folder and name."""
    from evomerge import presets

    if Path(name).is_file():  # a preset's folder of tasks bears its name
        return Path(name)
    for kind in ("search_spaces", "evaluators"):
        if name.startswith(f"{kind}/") and (found := presets.find(kind, name)):
            return found
    if "/" not in name and (found := presets.find("search_spaces", name) or presets.find("evaluators", name)):
        return found
    return Path(name)  # read_text() says what is wrong, with the nearest name


def kind_of(path: Path) -> str:
    """Which kind of file it is (recipe, space, evaluator), by the keys that it has."""
    from evomerge.config import Document, parse_documents, read_text

    # A chain of recipes is several documents, each of one kind.
    documents = parse_documents(read_text(path), str(path)) or [Document(None, str(path))]
    data = documents[0].mapping()
    if len(documents) > 1:
        return "recipe"
    if data.get("kind") == "fuse":
        return "fusion"
    if data.get("kind") == "fuse_images":
        return "image fusion"
    for key, kind in _KEYS:
        if key in data:
            return kind
    from evomerge.evaluation.config import EVALUATORS

    if data.get("kind") in EVALUATORS:
        return "evaluator"
    if data.get("kind") in _SPACES:
        return "space"
    known = ", ".join(f'"{key}" ({kind})' for key, kind in _KEYS)
    # Nearer than what is found elsewhere: here any key of any file is compared ("method" is no "merge_method").
    near = next((n for key in data for n in get_close_matches(str(key), [k for k, _ in _KEYS], 1, 0.8)), None)
    hint = f'; did you mean "{near}"?' if near else ""
    raise InputError(
        f"{path}: neither a recipe, a space, a fusion nor an evaluator; expected one of the keys {known}, or"
        f' "kind: fuse_images" (image fusion){hint}'
    )


Facts = tuple[Mapping[str, Any], str]


def _recipe(path: Path) -> Facts:
    from evomerge.cli.forecast import forecast

    return forecast(path)


def _space(path: Path) -> Facts:
    from evomerge.pipeline.models import live_of, open_space, second_space, told_of
    from evomerge.pipeline.seeing import words as put_into
    from evomerge.space import HybridConfig, load_space

    config = load_space(path)
    if not isinstance(config, HybridConfig):
        with told_of(path):
            sources, space = open_space(config, path.parent)
        live = live_of(config, sources)
        facts = _space_facts(space, sources[live].num_layers)
        migrated = config.migrated
        if migrated is None:
            return facts, "\n".join([space.describe(), *put_into(config, live, sources)])
        tasks = [t["name"] for t in migrated.evaluator.get("tasks", ())]
        changes = [*migrated.changes, *migrated.scored]
        facts |= {"tasks": tasks, "changes": changes}
        lines = [space.describe(), f"mergekit-evolve's configuration, with tasks: {', '.join(tasks) or 'none'}"]
        return facts, "\n".join([*lines, *(f"  {change}" for change in changes)])
    with told_of(path):
        sources, first = open_space(config.parameter, path.parent)
        live = live_of(config.parameter, sources)
        merge = sources[live]
        second = second_space(config, merge, path.parent)
    stages = {name: _space_facts(s, merge.num_layers) for name, s in (("parameter", first), ("dataflow", second))}
    lines = [f"{config.share:.0%} of the budget: {first.describe()}", f"the rest: {second.describe()}"]
    lines += put_into(config.parameter, live, sources)
    facts = {"space": config.kind, "share": config.share, "models": config.references(), "layers": merge.num_layers}
    names = [name for stage in stages.values() for name in stage["parameters"]]
    return {**facts, "parameters": names, "stages": stages}, "\n".join(lines)


def _space_facts(space: SearchSpace, layers: int) -> dict[str, Any]:
    from evomerge.space import SpaceConfig

    config = space.config
    method = {"method": list(config.method)} if isinstance(config, SpaceConfig) else {}
    names = [p.name for p in space.parameters]
    return {"space": config.kind, **method, "models": config.references(), "layers": layers, "parameters": names}


def _fusion(path: Path) -> Facts:
    from evomerge.pipeline import FusionPlan

    plan = FusionPlan(path)
    corpus, tokens = plan.count()
    counts = corpus.counts
    lines = [
        *plan.cost(None, tokens),
        f"{counts.pieces:,} documents to learn from, {len(corpus.held_out):,} held out",
        *counts.lines(), *corpus.held_counts.lines("held-out documents"),
    ]  # fmt: skip
    facts = {
        "target": plan.config.target, "sources": {s.name: s.model for s in plan.config.sources},
        "mode": plan.config.fusion.mode, "results": list(plan.results), "max_length": plan.limit,
        "documents": counts.documents, "held_out": len(corpus.held_out), "tokens": dict(tokens),
        **{kind: {k: n for k, (n, _) in getattr(counts, kind).items()} for kind in ("left_out", "unwritable", "lossy")},
    }  # fmt: skip
    return facts, "\n".join(lines)


def _images(path: Path) -> Facts:
    from evomerge.pipeline import plan_images

    plan = plan_images(path)
    plan.features()
    plan.pictures.check()
    facts = {
        "begins": plan.config.student or plan.config.base, "architecture": plan.begins.architecture,
        "teachers": {t.style: t.model for t in plan.config.teachers}, "styles": plan.styles,
        "pictures": len(plan.pictures), "told": plan.conditions.kind,
        "replaced": plan.replaced,
    }  # fmt: skip
    return facts, "\n".join(plan.lines())


def _evaluator(path: Path) -> Facts:
    from evomerge.evaluation import SPLITS, load_evaluator, open_evaluator
    from evomerge.pipeline.goals import check_goals

    file = load_evaluator(path)
    evaluator = open_evaluator(file)
    check_goals(evaluator, file)
    counts = {split: {task: len(ids) for task, ids in evaluator.items(split).items()} for split in SPLITS}
    lines = [f"{t.name}: weight {t.weight:g}" for t in file.config.tasks]
    if file.config.command is not None:
        lines.append(f"runs {shlex.join(file.config.command)}, in {file.folder.resolve()}")
    if file.config.timeout is not None:
        lines.append(f"timeout: {file.config.timeout:g} s for each candidate")
    lines += [f"{split}: " + ", ".join(f"{n} items of {task}" for task, n in counts[split].items()) for split in SPLITS]
    from evomerge.evaluation.overlaps import overlaps

    shared = overlaps({split: evaluator.texts(split) for split in SPLITS})
    lines += [f"overlap: {line}" for line in shared.lines()]
    facts = {
        "evaluator": file.config.kind, "tasks": [t.name for t in file.config.tasks], "items": counts,
        "overlaps": shared.to_dict(),
    }  # fmt: skip
    return facts, "\n".join(lines)
