"""Everything that a finished search writes beside the checkpoint, each file whole or not at all."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from evomerge.errors import EvoMergeError
from evomerge.publishing.lineage import lineage
from evomerge.report.frames import items_frame, outcome_scores, trials_frame
from evomerge.report.history import write_history_png
from evomerge.report.model_card import model_card
from evomerge.report.path import write_path_png
from evomerge.report.result import to_dict
from evomerge.study.outcome import Outcome


def hand_over(outcome: Outcome, say: Callable[[str], None]) -> None:
    """Write everything that belongs to a finished search: its output folder, and what the dashboard shows.

    Args:
        say: Is told what could not be shown there.

    Raises:
        EvoMergeError: the folder cannot be written, or the disk is full.
    """
    from evomerge.report.dashboard import Candidate, publish
    from evomerge.study.store import Store

    out = outcome.model.parent
    write_outputs(outcome, out)
    try:
        publish(Store(outcome.storage), outcome.study, out, Candidate.of(outcome))
    except Exception as e:  # what the dashboard shows beside the study is no reason for a search to fail
        say(f"no note and pictures for the dashboard ({type(e).__name__}: {e})")


def write_outputs(outcome: Outcome, out: Path) -> None:
    """Write recipe.yaml, README.md, trials.parquet, items.parquet, pictures and, last, result.json into `out`.

    result.json comes last, so that where it is, everything is. What was there is replaced.

    Raises:
        EvoMergeError: the folder cannot be written, or the disk is full.
    """
    result = json.dumps(to_dict(outcome), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    writers: tuple[tuple[str, Callable[[Path], object]], ...] = (
        ("recipe.yaml", _text(outcome.recipe.to_yaml())),
        ("README.md", _text(model_card(outcome, lineage(outcome.recipe, ask="named")))),
        ("trials.parquet", lambda part: trials_frame(outcome.trials).to_parquet(part, index=False)),
        ("items.parquet", lambda part: items_frame(outcome_scores(outcome)).to_parquet(part, index=False)),
        ("history.png", lambda part: write_history_png(outcome, part)),
        *_path_picture(outcome),
        ("result.json", _text(result)),
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, write in writers:
            write_atomically(out / name, write)
    except OSError as e:
        raise EvoMergeError(f"{e.filename or out}: cannot be written ({e.strerror or e})") from e


def _path_picture(outcome: Outcome) -> Iterator[tuple[str, Callable[[Path], object]]]:
    path = outcome.path
    if path is not None:
        yield "path.png", lambda part: write_path_png(path, outcome.names, outcome.depths, part)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, then rename it: a reader sees the old file or the new one, never half.

    What processes left that were killed while they wrote it is removed.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        pid = left.name.split(".")[-2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            left.unlink(missing_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with part.open("rb") as f:
            os.fsync(f.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _text(text: str) -> Callable[[Path], object]:
    return lambda part: part.write_text(text, encoding="utf-8")
