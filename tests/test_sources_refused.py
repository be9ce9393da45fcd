"""Every way in which a model can be missing or refused by its name, its kind or its configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import SourceError
from evomerge.sources import open_source, open_sources
from tests.checkpoints import checkpoint, refused


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "model")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)


@pytest.mark.usefixtures("no_hub")
def test_missing(model: Path) -> None:
    assert f'did you mean "{model}"?' in refused(model.parent / "modle")
    assert "no such folder" in refused("/nowhere/at/all")
    assert refused("./modle", root=model.parent).endswith(f'did you mean "{model}"?')
    assert 'did you mean "zoo:maths"?' in refused("maths")
    assert 'did you mean "kovesh"? Valid: base, maths' in refused("zoo:kovsh")
    hub = refused("someone/model")
    assert "not to be had from the Hugging Face hub: ConnectionError: no route to the hub" in hub
    assert "is a file, expected the folder" in refused(model / "config.json")
    assert "expected path[@revision]" in refused("a@")


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    "name", ["x" * 300, "m/" + "x" * 300, "/" + "x" * 5000, "~nobody-of-that-name/x", "a\0b/c", "m/" * 3000 + "x"]
)
def test_names_that_no_folder_can_have(name: str, model: Path) -> None:
    for reference in (name, f"{name}@main", f"{model}+{name}", f"{name}+{model}"):
        for root in (None, model.parent):
            message = refused(reference, root=root)
            assert "no such folder" in message and "Hugging Face" not in message


def test_revisions_are_of_the_hub_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 'the zoo\'s models have no revisions; remove "@v7"' in refused("zoo:base@v7")
    assert f'{model} is a folder, which has no revisions; remove "@a@b"' in refused(f"{model}@a@b")
    assert "has no revisions" in refused(f"zoo:base+{model}@v7")
    assert "has no revisions" in refused("model@../../x", root=model.parent)
    (model.parent / "model@v7").symlink_to(model)
    assert open_source(f"{model}@v7").path.name == "model@v7", "a folder of that name"
    asked: list[str | None] = []

    def download(name: str, *, revision: str | None, **_: Any) -> str:
        asked.append(revision)
        return str(model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for revision in ("a@b", "../../x", "a//b", "/etc", "a b", "a:b", "a\\b"):
        assert f'"{revision}" is no revision' in refused(f"someone/model@{revision}")
    fine = ["main", "v1.2", "refs/pr/3", "0123abcd", "feature/some-thing_2"]
    for revision in fine:
        assert open_source(f"someone/model@{revision}").path == model
    assert asked == fine


def test_what_the_hub_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("a long story of connections")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert refused("someone/model").endswith(
        "it cannot be reached, and the local cache lacks the model or a part of it"
    )


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as e:
        open_sources(["zoo:bse", str(tmp_path / "x" / "y"), "zoo:base", "zoo:bse"])
    assert len(str(e.value).splitlines()) == 2


def test_what_cannot_be_a_source(model: Path, tmp_path: Path) -> None:
    assert "is a model, not an adapter" in refused(f"{model}+{model}")
    assert "is quantised" in refused(checkpoint(tmp_path / "q", quantization_config={"bits": 4}))
    (model / "config.json").unlink()
    assert "has no config.json" in refused(model)
    (model / "adapter_config.json").write_text("{}")
    assert "is an adapter, not a model" in refused(model)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles(model: Path, name: str) -> None:
    (model / "model.safetensors").rename(model / name)
    message = refused(model)
    assert name in message and "refused; convert it to safetensors" in message


def test_bad_configuration(model: Path) -> None:
    for text, words in (("{", "not JSON"), ("[1]", "expected a JSON object"), ("\xff", "byte 0 is not UTF-8")):
        (model / "config.json").write_bytes(text.encode("latin-1"))
        assert words in refused(model)


def test_the_depth_of_configurations_and_what_cannot_be_written(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    for depth, fine in ((90, True), (120, False), (900, False), (100_000, False)):
        text = json.dumps(config)[:-1] + ', "deep": ' + "[" * depth + "]" * depth + "}"
        (model / "config.json").write_text(text)
        if fine:
            open_source(str(model))
        else:
            assert "more than 100 levels deep" in refused(model)
    for text, words in (
        (json.dumps(config | {"name": "\ud800"}), "not JSON"),
        (json.dumps(config | {"architectures": 5}), "architectures = 5: expected a list of class names"),
        (json.dumps(config | {"architectures": [5]}), "expected a list of class names"),
        (
            json.dumps(config | {"tie_word_embeddings": "false"}),
            'tie_word_embeddings = "false": expected true or false',
        ),
        (json.dumps(config | {"text_config": {"tie_word_embeddings": "no"}}), "expected true or false"),
        (json.dumps(config | {"model_type": 5}), "model_type = 5: expected a text"),
    ):
        (model / "config.json").write_text(text)
        assert words in refused(model)
