"""A Hugging Face hub on this machine: the few endpoints that its client asks, over folders, with a log of requests."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.hub_uploads import Uploads

_INFO = re.compile(
    r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/(?P<what>revision|tree)/(?P<revision>[^/]+))?(?P<inside>/.+)?"
)
_FILE = re.compile(r"/(?P<cdn>cdn/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")


class Hub:
    """Serves `root/OWNER/NAME` as the model OWNER/NAME; large files through a redirect, as the hub does.

    Attributes:
        sent: Bytes that were sent of each weights file, by "OWNER/NAME/FILE".
        ranges: Whether range requests are answered by a part.
        uploads: What takes uploads, and knows whose tokens may write where.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sent: dict[str, int] = {}
        self.ranges = True
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub._answer(self, body=False)

            def do_GET(self) -> None:
                hub._answer(self, body=True)

            def do_POST(self) -> None:
                hub._took(self, hub.uploads.post)

            def do_PUT(self) -> None:
                hub._took(self, hub.uploads.put)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.uploads = Uploads(root, self.url)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def commit(self, repo: str, branch: str = "main") -> str:
        """The revision that a model is at: changes with its files."""
        folder = self.uploads.folder(repo, branch)
        return hashlib.sha1("".join(f"{n} {_digest(folder / n)}\n" for n in _names(folder)).encode()).hexdigest()

    def _took(self, request: BaseHTTPRequestHandler, take: Callable[[BaseHTTPRequestHandler], tuple[int, Any]]) -> None:
        try:
            status, found = take(request)
        except ConnectionAbortedError:  # the network is gone: no answer at all
            request.close_connection = True
            return
        self._send(request, status, json.dumps(found).encode(), {"Content-Type": "application/json"}, True)

    def _answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = unquote(urlsplit(request.path).path)
        known = self.uploads.get(request, path)
        if known is not None:
            found = json.dumps(known[1]).encode()
            return self._send(request, known[0], found, {"Content-Type": "application/json"}, body)
        asked = _INFO.fullmatch(path) or _FILE.fullmatch(path)
        if asked is None or not (self.root / asked["repo"]).is_dir():
            return self._send(request, 404, b"", {"X-Error-Code": "RepoNotFound"}, body)
        if asked["repo"] in self.uploads.private and self.uploads.account(request) is None:
            return self._send(request, 404, b"", {"X-Error-Code": "RepoNotFound"}, body)
        branch = revision = asked["revision"] or "main"
        folder = self.uploads.folder(asked["repo"], branch)
        for known_branch in self.uploads.all_branches(asked["repo"]):
            if revision == self.commit(asked["repo"], known_branch):
                branch, folder = known_branch, self.uploads.folder(asked["repo"], known_branch)
        if not folder.is_dir():
            return self._send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
        commit = self.commit(asked["repo"], branch)
        if asked.groupdict().get("inside"):  # the tree is told whole
            return self._send(request, 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, body)
        if "what" in asked.groupdict():
            files = {name: folder / name for name in _names(folder)}
            tree = [{"type": "file", "path": n, "size": f.stat().st_size, "oid": _digest(f)} for n, f in files.items()]
            info = {"id": asked["repo"], "sha": commit, "siblings": [{"rfilename": n} for n in files]}
            info["private"] = asked["repo"] in self.uploads.private
            found = json.dumps(tree if asked["what"] == "tree" else info).encode()
            return self._send(request, 200, found, {"Content-Type": "application/json"}, body)
        file = folder / asked["name"]
        if not file.is_file():
            return self._send(request, 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, body)
        size, tag = file.stat().st_size, f'"{_digest(file)}"'
        facts = {"X-Repo-Commit": commit, "ETag": tag, "X-Linked-Etag": tag, "X-Linked-Size": str(size)}
        if file.suffix == ".safetensors" and not asked["cdn"]:
            return self._send(request, 302, b"", {**facts, "Location": f"{self.url}/cdn{path}"}, body)
        data, status = file.read_bytes(), 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
        if wanted and self.ranges:
            first, last = int(wanted[1]), min(int(wanted[2] or size - 1), size - 1)
            data, status, facts["Content-Range"] = data[first : last + 1], 206, f"bytes {first}-{last}/{size}"
        if file.suffix == ".safetensors" and body:
            key = f"{asked['repo']}/{asked['name']}"
            self.sent[key] = self.sent.get(key, 0) + len(data)
        return self._send(request, status, data, facts, body)

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        if body:
            request.wfile.write(data)


def _names(folder: Path) -> list[str]:
    """Of all files in it, those in its folders too."""
    return sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())


def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
