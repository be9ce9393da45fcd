"""What sources answer to the questions of a corpus, and how good their answers are."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evomerge.errors import InputError, beside
from evomerge.functions import load_function
from evomerge.fusion.config import FusionError
from evomerge.fusion.documents import Document, Message
from evomerge.fusion.files import Manifest, clear_parts, key_of, sha256, whole
from evomerge.fusion.loading import loaded
from evomerge.fusion.preference_config import PreferenceConfig
from evomerge.fusion.prepared import read_documents
from evomerge.fusion.vocabulary import Vocabulary
from evomerge.fusion.workers import Watcher, Workers
from evomerge.sources import Source

VERSION = 2


@dataclass(frozen=True)
class Answered:
    """Answers of one source to every question of a corpus.

    Attributes:
        answers: Of each question, in the corpus's order.
        scores: Theirs.
    """

    name: str
    answers: tuple[tuple[str, ...], ...]
    scores: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class _Asked:
    """What a worker needs to know to let sources answer."""

    sources: Mapping[str, Source]
    corpus: tuple[Path, ...]
    folders: Mapping[str, Path]
    config: PreferenceConfig
    samples: int
    seed: int
    dtype: str
    trust_remote_code: bool


def questions(documents: Sequence[Document]) -> list[tuple[list[dict[str, str]], str]]:
    """(the conversation up to the last answer, that answer) of each document.

    Raises:
        FusionError: one is no conversation, or has no question.
    """
    found = []
    for document in documents:
        last = max((i for i, m in enumerate(document.messages) if m.learned), default=0)
        if not last:
            raise FusionError(f"{document.place}: preferences need conversations with a question before the answer")
        found.append(([_plain(m) for m in document.messages[:last]], document.messages[last].content))
    return found


def _plain(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}


def answer(
    sources: Mapping[str, Source],
    corpus: Sequence[Path],
    key: str,
    config: PreferenceConfig,
    folder: Path,
    workers: Workers,
    watcher: Watcher,
    *,
    seed: int,
    dtype: str,
    samples: int | None = None,
    trust_remote_code: bool = False,
) -> dict[str, list[list[str]]]:
    """Answers of every source, drawn once and kept in the folder, a file for each shard of the corpus.

    Args:
        key: Of the prepared corpus.
        samples: Answers to each question, where not as many as configured.
    """
    count = samples or config.samples
    drawn = config.model_dump(mode="json", include={"temperature", "top_p", "max_new_tokens", "batch_size"})
    folders = {}
    for name, source in sources.items():
        facts = {"version": VERSION, "model": source.content_hash(), "corpus": key, "seed": seed, "dtype": dtype}
        folders[name] = folder / f"{name}-{key_of({**facts, 'samples': count, **drawn})}"
    # The folder's name says what the answers are.
    manifests = {name: Manifest.at(f, str(VERSION), _shard_file, len(corpus)) for name, f in folders.items()}
    for f in folders.values():
        clear_parts(f)
    items = [(name, shard) for name, manifest in manifests.items() for shard, _ in manifest.missing()]
    if items:
        watcher.begin(
            "answers of the sources", len(sources) * len(corpus), "shards", len(sources) * len(corpus) - len(items)
        )
        asked = _Asked(sources, tuple(corpus), folders, config, count, seed, dtype, trust_remote_code)
        try:
            for number, digest in workers.run(_AnswerMaker(asked), items):
                name, shard = items[number]
                manifests[name].add(shard, {"sha256": digest})
                watcher.advance(1, name)
        finally:
            watcher.end()
    return {
        name: [
            list(row)
            for i in range(len(corpus))
            for row in pq.read_table(manifest.file(i)).column("answers").to_pylist()
        ]
        for name, manifest in manifests.items()
    }


def _shard_file(shard: int) -> str:
    return f"answers-{shard:05d}.parquet"


@dataclass(frozen=True)
class _AnswerMaker:
    asked: _Asked

    def __call__(self, device: str) -> _Answerer:
        return _Answerer(self.asked, device)


class _Answerer:
    """Holds one source at a time and lets it answer."""

    def __init__(self, asked: _Asked, device: str) -> None:
        self._asked, self._device = asked, device
        self._name: str | None = None
        self._model: Any = None
        self._tokenizer: Any = None
        self._ends: list[int] = []

    def __call__(self, item: tuple[str, int]) -> str:
        import torch

        name, shard = item
        if name != self._name:
            self._load(name)
        asked = self._asked
        # Draws depend on seed, source and shard alone.
        torch.manual_seed(int(key_of({"seed": asked.seed, "name": name, "shard": shard}), 16) % 2**63)
        rows: list[list[str]] = []
        found = questions(read_documents(asked.corpus[shard]))
        for at in range(0, len(found), asked.config.batch_size):
            rows += self._answers([q for q, _ in found[at : at + asked.config.batch_size]])
        file = asked.folders[name] / _shard_file(shard)
        with whole(file) as part:
            pq.write_table(pa.table({"answers": rows}), part, compression="zstd")
        digest = sha256(file)
        assert digest is not None
        return digest

    def _answers(self, batch: Sequence[list[dict[str, str]]]) -> list[list[str]]:
        import torch

        asked = self._asked
        texts = [self._tokenizer.apply_chat_template(q, tokenize=False, add_generation_prompt=True) for q in batch]
        inputs = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            written = self._model.generate(
                input_ids=inputs["input_ids"].to(self._model.device),
                attention_mask=inputs["attention_mask"].to(self._model.device),
                do_sample=True,
                temperature=asked.config.temperature,
                top_p=asked.config.top_p,
                max_new_tokens=asked.config.max_new_tokens,
                num_return_sequences=asked.samples,
                eos_token_id=self._ends or None,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        new = written[:, inputs["input_ids"].shape[1] :]
        said = [t.strip() for t in self._tokenizer.batch_decode(new, skip_special_tokens=True)]
        return [said[i : i + asked.samples] for i in range(0, len(said), asked.samples)]

    def _load(self, name: str) -> None:
        asked = self._asked
        self._model = None
        tokenizer: Any
        self._model, tokenizer = loaded(
            asked.sources[name], asked.dtype, self._device, trust_remote_code=asked.trust_remote_code
        )
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        vocabulary = Vocabulary(tokenizer, name)
        self._ends = sorted({i for i in (vocabulary.eos, vocabulary.turn_end) if i is not None})
        self._tokenizer, self._name = tokenizer, name


def score_answers(
    answers: Mapping[str, list[list[str]]], documents: Sequence[Document], score: Callable[..., Any], name: str
) -> list[Answered]:
    """Answers with their scores by the user's function, called once for each source.

    Args:
        name: What messages call the function.

    Raises:
        InputError: it fails, or gives something else than a finite number for each answer.
    """
    asked = questions(documents)
    found = []
    for source, rows in answers.items():
        flat = [(q, a, r) for (q, r), row in zip(asked, rows, strict=True) for a in row]
        given = [list(x) for x in zip(*flat, strict=True)]
        try:
            answered = score(*given)
        except Exception as e:  # the user's own code
            last = traceback.extract_tb(e.__traceback__)[-1]
            raise InputError(f"{name}: {type(e).__name__}: {e} ({last.filename}:{last.lineno})") from e
        try:
            returned = [float(x) for x in answered]
        except (TypeError, ValueError) as e:
            raise InputError(f"{name}: returned no list of numbers ({e})") from None
        if len(returned) != len(flat) or not all(math.isfinite(x) for x in returned):
            raise InputError(
                f"{name}: returned {len(returned)} numbers for {len(flat)} answers, expected as many finite ones"
            )
        scores, at = [], 0
        for row in rows:
            scores.append(tuple(returned[at : at + len(row)]))
            at += len(row)
        found.append(Answered(source, tuple(map(tuple, rows)), tuple(scores)))
    return found


def held_out_scores(answered: Sequence[Answered]) -> dict[str, float]:
    """The mean score of each source's answers."""
    return {a.name: sum(map(sum, a.scores)) / max(sum(map(len, a.scores)), 1) for a in answered}


def load_score(config: PreferenceConfig, root: Path, file: Path) -> Callable[..., Any]:
    """The user's function.

    Raises:
        FusionError: it cannot be had.
    """
    path, _, name = config.score.rpartition(":")
    where = f"{file}: preferences.score = {config.score}"
    if not (root / path).is_file():
        raise FusionError(f"{where}: no such file ({root / path}){beside(root / path)}")
    return load_function(root / path, name, where, FusionError)
