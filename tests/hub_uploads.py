"""The hub's side of an upload: accounts, repositories, the upload mode of each file, LFS storage, commits, cards.

What a client must send is what huggingface_hub 2.4 sends; what it gets is what the real hub answers, as far as that
client reads it. Only LFS is offered, no Xet storage.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

_WRITE = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<what>preupload|commit|branch)/(?P<revision>[^/]+)")
_BATCH = re.compile(r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
_CHECK = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/auth-check(?P<write>/write)?")
_MODEL_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# A part of the hub's list: docs/hub/repositories-licenses.md of its documentation.
LICENSES = {
    "apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "gpl-3.0", "llama3.1", "gemma",
    "openrail", "unknown", "other",
}  # fmt: skip
RELATIONS = {"adapter", "merge", "quantized", "finetune", "new_version"}


@dataclass
class Account:
    """Whom a token belongs to, and what it may do."""

    name: str
    role: str = "write"
    orgs: dict[str, str] = field(default_factory=dict)

    def may_write(self, owner: str) -> bool:
        return self.role != "read" and (owner == self.name or self.orgs.get(owner) in ("write", "admin"))


class Uploads:
    """Takes uploads into `root/OWNER/NAME`; other branches into `branches/OWNER/NAME/BRANCH` beside it.

    Attributes:
        accounts: By token.
        commits: Each as {"repo", "revision", "summary", "description", "files", "deleted"}.
        stored: Bytes that were put into LFS storage, by sha256.
        cut: How many bytes of the next large file are taken before the connection ends; None: all.
        leaked: Requests to the storage that had a token with them.
    """

    def __init__(self, root: Path, url: str) -> None:
        self.root, self.url = root, url
        self.branches = root.parent / "branches"
        self.storage = root.parent / "storage"
        self.storage.mkdir(parents=True, exist_ok=True)
        self.accounts: dict[str, Account] = {}
        self.private: set[str] = set()
        self.commits: list[dict[str, Any]] = []
        self.stored: dict[str, int] = {}
        self.cut: int | None = None
        self.leaked: list[str] = []
        self.asked: list[str] = []

    def folder(self, repo: str, revision: str) -> Path:
        return self.root / repo if revision == "main" else self.branches / repo / revision

    def all_branches(self, repo: str) -> list[str]:
        made = self.branches / repo
        return ["main", *sorted(f.name for f in made.iterdir())] if made.is_dir() else ["main"]

    def account(self, request: BaseHTTPRequestHandler) -> Account | None:
        return self.accounts.get((request.headers.get("Authorization") or "").removeprefix("Bearer "))

    def get(self, request: BaseHTTPRequestHandler, path: str) -> tuple[int, Any] | None:
        """The answer to a GET that is about accounts; None for others."""
        account = self.account(request)
        if path == "/api/whoami-v2":
            if account is None:
                return 401, {"error": "Invalid credentials in Authorization header"}
            orgs = [{"name": n, "roleInOrg": r} for n, r in account.orgs.items()]
            token = {"displayName": "a token", "role": account.role}
            return 200, {"type": "user", "name": account.name, "orgs": orgs, "auth": {"accessToken": token}}
        found = _CHECK.fullmatch(path)
        if found is None:
            return None
        repo, owner = found["repo"], found["repo"].split("/")[0]
        if not (self.root / repo).is_dir() or (repo in self.private and account is None):
            return 404, {"error": "Repository not found"}
        if found["write"] and (account is None or not account.may_write(owner)):
            return 403, {"error": "Forbidden: you must have write access"}
        return 200, {}

    def post(self, request: BaseHTTPRequestHandler) -> tuple[int, Any]:
        path = unquote(urlsplit(request.path).path)
        self.asked.append(path)
        body = _body(request)
        if path == "/api/validate-yaml":
            return _validated(json.loads(body)["content"])
        if path == "/storage/verify":
            data = json.loads(body)
            return (200, {}) if self.stored.get(data["oid"]) == data["size"] else (404, {"error": "not there"})
        account = self.account(request)
        if account is None:
            return 401, {"error": "Invalid username or password."}
        if path == "/api/repos/create":
            return self._create(account, json.loads(body))
        found = _WRITE.fullmatch(path) or _BATCH.fullmatch(path)
        if found is None or not (self.root / found["repo"]).is_dir():
            return 404, {"error": "Repository not found"}
        if not account.may_write(found["repo"].split("/")[0]):
            return 403, {"error": "Forbidden: you must have write access"}
        if "what" not in found.groupdict():
            return 200, {"transfer": "basic", "objects": [self._action(o) for o in json.loads(body)["objects"]]}
        return getattr(self, f"_{found['what']}")(found["repo"], found["revision"], body)

    def put(self, request: BaseHTTPRequestHandler) -> tuple[int, Any]:
        """A large file, to the address that it was given; no token has any business here."""
        oid = request.path.rpartition("/")[2]
        if request.headers.get("Authorization"):
            self.leaked.append(request.path)
        if self.cut is not None:
            request.rfile.read(self.cut)
            raise ConnectionAbortedError
        data = _body(request)
        if hashlib.sha256(data).hexdigest() != oid:
            return 400, {"error": "other bytes than announced"}
        (self.storage / oid).write_bytes(data)
        self.stored[oid] = len(data)
        return 200, {}

    def _create(self, account: Account, asked: dict[str, Any]) -> tuple[int, Any]:
        owner = asked.get("organization") or account.name
        repo = f"{owner}/{asked['name']}"
        if not account.may_write(owner):
            return 403, {"error": f'You don\'t have the rights to create a model under the namespace "{owner}"'}
        if (self.root / repo).is_dir():
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{repo}"}
        (self.root / repo).mkdir(parents=True)
        if asked.get("visibility") == "private":
            self.private.add(repo)
        return 200, {"url": f"{self.url}/{repo}"}

    def _action(self, asked: dict[str, Any]) -> dict[str, Any]:
        known = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] in self.stored:
            return known
        upload = {"href": f"{self.url}/storage/{asked['oid']}"}
        return {**known, "actions": {"upload": upload, "verify": {"href": f"{self.url}/storage/verify"}}}

    def _branch(self, repo: str, revision: str, _: bytes) -> tuple[int, Any]:
        if self.folder(repo, revision).is_dir():
            return 409, {"error": "Reference already exists"}
        shutil.copytree(self.root / repo, self.folder(repo, revision))
        return 200, {}

    def _preupload(self, repo: str, revision: str, body: bytes) -> tuple[int, Any]:
        files = []
        for asked in json.loads(body)["files"]:
            mode = "lfs" if asked["path"].endswith((".safetensors", ".png")) else "regular"
            file = self.folder(repo, revision) / asked["path"]
            oid = None
            if file.is_file():
                data = file.read_bytes()
                git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
                oid = hashlib.sha256(data).hexdigest() if mode == "lfs" else git
            files.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {"files": files}

    def _commit(self, repo: str, revision: str, body: bytes) -> tuple[int, Any]:
        lines = [json.loads(line) for line in body.splitlines()]
        header, folder = lines[0]["value"], self.folder(repo, revision)
        files, deleted = [], []
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                (folder / value["path"]).unlink()
                deleted.append(value["path"])
                continue
            if line["key"] == "lfsFile":
                if value["oid"] not in self.stored:
                    return 400, {"error": f"LFS pointer pointed to a file that does not exist: {value['path']}"}
                shutil.copyfile(self.storage / value["oid"], folder / value["path"])
            else:
                (folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
            files.append(value["path"])
        told = {k: header[k] for k in ("summary", "description")}
        self.commits.append({"repo": repo, "revision": revision, "files": files, "deleted": deleted, **told})
        oid = hashlib.sha1(body).hexdigest()
        return 200, {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{repo}/commit/{oid}"}


def _validated(content: str) -> tuple[int, Any]:
    """What the hub checks of a card: ids of base models, the licence's identifier, the form of results."""
    match = re.match(r"^(\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(\r\n|\n|$))", content)
    if match is None:
        return 200, {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
    data = yaml.safe_load(match.group(2))
    errors = []
    base = data.get("base_model", [])
    for model in [base] if isinstance(base, str) else base:
        if not _MODEL_ID.fullmatch(model):
            errors.append(f'"base_model" with value "{model}" is not valid. Use a model id from https://hf.co/models.')
    if data.get("base_model_relation", "merge") not in RELATIONS:
        errors.append('"base_model_relation" is not valid')
    if "license" in data and data["license"] not in LICENSES:
        errors.append('"license" must be one of [...]')
    if data.get("license") == "other" and not data.get("license_name"):
        errors.append('"license_name" is required for "license": "other"')
    for entry in data.get("model-index", []):
        for result in entry["results"]:
            try:
                assert result["task"]["type"] and result["dataset"]["name"] and result["dataset"]["type"]
                assert all(m["type"] and "value" in m for m in result["metrics"]) and result["metrics"]
            except (KeyError, AssertionError):
                errors.append('"model-index[0].results[0]" is not valid')
    found = {"errors": [{"message": e} for e in errors], "warnings": []}
    return (400 if errors else 200), found


def _body(request: BaseHTTPRequestHandler) -> bytes:
    if request.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))
    data = b""
    while size := int(request.rfile.readline(), 16):
        data += request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()
    return data
