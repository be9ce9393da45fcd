"""What models were shown of a study's test items, where its evaluator is at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evomerge import presets
from evomerge.errors import EvaluatorError, EvoMergeError, InputError
from evomerge.evaluation import EvaluatorFile, load_evaluator, open_evaluator
from evomerge.study.record import Record

# What may differ between two files with the same items.
_LOOSE = ("objectives", "constraints", "num_fewshot", "tasks")


@dataclass(frozen=True)
class ItemTexts:
    """Prompts and right answers by id, of each task; and why there are none, in words."""

    by_item: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    unknown: str = ""


def item_texts(record: Record, asked: str | None = None, *, wanted: bool = True) -> ItemTexts:
    """The texts of the test items.

    An evaluator may run its own code. So only a preset is opened unasked: what lies in a database or names a file there
    runs nothing. A text belongs to an item by the hash of its content, so that another evaluator gives no wrong ones.

    Args:
        asked: The evaluator, as `evomerge search` takes it; default: the preset that the study was made with.
        wanted: Whether they are to be shown at all.

    Raises:
        InputError: the evaluator that was asked for cannot be opened, or has none of the study's items.
    """
    if not wanted:
        return ItemTexts(unknown="it was asked for (--no-texts).")
    test = record.outcome.winner.test if record.outcome is not None else None
    if test is None:
        return ItemTexts()
    file = load_evaluator(asked) if asked is not None else _preset(record)
    if file is None:
        return ItemTexts(
            unknown="the evaluator is a file of its own; evomerge report STUDY --evaluator FILE shows their texts."
        )
    needed = {t.task: set(t.items) for t in test.tasks}
    try:
        opened = open_evaluator(file)
        items, shown = opened.items("test"), opened.texts("test")
        found = {t: dict(zip(items[t], shown[t], strict=True)) for t in shown if t in needed}
    except EvoMergeError:
        if asked is not None:
            raise
        return ItemTexts(unknown="the evaluator cannot be opened here.")
    except Exception as e:  # lm-eval and datasets raise whatever they like, where data are not here and no network is
        if asked is not None:
            raise EvaluatorError(f"--evaluator {asked}: its items cannot be read without the network ({e})") from None
        return ItemTexts(unknown="the evaluator's items are not on this machine.")
    kept = {task: {i: text for i, text in texts.items() if i in needed[task]} for task, texts in found.items()}
    if asked is not None and any(needed.values()) and not any(kept.values()):
        raise InputError(
            f'--evaluator {asked}: has none of the test items of study "{record.name}"; expected the evaluator that it '
            f"was made with (tasks {', '.join(needed)})"
        )
    return ItemTexts(kept, "" if any(kept.values()) else "the evaluator does not tell their texts.")


def _preset(record: Record) -> EvaluatorFile | None:
    """The preset that a study was made with."""
    kept = record.fingerprint.get("evaluator", {})
    for name in presets.names("evaluators"):
        file = load_evaluator(name)
        if _items_of(file.fingerprint()) == _items_of(kept):
            return file
    return None


def _items_of(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """What of an evaluator decides which items it has."""
    tasks = sorted(t.get("name", "") if isinstance(t, Mapping) else str(t) for t in fingerprint.get("tasks", ()))
    return {k: v for k, v in fingerprint.items() if k not in _LOOSE} | {"tasks": tasks}
