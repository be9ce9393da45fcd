"""Sources whose files change while they are in use: told from those that were only touched or put back."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

from evomerge import zoo
from evomerge.errors import SourceChangedError
from evomerge.sources import Source, hashes, open_source


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(zoo.path("base"), tmp_path / "model"))


@pytest.fixture
def source(model: Path) -> Source:
    found = open_source(str(model))
    found.check_unchanged()  # nothing is known yet
    found.content_hash()
    found.check_unchanged()
    return pickle.loads(pickle.dumps(found))  # as a worker gets it


def write(file: Path, at: int) -> None:
    """Change one byte in place: size and inode stay."""
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    with file.open("r+b") as f:
        f.write(data)


def told(source: Source) -> str:
    with pytest.raises(SourceChangedError) as raised:
        source.check_unchanged()
    return str(raised.value)


def test_one_byte_of_the_weights(source: Source, model: Path) -> None:
    write(model / "model.safetensors", -100)
    message = told(source)
    assert message.startswith(f"{model}/model.safetensors: has changed while it was in use; ")
    assert "Put back what was there and give the same command" in message
    assert told(source) == message
    write(model / "model.safetensors", -100)
    source.check_unchanged()  # put back


def test_a_file_that_is_touched_or_copied_over_is_the_same_and_read_once(
    source: Source, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    digest = hashes._digest
    monkeypatch.setattr(hashes, "_digest", lambda *a: read.append(a[0]) or digest(*a))
    file = model / "model.safetensors"
    os.utime(file)
    source.check_unchanged()
    source.check_unchanged()
    assert len(read) == 1
    shutil.copy(file, model / "copy")
    os.replace(model / "copy", file)
    source.check_unchanged()
    assert len(read) == 2


@pytest.mark.parametrize("change", ["shorter", "longer", "another", "gone"])
def test_files_that_are_replaced(source: Source, model: Path, change: str) -> None:
    file = model / "model.safetensors"
    data = file.read_bytes()
    if change == "gone":
        file.unlink()
    elif change == "another":
        shutil.copy(zoo.path("maths") / "model.safetensors", model / "new")
        os.replace(model / "new", file)
    else:
        file.write_bytes(data[:-1000] if change == "shorter" else data + b"x")
    if change == "longer":
        source.check_unchanged()  # the tensors are the same
    else:
        assert f"{file}: {'is gone' if change == 'gone' else 'has changed'}" in told(source)


def test_the_tokenizer_and_the_configuration_count_too(source: Source, model: Path) -> None:
    os.utime(model / "config.json")
    source.check_unchanged()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"bos_token_id": 7}))
    assert told(source).startswith(f"{model}/config.json: has changed")
    shutil.copy(zoo.path("base") / "config.json", model)
    (model / "tokenizer.json").unlink()
    assert told(source).startswith(f"{model}/tokenizer.json: is gone")


def test_what_changes_between_hash_and_worker_is_seen(model: Path) -> None:
    source = open_source(str(model))
    source.content_hash()
    sent = pickle.dumps(source)
    write(model / "model.safetensors", -100)
    assert "has changed" in told(pickle.loads(sent))


def test_the_model_below_an_adapter(tmp_path: Path, model: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=2, target_modules=["q_proj"]))
    tuned.save_pretrained(tmp_path / "lora")
    source = open_source(f"{model}+{tmp_path / 'lora'}")
    source.content_hash()
    source.check_unchanged()
    write(tmp_path / "lora" / "adapter_model.safetensors", -2)
    assert told(source).startswith(f"{tmp_path}/lora/adapter_model.safetensors: has changed")
    write(tmp_path / "lora" / "adapter_model.safetensors", -2)
    source.check_unchanged()
    write(model / "model.safetensors", -2)
    assert told(source).startswith(f"{model}/model.safetensors: has changed")
