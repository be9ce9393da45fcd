"""`evomerge status [STUDY]`: how a search stands, from anywhere, while it runs or afterwards. Reads only."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from evomerge.cli.commands import Parser, Subparsers, add_command
from evomerge.cli.output import emit
from evomerge.study.finding import RUNS, find_database

if TYPE_CHECKING:
    from evomerge.study.status import Status
    from evomerge.study.store import Store

DESCRIPTION = """\
Say how a search stands: running, interrupted or finished, who drives it, how much of the budget is spent, the best so
far, how quickly it goes, what failed, and when something last happened. Reads only.

  evomerge status                                the study in runs/, when there is one only
  evomerge status quickstart-quickstart-0        a study of runs/, its output folder or its database file
  evomerge status mine --storage postgresql://user@host/studies"""

FAILURES = 3


def add_parser(subparsers: Subparsers[Parser]) -> None:
    """Register the command."""
    parser = add_command(subparsers, "status", "say how a search stands", DESCRIPTION)
    parser.add_argument("study", metavar="STUDY", nargs="?", help=f"name of a study in {RUNS}/, its folder or database")
    parser.add_argument("--storage", metavar="URL", help="database of the study (default: found by its name)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read the study and what belongs to it, print it."""
    from evomerge.study.place import storage_url
    from evomerge.study.status import searches, status
    from evomerge.study.store import Store

    if args.storage:
        store = Store(storage_url(args.storage))
        name = _named(store, args.study)
    else:
        store = Store(f"sqlite:///{find_database(args.study).resolve()}")
        name = _named(store, args.study if args.study in store.names() else None)
    found = [status(store, n) for n in searches(store, name)]
    # A hybrid's first stage stands before the study itself, and may be all that is there yet.
    main = next((s for s in found if s.study == name), found[0])
    others = [s for s in found if s is not main]
    emit(
        args, {**main.to_dict(), "parts": [s.to_dict() for s in others]},
        "\n\n".join("\n".join(_lines(s, _method(store, s.study))) for s in (main, *others)),
    )  # fmt: skip
    return 0


def _named(store: Store, study: str | None) -> str:
    """The study that is meant in a database.

    Raises:
        StudyError: it is not there, or none is named and there are several.
    """
    from evomerge.errors import StudyError, choose
    from evomerge.study.database import shown
    from evomerge.study.leases import root

    names = store.names()
    roots = list(dict.fromkeys(map(root, names)))
    if study is not None:
        if study not in names and study not in roots:
            raise StudyError(f'storage {shown(store.url)}: no study "{study}"; {choose(study, [*roots, *names])}')
        return study
    if len(roots) != 1:
        raise StudyError(f"storage {shown(store.url)}: holds {len(roots)} studies, name one: {', '.join(roots)}")
    return roots[0]


def _method(store: Store, name: str) -> tuple[str, list[str]]:
    """The merge method and the sources' short names of a study's space, for words."""
    space = store.open(name).notes().get("space") or {}
    method = space.get("method") or space.get("kind") or "merge"
    sources = space.get("sources") or []
    names = [s.get("name") or _short(s.get("model", "")) if isinstance(s, dict) else _short(str(s)) for s in sources]
    return method if isinstance(method, str) else "/".join(method), names


def _short(reference: str) -> str:
    from evomerge.report.path import short_name

    return short_name(reference, {})


def _lines(found: Status, method: tuple[str, list[str]]) -> list[str]:
    from evomerge.report.words import params_words
    from evomerge.watching.live import duration

    driver = found.driver
    head = f"{found.study}: {found.standing}"
    if driver is not None:
        if not driver.gone:
            head += f", by {driver}"
        elif found.standing == "interrupted":
            head += f" ({driver} is gone; the same evomerge search command goes on)"
    elif found.standing == "interrupted":
        head += " (the same evomerge search command goes on)"
    lines = [head]
    spent = f"{found.spent:.1f}" if found.spent % 1 else f"{found.spent:.0f}"
    if found.budget is None:
        lines.append(f"spent: {spent} candidates' items, {duration(found.seconds)} of search")
    elif found.budget.candidates is not None:
        lines.append(f"spent: {spent} of {found.budget} ({found.share:.0%}), {duration(found.seconds)} of search")
    else:
        lines.append(
            f"spent: {duration(found.seconds)} of {found.budget} ({found.share:.0%}), {spent} candidates' items"
        )
    counts = found.counts
    running = "running" if found.standing == "running" else "cut off"
    under_way = [f"{counts['running']} {running}"] if counts["running"] or found.standing == "running" else []
    words = [
        *under_way, f"{counts['complete']} complete", f"{counts['pruned']} stopped early",
        f"{counts['failed']} failed",
    ]  # fmt: skip
    lines.append(f"candidates: {', '.join(words)}")
    if found.best is not None:
        lines.append(f"best: {found.best.value:.3f} on search (candidate {found.best.number})")
        lines.append(f"  {params_words(found.best.params, *method)}")
    if found.sources:
        lines.append(f"on the same items: {', '.join(f'{n} {v:.3f}' for n, v in found.sources.items())}")
    if found.winner is not None:
        lines.append(f"winner: candidate {found.winner}, {', '.join(f'{s} {v:.3f}' for s, v in found.scores.items())}")
    if found.per_minute is not None:
        items = f", {found.items_per_second:,.0f} items/s" if found.items_per_second is not None else ""
        lines.append(f"pace: {found.per_minute:,.1f} candidates/min{items}")
    for reason, times in found.reasons[:FAILURES]:
        lines.append(f"failed {times} time{'s' if times != 1 else ''}: {reason}")
    if found.last is not None:
        lines.append(f"last candidate began or ended: {found.last:%Y-%m-%d %H:%M:%S}, by that machine's clock")
    return lines
