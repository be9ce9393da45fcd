"""`evomerge list`: studies side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from evomerge.cli.commands import Parser, Subparsers, add_command
from evomerge.cli.output import emit
from evomerge.study.finding import RUNS, check_no_url, databases

DESCRIPTION = """\
Show studies side by side: sampler, seed, candidates, and the winner's score on the search, select and test items.

  evomerge list
  evomerge list --storage postgresql://user@host/studies"""

COLUMNS = ("study", "sampler", "seed", "complete", "pruned", "failed", "running", "search", "select", "test", "minutes")


def add_parser(subparsers: Subparsers[Parser]) -> None:
    """Register the command."""
    parser = add_command(subparsers, "list", "show studies side by side", DESCRIPTION)
    parser.add_argument(
        "runs", metavar="DIR", nargs="?", type=Path, default=RUNS, help=f"output folders (default {RUNS})"
    )
    parser.add_argument("--storage", metavar="URL", help="a database instead")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read every study, print a row each."""
    from evomerge.cli.output import say
    from evomerge.errors import InputError, StudyError, beside
    from evomerge.study.place import storage_url
    from evomerge.study.store import Store

    if args.storage:
        urls = [storage_url(args.storage)]
    else:
        check_no_url(str(args.runs), "DIR")
        if args.runs != RUNS and not args.runs.is_dir():
            raise InputError(f"{args.runs}: no such folder{beside(args.runs)}")
        folders = [args.runs, *sorted(p for p in args.runs.iterdir() if p.is_dir())] if args.runs.is_dir() else []
        urls = [f"sqlite:///{file.resolve()}" for folder in folders for file in databases(folder)]
    rows = []
    for url in urls:
        try:
            store = Store(url)
        except StudyError as e:
            # One file that is no study, or one cut off while it was made, must not hide the others.
            if args.storage:
                raise
            say(args, f"left out: {e}")
            continue
        rows += [summary(store.open(name)) for name in store.names()]
    none = f"no studies in {args.runs}/; those in another folder: evomerge list FOLDER"
    emit(args, rows, _table(rows) if rows else none)
    return 0


def summary(study: Any) -> dict[str, Any]:
    """One study in one row; what is not known yet is None."""
    from evomerge.score import State

    notes, fingerprint = study.notes(), study.fingerprint
    trials = study.trials()
    states = [t.state for t in trials]
    winner = notes.get("winner")
    subject = f"trial/{winner}"
    scores = {split: study.scores.read(split).get(subject) for split in ("search", "select", "test")}
    complete = [t.value for t in trials if t.value is not None]
    search = scores["search"].value if scores["search"] else max(complete, default=None)
    return {
        "study": study.name,
        "sampler": fingerprint["sampler"]["name"],
        "seed": fingerprint["seed"],
        "complete": states.count(State.COMPLETE),
        "pruned": states.count(State.PRUNED),
        "failed": states.count(State.FAIL),
        "running": states.count(State.RUNNING),
        "winner": winner,
        "search": search,
        "select": scores["select"].value if scores["select"] else None,
        "test": scores["test"].value if scores["test"] else None,
        "minutes": round(float(notes.get("seconds", 0.0)) / 60, 2),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("study", "sampler") else "right", no_wrap=name == "study")
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in COLUMNS))
    console = Console(width=140, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
