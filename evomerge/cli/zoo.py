"""`evomerge zoo`: the tiny models that ship with the package, their tasks, and texts to fuse on."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge.cli.commands import Parser, Subparsers, add_command, one_of
from evomerge.cli.output import emit
from evomerge.errors import InputError, choose

DESCRIPTION = """\
List the embedded models, tasks and texts, small enough to try a whole search or fusion in minutes on a laptop. A model
is named `zoo:NAME` wherever a model can be named, and so is a text where a corpus can; a task by its bare name.

  evomerge zoo                        what there is
  evomerge zoo copy maths DIR         a model as a plain Hugging Face folder of your own
  evomerge zoo copy chains FILE       a text that fusions learn from"""


def add_parser(subparsers: Subparsers[Parser]) -> None:
    """Register the command."""
    parser = add_command(subparsers, "zoo", "list or copy the embedded models, tasks and texts", DESCRIPTION)
    actions = one_of(("list", "copy"))
    parser.add_argument("action", metavar="copy", nargs="?", type=actions, default="list", help="without: list them")
    parser.add_argument("name", metavar="NAME", nargs="?", help="model or text to copy")
    parser.add_argument(
        "out", metavar="OUT", nargs="?", type=Path, help="folder (of a text: file) to write; must not exist"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List the zoo, or copy a model out of it."""
    return _copy(args) if args.action == "copy" else _list(args)


def _list(args: argparse.Namespace) -> int:
    from evomerge import presets, zoo

    if args.name is not None:
        raise InputError(f'evomerge zoo list takes no arguments, got "{args.name}"')
    models = [_model(name) for name in zoo.NAMES]
    folder = presets.folder("evaluators") / "zoo"
    tasks = [{"task": f.stem, "about": _first_comment(f)} for f in sorted(folder.glob("*.yaml"))]
    lines = ["models", *_columns([(m["reference"], _size(m), m["about"]) for m in models])]
    lines += ["tasks", *_columns([(t["task"], t["about"]) for t in tasks])]
    texts = [
        {"name": name, "reference": f"zoo:{name}", "about": about, "path": zoo.fusion.corpus(name)}
        for name, about in zoo.fusion.CORPORA.items()
    ]
    lines += ["texts, for fusions to learn from", *_columns([(str(t["reference"]), str(t["about"])) for t in texts])]
    emit(args, {"models": models, "tasks": tasks, "texts": texts}, "\n".join(lines))
    return 0


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _size(model: dict[str, Any]) -> str:
    return f"{model['parameters']:,} parameters, {model['layers']} layers"


def _model(name: str) -> dict[str, Any]:
    import json
    import math
    import struct

    from evomerge import zoo

    path = zoo.path(name)
    with (path / "model.safetensors").open("rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(length))
    count = sum(math.prod(entry["shape"]) for key, entry in header.items() if key != "__metadata__")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return {
        "name": name,
        "reference": f"zoo:{name}",
        "about": zoo.ABOUT[name],
        "path": path,
        "parameters": count,
        "layers": config["num_hidden_layers"],
        "bytes": (path / "model.safetensors").stat().st_size,
    }


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _copy(args: argparse.Namespace) -> int:
    from evomerge import zoo

    if args.name is None or args.out is None:
        raise InputError("evomerge zoo copy needs NAME and OUT: evomerge zoo copy maths my-maths")
    if args.name not in zoo.NAMES and args.name not in zoo.fusion.CORPORA:
        raise InputError(f'no model "{args.name}" in the zoo; {choose(args.name, zoo.NAMES)}')
    if args.out.exists():
        raise InputError(f"{args.out}: exists already; name a folder that does not")
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        if args.name in zoo.NAMES:
            shutil.copytree(zoo.path(args.name), args.out)
        else:
            shutil.copyfile(zoo.fusion.corpus(args.name), args.out)
    except OSError as e:
        raise InputError(f"{args.out}: cannot be written ({e.strerror})") from None
    emit(args, {"name": args.name, "out": args.out}, f"{args.out}")
    return 0
