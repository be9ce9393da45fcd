"""`evomerge dashboard`: optuna-dashboard on a study, on loopback unless asked otherwise."""

from __future__ import annotations

import argparse
import socketserver
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from evomerge.cli.commands import Parser, Subparsers, add_command
from evomerge.cli.output import emit
from evomerge.cli.runs import RUNS, find_database
from evomerge.errors import InputError, StudyError, choose

DESCRIPTION = """\
Watch a search, running or finished, in the browser. It listens on this machine only: there is no login, and whoever
reaches it can change the study, so keep it there (ssh -L 8080:localhost:8080 HOST reaches it from elsewhere).

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
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check the storage, print the address, serve until interrupted."""
    if not 0 <= args.port <= 65535:
        raise InputError(f"--port {args.port}: expected a port from 0 to 65535")
    from evomerge.study.database import shown
    from evomerge.study.place import storage_url

    url = storage_url(args.storage) if args.storage else f"sqlite:///{find_database(args.study).resolve()}"
    names = study_names(url)
    if args.storage and args.study and args.study not in names:
        raise StudyError(f'{shown(url)}: holds no study "{args.study}"; {choose(args.study, names)}')
    with open_server(url, args.host, args.port) as server:
        address = f"http://{args.host}:{server.server_port}/"
        emit(args, {"address": address, "storage": shown(url), "studies": names}, f"{address} (Ctrl-C ends it)")
        args.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:  # the way to end it, no failure
            return 0
    return 0


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


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: the page polls every few seconds."""


def open_server(url: str, host: str, port: int) -> WSGIServer:
    """optuna-dashboard on a storage, bound and not yet serving; InputError where the address is taken."""
    import optuna_dashboard

    from evomerge.study.opening import open_tables

    storage = open_tables(url)
    try:
        return make_server(host, port, optuna_dashboard.wsgi(storage), server_class=_Server, handler_class=_Handler)
    except OSError as e:
        raise InputError(f"--host {host} --port {port}: cannot listen there ({e.strerror}); try --port 0") from None
