"""References to models, and what is found of each."""

from __future__ import annotations

import fnmatch
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from evomerge import zoo
from evomerge.errors import SourceError
from evomerge.header import read_header
from evomerge.sources import check_fit, open_source, open_sources
from tests.checkpoints import checkpoint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "model")


def test_zoo() -> None:
    sources = open_sources(f"zoo:{n}" for n in zoo.NAMES)
    assert list(sources) == [f"zoo:{n}" for n in zoo.NAMES] and [s.name for s in sources.values()] == list(zoo.NAMES)
    base = sources["zoo:base"]
    assert (base.architecture, base.num_layers, base.tied) == ("LlamaForCausalLM", 4, True)
    assert base.path == zoo.path("base") and base.bytes == 912_192
    check_fit({name: s for name, s in sources.items() if s.name in zoo.FAMILY})
    with pytest.raises(SourceError, match=r'"zoo:roads" does not fit "zoo:base": architecture .*evomerge fuse'):
        check_fit({name: sources[name] for name in ("zoo:base", "zoo:roads")})
    assert len({s.content_hash() for s in sources.values()}) == len(zoo.NAMES)


def test_a_folder_is_looked_for_here_and_beside_the_recipe(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_source(str(model)).path == model
    assert open_source("model", root=model.parent).path == model
    monkeypatch.chdir(model.parent)
    assert open_source("./model/").name == "model"
    assert open_source("model").path.resolve() == model.resolve()


def test_headers_agree_with_the_library(model: Path) -> None:
    header = read_header(model / "model.safetensors")
    content = (model / "model.safetensors").read_bytes()
    for name, array in load_file(model / "model.safetensors").items():
        info = header[name]
        assert (info.shape, info.dtype, info.elements) == (array.shape, "F32", array.size)
        assert content[info.start : info.end] == array.tobytes()


@pytest.mark.parametrize("said", ["2", 2.0, True, [2]])
def test_a_number_of_layers_that_is_none(said: Any, tmp_path: Path) -> None:
    source = open_source(str(checkpoint(tmp_path / "m", num_hidden_layers=said)))
    with pytest.raises(SourceError) as e:
        _ = source.num_layers
    assert f"num_hidden_layers = {json.dumps(said)}: expected a whole number of layers" in str(e.value)


def test_number_of_layers_under_other_names(tmp_path: Path) -> None:
    text = {"num_hidden_layers": 2, "hidden_size": 4}
    inner = checkpoint(tmp_path / "vlm", text_config=text, num_hidden_layers=None)
    assert open_source(str(inner)).num_layers == 2
    assert open_source(str(checkpoint(tmp_path / "gpt", num_hidden_layers=None, n_layer=2))).num_layers == 2
    with pytest.raises(SourceError, match="says no number of layers"):
        _ = open_source(str(checkpoint(tmp_path / "none", num_hidden_layers=None))).num_layers


def test_content_hash(model: Path, tmp_path: Path) -> None:
    first = open_source(str(model)).content_hash()
    assert len(first) == 64
    moved = Path(shutil.copytree(model, tmp_path / "elsewhere"))
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({"transformers_version": "9", **config}, indent=4))
    tensors = load_file(moved / "model.safetensors")
    names = list(tensors)
    (moved / "model.safetensors").unlink()
    files = {"a.safetensors": names[1:], "b.safetensors": names[:1]}
    for file, some in files.items():
        save_file({n: tensors[n] for n in some}, moved / file)
    index = {"weight_map": {n: f for f, some in files.items() for n in some}}
    (moved / "model.safetensors.index.json").write_text(json.dumps(index))
    source = open_source(str(moved))
    assert source.content_hash() == first, "place, cut into files and formatting are no content"
    assert pickle.loads(pickle.dumps(source)).content_hash() == first
    tensors[names[0]].view(np.uint8).reshape(-1)[0] ^= 1
    save_file({n: tensors[n] for n in files["b.safetensors"]}, moved / "b.safetensors")
    assert open_source(str(moved)).content_hash() != first, "one bit"
    (model / "config.json").write_text(json.dumps({**config, "rope_theta": 5.0}))
    assert open_source(str(model)).content_hash() != first


def test_hub(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append((name, revision))
        for file in ("pytorch_model.bin", "modeling_x.py", "model.pt", "tokenizer.pkl", "original/a.safetensors"):
            allowed = any(fnmatch.fnmatch(file, p) for p in allow_patterns)
            assert not allowed or any(fnmatch.fnmatch(file, p) for p in ignore_patterns), file
        return str(model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert open_source("someone/some-model@v2").name == "some-model"
    assert open_source("someone/some-model").path == model
    assert asked == [("someone/some-model", "v2"), ("someone/some-model", None)]


def test_it_loads_no_torch() -> None:
    code = (
        "import sys; from evomerge.sources import open_sources, check_fit\n"
        "s = open_sources(['zoo:base', 'zoo:maths']); check_fit(s); [x.content_hash() for x in s.values()]\n"
        "print([m for m in ('torch', 'ray', 'transformers', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
