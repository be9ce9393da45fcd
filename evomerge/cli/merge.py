"""`evomerge merge RECIPE OUT`: a recipe becomes a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from evomerge.cli.commands import Parser, Subparsers, add_command
from evomerge.cli.output import emit

DESCRIPTION = """\
Build the checkpoint that a recipe describes. The recipe is mergekit's YAML; the result is a plain Hugging Face
folder (safetensors, config, tokenizer) with the recipe beside it. The same recipe and sources give the same bytes.

  evomerge merge runs/quickstart-quickstart-0/recipe.yaml my-model"""


def add_parser(subparsers: Subparsers[Parser]) -> None:
    """Register the command."""
    parser = add_command(subparsers, "merge", "build a checkpoint from a recipe", DESCRIPTION)
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="recipe file (mergekit's YAML)")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; must be new or empty")
    parser.add_argument("--overwrite", action="store_true", help="replace what OUT holds")
    parser.add_argument("--device", default="cpu", help="where the arithmetic runs: cpu (default), cuda, cuda:1, ...")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the checkpoint; raises RecipeError or SourceError before any work where something does not fit."""
    import time

    from evomerge.cli.progress import say
    from evomerge.recipe import load_recipe
    from evomerge.sources import open_sources

    start = time.monotonic()
    recipe = load_recipe(args.recipe)
    sources = open_sources(recipe.references(), root=args.recipe.parent)
    say(args, f"{recipe.merge_method} of {', '.join(sources)}")

    from evomerge.merging.engine import Engine  # torch loads here, after the cheap checks

    Engine(sources, device=args.device).write(recipe, args.out, overwrite=args.overwrite)
    contents = {reference: source.content_hash() for reference, source in sources.items()}
    size = sum(f.stat().st_size for f in args.out.glob("*.safetensors"))
    result = {
        "out": args.out,
        "method": recipe.merge_method,
        "recipe_hash": recipe.hash(contents),
        "sources": contents,
        "bytes": size,
        "seconds": round(time.monotonic() - start, 3),
    }
    emit(args, result, f"{args.out}: {size / 1e6:.1f} MB, recipe {result['recipe_hash'][:12]}")
    return 0
