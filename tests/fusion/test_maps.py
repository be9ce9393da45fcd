"""Vocabulary maps: what they say, ties, fresh processes, the cache."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import numpy as np
import pytest

from evomerge.cache import cache_folder
from evomerge.fusion.alignment import (
    Pairs,
    edit_distance_map,
    exact_map,
    kept_edit_distance_map,
    kept_map,
    maps,
    statistics_map,
)
from tests.fusion.test_dynamic import levenshtein


def test_exact_is_of_the_same_bytes_however_they_are_written(vocabularies):
    source, target = vocabularies["byte-level"], vocabularies["metaspace"]
    found = exact_map(source, target)
    assert found.dtype == np.int32 and found.shape == (source.size,)
    mapped = np.flatnonzero(found >= 0)
    roles = {source.eos}
    assert len(mapped) > 250
    for i in mapped:
        assert i in roles or source.pieces[i] == target.pieces[found[i]]
    # "Ġ" and "▁" are one; a byte for itself; not <0x41> where there is "A".
    words = {t: i for i, t in enumerate(source.tokens)}
    assert target.tokens[found[words["Ġthe"]]] == "▁the"
    assert target.tokens[found[words["A"]]] == "A" if "A" in target.tokens else True
    for i in mapped:
        if i not in roles and target.tokens[found[i]].startswith("<0x"):
            assert source.pieces[i] not in [
                p for p, t in zip(target.pieces, target.tokens, strict=True) if not t.startswith("<0x")
            ]
    assert found[source.eos] == target.eos


def test_ends_of_turns_are_one_anothers(zoo_readers):
    pivot, tides = (zoo_readers[n].vocabulary for n in ("pivot", "tides"))
    assert pivot.tokens[pivot.turn_end] == "</s>" and tides.tokens[tides.turn_end] == "<|im_end|>"
    found = exact_map(tides, pivot)
    assert found[tides.turn_end] == pivot.turn_end and found[tides.eos] == pivot.eos


def test_edit_distance_is_the_least_and_ties_go_to_the_lowest_id(vocabularies):
    source, target = vocabularies["metaspace"], vocabularies["wordpiece"]
    found, exact = edit_distance_map(source, target), exact_map(source, target)
    assert (found[exact >= 0] == exact[exact >= 0]).all()
    rng = np.random.default_rng(0)
    missing = [i for i in np.flatnonzero(exact < 0) if source.pieces[i]]
    for i in rng.choice(missing, 40, replace=False):
        own = source.pieces[i].decode("latin-1")
        best = min((levenshtein(own, p.decode("latin-1")), j) for j, p in enumerate(target.pieces) if p)
        assert found[i] == best[1], (source.tokens[i], target.tokens[found[i]], target.tokens[best[1]])
    assert (found[[i for i in range(source.size) if source.special[i] and i != source.eos]] == -1).all()


def pairs_of(text: list[tuple[int, int, int]]) -> Pairs:
    parts = [Pairs.of(np.full(n, s), np.full(n, t)) for s, t, n in text]
    return Pairs.summed(parts)


def test_pairs_are_counted_over_parts():
    found = pairs_of([(5, 7, 2), (5, 9, 1), (5, 7, 3), (2, 7, 1)])
    assert list(zip(found.source.tolist(), found.target.tolist(), found.counts.tolist(), strict=True)) == [
        (2, 7, 1), (5, 7, 5), (5, 9, 1),
    ]  # fmt: skip
    assert not len(Pairs.summed([]).counts)


def test_the_most_frequent_pair_wins_and_equal_ones_go_to_the_lowest_id(vocabularies):
    source, target = vocabularies["byte-level"], vocabularies["metaspace"]
    a, b, c = 300, 301, 302
    found = statistics_map(source, target, pairs_of([(a, 400, 100), (a, 350, 1), (b, 410, 2), (b, 405, 2)]))
    assert found[a] == 400 and found[b] == 405
    assert found[c] == exact_map(source, target)[c]  # never matched
    assert found[source.eos] == target.eos


def test_the_published_score_lets_frequent_pairs_lose(vocabularies):
    """sigmoid(count) * distance, the least of them: of two equally far strings the rare one."""
    source, target = vocabularies["byte-level"], vocabularies["metaspace"]
    exact = exact_map(source, target)
    (a, *_) = np.flatnonzero((exact < 0) & ~source.special & np.array([len(p) > 3 for p in source.pieces])).tolist()
    own = source.pieces[a].decode("utf-8", "replace").replace(" ", "")

    def far(j: int) -> tuple[int, bool]:
        other = target.pieces[j].decode("utf-8", "replace").replace(" ", "")
        return levenshtein(own, other), own in other or other in own

    group: dict[tuple[int, bool], list[int]] = {}
    for j in range(300, target.size):
        group.setdefault(far(j), []).append(j)
    distance, (frequent, rare, *_) = next((d, g) for d, g in sorted(group.items()) if len(g) > 1 and d[0] and not d[1])
    counted = pairs_of([(a, frequent, 100), (a, rare, 1)])
    assert statistics_map(source, target, counted)[a] == frequent
    assert statistics_map(source, target, counted, published=True)[a] == rare
    assert distance[0] / (1 + np.exp(-1)) < distance[0] / (1 + np.exp(-100))


SCRIPT = """
import hashlib, sys
from pathlib import Path
from evomerge import zoo
from evomerge.fusion.alignment import edit_distance_map, exact_map
from evomerge.fusion.config import AlignmentConfig, CorpusConfig
from evomerge.fusion.counting import Told, vocabulary_maps
from evomerge.fusion.prepared import prepare
from evomerge.fusion.tokenized import Reader
from evomerge.fusion.vocabulary import Vocabulary
from evomerge.fusion.workers import Silent
from evomerge.merging.live import load_tokenizer
from evomerge.sources import open_source
from evomerge.study.workers import LocalTasks
a, b = (Vocabulary(load_tokenizer(zoo.path(n))) for n in ("roads", "pivot"))
digest = hashlib.sha256(exact_map(a, b).tobytes() + edit_distance_map(a, b).tobytes())
print(a.digest, b.digest, digest.hexdigest())
out = Path(sys.argv[1])
readers = {"target": Reader(b), "roads": Reader(a)}
text = CorpusConfig(path="zoo:chains", held_out=0.2, documents=30)
corpus = prepare(text, None, readers, 64, 500, out / "corpus")
models = {"target": "zoo:pivot", "roads": "zoo:roads"}
told = [Told(n, open_source(m), None, readers[n].vocabulary.key) for n, m in models.items()]
for aligner in ("bytes", "dynamic"):
    for score in ("frequency", "published"):
        asked = AlignmentConfig(aligner=aligner, score=score)
        (found,) = vocabulary_maps(told[0], told[1:], corpus, asked, out, LocalTasks("cpu"), Silent()).values()
        print(aligner, score, int((found >= 0).sum()), hashlib.sha256(found.tobytes()).hexdigest())
for file in sorted(out.glob("*.npy")):
    print(file.name, hashlib.sha256(file.read_bytes()).hexdigest())
"""


@pytest.mark.slow
def test_fresh_processes_agree(tmp_path):
    """On every kind of map: `get_vocab()` comes in another order in each; hashes of strings differ."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path / seed)], env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE, text=True,
        )
        for seed in ("1", "2")
    ]  # fmt: skip
    said = {process.communicate()[0] for process in started}
    assert len(said) == 1
    lines = said.pop().splitlines()
    # Four maps that differ, each in a file of its own.
    assert len(lines) == 9 and len({line.split()[-1] for line in lines[1:5]}) == 4
    assert all(int(line.split()[2]) > 100 for line in lines[1:5])


def saved(found: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, found, allow_pickle=False)
    return content.getvalue()


def test_kept_on_disk_and_worked_out_again_where_damaged(vocabularies, monkeypatch, tmp_path):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    source, target = vocabularies["byte-level"], vocabularies["metaspace"]
    calls = []
    real = maps.edit_distance_map
    monkeypatch.setattr(maps, "edit_distance_map", lambda *a, **k: calls.append(1) or real(*a, **k))
    first = kept_edit_distance_map(source, target)
    assert np.array_equal(first, kept_edit_distance_map(source, target)) and len(calls) == 1
    (file,) = (cache_folder() / "vocabularies").iterdir()
    content = file.read_bytes()
    others = np.where(first >= 0, np.roll(first, 1), first)
    beyond = np.where(first >= 0, first + target.size, first)
    for damage in (
        b"", content[:100], content[:-1], b"\x80\x04K\x01.",  # the last is a pickle: not read
        saved(others), saved(others) + content[len(saved(first)):],  # without its hash, and with another one's
        kept_map("another.npy", first), kept_map(file.name, beyond), kept_map(file.name, first.astype(np.int64)),
    ):  # fmt: skip
        file.write_bytes(damage)
        said: list[str] = []
        assert np.array_equal(first, kept_edit_distance_map(source, target, say=said.append))
        assert said == [f"{file}: is not what was written there; made again"]
        assert file.read_bytes() == content
    assert np.array_equal(np.load(file, allow_pickle=False), first) and len(calls) == 10
    # Another pair is another file.
    kept_edit_distance_map(target, source)
    assert len(list((cache_folder() / "vocabularies").iterdir())) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_threads_change_nothing(vocabularies, workers):
    source, target = vocabularies["unigram"], vocabularies["metaspace"]
    assert np.array_equal(edit_distance_map(source, target, workers=workers), edit_distance_map(source, target))
