"""`evomerge skills`: a library of LoRA adapters on one base, and what is composed of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from evomerge.cli.commands import Parser, Subparsers, add_command, one_of
from evomerge.cli.output import emit, say
from evomerge.cli.skills_gate import base_option

DESCRIPTION = """\
Keep LoRA adapters on one base model in a library, and compose them: with weights that are the same for every prompt
(compose; searched by a space of `kind: skills`), or with weights that a small network gives each prompt (gate).

  evomerge skills add library arithmetic ./lora-arithmetic --description "sums" --tags maths
  evomerge skills list library
  evomerge skills compose library merged --weights arithmetic=0.8 poetry=-0.3
  evomerge skills gate library prompts.jsonl gated"""

ADD = """\
Copy a PEFT adapter into a library, which is made where it is missing. Its base must be the library's: names and shapes
of its tensors are checked, and the content of the model that its configuration names, where that is here.

  evomerge skills add library arithmetic ./lora-arithmetic
  evomerge skills add library poetry org/poetry-lora --base ./llama --tags style"""
LIST = """\
Show what a library holds: each skill's rank, alpha, layers, tags and description.

  evomerge skills list library"""
REMOVE = """\
Take a skill out of a library. The others, and what is composed of them, stay as they are, bit for bit.

  evomerge skills remove library poetry"""
COMPOSE = """\
Write a library's skills with given weights, which may be negative, as a plain checkpoint, or as one adapter (--as
adapter: ranks laid side by side, exact, loaded by PEFT). Skills that are not named are left out. What a search found is
written by `evomerge export STUDY OUT`, with `--format adapter` as one adapter.

  evomerge skills compose library merged --weights arithmetic=0.8 poetry=-0.3
  evomerge skills compose library one-adapter --weights arithmetic=0.8 poetry=-0.3 --as adapter"""


def add_parser(subparsers: Subparsers[Parser]) -> None:
    """Register the command and those inside it."""
    from evomerge.cli import skills_gate

    parser = add_command(subparsers, "skills", "keep LoRA adapters on one base, and compose them", DESCRIPTION)
    inner: Subparsers[Parser] = parser.add_subparsers(dest="action", metavar="COMMAND", parser_class=Parser)
    _add(inner)
    listed = add_command(inner, "list", "show what a library holds", LIST)
    _library(listed)
    listed.set_defaults(run=_list)
    removed = add_command(inner, "remove", "take a skill out of a library", REMOVE)
    _library(removed)
    removed.add_argument("name", metavar="NAME", help="the skill")
    removed.set_defaults(run=_removed)
    _compose(inner)
    skills_gate.add_parser(inner)


def run(args: argparse.Namespace) -> int:
    """The command inside that was named."""
    return int(args.run(args))


def _library(parser: Parser) -> None:
    parser.add_argument("library", metavar="LIBRARY", type=Path, help="folder of the skill library")


def _add(inner: Subparsers[Parser]) -> None:
    parser = add_command(inner, "add", "copy an adapter into a library", ADD)
    parser.add_argument("library", metavar="LIBRARY", type=Path, help="folder of the skill library; made where missing")
    parser.add_argument("name", metavar="NAME", help="what the skill is called: letters, digits and _ . -")
    parser.add_argument("adapter", metavar="ADAPTER", help="folder of a PEFT LoRA adapter (safetensors), or its hub id")
    parser.add_argument(
        "--base", metavar="MODEL", help="the model that it is an adapter on (default: the library's; of a new library "
        "the one that the adapter's configuration names); where the library's lies elsewhere by now, its new place",
    )  # fmt: skip
    parser.add_argument("--description", default="", metavar="TEXT", help="what the skill does")
    parser.add_argument("--tags", nargs="+", default=[], metavar="TAG", help="words to find it by")
    parser.set_defaults(run=_added)


def _compose(inner: Subparsers[Parser]) -> None:
    parser = add_command(inner, "compose", "write skills with given weights as a checkpoint or one adapter", COMPOSE)
    _library(parser)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; must be new or empty")
    parser.add_argument(
        "--weights", nargs="+", required=True, type=_weight, metavar="NAME=W",
        help="weight of each skill that takes part",
    )  # fmt: skip
    parser.add_argument(
        "--as", dest="kind", type=one_of(("checkpoint", "adapter")), default="checkpoint", metavar="KIND",
        help="checkpoint: a plain model folder; adapter: one PEFT adapter on the base (default: checkpoint)",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", type=one_of(("float32", "float16", "bfloat16")), metavar="TYPE",
        help="of a checkpoint's weights: float32, float16 or bfloat16 (default: the base's own)",
    )  # fmt: skip
    base_option(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace what OUT holds")
    parser.set_defaults(run=_composed)


def _added(args: argparse.Namespace) -> int:
    from evomerge.skills.shelf import add

    library = add(
        args.library, args.name, args.adapter, base=args.base, description=args.description, tags=args.tags,
        say=lambda text: say(args, text),
    )  # fmt: skip
    skill = library.index.skills[args.name]
    facts = {"library": library.folder, "base": library.base, "name": args.name, **skill.model_dump(mode="json")}
    emit(args, facts, f"{library.place(args.name)}: rank {skill.rank}, on {library.base}")
    return 0


def _list(args: argparse.Namespace) -> int:
    from evomerge.library import read_library

    library = read_library(args.library)
    skills = []
    for name, skill in library.index.skills.items():
        place = library.place(name)
        skills.append({"name": name, **skill.model_dump(mode="json"), "path": place, "missing": not place.is_dir()})
    facts = {"base": library.base, "base_sha256": library.index.base.sha256, "skills": skills}
    emit(args, facts, _table(library.base, skills))
    return 0


def _plain(text: str) -> str:
    """Text without what moves a terminal's cursor or breaks a line: an index may be a stranger's."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _table(base: str, skills: list[dict[str, Any]]) -> str:
    if not skills:
        return f"base {_plain(base)}\nno skills yet: evomerge skills add LIBRARY NAME ADAPTER"
    head = ("skill", "rank", "alpha", "layers", "tags", "description")
    rows = [head] + [
        (
            s["name"] + (" (its folder is gone)" if s["missing"] else ""), str(s["rank"]),
            f"{s['alpha']:g}" + (" rs" if s["rslora"] else ""), _plain(" ".join(s["modules"])),
            _plain(" ".join(s["tags"])), _plain(s["description"]),
        )
        for s in skills
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([f"base {_plain(base)}", *lines])


def _removed(args: argparse.Namespace) -> int:
    from evomerge.skills.shelf import remove

    library = remove(args.library, args.name)
    left = ", ".join(library.names) or "none"
    facts = {"library": library.folder, "removed": args.name, "skills": library.names}
    emit(args, facts, f"{library.folder}: left: {left}")
    return 0


def _composed(args: argparse.Namespace) -> int:
    from evomerge.errors import InputError
    from evomerge.library import read_library
    from evomerge.skills.opened import open_library
    from evomerge.skills.shelf import check_outside_libraries
    from evomerge.skills.static import recipe_of

    weights = dict(args.weights)
    if len(weights) < len(args.weights):
        names = [name for name, _ in args.weights]
        twice = next(n for n in names if names.count(n) > 1)
        raise InputError(f"--weights: {twice} is given twice; expected each skill once")
    if args.kind == "adapter" and args.dtype is not None:
        raise InputError("--dtype is about a checkpoint; an adapter is float32: leave it out")
    library = read_library(args.library, args.base)
    recipe = recipe_of(library, weights, args.dtype)
    check_outside_libraries(args.out)
    opened = open_library(library, weights)
    facts: dict[str, Any] = {"out": args.out, "kind": args.kind, "base": library.base, "weights": weights}
    if args.kind == "adapter":
        from evomerge.merging.planner import Planner
        from evomerge.skills.static import one_adapter

        sources = {library.base: opened.base, **{library.reference(n): s for n, s in opened.skills.items()}}
        one = one_adapter(Planner(sources).plan(recipe))
        one.write(args.out, recipe, overwrite=args.overwrite)
        facts |= {"rank": one.rank, "modules": len(one.ranks)}
        emit(args, facts, f"{args.out}: one adapter of rank {one.rank} on {len(one.ranks)} layers, for {library.base}")
        return 0
    from evomerge.cli.merge import progress
    from evomerge.merging.build import build
    from evomerge.publishing.merged import card_beside
    from evomerge.recipe import Chain, Step

    built = build(
        Chain.of([Step(None, recipe)]), args.out, overwrite=args.overwrite, progress=progress, beside=card_beside
    )
    facts |= {"recipe_hash": built.recipe_hash, "sources": built.sources, "bytes": built.bytes}
    emit(args, facts, f"{args.out}: {built.bytes / 1e6:.1f} MB, recipe {built.recipe_hash[:12]}")
    return 0


def _weight(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        value = float(number)
        if not name or not -1e6 < value < 1e6:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}": expected NAME=WEIGHT with a number, as poetry=-0.3') from None
    return name, value
