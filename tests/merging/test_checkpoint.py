"""Checkpoints on disk: all or nothing, in one file or several, with configuration, tokenizer and recipe."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.errors import EvoMergeError, InputError
from evomerge.header import read_header
from evomerge.merging import checkpoint
from evomerge.merging.engine import Engine
from evomerge.merging.live import live_model, load_tokenizer
from evomerge.merging.tokens import chat_template
from evomerge.recipe import Recipe, load_recipe, parse_recipe
from evomerge.sources import open_source, open_sources

Family = tuple[str, str, str]


def linear(family: Family, extra: str = "") -> Recipe:
    _, a, b = family
    return parse_recipe(f"merge_method: linear\nmodels: [{{model: {a}}}, {{model: {b}}}]\n"
                        f"parameters: {{weight: 0.5}}\n{extra}")  # fmt: skip


def write(recipe: Recipe, out: Path, **options: Any) -> None:
    Engine(open_sources(recipe.references())).write(recipe, out, **options)


def test_what_is_written(family: Family, tmp_path: Path) -> None:
    recipe = linear(family, "evomerge: {provenance: {study: s, trial: 3}}")
    out = tmp_path / "deep" / "er" / "out"
    write(recipe, out)
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "recipe.yaml", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert list((tmp_path / "deep" / "er").iterdir()) == [out]
    umask = os.umask(0)
    os.umask(umask)
    assert out.stat().st_mode & 0o777 == 0o777 & ~umask
    again = load_recipe(out / "recipe.yaml")
    assert again.evomerge.provenance == {"study": "s", "trial": 3}
    assert again.with_extras(sources={}) == recipe
    config = json.loads((out / "config.json").read_text())
    donor = json.loads((Path(family[1]) / "config.json").read_text())
    assert config == donor
    header = read_header(out / "model.safetensors")
    assert header.keys() == load_file(out / "model.safetensors").keys() == read_header(
        Path(family[1]) / "model.safetensors").keys()  # fmt: skip
    assert all(t.start % 8 == 0 for t in header.values())


def test_the_output_can_be_a_source(family: Family, tmp_path: Path) -> None:
    write(linear(family, "dtype: float32"), tmp_path / "one")
    source = open_source(str(tmp_path / "one"))
    assert source.num_layers == 3 and {t.dtype for t in source.tensors.values()} == {"F32"}
    write(linear((family[0], family[1], str(tmp_path / "one"))), tmp_path / "two")
    assert live_model(tmp_path / "two").config.num_hidden_layers == 3


def test_several_files(family: Family, tmp_path: Path) -> None:
    recipe = linear(family)
    engine = Engine(open_sources(recipe.references()))
    tensors = dict(engine.tensors(recipe))
    plan = engine.plan(recipe)
    engine.write(recipe, tmp_path / "out", shard_bytes=plan.bytes_written // 3 + 1)
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) in (3, 4) and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == plan.bytes_written and set(index["weight_map"].values()) == set(files)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    write(recipe, tmp_path / "whole")
    # How it is cut into files is no part of a model's content.
    assert open_source(str(tmp_path / "whole")).content_hash() == open_source(str(tmp_path / "out")).content_hash()


def test_an_existing_folder_is_not_touched(family: Family, tmp_path: Path) -> None:
    recipe, out = linear(family), tmp_path / "out"
    out.mkdir()
    write(recipe, out)  # an empty one is fine
    (out / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="is not empty; choose another folder"):
        write(recipe, out)
    assert (out / "mine.txt").exists()
    write(recipe, out, overwrite=True)
    assert not (out / "mine.txt").exists() and (out / "model.safetensors").exists()
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "thesis").write_text("")
    with pytest.raises(InputError, match="holds no model"):
        write(recipe, tmp_path / "documents", overwrite=True)
    with pytest.raises(InputError, match="is a file, expected a folder"):
        write(recipe, tmp_path / "documents" / "thesis")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["documents", "out"]


def test_a_source_is_not_overwritten(make: Callable[..., Path], tmp_path: Path) -> None:
    source = Path(shutil.copytree(make(seed=8), tmp_path / "source"))
    recipe = parse_recipe(f"{{merge_method: passthrough, models: [{{model: {source}}}]}}")
    for out in (source, tmp_path):
        shutil.copyfile(source / "config.json", tmp_path / "config.json")
        with pytest.raises(InputError, match="holds the source model"):
            write(recipe, out, overwrite=True)
    assert live_model(source) is not None


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("step", ["flush", "write_small_files", "_save", "_replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "I/O error"),
                                   KeyboardInterrupt()])  # fmt: skip
def test_an_error_midway_leaves_nothing(
    step: str, error: BaseException, old: bool, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = linear(family), tmp_path / "out"
    if old:
        write(recipe, out)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    place = checkpoint.Shard if step == "flush" else checkpoint  # flush: a tensor is in a file that has no name yet
    real = getattr(place, step)

    def fail(*args: Any) -> None:
        if step != "_replace":
            real(*args)
        raise error

    monkeypatch.setattr(place, step, fail)

    expected = EvoMergeError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as e:
        write(recipe, out, overwrite=True)
    if isinstance(error, OSError):
        words = "the disk is full; the model needs" if error.errno == errno.ENOSPC else "cannot be written (I/O error)"
        assert str(out) in str(e.value) and words in str(e.value)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == (["out"] if old else [])


def test_too_little_space_is_said_before_the_work(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore[attr-defined]
    monkeypatch.setattr(checkpoint, "Shard", lambda *_: pytest.fail("it began to work"))
    with pytest.raises(EvoMergeError, match="the disk is full; the model needs"):
        write(linear(family), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_made(family: Family, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write(linear(family), tmp_path / "file" / "out")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_a_place_that_takes_no_files_is_no_full_disk(family: Family) -> None:
    with pytest.raises(InputError, match=r"/proc/x: cannot be written \(/proc takes no files") as e:
        write(linear(family), Path("/proc/x"))
    assert e.value.exit_code == 2 and "full" not in str(e.value)


def test_chat_template(family: Family, tmp_path: Path) -> None:
    text = "{% for m in messages %}<{{ m.role }}> {{ m.content }}{% endfor %}"
    models = []
    for i, template in enumerate((None, "old {{ x }}", "old {{ x }}")):
        folder = Path(shutil.copytree(family[i], tmp_path / str(i)))
        data = json.loads((folder / "tokenizer_config.json").read_text())
        if template:
            data["chat_template"] = template
        (folder / "tokenizer_config.json").write_text(json.dumps(data))
        models.append(str(folder))
    named: Family = tuple(models)  # type: ignore[assignment]
    write(linear(named), tmp_path / "own")
    assert AutoTokenizer.from_pretrained(tmp_path / "own").chat_template == "old {{ x }}"
    write(linear(named, f"chat_template: '{text}'"), tmp_path / "given")
    assert load_tokenizer(tmp_path / "given").chat_template == text == chat_template(tmp_path / "given")
    base_first = linear((named[1], named[0], named[2]), "chat_template: auto")
    write(base_first, tmp_path / "auto")
    assert chat_template(tmp_path / "auto") == "old {{ x }}"


def test_tokenizer_source(family: Family, tmp_path: Path) -> None:
    other = Path(shutil.copytree(family[2], tmp_path / "other"))
    data = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({**data, "model_max_length": 7}))
    named = (family[0], family[1], str(other))
    for asked, length in ((f"tokenizer_source: {other}", 7), ("tokenizer_source: union", 64),
                          (f"tokenizer: {{source: {other}}}", 7), ("", 64)):  # fmt: skip
        write(linear(named, asked), tmp_path / "out", overwrite=True)
        assert load_tokenizer(tmp_path / "out").model_max_length == length
    # Two tokens that changed places: the rows of the embedding follow the base's tokenizer.
    tokens = json.loads((other / "tokenizer.json").read_text())
    first, second = list(tokens["model"]["vocab"])[10:12]
    vocab = tokens["model"]["vocab"]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (other / "tokenizer.json").write_text(json.dumps(tokens))
    alone = f"{{merge_method: passthrough, base_model: {named[0]}, models: [{{model: {other}}}], tokenizer_source: %s}}"
    for asked, same in (("base", False), (str(other), True)):
        write(parse_recipe(alone % asked), tmp_path / "out", overwrite=True)
        rows = [load_file(f / "model.safetensors")["lm_head.weight"] for f in (tmp_path / "out", other)]
        swapped = rows[1].clone()
        swapped[[vocab[first], vocab[second]]] = rows[1][[vocab[second], vocab[first]]]
        assert torch.equal(rows[0], rows[1] if same else swapped)
    (Path(other) / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="has no tokenizer"):
        write(linear(named, f"tokenizer_source: {other}"), tmp_path / "new")
    assert not (tmp_path / "new").exists()
