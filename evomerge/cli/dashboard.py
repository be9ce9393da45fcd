"""`evomerge dashboard`: optuna-dashboard on a study, on loopback unless asked otherwise."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.cli.commands import Parser, Subparsers, add_command
from evomerge.cli.output import emit
from evomerge.errors import EvoMergeError, InputError, StudyError, choose
from evomerge.study.finding import RUNS, find_database

if TYPE_CHECKING:
    from evomerge.study.store import Store

DESCRIPTION = """\
Watch a search, running or finished, in the browser: candidates, importance of parameters, fronts, a note on what was
found and how to rebuild it, and pictures. It listens on this machine only: there is no login, and whoever reaches it
can change the study, so keep it there (ssh -L 8080:localhost:8080 HOST reaches it from elsewhere).

  evomerge dashboard                             the study in runs/, when there is one only
  evomerge dashboard quickstart-quickstart-0
  evomerge dashboard --storage postgresql://user@host/studies"""


def add_parser(subparsers: Subparsers[Parser]) -> None:
    """Register the command."""
    parser = add_command(subparsers, "dashboard", "watch a study in the browser", DESCRIPTION)
    parser.add_argument("study", metavar="STUDY", nargs="?", help=f"name of a study in {RUNS}/, or its folder")
    parser.add_argument("--storage", metavar="URL", help="database of the study (sqlite:///FILE, postgresql://...)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on (default 8080; 0: any free one)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--open", action="store_true", help="open it in this machine's browser")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check the storage, print the address, serve until interrupted."""
    if not 0 <= args.port <= 65535:
        raise InputError(f"--port {args.port}: expected a port from 0 to 65535")
    from evomerge.cli.dashboard_server import open_server
    from evomerge.study.database import shown
    from evomerge.study.place import storage_url

    url = storage_url(args.storage) if args.storage else f"sqlite:///{find_database(args.study).resolve()}"
    names = study_names(url)
    if args.storage and args.study and args.study not in names:
        raise StudyError(f'{shown(url)}: holds no study "{args.study}"; {choose(args.study, names)}')
    shown_one, folders = _pages(args, url, names)
    with open_server(url, args.host, args.port, folders) as server:
        page = f"dashboard/studies/{shown_one}" if shown_one is not None else ""
        address = f"http://{args.host}:{server.server_port}/{page}"
        emit(args, {"address": address, "storage": shown(url), "studies": names}, f"{address} (Ctrl-C ends it)")
        args.stdout.flush()
        if args.open:
            import webbrowser

            # The server answers as soon as it serves; until then the browser waits.
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:  # the way to end it, no failure
            return 0
    return 0


def _pages(args: argparse.Namespace, url: str, names: list[str]) -> tuple[int | None, list[Path]]:
    """Write the page of the study that is meant, where its search was cut off before it wrote one.

    Returns:
        Optuna's id of the study to open (None: there are several), and where pictures lie.
    """
    from evomerge.cli.output import say
    from evomerge.study.database import table_names
    from evomerge.study.display import ARTIFACTS_NOTE, FOLDER
    from evomerge.study.leases import root
    from evomerge.study.place import sqlite_path
    from evomerge.study.schema import NAMES
    from evomerge.study.status import OUT_NOTE
    from evomerge.study.store import Store

    if not table_names(url) >= NAMES:
        return None, []  # Optuna's alone
    store = Store(url)
    ours = store.names()
    given = args.study if args.study in ours else None
    roots = list(dict.fromkeys(root(n) for n in names))
    wanted = given or (roots[0] if len(roots) == 1 and roots[0] in ours else None)
    folders: list[Path] = []
    file = sqlite_path(url)
    beside = None if file is None else Path(file).resolve().parent
    for name in sorted(ours, key=lambda n: (n != wanted, n)):
        notes = store.open(name).notes()
        kept = notes.get(ARTIFACTS_NOTE)
        # A folder that was moved keeps its database and pictures together.
        out = beside if beside is not None and "/" not in name else Path(notes[OUT_NOTE]) if OUT_NOTE in notes else None
        # Of the one that is meant: to go through hundreds would take minutes.
        if out is not None and wanted is not None and root(name) == root(wanted):
            _write_page(args, store, name, out)
        folders += [Path(kept["folder"])] if kept else []
        folders += [out / FOLDER] if out is not None else []
    gone = list(dict.fromkeys(f for f in folders if not f.is_dir() and f.parent != beside))
    if gone:
        more = f" (nor are {len(gone) - 1} more)" if len(gone) > 1 else ""
        say(args, f"pictures in {gone[0]} are not shown: there is no such folder on this machine{more}")
    found = None if wanted is None else int(store.optuna.get_study_id_from_name(wanted))
    return found, list(dict.fromkeys(folders))


def _write_page(args: argparse.Namespace, store: Store, name: str, out: Path) -> None:
    """The page of a search that nobody drives and that has not ended; whatever goes wrong is told and no more."""
    from evomerge.cli.output import say
    from evomerge.report.dashboard import Candidate, publish
    from evomerge.study.display import ARTIFACTS_NOTE
    from evomerge.study.status import status

    try:
        found = status(store, name)
        if found.standing == "running" or found.best is None or not out.is_dir():
            return
        if found.standing == "finished" and store.open(name).notes().get(ARTIFACTS_NOTE):
            return
        number = found.winner if found.winner is not None else found.best.number
        candidate = None
        try:
            from evomerge.pipeline import rebuilt

            one = rebuilt(store.open(name), number)
            candidate = Candidate(number, one.signed, one.names, one.depths, one.path)
        except EvoMergeError as e:
            say(args, f"{name}: without a picture of the recipe: {e}")
        publish(store, name, out, candidate)
    except Exception as e:  # a page is no reason not to show the study
        say(args, f"{name}: no note and pictures ({type(e).__name__}: {e})")


def study_names(url: str) -> list[str]:
    """Names of the studies in a storage, Optuna's own included; creates nothing.

    Raises:
        StudyError: the URL names no database that exists, or one without Optuna's tables, or without a study.
    """
    import sqlalchemy as sa

    from evomerge.study.database import make_engine, shown, table_names

    table_names(url)
    engine = make_engine(url)
    with engine.connect() as connection:
        names = [str(row[0]) for row in connection.execute(sa.text("SELECT study_name FROM studies"))]
    engine.dispose()
    if not names:
        raise StudyError(f"storage {shown(url)}: holds no study yet")
    return sorted(names)
