"""`evomerge merge RECIPE OUT`: a recipe, or a chain of them, becomes a checkpoint."""

from __future__ import annotations

import argparse
import gc
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.cli.commands import Parser, Subparsers, add_command
from evomerge.cli.output import emit
from evomerge.errors import CandidateError, InputError

if TYPE_CHECKING:
    from evomerge.merging.chain import OpenChain, PlannedStep
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
    import time

    from evomerge.cli.progress import say
    from evomerge.merging.chain import OpenChain
    from evomerge.merging.device import check_device
    from evomerge.recipe import load_chain
    from evomerge.sources import start_hashing

    start = time.monotonic()
    chain = load_chain(args.recipe)
    if args.seed is not None:
        chain = chain.with_extras(seed=args.seed)
    for name in chain.unused:
        say(args, f'"{name}" is not built: no other recipe of {args.recipe} uses it')
    for line in chain.ignored():
        say(args, f"ignored: {line}")
    opened = OpenChain.open(chain, root=args.recipe.parent).with_full_references()
    with tempfile.TemporaryDirectory(prefix="evomerge-") as scratch:
        planned = opened.plan(Path(scratch))
    check_device(args.device)
    say(args, _words(chain))
    here = [source for source in opened.sources.values() if not source.absent]
    with start_hashing(here):  # beside everything else, the import of torch included
        _build(args, opened, planned)

    contents = opened.hashes(planned)
    result = {
        "out": args.out,
        "method": chain.final.merge_method,
        "steps": [*chain.names, None],
        "recipe_hash": opened.chain.hash(contents),
        "sources": contents,
        "bytes": sum(f.stat().st_size for f in args.out.glob("*.safetensors")),
        "seconds": round(time.monotonic() - start, 3),
    }
    emit(args, result, f"{args.out}: {result['bytes'] / 1e6:.1f} MB, recipe {result['recipe_hash'][:12]}")
    return 0


def _build(args: argparse.Namespace, opened: OpenChain, planned: list[PlannedStep]) -> None:
    from evomerge.merging.memory import usable_cores

    # torch loads here, after the cheap checks. What it makes stays: looking through it for garbage as it comes takes a
    # sixth of its loading time.
    gc.disable()
    from evomerge.merging.engine import Engine

    gc.freeze()
    gc.enable()

    if TYPE_CHECKING:
        from evomerge.merging.planner import Planner

    def engine(planner: Planner) -> Engine:
        threads = args.threads or usable_cores()
        return Engine(planner.sources, device=args.device, threads=threads, planner=planner)

    total = sum(step.plan.bytes_written for step in planned)
    try:
        with progress(total) as advance:
            opened.write(
                args.out,
                overwrite=args.overwrite,
                engine=engine,
                planned=planned,
                shard_bytes=args.shard_size,
                progress=advance,
                beside=lambda contents: _card(opened.chain, contents) if args.card else {},
            )
    except CandidateError as e:
        # A search goes on without such a candidate; here the one recipe or source that was given cannot be used.
        raise InputError(str(e)) from None


def _card(chain: Chain, contents: Mapping[str, str]) -> dict[str, Path | str]:
    from evomerge.publishing.lineage import lineage
    from evomerge.publishing.merged import merge_card

    recipe = chain.final if len(chain.steps) == 1 else chain
    return {"README.md": merge_card(chain, contents, lineage(recipe, contents, ask="named"))}


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
