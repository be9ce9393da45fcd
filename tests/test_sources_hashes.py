"""Content hashes: their definition, what is remembered and when not, several at once, beside other work."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import threading
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from evomerge import cache, zoo
from evomerge.errors import SourceError
from evomerge.sources import hash_sources, hashes, open_source, start_hashing


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, which keeps hashes of files as young as a test's."""
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "SETTLED_NS", -(10**12))
    return tmp_path / "cache" / "hashes"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders whose tensors were really read."""
    done: list[Path] = []
    digest = hashes._digest

    def counted(path: Path, *rest: Any) -> str:
        done.append(path)
        return digest(path, *rest)

    monkeypatch.setattr(hashes, "_digest", counted)
    return done


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(zoo.path("base"), tmp_path / "model"))


def fresh(path: Path) -> str:
    return open_source(str(path)).content_hash()


def by_hand(path: Path) -> str:
    """The definition once more, from the files alone."""
    config = json.loads((path / "config.json").read_text())
    config = {k: v for k, v in config.items() if k not in ("transformers_version", "_name_or_path")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    data = (path / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    for name, entry in sorted(header.items()):
        start, end = (8 + length + at for at in entry["data_offsets"])
        digest.update(f"\n{name} {entry['dtype']} {tuple(entry['shape'])}\n".encode() + data[start:end])
    return digest.hexdigest()


def test_the_definition(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tensors = {f"model.layers.{i}.w": random.normal(size=(3, 5)).astype(np.float32) for i in range(12)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"b": 1, "a": [2], "transformers_version": "5"}')
    assert fresh(tmp_path) == by_hand(tmp_path)


def test_pieces_and_progress(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fresh(model)
    for piece in (1, 1000, 1 << 30):
        monkeypatch.setattr(hashes, "PIECE", max(piece, 997))
        monkeypatch.setenv("EVOMERGE_CACHE", str(model.parent / f"other{piece}"))
        source, seen = open_source(str(model)), []
        assert source.content_hash(seen.append) == expected
        assert sum(seen) == source.bytes_hashed == source.bytes and max(seen) <= max(piece, 997)


def test_remembered_between_runs(model: Path, folder: Path, computed: list[Path]) -> None:
    first = fresh(model)
    assert len(computed) == 1 and len(list(folder.iterdir())) == 1
    seen: list[int] = []
    source = open_source(str(model))
    assert source.content_hash(seen.append) == first and len(computed) == 1
    assert sum(seen) == source.bytes
    copied = Path(shutil.copytree(model, model.parent / "copy"))
    assert fresh(copied) == first and len(computed) == 2, "another folder is read"


def test_what_makes_it_stale(model: Path, computed: list[Path]) -> None:
    first = fresh(model)
    file = model / "model.safetensors"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert fresh(model) == first and len(computed) == 2, "time"
    stat, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the time set back: the time of change tells
    second = fresh(model)
    assert second != first and second != by_hand(zoo.path("base")) and len(computed) == 3
    file.unlink()
    shutil.copyfile(zoo.path("base") / "model.safetensors", file)
    assert fresh(model) == first, "another file of the same size"
    config = model / "config.json"
    config.write_text(config.read_text().replace("{", '{"more": 1,', 1))
    assert fresh(model) not in (first, second)


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"version": 1}', "\x00\xff", "[" * 100_000])
def test_a_damaged_entry_is_ignored(model: Path, folder: Path, computed: list[Path], damage: str) -> None:
    first = fresh(model)
    (entry,) = folder.iterdir()
    whole = entry.read_text()
    entry.write_text(damage)
    assert fresh(model) == first and len(computed) == 2
    assert json.loads(entry.read_text()) == json.loads(whole), "and written again"
    entry.write_text(whole.replace(first, "not a hash"))
    assert fresh(model) == first


def test_a_folder_that_cannot_be_written(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "file"))
    assert fresh(model) == fresh(model) == fresh(zoo.path("base"))
    assert (tmp_path / "file").read_text() == ""


def test_a_file_that_was_just_written_is_not_trusted(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "SETTLED_NS", 10**12)
    os.utime(model / "model.safetensors", ns=(0, 0))  # its time of change cannot be set back
    fresh(model)
    assert not folder.exists()


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("EVOMERGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg" / "evomerge"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder().is_relative_to(tmp_path) and cache.cache_folder().name == "evomerge"


def test_a_kept_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "new" / "entry.json"
    assert cache.keep(target, b"one") and target.read_bytes() == b"one"

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert not cache.keep(target, b"two")
    assert target.read_bytes() == b"one" and list(target.parent.iterdir()) == [target]


def test_several_at_once(computed: list[Path]) -> None:
    sources = [open_source(f"zoo:{n}") for n in zoo.NAMES]
    seen: list[int] = []
    found = hash_sources(sources, seen.append)
    assert list(found) == [f"zoo:{n}" for n in zoo.NAMES]
    assert found == {s.reference: by_hand(s.path) for s in sources}
    assert sum(seen) == sum(s.bytes for s in sources) and len(computed) == len(zoo.NAMES)
    assert [s.content_hash() for s in sources] == list(found.values()) and len(computed) == len(zoo.NAMES)


def test_they_run_in_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sources meet inside the computation: with a lock for all of them neither could wait for the other."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    meeting, digest = threading.Barrier(2, timeout=20), hashes._digest

    def met(*args: Any) -> str:
        meeting.wait()
        return digest(*args)

    monkeypatch.setattr(hashes, "_digest", met)
    assert len(hash_sources([open_source("zoo:base"), open_source("zoo:maths")])) == 2


def test_one_model_is_read_once_however_many_ask(computed: list[Path]) -> None:
    with start_hashing([open_source("zoo:base"), open_source(str(zoo.path("base")))]) as hashing:
        third = open_source("zoo:base").content_hash()
        assert set(hashing.result().values()) == {third}
    assert len(computed) == 1


def test_who_asks_meanwhile_waits(computed: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where nothing can be kept on disk."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "file"))
    source = open_source("zoo:base")
    begun = threading.Event()
    with start_hashing([source], lambda _: begun.set()) as hashing:
        assert begun.wait(20)
        assert source.content_hash() == hashing.result()["zoo:base"]
    assert len(computed) == 1


def test_it_is_given_up_when_the_block_ends(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "PIECE", 1000)
    begun, ended = threading.Event(), threading.Event()

    def wait(_: int) -> None:
        begun.set()
        ended.wait(20)

    with pytest.raises(RuntimeError), start_hashing([open_source(str(model))], wait) as hashing:
        assert begun.wait(20) and not hashing.done()
        raise RuntimeError("the merge failed")
    ended.set()
    with pytest.raises((hashes.Stopped, CancelledError)):
        hashing.result()
    assert not folder.exists()


def test_files_that_change_under_it(model: Path) -> None:
    source = open_source(str(model))
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SourceError, match="has become shorter since it was opened"):
        source.content_hash()
    file.unlink()
    other = open_source("zoo:base")
    with pytest.raises(SourceError, match="cannot be read") as e:
        hash_sources([source, other])
    assert "\n" not in str(e.value) and e.value.exit_code == 2
