"""`evomerge report STUDY`: one HTML file that says what a search found, and shows the evidence."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from evomerge.cli.commands import Parser, Subparsers, add_command
from evomerge.cli.output import emit
from evomerge.study.finding import RUNS, open_study

DESCRIPTION = """\
Write what a search found, with its evidence, as one HTML file that needs no network: what the winner is worth against
its sources, the course of the search, held-out results, the winner's parameters, items gained and lost, cost, failures,
and how to rebuild it. A search that is still running, or was cut off, gets a report of what there is.

  evomerge report quickstart-quickstart-0                     runs/quickstart-quickstart-0/report.html
  evomerge report my-run --evaluator my-evaluator.yaml        with the texts of items gained and lost
  evomerge report first --storage postgresql://user@host/studies --out first.html"""


def add_parser(subparsers: Subparsers[Parser]) -> None:
    """Register the command."""
    parser = add_command(subparsers, "report", "write what a search found as one HTML file", DESCRIPTION)
    parser.add_argument(
        "study", metavar="STUDY", help=f"name of a study in {RUNS}/, or its folder; or a fusion's of image models"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="default: report.html in the study's folder")
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
    from evomerge.api.reporting import report_place, write_report
    from evomerge.report.images import report_again

    made = report_again(Path(args.study), args.out, args.overwrite)
    if made is not None:
        file, size = made
        told = {"fusion": args.study, "out": str(file), "bytes": size}
        emit(args, told, f"{file}: {args.study}, {size / 1e6:.1f} MB")
        return 0
    store, name, folder = open_study(args.study, args.storage)
    out = report_place(name, folder, args.out, args.overwrite)
    # A report asks nobody on the network: what is not here is named as missing.
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.setdefault(variable, "1")

    from evomerge.pipeline.recorded import recorded

    record = recorded(store, name, folder)
    size = write_report(record, out, args.evaluator, texts=not args.no_texts)
    facts: dict[str, Any] = {"study": name, "out": str(out), "phase": record.phase, "bytes": size}
    standing = {"running": " (still running)", "interrupted": " (not finished)"}.get(record.phase, "")
    emit(args, facts, f"{out}: {name}{standing}, {size / 1e6:.1f} MB")
    return 0
