"""What fusion costs: alignment, vocabulary maps, caches and passes, each against a peer or a limit in the same run.

    python benchmarks/fusion.py [--part alignment map pass] [--json]

alignment: seconds per 1,000 tokens of the target at 256, 1,024 and 2,000 tokens, by byte offsets and by the dynamic
programme, against a plain Python programme of the published recurrence (its edit distances by a C library, as
published). map: the edit-distance map of a vocabulary of 32k tokens onto one of 50k. pass: tokens a second of a
source's whole pass over a corpus (reading, tokenizing, model, top k, writing) against the bare forward passes of the
same batches, and bytes on disk for each position kept. Tokenizers are trained on Python's own sources and those of the
packages here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge.fusion.alignment import ByteAligner, DynamicAligner, edit_distance_map, exact_map, warp
from evomerge.fusion.config import CorpusConfig
from evomerge.fusion.documents import Document
from evomerge.fusion.prepared import prepare
from evomerge.fusion.teachers.cache import Pass, fill, open_cache
from evomerge.fusion.teachers.observe import _batches
from evomerge.fusion.tokenized import Reader, Tokenized
from evomerge.fusion.vocabulary import Vocabulary
from evomerge.fusion.workers import Silent
from evomerge.sources import open_source
from evomerge.study.workers import LocalTasks
from evomerge.zoo.fusion.models import byte_level

LENGTHS = (256, 1024, 2000)
TEXT_BYTES = 24_000_000


def sources(limit: int) -> list[str]:
    """Python's own sources and those of the packages here, in order, up to so many bytes."""
    found, size = [], 0
    for folder in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")):
        for file in sorted(Path(folder).rglob("*.py")):
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if 2_000 < len(text) < 200_000:
                found.append(text)
                size += len(text)
                if size > limit:
                    return found
    return found


def metaspace(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """BPE over characters, the other way to write a space."""
    tokens = Tokenizer(models.BPE(unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Metaspace()
    tokens.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    tokens.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="<unk>", eos_token="</s>", bos_token="<s>")


def plain_programme(target: Sequence[str], source: Sequence[str]) -> float:
    """M[i, j] = c + min(M[i-1, j], M[i, j-1], M[i-1, j-1]) in plain Python, markers taken off in each cell."""
    infinite = float("inf")
    above = [0.0] + [infinite] * len(target)
    table = []
    for mine in source:
        row = [infinite]
        for j, its in enumerate(target):
            cost = Levenshtein.distance(mine.replace("\u0120", ""), its.replace("\u2581", ""))
            row.append(cost + min(above[j + 1], row[j], above[j]))
        table.append(row)
        above = row
    i, j = len(source) - 1, len(target) - 1
    while i > 0 or j > 0:  # the way back is a part of it
        steps = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        i, j = min(steps, key=lambda s: table[s[0]][s[1] + 1] if s[0] >= 0 and s[1] >= 0 else infinite)
    return table[-1][-1]


def best(run: Callable[[], Any], repeats: int) -> float:
    """The least of some times, in seconds."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def alignment(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Both aligners against the plain programme."""
    texts = sources(3_000_000)
    target, source = Vocabulary(metaspace(texts, 8000)), Vocabulary(byte_level(texts, 12000))
    readers = Reader(target), Reader(source)
    mapping = exact_map(source, target)
    found = []
    for length in LENGTHS:
        text = _of_length(texts, readers[0], length)
        (mine,), (its,) = (r.read([Document(text)]) for r in readers)
        strings = [target.tokens[i] for i in mine.ids], [source.tokens[i] for i in its.ids]
        plain = best(lambda s=strings: plain_programme(*s), 2)
        bare = [t.replace("\u2581", "") for t in strings[0]], [t.replace("\u0120", "") for t in strings[1]]
        # The aligners: rows for every position; the programme alone: its path, as the plain one gives.
        by_bytes = best(lambda t=mine, s=its: ByteAligner().align(t, s), 20)
        by_programme = best(lambda b=bare: warp(*b), 10)
        whole = best(lambda t=mine, s=its: DynamicAligner(target, source, mapping).align(t, s), 5)
        # What the byte aligner needs beside tokens: where each of them ends.
        read = best(lambda t=text: [r.read([Document(t)]) for r in readers], 5)
        encode = best(lambda t=text: [r.vocabulary.backend.encode_batch([t]) for r in readers], 5)
        offsets = by_bytes + max(read - encode, 0.0)
        assert warp(*bare)[0] == plain_programme(*strings)
        per = 1000 / len(mine)
        rows = ByteAligner().align(mine, its).rows, DynamicAligner(target, source, mapping).align(mine, its).rows
        found.append(
            {
                "tokens": len(mine),
                "seconds per 1,000 tokens": {
                    "plain programme": plain * per,
                    "byte offsets": by_bytes * per,
                    "byte offsets, with reading them": offsets * per,
                    "dynamic programme": by_programme * per,
                    "dynamic, with rows": whole * per,
                },
                "byte offsets faster": plain / by_bytes,
                "byte offsets, with reading them, faster": plain / offsets,
                "dynamic programme faster": plain / by_programme,
                "dynamic, with rows, faster": plain / whole,
                "positions aligned": {"byte offsets": _share(rows[0]), "dynamic": _share(rows[1])},
            }
        )
    return found


def _share(rows: np.ndarray[Any, Any]) -> float:
    return float((rows >= 0).mean())


def _of_length(texts: Sequence[str], reader: Reader, length: int) -> str:
    text = "\n".join(texts[:40])
    (tokens,) = reader.read([Document(text)])
    return text.encode()[: int(tokens.ends[length - 2])].decode("utf-8", "ignore")


def vocabulary_map(args: argparse.Namespace) -> dict[str, Any]:
    """A map of 32k tokens onto 50k by edit distance, on two cores."""
    texts = sources(TEXT_BYTES)
    source, target = Vocabulary(metaspace(texts, 32_000)), Vocabulary(byte_level(texts, 50_000))
    exact = exact_map(source, target)
    began = time.perf_counter()
    found = edit_distance_map(source, target, workers=2)
    seconds = time.perf_counter() - began
    return {
        "source": source.size,
        "target": target.size,
        "exact": int((exact >= 0).sum()),
        "mapped": int((found >= 0).sum()),
        "seconds on two cores": seconds,
    }


def tiny_llama(vocabulary: int, width: int, layers: int) -> LlamaForCausalLM:
    """A random llama, as wide and deep as asked for."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=width * 8 // 3, num_hidden_layers=layers,
            num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=1024, tie_word_embeddings=True,
        )
    ).eval()  # fmt: skip


def cache_and_pass(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Whole passes of models of several sizes over Python's sources."""
    texts = sources(1_500_000)
    found = []
    with tempfile.TemporaryDirectory(prefix="evomerge-benchmark-") as temporary:
        folder = Path(temporary)
        for name, vocabulary, width, layers, tokens in (
            ("8k tokens, width 256, 4 layers", 8_000, 256, 4, 60_000),
            ("32k tokens, width 512, 8 layers", 32_000, 512, 8, 24_000),
            ("128k tokens, width 512, 8 layers", 128_256, 512, 8, 8_000),
        ):
            tokenizer = byte_level(texts, min(vocabulary, 32_000))
            model = tiny_llama(vocabulary, width, layers)
            at = folder / str(vocabulary)
            model.save_pretrained(at / "model")
            tokenizer.save_pretrained(at / "model")
            found.append({"model": name, **_measured(at, tokenizer, texts, tokens)})
    return found


def _measured(folder: Path, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], tokens: int) -> dict[str, Any]:
    """A pass, and bare forward passes of the same batches; by turns, for the machine is not quiet."""
    reader = Reader(Vocabulary(tokenizer, "model"), "model")
    with (folder / "corpus.jsonl").open("w") as stream:
        for text in _enough(texts, reader, tokens):
            stream.write(json.dumps({"text": text}) + "\n")
    corpus = prepare(
        CorpusConfig(path=str(folder / "corpus.jsonl"), held_out=0.02),
        None,
        {"model": reader},
        512,
        1 << 20,
        folder / "c",
    )
    source = open_source(str(folder / "model"))
    live = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    documents = [t for i in range(len(corpus.shards)) for t in reader.read(corpus.documents(i))]
    files = tuple(corpus.folder / s.name for s in corpus.shards)
    times: dict[str, list[float]] = {"pass": [], "forward": []}
    cache = None
    for repeat in range(3):
        own = Pass("model", source, files, folder / f"cache-{repeat}", 10, 4096, "auto")
        times["forward"].append(_timed(lambda: _forward(live, documents)))
        times["pass"].append(
            _timed(lambda o=own: fill({"model": o}, corpus, LocalTasks("cpu"), Silent())) - _loading(source)
        )
        cache = open_cache(own.folder, len(corpus.shards))
    assert cache is not None
    count = corpus.tokens("model")
    return {
        "tokens": count,
        "tokens a second": {name: count / min(t) for name, t in times.items()},
        "share of bare forward passes": min(times["forward"]) / min(times["pass"]),
        "bytes per position": cache.size / cache.positions,
    }


def _timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _loading(source: Any) -> float:
    """Seconds that loading the model takes: once in a run of days, so that it does not count here."""
    from evomerge.fusion.loading import loaded

    return best(lambda: loaded(source, "auto", "cpu"), 2)


@torch.inference_mode()
def _forward(model: LlamaForCausalLM, documents: Sequence[Tokenized]) -> None:
    """What `observe` asks of the model, and nothing else."""
    room = (512 << 20) // (model.config.vocab_size * 4)
    for batch in _batches(documents, min(4096, room)):
        length = max(len(documents[i]) for i in batch)
        ids = torch.zeros(len(batch), length, dtype=torch.long)
        mask = torch.zeros(len(batch), length, dtype=torch.long)
        for row, i in enumerate(batch):
            ids[row, : len(documents[i])] = torch.from_numpy(documents[i].ids.astype(np.int64))
            mask[row, : len(documents[i])] = 1
        masked = {} if bool(mask.all()) else {"attention_mask": mask}
        model(input_ids=ids, use_cache=False, **masked)


def _enough(texts: Sequence[str], reader: Reader, tokens: int) -> list[str]:
    found, size = [], 0
    for text in texts:
        part = text[:20_000]
        found.append(part)
        size += len(reader.read([Document(part)])[0])
        if size >= tokens:
            break
    return found


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "alignment": alignment,
    "map": vocabulary_map,
    "pass": cache_and_pass,
}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: PARTS[name](args) for name in args.part}
    if args.json:
        print(json.dumps(found, indent=1))
        return 0
    for row in found.get("alignment", ()):
        seconds = row["seconds per 1,000 tokens"]
        print(
            f"{row['tokens']:,} tokens, milliseconds per 1,000: plain programme "
            f"{seconds['plain programme'] * 1e3:.0f}, byte offsets {seconds['byte offsets'] * 1e3:.2f} "
            f"({row['byte offsets faster']:,.0f} times faster; with reading the offsets "
            f"{row['byte offsets, with reading them, faster']:,.0f}), dynamic programme "
            f"{seconds['dynamic programme'] * 1e3:.2f} ({row['dynamic programme faster']:,.0f} times), with rows "
            f"{seconds['dynamic, with rows'] * 1e3:.1f} ({row['dynamic, with rows, faster']:,.0f} times); aligned "
            f"{row['positions aligned']['byte offsets']:.0%} and {row['positions aligned']['dynamic']:.0%} of positions"
        )
    if "map" in found:
        row = found["map"]
        print(
            f"edit-distance map of {row['source']:,} tokens onto {row['target']:,} ({row['exact']:,} exact): "
            f"{row['seconds on two cores']:.1f} s on two cores"
        )
    for row in found.get("pass", ()):
        rate = row["tokens a second"]
        print(
            f"{row['model']}: pass {rate['pass']:,.0f} tokens a second, bare forward passes {rate['forward']:,.0f}: "
            f"{row['share of bare forward passes']:.0%}; {row['bytes per position']:.1f} bytes per position"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
