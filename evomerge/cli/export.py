"""`evomerge export STUDY OUT`: a candidate as a plain checkpoint, or the study's results as Parquet."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from evomerge.cli.commands import Parser, Subparsers, add_command
from evomerge.cli.output import emit
from evomerge.study.finding import RUNS, open_study

DESCRIPTION = """\
Write a study's winner, or any other candidate, as a plain checkpoint with its recipe; or every candidate and the result
of every item as Parquet.

  evomerge export quickstart-quickstart-0 my-model
  evomerge export quickstart-quickstart-0 my-model --trial 17
  evomerge export hybrid-quickstart-0/parameter merged             a hybrid's first stage, or a control
  evomerge export quickstart-quickstart-0 results --format parquet"""


def add_parser(subparsers: Subparsers[Parser]) -> None:
    """Register the command."""
    parser = add_command(subparsers, "export", "write a candidate's checkpoint, or a study's results", DESCRIPTION)
    parser.add_argument("study", metavar="STUDY", help=f"name of a study in {RUNS}/, or its folder")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    parser.add_argument("--trial", type=int, metavar="N", help="which candidate (default: the winner)")
    parser.add_argument("--format", choices=("checkpoint", "parquet"), default="checkpoint", help="default: checkpoint")
    parser.add_argument("--storage", metavar="URL", help="database of the study (default: found by its name)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in OUT")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read the study, write what was asked for."""
    from evomerge.errors import InputError

    store, name, _ = open_study(args.study, args.storage)
    study = store.open(name)
    if args.format == "parquet":
        if args.trial is not None:
            raise InputError("--trial chooses a checkpoint; --format parquet writes every candidate")
        written = _parquet(study, args.out, args.overwrite)
        emit(args, {"study": name, "files": written}, "\n".join(written))
        return 0

    from evomerge.pipeline import export

    done = export(study, args.out, args.trial, overwrite=args.overwrite)
    words = f"{args.out}: candidate {done.number} of {name}"
    facts: dict[str, Any] = {"study": name, "trial": done.number, "out": str(args.out)}
    if done.path is not None:
        from evomerge.report.outputs import write_atomically
        from evomerge.report.path import path_text, write_path_png

        path = done.path
        write_atomically(args.out / "path.png", lambda part: write_path_png(path, done.names, done.depths, part))
        facts["path"] = path_text(path, done.names)
        words += f"\n{facts['path']} (path.png)"
    emit(args, facts, words)
    return 0


def _parquet(study: Any, out: Path, overwrite: bool) -> list[str]:
    from evomerge.errors import InputError
    from evomerge.evaluation import SPLITS
    from evomerge.report.frames import items_frame, trials_frame
    from evomerge.report.outputs import write_atomically

    paths = [out / "trials.parquet", out / "items.parquet"]
    for path in paths:
        if path.exists() and not overwrite:
            raise InputError(f"{path}: exists; give another OUT, or --overwrite")
    out.mkdir(parents=True, exist_ok=True)
    trials = study.trials()
    scores = [(subject, split, s) for split in SPLITS for subject, s in study.scores.read(split).items()]
    write_atomically(paths[0], lambda part: trials_frame(trials).to_parquet(part, index=False))
    write_atomically(paths[1], lambda part: items_frame(scores).to_parquet(part, index=False))
    return [str(p) for p in paths]
