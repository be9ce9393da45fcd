"""Passes that others work on: what is heard of them meanwhile, and that two fusions do not make one pass at once."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from evomerge import locks
from evomerge.errors import EvoMergeError
from evomerge.fusion.alone import alone
from evomerge.fusion.config import CorpusConfig
from evomerge.fusion.prepared import Prepared, prepare
from evomerge.fusion.teachers import progress
from evomerge.fusion.teachers.cache import CacheKey, Pass, fill, folder_of, open_cache
from evomerge.fusion.workers import Silent
from evomerge.sources import open_source
from evomerge.study.workers import LocalTasks
from evomerge.zoo import fusion as zoo


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.advanced: list[int] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def advance(self, count: int, note: str = "") -> None:
        self.advanced.append(count)


@pytest.fixture
def corpus(zoo_readers, tmp_path: Path) -> Prepared:
    file = tmp_path / "text.jsonl"
    file.write_text("".join(zoo.corpus("chains").read_text(encoding="utf-8").splitlines(keepends=True)[:12]))
    return prepare(CorpusConfig(path=str(file), held_out=0.2), None, zoo_readers, 512, 600, tmp_path / "corpus")


def passes(corpus: Prepared, folder: Path, **changes: object) -> dict[str, Pass]:
    source = open_source("zoo:tides")
    key = CacheKey(source.content_hash(), corpus.key, 4, "auto")
    files = tuple(corpus.folder / s.name for s in corpus.shards)
    return {"tides": Pass("tides", source, files, folder_of(folder, "tides", key), 4, 256, "auto")}


def test_what_other_processes_have_done_inside_a_shard_is_heard(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    watcher = Heard()
    shards = [(tmp_path, "shard-00000.parquet", 1000), (tmp_path, "shard-00001.parquet", 500)]
    heard = progress.Reports(shards, watcher)
    first, second = (progress.Report(folder, name) for folder, name, _ in shards)
    heard.poll()
    assert watcher.advanced == []
    first(300)
    second(100)
    heard.poll()
    first(200)
    heard.poll()
    heard.poll()
    assert watcher.advanced == [300, 100, 200]
    second.done()
    heard.done(1, "tides")
    first(9999)  # more than there is: a number that was cut off
    heard.poll()
    heard.done(0, "tides")
    assert sum(watcher.advanced) == 1500
    first.done()
    assert not [*tmp_path.iterdir()]


def test_a_damaged_report_is_no_reason_to_stop(tmp_path) -> None:
    watcher = Heard()
    (tmp_path / ".shard.tokens.part").write_text("12x")
    progress.Reports([(tmp_path, "shard", 10)], watcher).poll()
    assert watcher.advanced == []


def test_a_second_fusion_waits_for_a_pass_that_is_being_made(corpus, tmp_path) -> None:
    own = passes(corpus, tmp_path / "shared")
    folder = own["tides"].folder
    watcher, order = Heard(), []

    def later() -> None:
        fill(own, corpus, LocalTasks("cpu"), watcher)
        order.append("second")

    with alone(folder):
        thread = threading.Thread(target=later)
        thread.start()
        deadline = time.monotonic() + 30
        while not watcher.said and time.monotonic() < deadline:
            time.sleep(0.01)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]
    assert watcher.said[0].startswith(f"waiting for {folder}: another fusion makes this pass (process ")
    cache = open_cache(folder, len(corpus.shards))
    assert cache.positions > 100
    # Whole: nobody has to be waited for.
    with alone(folder):
        fill(own, corpus, LocalTasks("cpu"), watcher)
    assert len(watcher.said) == 1


def test_a_folder_that_stays_held_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(locks.time, "sleep", lambda _: None)
    told = pytest.raises(EvoMergeError, match=f"{tmp_path}: a training is still running.*process")
    with alone(tmp_path), told, alone(tmp_path, patience=0.01):
        pass


def test_shards_do_not_depend_on_which_were_there(corpus, tmp_path) -> None:
    """All at once, and one after another as after kills: the same rows."""
    one, other = passes(corpus, tmp_path / "one"), passes(corpus, tmp_path / "other")
    fill(one, corpus, LocalTasks("cpu"), Silent())
    fill(other, corpus, LocalTasks("cpu"), Silent())
    again = open_cache(other["tides"].folder, len(corpus.shards))
    (other["tides"].folder / again.files[1]).unlink()
    fill(other, corpus, LocalTasks("cpu"), Silent())
    first, second = (open_cache(p["tides"].folder, len(corpus.shards)) for p in (one, other))
    assert first.hashes == second.hashes and len(first.files) >= 2
    for (ids, a), (same, b) in zip(first.read(1), second.read(1), strict=True):
        assert (ids == same).all() and np.array_equal(a.likelihoods, b.likelihoods)
