"""The dashboard's server. Apart from its command, because loading a web server takes longer than the command's help."""

from __future__ import annotations

import socketserver
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from evomerge.errors import InputError


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: the page polls every few seconds."""


def open_server(url: str, host: str, port: int, folders: Sequence[Path] = ()) -> WSGIServer:
    """optuna-dashboard on a storage, bound and not yet serving; InputError where the address is taken.

    Args:
        folders: Where pictures of its studies lie.
    """
    import bottle
    import optuna_dashboard

    from evomerge.study.display import Folders
    from evomerge.study.opening import open_tables

    storage = open_tables(url)
    store = Folders(folders, lambda artifact: bottle.HTTPError(404, f"artifact {artifact}: is not on this machine"))
    app = optuna_dashboard.wsgi(storage, artifact_store=store)
    try:
        return make_server(host, port, app, server_class=_Server, handler_class=_Handler)
    except OSError as e:
        raise InputError(f"--host {host} --port {port}: cannot listen there ({e.strerror}); try --port 0") from None
