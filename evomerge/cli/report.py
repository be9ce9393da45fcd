"""`evomerge report STUDY`: one HTML file that says what a search found, and shows the evidence."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from evomerge.cli.commands import Parser, Subparsers, add_command
from evomerge.cli.output import emit
from evomerge.cli.runs import RUNS
from evomerge.cli.studies import open_study

DESCRIPTION = """\
Write what a search found, with its evidence, as one HTML file that needs no network: what the winner is worth against
its sources, the course of the search, held-out results, the winner's parameters, items gained and lost, cost, failures,
and how to rebuild it. A search that is still running, or was cut off, gets a report of what there is.

  evomerge report quickstart-quickstart-0                     runs/quickstart-quickstart-0/report.html
  evomerge report my-run --evaluator my-evaluator.yaml        with the texts of items gained and lost
  evomerge report first --storage postgresql://user@host/studies --out first.html"""

NAME = "report.html"


def add_parser(subparsers: Subparsers[Parser]) -> None:
    """Register the command."""
    parser = add_command(subparsers, "report", "write what a search found as one HTML file", DESCRIPTION)
    parser.add_argument("study", metavar="STUDY", help=f"name of a study in {RUNS}/, or its folder")
    parser.add_argument("--out", metavar="FILE", type=Path, help=f"default: {NAME} in the study's folder")
    parser.add_argument("--storage", metavar="URL", help="database of the study (default: found by its name)")
    parser.add_argument(
        "--evaluator", metavar="E", help="the study's evaluator, whose items are shown (default: if it is a preset)"
    )
    parser.add_argument("--no-texts", action="store_true", help="name items by their ids alone")
    parser.add_argument("--overwrite", action="store_true", help="replace a FILE that is no report")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read the study, draw, write."""
    from evomerge.errors import InputError

    if args.no_texts and args.evaluator:
        raise InputError("--no-texts shows no items, and --evaluator says which; give one of them")
    store, name, folder = open_study(args.study, args.storage)
    out = args.out or _default(name, folder)
    _check(out, args.overwrite)
    # A report asks nobody on the network: what is not here is named as missing.
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.setdefault(variable, "1")

    from evomerge.pipeline.item_texts import item_texts
    from evomerge.pipeline.recorded import recorded
    from evomerge.report.outputs import write_atomically
    from evomerge.report.page import Texts, page

    record = recorded(store, name, folder)
    known = item_texts(record, args.evaluator, wanted=not args.no_texts)
    text = page(record, Texts(known.by_item, known.unknown))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, lambda part: part.write_text(text, encoding="utf-8"))
    except OSError as e:
        raise InputError(f"{out}: cannot be written ({e.strerror or e})") from None
    facts: dict[str, Any] = {"study": name, "out": str(out), "phase": record.phase, "bytes": out.stat().st_size}
    standing = {"running": " (still running)", "interrupted": " (not finished)"}.get(record.phase, "")
    emit(args, facts, f"{out}: {name}{standing}, {facts['bytes'] / 1e6:.1f} MB")
    return 0


def _default(name: str, folder: Path | None) -> Path:
    """Beside the study's other outputs; that of one of its searches has its own name there."""
    from evomerge.errors import InputError

    if folder is None:
        raise InputError(f'study "{name}": has no folder on this machine; say where to write: --out FILE')
    part = name.partition("/")[2]
    return folder / (f"report-{part.replace('/', '-').replace(' ', '-')}.html" if part else NAME)


def _check(out: Path, overwrite: bool) -> None:
    """Raise where a file would be replaced that is no report of ours."""
    from evomerge.errors import InputError
    from evomerge.report.page.render import is_report

    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; expected a file, such as {out / NAME}")
    if not out.exists() or overwrite:
        return
    beginning = ""
    with suppress(OSError), out.open(encoding="utf-8", errors="replace") as f:
        beginning = f.read(4096)
    if not is_report(beginning):
        raise InputError(f"{out}: exists, and is no report of evomerge; give another --out, or --overwrite")
