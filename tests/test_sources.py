"""References to models, and every way in which a model can be missing, incomplete or refused."""

from __future__ import annotations

import fnmatch
import json
import pickle
import shutil
import struct
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


def header_bytes(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def checkpoint(folder: Path, layers: int = 2, width: int = 4, seed: int = 0, **config: Any) -> Path:
    """A folder that looks like a llama checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tensors = {"model.embed_tokens.weight": random.normal(size=(11, width)).astype(np.float32),
               "model.norm.weight": random.normal(size=width).astype(np.float32)}  # fmt: skip
    for i in range(layers):
        tensors[f"model.layers.{i}.mlp.up_proj.weight"] = random.normal(size=(6, width)).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    data = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers,
            "hidden_size": width, "vocab_size": 11, "tie_word_embeddings": True} | config  # fmt: skip
    (folder / "config.json").write_text(json.dumps(data))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "model")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)


# ---- what is found


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


# ---- what is refused


def refused(reference: str | Path, **options: Any) -> str:
    with pytest.raises(SourceError) as e:
        open_source(str(reference), **options)
    assert e.value.exit_code == 2 and "\n" not in str(e.value)
    return str(e.value)


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


# ---- headers that lie


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


# ---- small files


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
