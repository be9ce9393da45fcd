"""`evomerge init [DIR]`: commented files to start a search of one's own from. They run as they are."""

from __future__ import annotations

import argparse
from pathlib import Path

from evomerge.cli.commands import Parser, Subparsers, add_command
from evomerge.cli.output import emit
from evomerge.errors import InputError, choose

ITEMS = 600
STARTER = Path(__file__).with_name("starter")
FILES = ("space.yaml", "evaluator.yaml", "score.py")

DESCRIPTION = """\
Write space.yaml (what may vary), evaluator.yaml, score.py and items.jsonl (what scores a model): commented, and
runnable as they are on the embedded models. Nothing that exists is touched.

  evomerge init my-search && cd my-search
  evomerge search space.yaml --evaluator evaluator.yaml --budget 50
  evomerge init my-paths --space dataflow                             another preset as space.yaml
  evomerge init my-fusion --fusion                                    fusion.yaml, for `evomerge fuse`"""


def add_parser(subparsers: Subparsers[Parser]) -> None:
    """Register the command."""
    parser = add_command(subparsers, "init", "write a commented space and evaluator to start from", DESCRIPTION)
    parser.add_argument("dir", metavar="DIR", nargs="?", type=Path, default=Path(), help="folder (default: this one)")
    parser.add_argument(
        "--space", metavar="PRESET", help="preset to start from: dataflow, hybrid, ... (default: a commented merge)"
    )
    parser.add_argument("--fusion", action="store_true", help="write fusion.yaml instead, for `evomerge fuse`")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the files; refuses, before writing any, where one of them exists."""
    if args.fusion and args.space is not None:
        raise InputError("--space and --fusion cannot both be given")
    next_step = "evomerge search space.yaml --evaluator evaluator.yaml --budget 50"
    contents = _search(args)
    if args.fusion:
        contents = {"fusion.yaml": (STARTER / "fusion.yaml").read_text(encoding="utf-8")}
        next_step = "evomerge fuse fusion.yaml fused"
    there = [str(args.dir / name) for name in contents if (args.dir / name).exists()]
    if there:
        raise InputError(f"{', '.join(there)}: there already; name another folder (evomerge init DIR)")
    try:
        args.dir.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            with (args.dir / name).open("x", encoding="utf-8") as f:
                f.write(text)
    except OSError as e:
        raise InputError(f"{args.dir}: cannot be written ({e.strerror})") from None
    written = [args.dir / name for name in contents]
    there_or_here = "" if args.dir == Path() else f"cd {args.dir} && "
    emit(
        args, {"dir": args.dir, "files": written}, "\n".join(map(str, written)) + f"\nNext: {there_or_here}{next_step}"
    )
    return 0


def _search(args: argparse.Namespace) -> dict[str, str]:
    """What a search starts from, by the file's name."""
    from evomerge import presets

    items = presets.folder("evaluators") / "zoo" / "kovesh_problems.jsonl"
    contents = {name: (STARTER / name).read_text(encoding="utf-8") for name in FILES}
    if args.space is not None:
        preset = presets.find("search_spaces", args.space)
        if preset is None:
            raise InputError(f'--space "{args.space}": {choose(args.space, presets.names("search_spaces"))}')
        contents["space.yaml"] = preset.read_text(encoding="utf-8")
    contents["items.jsonl"] = "".join(items.read_text(encoding="utf-8").splitlines(keepends=True)[:ITEMS])
    return contents
