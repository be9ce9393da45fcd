"""What the parts of the results share: training a zoo, scoring a model on the test items, rows of tables."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.comparison import difference, interval
from evomerge.pipeline import Options, search
from evomerge.report.result import to_dict
from evomerge.score import Score
from evomerge.study.builder import Builder
from evomerge.study.job import Job
from evomerge.study.outcome import Outcome
from evomerge.watching.progress import Progress

HEAD = "| model | test score | 95 % | best minus it | 95 % |\n|---|---|---|---|---|"


def train(folder: Path, seed: int, names: Sequence[str]) -> None:
    """Train those models of a zoo that are not there."""
    missing = [name for name in names if not (folder / name / "model.safetensors").is_file()]
    if missing:
        command = [sys.executable, "-m", "evomerge.zoo.train", "--seed", str(seed), "--out", str(folder)]
        subprocess.run([*command, "--models", *missing], check=True)


def searched(asked: Options) -> Outcome:
    """Run or resume a search, showing how it goes."""
    with Progress() as progress:
        return search(asked, progress)


def scored(builder: Builder, job: Job) -> Score:
    """A job's score; its failure ends the run."""
    answer = builder.run(job)
    if answer.score is None:
        raise SystemExit(f"{job}: {answer.reason}")
    return answer.score


def with_extras(outcome: Outcome, extras: Mapping[str, Score]) -> dict[str, Any]:
    """An outcome as plain data, with more models that were measured on its test items."""
    result = to_dict(outcome)
    for name, score in extras.items():
        result["baselines"][name] = {
            "test": interval(score).to_dict("score"),
            "difference": difference(outcome.winner.test, score).to_dict(),
        }
    # The storage's path means nothing elsewhere.
    return {k: v for k, v in result.items() if k != "storage"}


def rows(result: Mapping[str, Any]) -> list[str]:
    """One result as the rows of a Markdown table."""
    test = result["best"]["test"]
    lines = [f"| **best found** | **{test['score']:.3f}** | {span(test)} | | |"]
    for name, found in result["baselines"].items():
        t, d = found["test"], found["difference"]
        lines.append(f"| {name} | {t['score']:.3f} | {span(t)} | {d['mean']:+.3f} | {span(d, '+')} |")
    return lines


def span(found: Mapping[str, Any], sign: str = "") -> str:
    """An interval's ends."""
    return f"{found['low']:{sign}.3f} .. {found['high']:{sign}.3f}"
