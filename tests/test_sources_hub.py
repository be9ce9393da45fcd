"""Models of a hub: what is wrong is said before any weights are downloaded, what is right is what a folder gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import constants
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_torch

from evomerge import zoo
from evomerge.cli.forecast import forecast
from evomerge.errors import InputError, SourceError
from evomerge.merging.chain import OpenChain
from evomerge.recipe import load_chain
from evomerge.sources import fetch, hub, open_source, open_sources
from tests.hub_server import Hub

# Beyond what is asked of a file at first: parts of headers, and none of the weights behind them.
LARGE = 200_000


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with two of the zoo's models under `a/`, the only one that the client knows."""
    for name in ("base", "maths"):
        shutil.copytree(zoo.path(name), tmp_path / "hub" / "a" / name)
    server = Hub(tmp_path / "hub")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_FIRST", 1000)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()
    yield server
    huggingface_hub.close_session()
    server.close()


def recipe(folder: Path, *models: str, **more: object) -> Path:
    weights = [{"model": m, "parameters": {"weight": 0.5}} for m in models]
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({"merge_method": "linear", "models": weights, "dtype": "float32", **more}))
    return file


def configure(served: Hub, repo: str, **changes: object) -> None:
    file = served.root / repo / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def size(served: Hub, repo: str) -> int:
    return (served.root / repo / "model.safetensors").stat().st_size


def test_a_recipe_is_checked_on_headers_alone(served: Hub, tmp_path: Path) -> None:
    facts, text = forecast(recipe(tmp_path, "a/base", "a/maths"))
    there, _ = forecast(recipe(tmp_path, str(zoo.path("base")), str(zoo.path("maths"))))
    for key in ("bytes_read", "bytes_written", "output_bytes", "memory_bytes", "disk_bytes"):
        assert facts[key] == there[key] > 0
    assert "configuration of a/base" in text
    assert all(0 < sent < size(served, "a/base") / 20 for sent in served.sent.values()) and len(served.sent) == 2
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_what_does_not_fit_is_told_before_the_download(served: Hub, tmp_path: Path) -> None:
    configure(served, "a/maths", hidden_size=80)
    with pytest.raises(InputError, match="hidden_size 80 against"):
        forecast(recipe(tmp_path, "a/base", "a/maths"))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("head", ["the embedding", "another", "of another type"])
def test_a_head_under_a_configuration_that_ties_it(head: str, served: Hub, tmp_path: Path) -> None:
    file = served.root / "a" / "base" / "model.safetensors"
    tensors = load_file(file)
    embedding = tensors["model.embed_tokens.weight"]
    own = {"the embedding": embedding.clone(), "another": embedding * 2, "of another type": embedding.double()}[head]
    save_torch({**tensors, "lm_head.weight": own}, file)
    source = open_source("a/base", weights=False)
    assert source.absent and source.says_tied
    assert source.tied == (head == "the embedding")
    # Only what headers cannot tell is worth a download.
    assert bool(source.absent) == (head == "of another type")


@pytest.mark.parametrize("number", range(5))
def test_one_bad_model_keeps_the_others_from_being_downloaded(number: int, served: Hub, tmp_path: Path) -> None:
    folder = served.root / "a" / "maths"
    weights = folder / "model.safetensors"
    if number == 0:
        configure(served, "a/maths", quantization_config={"bits": 4})
        words = "is quantised"
    elif number == 1:
        weights.rename(folder / "pytorch_model.bin")
        words = "has only pytorch_model.bin, a pickle checkpoint"
    elif number == 2:
        save_file({"model.norm.weight": np.zeros(4, np.int32)}, weights)
        words = 'tensor "model.norm.weight" has type I32'
    elif number == 3:
        weights.write_bytes(weights.read_bytes()[:-LARGE])
        words = "interrupted download: the file has"
    else:
        weights.rename(folder / "model-00001-of-00002.safetensors")
        places = dict.fromkeys(
            load_file(folder / "model-00001-of-00002.safetensors"), "model-00001-of-00002.safetensors"
        )
        places["model.norm.weight"] = "model-00002-of-00002.safetensors"
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        words = "names model-00002-of-00002.safetensors, which is not there"
    with pytest.raises(SourceError, match=words) as e:
        open_sources(["a/base", "a/maths", "a/none", "a/base@v9"])
    told = str(e.value).splitlines()
    assert len(told) == 3 and e.value.exit_code == 2
    assert told[1].endswith("it has no such model, or a private one")
    assert told[2].endswith("it has the model, but not that revision")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert served.sent.get("a/base/model.safetensors", 0) < size(served, "a/base") / 20


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_model_is_what_its_folder_would_be(sharded: bool, ranges: bool, served: Hub, tmp_path: Path) -> None:
    folder = served.root / "a" / "base"
    served.ranges = ranges
    if sharded:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = {f"model-0000{n + 1}-of-00002.safetensors": list(tensors)[n::2] for n in range(2)}
        for file, some in names.items():
            save_torch({name: tensors[name] for name in some}, folder / file)
        index = {"weight_map": {name: file for file, some in names.items() for name in some}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    source = open_source("a/base", weights=False)
    local = open_source(str(folder))
    assert {n: (i.dtype, i.shape, i.start, i.end, i.file.name) for n, i in source.tensors.items()} == {
        n: (i.dtype, i.shape, i.start, i.end, i.file.name) for n, i in local.tensors.items()
    }
    assert len(source.absent) == 1 + sharded and not source.local and source.path.name == served.commit("a/base")
    with pytest.raises(SourceError, match="cannot be read"):
        source.content_hash()
    fetch([source, local])
    assert not source.absent and source.content_hash() == local.content_hash()
    assert open_source("a/base").content_hash() == local.content_hash()
    served.close()
    for reference in ("a/base", f"a/base@{source.path.name}"):
        assert open_source(reference).path == source.path, "without the hub"


def test_a_merge_downloads_once_and_only_when_it_can_be_written(served: Hub, tmp_path: Path) -> None:
    file = recipe(tmp_path, "a/base", "a/maths")
    opened = OpenChain.open(load_chain(file), root=tmp_path)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "note").write_text("mine")
    with pytest.raises(InputError, match="taken"):
        opened.write(taken)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    before = dict(served.sent)
    opened.write(tmp_path / "out")
    opened.write(tmp_path / "again")
    assert {k: sent - before[k] for k, sent in served.sent.items()} == dict.fromkeys(before, size(served, "a/base"))
    other = OpenChain.open(load_chain(recipe(tmp_path, str(zoo.path("base")), str(zoo.path("maths")))))
    other.write(tmp_path / "local")
    results = [load_file(tmp_path / name / "model.safetensors") for name in ("out", "local")]
    assert all(torch.equal(results[0][name], values) for name, values in results[1].items())


def test_no_range_and_no_size(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    here = open_source(str(zoo.path("base"))).tensors
    monkeypatch.setattr(hub, "_range", lambda file, repo, start, stop: (_bytes(start, stop), None))
    source = open_source("a/base", weights=False)
    assert {n: (i.start, i.end) for n, i in source.tensors.items()} == {n: (i.start, i.end) for n, i in here.items()}


def _bytes(start: int, stop: int) -> bytes:
    return (zoo.path("base") / "model.safetensors").read_bytes()[start:stop]


def test_a_model_that_moves_on_between_check_and_download(served: Hub) -> None:
    source = open_source("a/base", weights=False)
    said = source.path.name
    configure(served, "a/base", rope_theta=5.0)
    with pytest.raises(SourceError, match="its weights are not to be had from the Hugging Face hub"):
        fetch([source])
    assert open_source("a/base").path.name != said


def test_offline_before_the_download(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source("a/base", weights=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(
        SourceError, match=r'"a/base": its weights are not to be had .* the local cache lacks the model or'
    ):
        fetch([source])
    for reference, words in (("a/base", "or a part of it"), ("a/maths", 'model "a/maths": no such folder')):
        with pytest.raises(SourceError, match=words):
            open_source(reference)


def test_no_room_for_the_weights(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=900_000))
    with pytest.raises(
        SourceError, match=r"GB of weights are to be downloaded, and 0\.0 GB are free; set HF_HUB_CACHE"
    ):
        open_sources(["a/base", "a/maths"])
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_an_adapters_configuration_comes_before_its_weights(served: Hub, tmp_path: Path) -> None:
    folder = served.root / "a" / "lora"
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "use_dora": True}))
    module = "base_model.model.model.layers.0.mlp.up_proj"
    shape = open_source("zoo:base").tensors["model.layers.0.mlp.up_proj.weight"].shape
    pair = {"A": np.ones((2, shape[1]), np.float32), "B": np.ones((shape[0], 2), np.float32)}
    save_file({f"{module}.lora_{s}.weight": x for s, x in pair.items()}, folder / "adapter_model.safetensors")
    with pytest.raises(SourceError, match="DoRA"):
        open_source("a/base+a/lora")
    with pytest.raises(SourceError, match="is a model, not an adapter"):
        open_source("a/base+a/maths")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    source = open_source("a/base+a/lora", weights=False)
    assert source.adapter is not None and list(source.adapter.updates) == ["model.layers.0.mlp.up_proj.weight"]
    assert [file.name for file in source.absent] == ["model.safetensors"]
    fetch([source])
    assert len(source.content_hash()) == 64
