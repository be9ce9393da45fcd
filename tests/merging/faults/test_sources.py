"""Damaged and dangerous sources, through the command line: the message, exit code 2, nothing left behind."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge import zoo

MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"
NAME = "model.layers.1.mlp.up_proj.weight"
Refused = Callable[..., str]


# ---- truncated


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (0, "has 0 bytes, not even a header"),
        (5, "has 5 bytes, not even a header"),
        (200, "interrupted download: the file has 200 bytes, its header needs"),
        (-1, "interrupted download: the file has"),
        (-300_000, "interrupted download: the file has"),
    ],
)
def test_a_file_that_was_cut_short(keep: int, words: str, models: Path, refused: Refused) -> None:
    file = models / "b" / MODEL
    data = file.read_bytes()
    file.write_bytes(data[:keep] if keep >= 0 else data[: len(data) + keep])
    message = refused(words=(f"{file.relative_to(models)}:", words))
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x10" + bytes(7) + b"{not JSON at all", "its header is not JSON"),
        (b"\xff" * 8 + b"{}", "not a safetensors file (its header claims"),
        (b"\x02" + bytes(7) + b"[]", "its header is a list, expected an object of tensors"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
        (b"\x02" + bytes(7) + b"{}", "hold no tensor"),
    ],
)
def test_no_safetensors_file(data: bytes, words: str, models: Path, refused: Refused) -> None:
    (models / "b" / MODEL).write_bytes(data)
    assert len(refused(words=("b", words)).splitlines()) == 1


def test_every_damaged_source_is_named_at_once(models: Path, refused: Refused) -> None:
    for name in ("a", "b"):
        (models / name / MODEL).write_bytes(b"")
    lines = refused().splitlines()
    assert len(lines) == 2 and f"a/{MODEL}:" in lines[0] and f"b/{MODEL}:" in lines[1]


# ---- types


def test_a_type_that_does_not_fit_the_length(models: Path, refused: Refused, rewrite: Callable[..., None]) -> None:
    rewrite(models / "b" / MODEL, lambda header: header[NAME].update(dtype="F64"))
    refused(words=(f"b/{MODEL}:", "its header is damaged at tensor", f'"{NAME}"'))
    rewrite(models / "b" / MODEL, lambda header: header[NAME].update(dtype="I7"))
    refused(words=(f"b/{MODEL}:", f'tensor "{NAME}" has the unknown type', "I7"))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("who", ["a", "b", "both"])
def test_weights_that_are_no_floats(
    who: str, dtype: torch.dtype, models: Path, refused: Refused, edit: Callable[..., None]
) -> None:
    config = json.loads((models / "b" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    for name in ("a", "b") if who == "both" else who:
        edit(models / name / MODEL, NAME, lambda x: x.to(dtype))
    safetensors = {torch.int64: "I64", torch.int8: "I8", torch.float8_e4m3fn: "F8_E4M3"}[dtype]
    refused(words=(NAME, safetensors, "b" if who == "both" else who))


def test_a_header_that_points_outside_its_file(models: Path, refused: Refused, rewrite: Callable[..., None]) -> None:
    def beyond(header: dict[str, Any]) -> None:
        start, end = header[NAME]["data_offsets"]
        header[NAME]["data_offsets"] = [start + 10**9, end + 10**9]

    rewrite(models / "b" / MODEL, beyond)
    refused(words=(f"b/{MODEL}:", "its header needs"))


# ---- shards


@pytest.fixture
def sharded(models: Path) -> Path:
    """b in three files with an index."""
    folder = models / "b"
    tensors = load_file(folder / MODEL)
    names = sorted(tensors)
    places: dict[str, str] = {}
    for i in range(3):
        shard = f"model-{i + 1:05d}-of-00003.safetensors"
        own = {name: tensors[name] for name in names[i::3]}
        save_file(own, folder / shard, metadata={"format": "pt"})
        places |= dict.fromkeys(own, shard)
    (folder / MODEL).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def change_index(folder: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    data = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**data, "weight_map": change(data["weight_map"])}))


def test_shards_are_fine(sharded: Path, here: Callable[..., Any], models: Path) -> None:
    (models / "r.yaml").write_text("{merge_method: passthrough, models: [{model: ./b}]}")
    here("merge", models / "r.yaml", models / "out")
    assert load_file(models / "out" / MODEL).keys() == load_file(zoo.path("kovesh") / MODEL).keys()


def test_a_shard_that_is_not_there(sharded: Path, refused: Refused) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    refused(words=(f"b/{INDEX}: names model-00002-of-00003.safetensors, which is not there",))


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("recipe", [None, "{merge_method: passthrough, models: [{model: ./b}]}"])
def test_a_shard_missing_from_the_index(recipe: str | None, on_disk: bool, sharded: Path, refused: Refused) -> None:
    lost = "model-00003-of-00003.safetensors"
    if not on_disk:
        (sharded / lost).unlink()
    change_index(sharded, lambda places: {name: file for name, file in places.items() if file != lost})
    words = (f"b/{INDEX}:", lost)
    refused(recipe, words) if recipe else refused(words=words)


def test_an_index_that_names_a_tensor_its_shard_lacks(sharded: Path, refused: Refused) -> None:
    change_index(sharded, lambda places: {**places, "model.extra.weight": places[NAME]})
    refused(words=(f"b/{INDEX}:", '"model.extra.weight"'))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"x": 3}}', "[" * 100_000])
def test_a_damaged_index(content: str, sharded: Path, refused: Refused) -> None:
    (sharded / INDEX).write_text(content)
    assert len(refused(words=(f"b/{INDEX}:",)).splitlines()) == 1


# ---- values


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("who", "recipe"),
    [
        ("b", "{merge_method: linear, models: [{model: ./a}, {model: ./b}], parameters: {weight: 0.5}}"),
        ("b", "{merge_method: slerp, base_model: ./a, models: [{model: ./b}], parameters: {t: 0.5}}"),
        ("base", "{merge_method: task_arithmetic, base_model: ./base, models: [{model: ./a}], "
                 "parameters: {weight: 1}}"),
        ("a", "{merge_method: ties, base_model: ./base, models: [{model: ./a}, {model: ./b}], "
              "parameters: {weight: 1, density: 0.5}}"),
        ("a", "{merge_method: model_stock, base_model: ./base, models: [{model: ./a}, {model: ./b}]}"),
        ("a", "{merge_method: sce, base_model: ./base, models: [{model: ./a}, {model: ./b}], "
              "parameters: {select_topk: 0.3}}"),
        ("b", "{merge_method: passthrough, models: [{model: ./b}]}"),
    ],
)  # fmt: skip
def test_values_that_are_not_finite(
    who: str, recipe: str, value: float, models: Path, refused: Refused, edit: Callable[..., None]
) -> None:
    def spoil(x: torch.Tensor) -> torch.Tensor:
        x[3, 5] = value
        return x

    edit(models / who / MODEL, NAME, spoil)
    message = refused(recipe, words=(f'"{NAME}"', f"{models / who}", "NaN or infinite values"))
    assert len(message.splitlines()) == 1
    others = {"a", "b", "base"} - {who}
    assert not any(f'{models / other}"' in message for other in others)


def test_weights_too_large_for_the_type(models: Path, refused: Refused) -> None:
    recipe = "{merge_method: passthrough, models: [{model: ./b, parameters: {scale: 1.0e+6}}], dtype: float16}"
    refused(recipe, words=("NaN or infinite values", "too large for the type"))


# ---- pickles, adapters


def test_a_pickle_checkpoint(models: Path, refused: Refused) -> None:
    (models / "b" / MODEL).unlink()
    torch.save({"x": torch.ones(2)}, models / "b" / "pytorch_model.bin")
    refused(words=("b: has only pytorch_model.bin, a pickle checkpoint", "refused"))


def test_a_pickled_adapter(models: Path, refused: Refused) -> None:
    adapter = models / "lora"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]})
    )
    torch.save({"x": torch.ones(2)}, adapter / "adapter_model.bin")
    recipe = "{merge_method: linear, models: [{model: ./a+./lora}, {model: ./b}], parameters: {weight: 1}}"
    refused(recipe, words=("lora", "adapter_model.bin", "pickle", "refused"))


# ---- paths


@pytest.mark.parametrize(
    "name", ["../escaped", "/etc/escaped", "a\\..\\escaped", "a/../../escaped", "x\x00y", "x\ny", ""]
)
def test_tensor_names_that_are_paths(name: str, models: Path, refused: Refused, rewrite: Callable[..., None]) -> None:
    rewrite(models / "b" / MODEL, lambda header: header.update({name: header.pop(NAME)}))
    message = refused(words=(f"b/{MODEL}: refused:", "is not a name a tensor may have"))
    assert message.isprintable()


@pytest.mark.parametrize(
    "shard", ["../a/model.safetensors", "/etc/hostname", "..\\a\\model.safetensors", "..", "x.bin"]
)
def test_index_paths_that_leave_the_folder(shard: str, sharded: Path, refused: Refused) -> None:
    if shard.startswith("/"):
        shard = str(sharded.parent / "a" / MODEL)
    change_index(sharded, lambda places: {**places, NAME: shard})
    refused(words=(f"b/{INDEX}: refused:", shard))


def test_links_as_the_hubs_cache_has_them(models: Path, here: Callable[..., Any]) -> None:
    """A snapshot's files are links to blobs beside it: they are followed, and the merge has files of its own."""
    blobs, snapshot = models / "blobs", models / "snapshots" / "0123"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted((models / "b").iterdir())):
        shutil.move(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    (models / "r.yaml").write_text(
        "{merge_method: linear, models: [{model: ./a}, {model: ./snapshots/0123}], parameters: {weight: 0.5}}"
    )
    here("merge", models / "r.yaml", models / "out")
    assert not any(file.is_symlink() for file in (models / "out").iterdir())


def test_a_link_that_leads_nowhere(models: Path, refused: Refused) -> None:
    file = models / "b" / MODEL
    file.unlink()
    file.symlink_to(models / "gone")
    refused(words=("b: has no model.safetensors",))


def test_paths_in_tokenizer_files_are_not_followed(models: Path, here: Callable[..., Any]) -> None:
    """What a tokenizer's configuration names is not opened: files are taken by their known names alone."""
    (models / "secret.txt").write_text("secret")
    file = models / "a" / "tokenizer_config.json"
    outside = {
        "tokenizer_file": "../secret.txt",
        "vocab_file": str(models / "secret.txt"),
        "auto_map": {"x": "../y.py"},
    }
    file.write_text(json.dumps({**json.loads(file.read_text()), **outside}))
    (models / "a" / "extra.json").write_text("{}")
    (models / "r.yaml").write_text(
        "{merge_method: linear, models: [{model: ./a}, {model: ./b}], parameters: {weight: 1}}"
    )
    here("merge", models / "r.yaml", models / "out")
    written = sorted(f.name for f in (models / "out").iterdir())
    assert "extra.json" not in written and not any("secret" in name for name in written)
    assert not any(b"secret" in f.read_bytes() for f in (models / "out").glob("*.txt"))


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("config.json", "config.json: not JSON"),
        ("tokenizer_config.json", "a/tokenizer_config.json: not JSON"),
        ("generation_config.json", "generation_config.json: not JSON"),
    ],
)
def test_small_files_that_are_not_json(file: str, words: str, models: Path, refused: Refused) -> None:
    for name in ("a", "b"):
        (models / name / file).write_text("{")
    recipe = "{merge_method: linear, models: [{model: ./a}, {model: ./b}], parameters: {weight: 1}, " \
        "tokenizer_source: union, chat_template: auto}"  # fmt: skip
    refused(recipe, words=(words,))


DEEP = '{"a": ' * 500 + "1" + "}" * 500
LINEAR = "{merge_method: linear, models: [{model: ./a}, {model: ./b}], parameters: {weight: 1}"


@pytest.mark.parametrize("asked", ["", ", chat_template: chatml", ", chat_template: auto", ", tokenizer_source: union"])
@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("tokenizer_config.json", "{", "not JSON"),
        ("tokenizer_config.json", "[1]", "expected a JSON object, got a list"),
        ("tokenizer_config.json", DEEP, "levels deep"),
        ("generation_config.json", DEEP, "levels deep"),
        ("generation_config.json", "[]", "expected a JSON object, got a list"),
    ],
)
def test_small_files_are_looked_at_before_the_merge(
    file: str, text: str, words: str, asked: str, models: Path, refused: Refused, here: Callable[..., Any]
) -> None:
    (models / "a" / "chat_template.jinja").unlink(missing_ok=True)
    (models / "a" / file).write_text(text)
    (models / "r.yaml").write_text(f"{LINEAR}{asked}}}")
    done = here("check", models / "r.yaml", check=False)
    refused(f"{LINEAR}{asked}}}", words=(f"a/{file}: ", words))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"a/{file}: " in done.stderr and words in done.stderr


@pytest.mark.parametrize(
    "name", ["vocab.txt", "generation_config.json", "config.json", "tokenizer.json", "chat_template.jinja"]
)
def test_links_out_of_a_models_folder_are_not_published(name: str, models: Path, refused: Refused) -> None:
    own = models / "a" / name
    secret = models / "secret"
    secret.write_bytes(own.read_bytes() if own.is_file() else b"secret")
    own.unlink(missing_ok=True)
    own.symlink_to(Path("..") / "secret")
    for recipe in (f"{LINEAR}}}", f"{LINEAR}, tokenizer_source: union, chat_template: auto}}"):
        refused(recipe, words=(f"a/{name}: refused: a link that leads out of the model's folder",))


def test_links_inside_a_models_folder_and_of_weights_are_followed(models: Path, here: Callable[..., Any]) -> None:
    (models / "a" / "real").mkdir()
    shutil.move(models / "a" / "generation_config.json", models / "a" / "real" / "g")
    (models / "a" / "generation_config.json").symlink_to(Path("real") / "g")
    shutil.move(models / "a" / MODEL, models / "weights")
    (models / "a" / MODEL).symlink_to(models / "weights")
    (models / "r.yaml").write_text(f"{LINEAR}}}")
    here("merge", models / "r.yaml", models / "out")
    assert not any(file.is_symlink() for file in (models / "out").iterdir())


def test_padding_that_no_memory_holds(models: Path, refused: Refused) -> None:
    refused(f"{LINEAR}, tokenizer: {{pad_to_multiple_of: 1000000000000}}}}", words=("pad_to_multiple_of", "65536"))
