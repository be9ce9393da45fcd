"""A hub on this machine with accounts, models with cards, and a finished search to publish."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants, hf_api

from evomerge import zoo
from tests.hub_server import Hub
from tests.hub_uploads import Account

# What each account may do is its name.
TOKENS = {
    "hf_writer": Account("me", orgs={"team": "write", "readers": "read"}),
    "hf_reader": Account("me", role="read"),
    "hf_stranger": Account("stranger"),
}
SCORE = """
def score(model, tokenizer, split):
    w = model.model.norm.weight.float()
    return {f"{split}-{i}": float(w[i] > w.mean()) for i in range(40)}
"""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, the only one that the client knows, and a token that may write to `me` and `team`."""
    (tmp_path / "hub").mkdir()
    server = Hub(tmp_path / "hub")
    server.uploads.accounts.update(TOKENS)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(hf_api.api, "endpoint", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # only LFS is offered here
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()
    yield server
    huggingface_hub.close_session()
    server.close()


@pytest.fixture(scope="session")
def study(here: Callable[..., SimpleNamespace], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search with controls over two models of the user's, of which only one has a card: its folder."""
    folder = tmp_path_factory.mktemp("study")
    for name in ("maths", "kovesh"):
        shutil.copytree(zoo.path(name), folder / "models" / name)
    card(folder / "models" / "maths", license="cc-by-nc-4.0", base_model="org/base")
    (folder / "score.py").write_text(SCORE)
    (folder / "e.yaml").write_text("kind: python\nfunction: score.py:score\ntasks: [norm]\n")
    models = [str(folder / "models" / name) for name in ("maths", "kovesh")]
    here(
        "search", "--models", *models, "--base", "zoo:base", "--evaluator", folder / "e.yaml", "--budget", 4,
        "--study", "s", "--out", folder / "out", "--workers", 0, "--controls", "--fidelity", "full",
    )  # fmt: skip
    return folder / "out"


def card(folder: Path, **front: object) -> None:
    """A model's own card."""
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(front)}---\n# a model\n")


def config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
