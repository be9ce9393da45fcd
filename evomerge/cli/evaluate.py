"""`evomerge evaluate MODEL`: score a checkpoint with an evaluator, as the search does."""

from __future__ import annotations

import argparse
from pathlib import Path

from evomerge.cli.commands import Parser, Subparsers, add_command
from evomerge.cli.output import emit, say

DESCRIPTION = """\
Score a model on one split of an evaluator's items. Looking at "test" before the end of a search makes its figures a
little too good; "select" is the split to look at meanwhile.

  evomerge evaluate zoo:maths
  evomerge evaluate runs/quickstart-quickstart-0/model --split test --json"""


def add_parser(subparsers: Subparsers[Parser]) -> None:
    """Register the command."""
    parser = add_command(subparsers, "evaluate", "score a model with an evaluator", DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help="folder, hub id or zoo:NAME")
    parser.add_argument("--evaluator", metavar="E", help="a YAML file or a preset's name (default: quickstart)")
    parser.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help="instead: tasks of lm-eval by name")
    parser.add_argument("--include-path", type=Path, metavar="DIR", help="folder of lm-eval's task files, for --tasks")
    parser.add_argument("--split", choices=("search", "select", "test"), default="select", help="default: select")
    parser.add_argument(
        "--base", metavar="BASE", help="of a gated model: where its base lies, if that is elsewhere than it says"
    )
    parser.add_argument("--device", help="torch device (default: cuda where there is one)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Score the model, print a line per task."""
    from evomerge.comparison import interval
    from evomerge.errors import InputError
    from evomerge.evaluation import evaluator_for, load_evaluator

    if args.tasks and args.evaluator is not None:
        raise InputError("--tasks and --evaluator cannot both be given")
    if args.include_path and not args.tasks:
        raise InputError("--include-path needs --tasks; an evaluator names its own folder, by its key include_path")
    if args.tasks:
        file = evaluator_for(args.tasks, include_path=args.include_path)
    else:
        file = load_evaluator("quickstart" if args.evaluator is None else args.evaluator)

    from evomerge.pipeline.one_model import score_model

    answer = score_model(args.model, file, args.split, args.device, lambda text: say(args, text), base=args.base)
    score = answer.score
    assert score is not None
    whole = interval(score)
    result = {
        "model": args.model,
        "evaluator": file.name,
        "split": args.split,
        **whole.to_dict("score"),
        "tasks": {
            t.task: {"metric": t.metric, "score": t.shown, "weight": t.weight, "items": len(t.items)}
            for t in score.tasks
        },
        "seconds": dict(answer.seconds),
    }
    lines = [f"{t.task:<24} {t.metric:<14} {t.shown:.4f}  ({len(t.items)} items)" for t in score.tasks]
    span = f"  95 % {whole.low:.4f} .. {whole.high:.4f}" if whole.low is not None and whole.high is not None else ""
    lines.append(f"{'score':<24} {'':<14} {whole.mean:.4f}{span}")
    emit(args, result, "\n".join(lines))
    return 0
