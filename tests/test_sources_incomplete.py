"""Weights that are cut short, and headers and indexes that lie."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from evomerge.errors import SourceError
from evomerge.header import read_header
from evomerge.sources import open_source
from tests.checkpoints import checkpoint, header_bytes, refused


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "model")


def test_interrupted_downloads(model: Path) -> None:
    file = model / "model.safetensors"
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    for size in (len(whole) - 1, 8 + length - 3, 8 + length, 5, 0):
        file.write_bytes(whole[:size])
        assert f"interrupted download: the file has {size:,} bytes" in refused(model)
    file.write_bytes(whole[:-1])
    assert f"its header needs {len(whole):,}" in refused(model)
    file.unlink()
    (model / "model.safetensors.incomplete").write_bytes(whole[:90])
    assert "interrupted download: only model.safetensors.incomplete (90 bytes)" in refused(model)
    (model / "model.safetensors.incomplete").unlink()
    assert "has no model.safetensors and no model.safetensors.index.json" in refused(model)


def test_indexes(model: Path) -> None:
    index = model / "model.safetensors.index.json"
    file = (model / "model.safetensors").rename(model / "one.safetensors")
    for content, words in (
        ({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}, "names two.safetensors, which is not there"),
        ({"weight_map": {"a": "../model/one.safetensors"}}, "refused"),
        ({"weight_map": {"a": str(file)}}, "refused"),
        ({"weight_map": {"a": "..\\one.safetensors"}}, "refused"),
        ({"weight_map": {"a": "one.bin"}}, "refused"),
        ({"weight_map": {"a": 3}}, 'expected a "weight_map"'),
        ({"weight_map": {}}, 'expected a "weight_map"'),
        ([], 'expected a "weight_map"'),
    ):
        index.write_text(json.dumps(content))
        assert words in refused(model), content
    index.write_text("{")
    assert "not JSON" in refused(model)
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    assert 'says that one.safetensors holds "a", which it does not' in refused(model)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(load_file(file), file.name)}))
    assert len(open_source(str(model)).tensors) == 4


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
LIES = {
    "header is not JSON": header_bytes(b"{nonsense", b"0" * 8),
    "is a list": header_bytes([], b""),
    "its header claims": struct.pack("<Q", 1 << 60) + b"{}",
    "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    'damaged at tensor "w"': header_bytes({"w": {**GOOD, "data_offsets": [0, 7]}}, b"0" * 8),
    'damaged at tensor "v"': header_bytes({"v": {**GOOD, "data_offsets": [-8, 0]}}, b"0" * 8),
    'damaged at tensor "u"': header_bytes({"u": {**GOOD, "shape": [2.0]}}, b"0" * 8),
    'damaged at tensor "t"': header_bytes({"t": 5}, b"0" * 8),
    'damaged at tensor "s"': header_bytes({"s": {**GOOD, "shape": [-2]}}, b"0" * 8),
    "unknown type 'F99'": header_bytes({"w": {**GOOD, "dtype": "F99"}}, b"0" * 8),
    "'../../etc/passwd' is not a name": header_bytes({"../../etc/passwd": GOOD}, b"0" * 8),
    "'a\\nb' is not a name": header_bytes({"a\nb": GOOD}, b"0" * 8),
    "interrupted download": header_bytes({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
    "hold no tensor": header_bytes({"__metadata__": {"format": "pt"}}),
}


@pytest.mark.parametrize("words", LIES)
def test_headers_that_lie(model: Path, words: str) -> None:
    (model / "model.safetensors").write_bytes(LIES[words])
    assert words in refused(model)


def raw(folder: Path, text: str, data: int = 16) -> Path:
    (folder / "model.safetensors").write_bytes(header_bytes(text.encode(), bytes(data)))
    return folder / "model.safetensors"


ONE = '{"dtype": "F32", "shape": [2], "data_offsets": [%d, %d]}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f'{{"a": {ONE % (0, 8)}, "b": {ONE % (4, 12)}}}', 'tensors "a" and "b" overlap'),
        (f'{{"b": {ONE % (0, 8)}, "a": {ONE % (0, 8)}}}', 'tensors "a" and "b" overlap'),
        (f'{{"a": {ONE % (0, 8)}, "b": {ONE % (7, 7)}}}', 'damaged at tensor "b"'),
        (f'{{"a": {ONE % (0, 8)}}}', "8 bytes at its end belong to no tensor"),
        (f'{{"a": {ONE % (8, 16)}}}', '8 bytes before "a" belong to no tensor'),
        (f'{{"b": {ONE % (8, 16)}, "__metadata__": {{}}}}', '8 bytes before "b" belong to no tensor'),
        (f'{{"a": {ONE % (0, 8)}, "a": {ONE % (8, 16)}}}', 'has "a" twice'),
        ('{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', 'has "dtype" twice'),
    ],
)
def test_headers_that_the_library_refuses_too(text: str, words: str, model: Path) -> None:
    file = raw(model, text)
    with pytest.raises(SourceError, match=words):
        read_header(file)
    if "twice" not in words:
        with pytest.raises(Exception, match=r"invalid offset|not fully covered|info is invalid"):
            load_file(file)


def test_empty_tensors_share_a_place(model: Path) -> None:
    empty = '{"dtype": "F32", "shape": [0], "data_offsets": [8, 8]}'
    text = f'{{"x": {empty}, "a": {ONE % (0, 8)}, "y": {empty}, "b": {ONE % (8, 16)}}}'
    assert sorted(read_header(raw(model, text))) == ["a", "b", "x", "y"]


def test_a_part_that_the_index_leaves_out(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    name, head = "model.layers.1.mlp.up_proj.weight", {"lm_head.weight": tensors["model.embed_tokens.weight"] * 2}
    rest = {n: x for n, x in tensors.items() if n != name}
    save_file(rest, model / "one.safetensors")
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(rest, "one.safetensors")}))
    for left_out in ({name: tensors[name]}, head):
        save_file(left_out, model / "two.safetensors")
        assert f'does not name two.safetensors, which lies beside it and holds "{next(iter(left_out))}"' in refused(
            model
        )
    # What is no part of it: the same again, another tool's weights, an adapter's, a file that cannot be read.
    save_file(rest, model / "two.safetensors")
    save_file({name: tensors[name]}, model / "consolidated.safetensors")
    save_file({"model.x.lora_A.weight": tensors[name]}, model / "adapter_model.safetensors")
    save_file({"medusa.0.weight": tensors[name]}, model / "heads.safetensors")
    (model / "noise.safetensors").write_bytes(b"model")
    assert open_source(str(model)).tensors.keys() == rest.keys()


def test_a_tensor_in_two_shards(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    name = "model.norm.weight"
    save_file(tensors, model / "a.safetensors")
    save_file({name: tensors[name]}, model / "b.safetensors")
    places = {**dict.fromkeys(tensors, "a.safetensors"), name: "b.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert f'tensor "{name}" is in a.safetensors and in b.safetensors' in refused(model)


@pytest.mark.parametrize("shard", ["x" * 300 + ".safetensors", "x-00001-of-" + "9" * 200 + ".safetensors"])
def test_names_of_shards_that_no_file_has(shard: str, model: Path) -> None:
    (model / "model.safetensors").rename(model / "a.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    assert len(refused(model)) < 900
