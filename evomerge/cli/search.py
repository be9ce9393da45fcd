"""`evomerge search [SPACE]`: find the best merge within a budget, or go on with a search that was cut off."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge import arguments
from evomerge.cli.commands import Parser, Subparsers, add_cluster, add_command, whole
from evomerge.cli.output import emit
from evomerge.errors import InputError
from evomerge.watching.events import STDOUT, Events

if TYPE_CHECKING:
    from evomerge.pipeline import Options
    from evomerge.study.joining import Joined
    from evomerge.study.outcome import Outcome
    from evomerge.watching.progress import Progress
    from evomerge.watching.wandb_log import WandbLog

_WANDB_PROJECT = "evomerge"

DESCRIPTION = """\
Search for the best merge of some models within a budget. The same command resumes a search that was cut off, and
extends a finished one when its budget is larger.

  evomerge search --budget 100                                     the shipped models: a five-minute start
  evomerge search space.yaml --evaluator evaluator.yaml --budget 2h
  evomerge search --models ./a ./b --base ./c --tasks gsm8k --budget 200

A second process with the same command and --join adds its workers to the first one's search."""


def add_parser(subparsers: Subparsers[Parser]) -> None:
    """Register the command."""
    parser = add_command(subparsers, "search", "find the best merge within a budget", DESCRIPTION)
    parser.add_argument(
        "space", metavar="SPACE", nargs="?", help="search space: a YAML file or a preset's name (default: quickstart)"
    )
    parser.add_argument(
        "--budget", required=True, help='candidates ("200"), or wall time of all runs together ("30m", "1h30m")'
    )
    what = parser.add_argument_group("what to merge and how to score it")
    what.add_argument(
        "--evaluator", metavar="E", help="evaluator: a YAML file or a preset's name (default: quickstart)"
    )
    what.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help="instead: tasks of lm-eval by name")
    what.add_argument(
        "--include-path", type=Path, metavar="DIR", help="folder of lm-eval's task files, for --tasks and for "
        "mergekit-evolve's configuration (there: --task-search-path)",
    )  # fmt: skip
    what.add_argument(
        "--models", nargs="+", default=[], metavar="MODEL", help="sources: folders, hub ids, zoo:NAME (path@revision)"
    )
    what.add_argument("--base", metavar="MODEL", help="the model that the sources were fine-tuned from")
    what.add_argument(
        "--objective", nargs="+", default=[], metavar="NAME", help="what to search for, instead of the evaluator's "
        "objectives: score, its tasks, depth (of paths), TASK.length; several: the front of those that no other beats",
    )  # fmt: skip
    how = parser.add_argument_group("how to search")
    from evomerge.optimizers import OPTIMIZERS, RESTARTS

    words = "; ".join(f"{name}: {entry.summary}" for name, entry in OPTIMIZERS.items())
    how.add_argument("--sampler", default="auto", metavar="NAME", help=f"{words} (default: auto)")
    how.add_argument(
        "--seed", type=_seed, default=0, help="seed of the whole search, DARE's masks included (default: 0)"
    )
    how.add_argument(
        "--population", type=_positive, metavar="N", help="candidates per generation (default: the sampler's; of cma "
        "and catcma twice as many in a race)",
    )  # fmt: skip
    how.add_argument(
        "--sigma", type=_sigma, help="first step, as a share of each range (default: thompson, cma and catcma .25, "
        "and of numbers no longer than .375; evolution and cma-me 1/6; m2n2 .07; map-elites .05)",
    )  # fmt: skip
    how.add_argument(
        "--restarts", choices=RESTARTS,
        help="cma, catcma: what follows where they have converged: another run from a random place, of twice as many "
        "candidates per generation (ipop), in turn with small ones (bipop), or the end (none) (default: bipop)",
    )  # fmt: skip
    how.add_argument(
        "--fidelity", choices=("auto", "full", "race"), default="auto",
        help="race: candidates stop where more items would not change what is learned from them, and cost the share of "
        "the items that they had; full: each is scored on all search items (default: race where items allow it)",
    )  # fmt: skip
    how.add_argument(
        "--async", dest="asynchronous", action="store_true", help="no generations: whichever worker is free gets the "
        "next candidate at once. No worker waits; which candidates are tried depends on which end first",
    )  # fmt: skip
    how.add_argument(
        "--estimates", choices=("auto", "plain"), default="auto",
        help="what is told of candidates that stopped: auto: an item-response model's estimate, where it is better on "
        "candidates that have all items; plain: their difference to the best (default: auto)",
    )  # fmt: skip
    how.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", help="a candidate that takes longer to be built and scored has "
        "failed (each block of a race by itself); default: the evaluator's timeout, else none",
    )  # fmt: skip
    how.add_argument(
        "--patience", type=_positive, metavar="N", help="stop where the cost of N candidates brought no better one"
    )
    how.add_argument("--enqueue", nargs="+", type=Path, default=[], metavar="RECIPE", help="try these recipes first")
    how.add_argument(
        "--warm-start", metavar="STUDY", help="begin from the best of another study over the same space: its output "
        "folder, or its name where it is in the same --storage",
    )  # fmt: skip
    how.add_argument(
        "--no-starts", dest="starts", action="store_false", help="do not try each source as it is, the uniform merge "
        "and the method's published settings before what the sampler draws",
    )  # fmt: skip
    how.add_argument(
        "--controls", action="store_true", help="also search each task vector alone, and at random, at equal budget"
    )
    where = parser.add_argument_group("where it runs and what it leaves")
    where.add_argument("--study", metavar="S", help="name of the study (default: SPACE-EVALUATOR-SEED)")
    where.add_argument("--out", type=Path, metavar="DIR", help="output folder (default: runs/STUDY)")
    where.add_argument(
        "--storage", metavar="URL", help="database: a file ending in .db, postgresql://USER@HOST/DATABASE or "
        "mysql://... (default: one SQLite file in the output folder)",
    )  # fmt: skip
    where.add_argument(
        "--join", action="store_true", help="add this process's workers to the search that another process drives with "
        "the same command; ends with it",
    )  # fmt: skip
    add_cluster(where)
    watching = parser.add_argument_group("who watches")
    watching.add_argument(
        "--events", metavar="FILE", help="write what happens, one JSON object a line, to a file (added to), a named "
        "pipe, or -: stdout, in place of the table (docs/watching.md)",
    )  # fmt: skip
    watching.add_argument(
        "--wandb", metavar="PROJECT", nargs="?", const=_WANDB_PROJECT, help="log to Weights & Biases too (default "
        f"project: {_WANDB_PROJECT}; WANDB_MODE=offline needs no account)",
    )  # fmt: skip
    where.add_argument(
        "--prefix-memory", type=_gigabytes, default=1.0, metavar="GB",
        help="data-flow spaces: each worker's memory for what candidates' common beginnings gave; 0: none (default: 1)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Search, write the outputs, print the table."""
    from evomerge.study.budget import Budget

    budget = Budget.parse(args.budget)

    _check_watching(args)

    from evomerge.pipeline import Options, join, search
    from evomerge.study.watcher import Several
    from evomerge.study.workers import Cluster
    from evomerge.watching.progress import Progress
    from evomerge.watching.signals import stoppable

    options = Options(
        budget=budget, space=args.space, models=args.models, base=args.base, evaluator=args.evaluator, tasks=args.tasks,
        include_path=args.include_path, study=args.study, storage=args.storage, out=args.out,
        cluster=Cluster(args.address, args.workers, args.gpus_per_worker), sampler=args.sampler, seed=args.seed,
        population=args.population, sigma=args.sigma, restarts=args.restarts, controls=args.controls,
        patience=args.patience, enqueue=args.enqueue, prefix_bytes=round(args.prefix_memory * 2**30),
        fidelity=args.fidelity, starts=args.starts, objectives=args.objective, asynchronous=args.asynchronous,
        warm_start=args.warm_start, estimates=args.estimates, timeout=args.timeout,
    )  # fmt: skip
    progress = Progress()
    if args.join:
        with stoppable(progress.shows_ending) as stop, progress:
            return _joined(args, join(options, progress, stop))
    with ExitStack() as stack:
        if args.events == STDOUT:
            stack.enter_context(redirect_stdout(sys.stderr))  # what libraries print is no event
        events = stack.enter_context(Events(args.events, args.stdout, progress.say)) if args.events else None
        log = stack.enter_context(_wandb(args, options, progress)) if args.wandb else None
        watcher = Several([w for w in (progress, events, log) if w is not None])
        with stoppable(progress.shows_ending) as stop, progress:
            outcome = search(options, watcher, stop)
        return _finished(args, outcome, progress, events, log)


def _finished(
    args: argparse.Namespace, outcome: Outcome, progress: Progress, events: Events | None, log: WandbLog | None
) -> int:
    """Write the outputs, print the table."""
    from evomerge.report.outputs import hand_over
    from evomerge.report.result import to_dict
    from evomerge.report.table import archive_text, front_text, table_text

    out = outcome.model.parent
    hand_over(outcome, progress.say)
    if log is not None:
        log.result(outcome)
    path = "path.png, " if outcome.path is not None else ""
    database = "" if args.storage else ", study.db"
    files = f"model/, recipe.yaml, README.md, result.json, history.png, {path}*.parquet{database}"
    lines = [table_text(outcome), *front_text(outcome), *archive_text(outcome), f"{out}/: {files}"]
    if events is not None:
        events.result(to_dict(outcome))
    if args.events == STDOUT:
        print("\n".join(lines), file=sys.stderr)
    else:
        emit(args, to_dict(outcome), "\n".join(lines))
    return 0


def _check_watching(args: argparse.Namespace) -> None:
    """Raise where those who watch cannot, before anything is loaded that takes time."""
    asked = [f"--{name}" for name in ("events", "wandb") if getattr(args, name)]
    if args.join and asked:
        raise InputError(f"--join: {asked[0]} tells of a search, which its driver does; give it to that one")
    if args.json and args.events == STDOUT:
        raise InputError("--events -: with --json stdout holds the result alone; expected --events FILE")
    if args.wandb:
        from evomerge.watching.wandb_log import check_usable

        check_usable()


def _wandb(args: argparse.Namespace, options: Options, progress: Progress) -> WandbLog:
    from evomerge.watching.wandb_log import WandbLog

    config = {
        "space": options.space, "models": list(options.models), "base": options.base, "evaluator": options.evaluator,
        "tasks": list(options.tasks), "budget": str(options.budget), "sampler": options.sampler, "seed": options.seed,
        "population": options.population, "sigma": options.sigma, "fidelity": options.fidelity,
        "asynchronous": options.asynchronous, "objectives": list(options.objectives), "controls": options.controls,
    }  # fmt: skip
    return WandbLog(args.wandb, config, progress.say)


def _joined(args: argparse.Namespace, joined: Joined) -> int:
    candidates = f"{joined.candidates} candidate{'s' if joined.candidates != 1 else ''}"
    words = (
        f'study "{joined.study}" has ended: {candidates} scored here, in {joined.jobs} jobs and '
        f"{joined.seconds:.0f} seconds"
    )
    emit(args, asdict(joined), words)
    return 0


def _gigabytes(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e6:
        raise argparse.ArgumentTypeError(f'"{text}": expected a number of gigabytes, 0 or more')
    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f'"{text}": expected a number of seconds above 0')
    return number


def _sigma(text: str) -> float:
    try:
        return arguments.number("sigma", float(text), above_zero=True)
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}": expected a number above 0') from None


def _seed(text: str) -> int:
    return whole(text, 0, 2**31 - 1)


def _positive(text: str) -> int:
    return whole(text, 1, 10**9)
