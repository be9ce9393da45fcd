"""`evomerge statistics MODEL TEXT`: what the methods fisher and regmean must know about a model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from evomerge.cli.commands import Parser, Subparsers, add_command, one_of
from evomerge.cli.output import emit

DESCRIPTION = """\
Run a model over a small text and write what some merge methods must know about it beyond its weights:
  --kind fisher   for each weight, how much the model's answers depend on it (method fisher; passes back and forth)
  --kind gram     for each linear layer, the second moments of its inputs (method regmean; forward passes)
A few hundred documents of what the model is good at are enough; each source is best run on text of its own domain. TEXT
is a .jsonl file with a "text" in each line, or plain text: documents divided by blank lines, or one a line.

  evomerge statistics zoo:maths maths.txt --kind fisher --out maths-fisher

A recipe names the folders:

  merge_method: fisher
  models: [{model: zoo:maths}, {model: zoo:kovesh}]
  evomerge: {statistics: {zoo:maths: maths-fisher, zoo:kovesh: kovesh-fisher}}"""


def add_parser(subparsers: Subparsers[Parser]) -> None:
    """Register the command."""
    parser = add_command(subparsers, "statistics", "collect what the methods fisher and regmean need", DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help="folder, hub id or zoo:NAME; with +ADAPTER an adapter on it")
    parser.add_argument("text", metavar="TEXT", type=Path, help="text file, or .jsonl")
    kinds = one_of(("fisher", "gram"))
    parser.add_argument("--kind", required=True, type=kinds, metavar="KIND", help="fisher or gram")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder to write (default: MODEL's name and KIND)")
    parser.add_argument("--samples", type=_number, metavar="N", help="documents at most (default: all)")
    parser.add_argument("--max-length", type=_length, default=512, metavar="N", help="tokens of each (default: 512)")
    parser.add_argument(
        "--batch-size", type=_number, default=8, metavar="N", help="gram: documents a pass (default: 8)"
    )
    parser.add_argument(
        "--labels",
        type=one_of(("model", "text")),
        default="model",
        metavar="LABELS",
        help="fisher: next tokens drawn from the model itself (model, the default: the Fisher information), or those "
        "of the text (text: the empirical one)",
    )
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="fisher: of the tokens drawn (default: 0)")
    parser.add_argument("--device", default="cpu", help="where the model runs: cpu (default), cuda, cuda:1, ...")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Collect and write; refuses what cannot be used before the model is loaded."""
    import time

    from evomerge.cli.output import say
    from evomerge.errors import InputError
    from evomerge.merging.statistics.text import read_documents
    from evomerge.sources import open_source

    start = time.monotonic()
    read_documents(args.text)
    source = open_source(args.model)
    out = args.out or Path(f"{source.name}-{args.kind}")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"{out}: exists already; name another folder (--out)")
    say(args, f"{args.kind} statistics of {args.model} on {args.text}")

    from evomerge.merging.statistics.collect import Settings, collect  # torch loads here, after the cheap checks

    settings = Settings(
        kind=args.kind, labels=args.labels, max_length=args.max_length, samples=args.samples,
        batch_size=args.batch_size, device=args.device, seed=args.seed,
    )  # fmt: skip
    with _Bar() as bar:
        facts = collect(source, args.text, out, settings, bar)
    size = sum(f.stat().st_size for f in out.iterdir())
    seconds = round(time.monotonic() - start, 3)
    key = f"{{statistics: {{{args.model}: {out}}}}}"
    emit(
        args,
        {"out": out, **facts, "bytes": size, "seconds": seconds},
        f"{out}: {facts['tensors']} tensors, {size / 1e6:.1f} MB, documents: {facts['samples']} "
        f"({facts['tokens']:,} tokens)\nIn a recipe: evomerge: {key}",
    )
    return 0


class _Bar:
    """A bar of tokens with the time left, where stderr is a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._bar: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, tokens: int) -> None:
        """So many tokens are to be read."""
        if not self._console.is_terminal:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("reading"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("tokens"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._task = self._bar.add_task("reading", total=tokens)
        self._bar.start()

    def done(self, tokens: int) -> None:
        """So many more have been read."""
        if self._bar is not None:
            self._bar.advance(self._task, tokens)


def _number(text: str) -> int:
    return _whole(text, 1)


def _length(text: str) -> int:
    return _whole(text, 2)


def _seed(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, low: int) -> int:
    if not text.isdecimal() or not low <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f'"{text}": expected a whole number of at least {low}')
    return int(text)
