"""`evomerge dashboard`: a real server on loopback, and storages that are none."""

from __future__ import annotations

import json
import sqlite3
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.cli.dashboard import open_server


@pytest.fixture
def storage(tmp_path: Path) -> str:
    import optuna

    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(study_name="mine", storage=url, direction="maximize")
    study.add_trial(optuna.trial.create_trial(value=0.5))
    return url


def test_serves_the_study(storage: str) -> None:
    with open_server(storage, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        base = f"http://127.0.0.1:{server.server_port}"
        # no proxy: an environment's proxy settings must not come between this process and itself
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{base}/api/studies", timeout=30) as answer:
            data = json.load(answer)
        with opener.open(f"{base}/dashboard/", timeout=30) as answer:
            page = answer.read()
        server.shutdown()
        thread.join()
    assert [s["study_name"] for s in data["study_summaries"]] == ["mine"]
    assert b"<html" in page.lower()


def test_listens_on_loopback_and_ends_by_interrupt(
    command: Callable, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsgiref.simple_server import WSGIServer

    def interrupt(self: WSGIServer, poll_interval: float = 0.5) -> None:
        assert self.server_address[0] == "127.0.0.1"
        raise KeyboardInterrupt

    monkeypatch.setattr(WSGIServer, "serve_forever", interrupt)
    done = command("dashboard", "--storage", storage, "--port", 0, "--json")
    assert done.code == 0
    assert done.json["address"].startswith("http://127.0.0.1:") and done.json["studies"] == ["mine"]


def test_an_address_in_use(command: Callable, storage: str) -> None:
    with open_server(storage, "127.0.0.1", 0) as server:
        error = command("dashboard", "--storage", storage, "--port", server.server_port).error
    assert "cannot listen there" in error


def test_storages_that_are_none(command: Callable, tmp_path: Path, storage: str) -> None:
    missing = tmp_path / "none.db"
    assert "no such file" in command("dashboard", "--storage", f"sqlite:///{missing}").error
    assert not missing.exists()  # SQLite would have made it
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t (x)").connection.close()
    assert "is not a study" in command("dashboard", "--storage", f"sqlite:///{tmp_path / 'other.db'}").error
    (tmp_path / "text.db").write_text("no database at all, only some text that is long enough to have a header" * 9)
    assert "is not a SQLite database" in command("dashboard", "--storage", f"sqlite:///{tmp_path / 'text.db'}").error
    assert f"sqlite:///{missing}" in command("dashboard", "--storage", missing).error
    assert "unknown kind of database" in command("dashboard", "--storage", "sqlight:///x").error
    assert 'did you mean "mine"' in command("dashboard", "mien", "--storage", storage).error
    assert "from 0 to 65535" in command("dashboard", "--storage", storage, "--port", 99999).error
