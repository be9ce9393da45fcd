"""How to make the winner again, and everything that makes this study this study."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from evomerge import __version__
from evomerge.recipe import Chain
from evomerge.report.page.blocks import Block, Code, Section, Table, Text, limited
from evomerge.study.database import shown
from evomerge.study.record import Record

LIBRARIES = ("torch", "transformers", "safetensors", "lm_eval", "optuna", "numpy")
# A recipe of more lines stands behind its caption, of more is not printed, of many more is not there at all.
FOLDED, PRINTED, LONGEST = 60, 300, 20_000


def rebuild(record: Record) -> Section:
    """The section."""
    return Section("rebuild", "How to rebuild it", tuple(_blocks(record)))


def _blocks(record: Record) -> Iterator[Block]:
    best = record.best
    if best is not None:
        yield Code("Commands", _commands(record))
    if record.recipe is not None:
        text = record.recipe.to_yaml()
        lines = text.count("\n")
        if lines > LONGEST:
            yield Text(f"The recipe has {lines:,} lines; the first command writes it beside the checkpoint.")
        else:
            yield Code(f"The recipe ({lines:,} lines of mergekit's YAML)", text, lines > FOLDED, lines < PRINTED)
        if not isinstance(record.recipe, Chain):
            words = "The same recipe over the same sources gives the same bytes, on any number of threads and workers."
            yield Text(words, "note")
    elif record.unknown:
        yield Text(f"The recipe cannot be shown here: {record.unknown}", "warning")
    yield _identity(record)
    yield from _sources(record)
    yield from _items(record)


def _commands(record: Record) -> str:
    best = record.best
    assert best is not None
    storage = "" if _beside(record) else f" --storage {shlex.quote(record.storage)}"
    name = record.name if storage or record.out is None or "/" in record.name else str(record.out)
    trial = "" if record.won else f" --trial {best.number}"
    return (
        f"# the checkpoint, with its recipe\nevomerge export {shlex.quote(name)} my-model{trial}{storage}\n"
        "# the same bytes, from the recipe alone\nevomerge merge my-model/recipe.yaml rebuilt\n"
    )


def _beside(record: Record) -> bool:
    """Whether the study's database lies in its output folder, where its commands find it."""
    out = record.out
    return out is not None and record.storage.startswith("sqlite:") and str(out.resolve()) in shown(record.storage)


def _database(record: Record) -> str:
    """Where the study is; of a file in its output folder only that, for pages are passed on, and paths name people."""
    return record.storage.rpartition("/")[2] + " in the output folder" if _beside(record) else record.storage


def _identity(record: Record) -> Table:
    fingerprint = record.fingerprint
    sampler = fingerprint.get("sampler", {})
    rows: list[tuple[str, str]] = [
        ("study", record.name),
        ("database", _database(record)),
        ("seed", str(fingerprint.get("seed", ""))),
        ("sampler", ", ".join(str(v) if k == "name" else f"{k} {v}" for k, v in sampler.items() if v is not None)),
    ]
    if record.recipe is not None:
        rows.append(("hash of the recipe", record.recipe.hash()))
    evaluator = fingerprint.get("evaluator", {})
    if evaluator:
        rows.append(("seed of the splits", str(evaluator.get("split_seed", 0))))
        rows.append(("seed of few-shot examples", str(evaluator.get("seed", 1234))))
    if fingerprint.get("async"):
        rows.append(("order", "without generations (--async): which worker is free first decides what comes next"))
    for note, words in (("fidelity", "fidelity"), ("starts", "starts first"), ("estimates", "estimates")):
        if note in record.notes:
            value = record.notes[note]
            rows.append((words, ("yes" if value else "no") if isinstance(value, bool) else str(value)))
    rows.append(("evomerge that wrote this report", __version__))
    rows += [(f"{n} beside it", v) for n in LIBRARIES if (v := _version(n))]
    return Table("What makes it this study", ("what", "value"), tuple(r for r in rows if r[1]), words=2)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _sources(record: Record) -> Iterator[Block]:
    config = record.config
    kept: Mapping[str, Any] = record.fingerprint.get("sources", {})
    if config is None or not kept:
        return
    named = kept.get("named", {})
    rows = []
    if config.base_model:
        rows.append(("base", config.base_model, str(kept.get("base", kept.get(config.base_model, "")))))
    rows += [(s.name, s.model, str(named.get(s.name, kept.get(s.model, "")))) for s in config.sources]
    yield Table("Sources", ("name", "reference", "SHA-256 of the content"), tuple(rows), words=3)


def _items(record: Record) -> Iterator[Block]:
    items: Mapping[str, Any] = record.fingerprint.get("items", {})
    rows = [
        (split, task, str(found.get("sha256", "")), f"{found.get('count', 0):,}")
        for split, tasks in items.items()
        for task, found in tasks.items()
    ]
    if rows:
        made, note = limited(rows, "tasks")
        header = ("split", "task", "hash of their ids", "items")
        yield Table("Items of the splits", header, made, words=3, note=note, folded=True)
