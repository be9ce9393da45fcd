"""What an adapter is as a source: its name and content, the tensors it names, and how they are read."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from evomerge.header import TensorInfo
from evomerge.merging import adapters
from evomerge.merging.mapped import MappedFiles
from evomerge.merging.operand import LowRank, Stored
from evomerge.sources import open_source


def test_references_names_and_contents(three: tuple[Path, list[Path]], tmp_path: Path) -> None:
    model, folders = three
    sources = [open_source(f"{model}+{f}") for f in folders]
    assert [s.name for s in sources] == [f.name for f in folders]
    assert sources[0].full_reference == f"{model.resolve()}+{folders[0].resolve()}"
    assert [open_source(s.full_reference).content_hash() for s in sources] == [s.content_hash() for s in sources]
    plain = open_source(str(model))
    assert len({plain.content_hash(), *(s.content_hash() for s in sources)}) == 4
    moved = Path(shutil.copytree(folders[0], tmp_path / "moved"))
    config = json.loads((moved / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "another/model", "lora_dropout": 0.5, "task_type": None}
    (moved / "adapter_config.json").write_text(json.dumps(config))
    reference = f"{model}+{moved}"
    assert open_source(reference).content_hash() == sources[0].content_hash(), "what does not matter does not count"
    assert pickle.loads(pickle.dumps(open_source(reference))).content_hash() == sources[0].content_hash()
    (moved / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 99}))
    assert open_source(reference).content_hash() != sources[0].content_hash()


def test_a_base_prefix_in_another_order(three: tuple[Path, list[Path]], tmp_path: Path) -> None:
    """Vision-language models are saved as language_model.model.*, and live as model.language_model.*."""
    model, folders = three
    saved, adapter = (Path(shutil.copytree(f, tmp_path / f.name)) for f in (model, folders[0]))
    tensors = load_file(model / "model.safetensors")
    save_file({f"language_model.{n}": t for n, t in tensors.items()}, saved / "model.safetensors")
    weights = load_file(adapter / "adapter_model.safetensors")
    renamed = {n.replace("model.model.layers", "model.model.language_model.layers"): t for n, t in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, adapter / "adapter_model.safetensors")
    found = open_source(f"{saved}+{adapter}").adapter
    assert found is not None and all(n.startswith("language_model.model.layers.") for n in found.updates)


def test_nothing_is_copied(three: tuple[Path, list[Path]]) -> None:
    model, folders = three
    files = MappedFiles()
    source = open_source(f"{model}+{folders[0]}")
    assert source.adapter is not None
    target = next(iter(source.adapter.updates))
    own, plain = (adapters.operand(s, target, files.tensor) for s in (source, source.adapter.model))
    assert isinstance(own, LowRank) and isinstance(plain, Stored)
    assert own.tensor.data_ptr() == plain.tensor.data_ptr()
    other = next(n for n in source.tensors if n not in source.adapter.updates)
    assert isinstance(adapters.operand(source, other, files.tensor), Stored)


def test_a_folder_with_a_plus_in_its_name(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make(seed=0), tmp_path / "c++ models"))
    assert open_source(str(folder)).adapter is None


def test_every_tensor_of_a_whole_source_is_read_by_place(three: tuple[Path, list[Path]]) -> None:
    model, folders = three
    asked: list[TensorInfo] = []
    files = MappedFiles()

    def read(info: TensorInfo) -> torch.Tensor:
        asked.append(info)
        return files.tensor(info)

    source = open_source(f"{model}+{folders[1]}")
    for name in source.tensors:
        adapters.operand(source, name, read)
    assert source.adapter is not None
    assert len(asked) == len(source.tensors) + 2 * len(source.adapter.updates)
