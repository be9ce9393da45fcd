"""`evomerge merge RECIPE OUT`: a recipe, or a chain of them, becomes a checkpoint."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.cli.commands import Parser, Subparsers, add_command
from evomerge.cli.output import emit

if TYPE_CHECKING:
    from evomerge.recipe import Chain

DESCRIPTION = """\
Build the checkpoint that a recipe describes. The recipe is mergekit's YAML, of one document or of several that build on
each other; the result is a plain Hugging Face folder (safetensors, config, tokenizer) with the recipe and a model
card beside it. The same recipe and sources give the same bytes.

  evomerge merge runs/quickstart-quickstart-0/recipe.yaml my-model"""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def add_parser(subparsers: Subparsers[Parser]) -> None:
    """Register the command."""
    parser = add_command(subparsers, "merge", "build a checkpoint from a recipe", DESCRIPTION)
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="recipe file (mergekit's YAML)")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; must be new or empty")
    parser.add_argument("--overwrite", action="store_true", help="replace what OUT holds")
    parser.add_argument("--device", default="cpu", help="where the arithmetic runs: cpu (default), cuda, cuda:1, ...")
    parser.add_argument("--threads", type=_threads, metavar="N", help="threads on the cpu (default: every usable core)")
    parser.add_argument(
        "--shard-size", type=size, default=5_000_000_000, metavar="SIZE", help="largest weights file (default: 5GB)"
    )
    parser.add_argument("--seed", type=_seed, metavar="N", help="seed of random masks (default: the recipe's, else 0)")
    parser.add_argument(
        "--no-model-card", dest="card", action="store_false",
        help="write no README.md (a model card for the Hugging Face hub) beside the weights",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the checkpoint; raises RecipeError or SourceError before any work where something does not fit."""
    from evomerge.cli.output import about, say
    from evomerge.merging.build import build
    from evomerge.publishing.merged import card_beside
    from evomerge.recipe import load_chain

    chain = load_chain(args.recipe)
    if args.seed is not None:
        chain = chain.with_extras(seed=args.seed)
    for name in chain.unused:
        say(args, f'"{name}" is not built: no other recipe of {args.recipe} uses it')
    for line in chain.ignored():
        say(args, f"ignored: {line}")
    for line in chain.unlike_mergekit():
        say(args, f"unlike mergekit: {line}")
    with about(args.recipe):
        built = build(
            chain, args.out, root=args.recipe.parent, overwrite=args.overwrite, device=args.device,
            threads=args.threads, shard_bytes=args.shard_size, checked=lambda: say(args, _words(chain)),
            progress=progress, beside=card_beside if args.card else None,
        )  # fmt: skip
    result = {
        "out": args.out,
        "method": chain.final.merge_method,
        "steps": [*chain.names, None],
        "recipe_hash": built.recipe_hash,
        "sources": built.sources,
        "bytes": built.bytes,
        "seconds": round(built.seconds, 3),
    }
    emit(args, result, f"{args.out}: {built.bytes / 1e6:.1f} MB, recipe {built.recipe_hash[:12]}")
    return 0


@contextmanager
def progress(total: int) -> Iterator[Callable[[int], None] | None]:
    """A bar of bytes with the time left, where stderr is a terminal; gives what is called with the bytes done."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("merging"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(compact=True),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("merging", total=total)
        yield lambda done: bar.advance(task, done)


def _words(chain: Chain) -> str:
    """What is done, on one line."""
    steps = [f'"{step.name}": ' * (step.name in chain.names) + step.recipe.merge_method for step in chain.steps]
    merged = dict.fromkeys(r for s in chain.steps for r in s.recipe.merged_models() if chain.used(r) is None)
    return f"{', then '.join(steps)} of {', '.join(merged)}"


def size(text: str) -> int:
    """A number of bytes: "5GB" (10^9), "512MiB" (2^20), "1e9" or a plain number."""
    match = _SIZE.fullmatch(text.strip())
    if match and (match[2] or not text.strip()[-1:].isalpha()):
        value = float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2].lower() or " ")
    else:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
    if not 1 <= value < 2**63:
        raise argparse.ArgumentTypeError(f'"{text}": expected a size in bytes, as 5GB or 512MiB')
    return int(value)


def _threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'"{text}": expected a number of threads, 1 or more')
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'"{text}": expected a whole number, 0 or more')
    return int(text)
