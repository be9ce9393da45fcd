"""A vision-language model and a text model, merged: answers in Japanese about pictures, which neither was taught.

    python benchmarks/vision.py [--seeds 0 1 2] [--work runs/vision] [--out FILE.json]

For each seed the three models of the vision zoo are trained (evomerge.zoo.vision.train), and a weight for each of two
task vectors is searched, with all controls at equal budget: each vector alone, put into the vision-language model,
random search, and, measured once, the uniform merge and the plain sum of both vectors, where the search starts.
Sources: `seeing` answers in English about pictures, with all sums; `japanese`, a text model, knows all Japanese words;
it is measured as the language model of `seeing`, and so is their base. Scores are exact match of answers, and ROUGE-L
beside it, 0 where one is not in Japanese, on scenes that no model was trained on.

One thread, some four minutes for each seed on a quiet machine; a seed that is done is not measured again (but for the
plain sum, where its figures are of before that was measured).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import transformers
import yaml
from by_seed import kept, paired, parser_of, tell

from evomerge.evaluation import load_evaluator, open_evaluator
from evomerge.merging.build import build
from evomerge.merging.live import live_model, load_processor
from evomerge.pipeline import Options, search
from evomerge.recipe import Chain, InputModel, Recipe, Step
from evomerge.report.result import to_dict
from evomerge.study.budget import Budget
from evomerge.study.outcome import Measured, Outcome
from evomerge.study.workers import Cluster
from evomerge.zoo.vision.train import train

BUDGET = 24
SOURCES = ("seeing", "japanese")
TASK, ROUGE, ENGLISH = "pictures_ja", "pictures_ja_rouge", "pictures_en"
# Of the task vectors, with weights of 1: no search is needed for it.
SUM = "plain sum"
# The seed on which tasks, zoo, space and criterion were chosen.
CHOSEN_ON = "0"
ROOT = Path(__file__).resolve().parents[1]


def searched(seed: int, work: Path) -> Outcome:
    """The search of a seed, over models that are trained where they are missing."""
    train(work / "zoo", seed)
    space = {
        "method": "task_arithmetic", "base_model": str((work / "zoo" / "base").resolve()),
        "sources": [str((work / "zoo" / name).resolve()) for name in SOURCES],
        "parameters": {"weight": {"low": 0.0, "high": 2.0, "init": 1.0}, "normalize": False},
        "dtype": "float32", "out_dtype": "bfloat16",
    }  # fmt: skip
    evaluator = {
        "include_path": str(ROOT / "evaluators" / "pictures"),
        "tasks": [{"name": TASK, "metric": "exact_match", "language": "ja"},
                  {"name": ROUGE, "metric": "rouge_l", "language": "ja", "weight": 0},
                  {"name": ENGLISH, "metric": "exact_match", "weight": 0}],
        "splits": {"search": {"share": 0.3, "items": 150}, "select": {"share": 0.2, "items": 150},
                   "test": {"share": 0.5, "items": 400}},
        "batch_size": 100,
    }  # fmt: skip
    for name, data in (("space", space), ("evaluator", evaluator)):
        (work / f"{name}.yaml").write_text(yaml.safe_dump(data))
    asked = Options(
        budget=Budget(candidates=BUDGET), space=work / "space.yaml", evaluator=work / "evaluator.yaml",
        out=work / "run", study=f"vision-{seed}", seed=seed, cluster=Cluster(workers=0), fidelity="full", controls=True,
    )  # fmt: skip
    return search(asked)


def with_sum(outcome: Outcome, work: Path) -> Outcome:
    """The outcome with one row more: both task vectors as they are."""
    space = yaml.safe_load((work / "space.yaml").read_text())
    recipe = Recipe(
        merge_method=space["method"], base_model=space["base_model"],
        models=[InputModel(model=m, parameters={"weight": 1.0}) for m in space["sources"]],
        parameters={"normalize": False}, dtype=space["dtype"], out_dtype=space["out_dtype"],
    )  # fmt: skip
    folder = work / "sum"
    build(Chain.of([Step(None, recipe)]), folder, overwrite=True, threads=1)
    opened = open_evaluator(load_evaluator(work / "evaluator.yaml"))
    model = live_model(folder, dtype=torch.float32)
    score = opened.evaluate(model, load_processor(folder), "test")
    *others, best = outcome.measured
    return replace(outcome, measured=(*others, Measured(SUM, "control", score, recipe=recipe), best))


def measure(seed: int, work: Path) -> dict[str, Any]:
    """Everything of one seed."""
    began = time.monotonic()
    outcome = with_sum(searched(seed, work), work)
    result = to_dict(outcome)
    found = {
        "baselines": result["baselines"],
        "best": {"test": result["best"]["test"], "params": dict(outcome.best.params)},
        "rouge_l": {m.name: _value(m.test, ROUGE) for m in outcome.measured},
        "english": {m.name: _value(m.test, ENGLISH) for m in outcome.measured},
        "items": {t: {m.name: _items(m.test, t) for m in outcome.measured} for t in (TASK, ROUGE)},
        "loads": loads(outcome.model, work / "zoo" / "seeing"),
    }  # fmt: skip
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def _value(score: Any, task: str) -> float:
    """Of what is measured beside what is searched for."""
    return round(float(next(t.value for t in score.tasks if t.task == task)), 4)


def _items(score: Any, name: str) -> str:
    """Results on the test items, in the order of their ids, which is the same in every seed."""
    task = next(t for t in score.tasks if t.task == name)
    return " ".join(f"{float(r):.4g}" for _, r in sorted(zip(task.items, task.results.tolist(), strict=True)))


def loads(model: Path, seeing: Path) -> dict[str, bool]:
    """Whether plain transformers loads what was found, with its processor, and what was not merged is as it was."""
    found, info = transformers.AutoModelForImageTextToText.from_pretrained(
        model, dtype=torch.float32, output_loading_info=True
    )
    processor = transformers.AutoProcessor.from_pretrained(model)
    own = transformers.AutoModelForImageTextToText.from_pretrained(seeing, dtype=torch.float32).state_dict()
    beside = [n for n in own if "language_model" not in n and not n.startswith("lm_head")]
    return {
        "transformers": not info["missing_keys"] and not info["unexpected_keys"],
        "processor": type(processor).__name__ == "LlavaProcessor",
        "encoder and projector": bool(beside) and all(torch.equal(found.state_dict()[n], own[n]) for n in beside),
    }


def held(found: Mapping[str, Any]) -> dict[str, bool]:
    """What is held to of a seed: better than sources and base, by what is searched for, beyond a 95 % interval; and a
    plain checkpoint."""
    others = ("base", *SOURCES)
    exact = {f"best > {name}": found["baselines"][name]["difference"]["low"] > 0 for name in others}
    return {**exact, "loads": all(found["loads"].values())}


def _differences(results: Sequence[Mapping[str, Any]], name: str, task: str) -> list[np.ndarray]:
    def of(result: Mapping[str, Any], model: str) -> np.ndarray:
        return np.array([float(x) for x in result["items"][task][model].split()])

    return [of(r, "best") - of(r, name) for r in results]


def pooled(results: Mapping[str, Any], name: str, task: str = TASK) -> str:
    """The best found minus another model, in words: paired by item over all seeds, and as a t interval over seeds."""
    each = _differences(list(results.values()), name, task)
    middle, half, wide = paired(each)
    words = f"{middle:+.3f} ({middle - half:+.3f} .. {middle + half:+.3f})"
    if len(each) > 2:  # of two there is no interval worth the name
        words += f", over seeds ({middle - wide:+.3f} .. {middle + wide:+.3f})"
    return words


def tables(results: Mapping[str, Any]) -> list[str]:
    """As Markdown: test scores with their intervals, and what the best found is better by."""
    first = next(iter(results.values()))
    lines = [
        "| model | " + " | ".join(f"seed {s}" for s in results) + " | best minus it, all seeds (95 %) |",
        "|---|" + "---|" * (len(results) + 1),
    ]
    names: Sequence[str] = list(first["baselines"])
    for name in ("best", *names):
        tests = [r["best"]["test"] if name == "best" else r["baselines"][name]["test"] for r in results.values()]
        cells = [f"{x['score']:.3f} ({x['low']:.3f} .. {x['high']:.3f})" for x in tests]
        label = "**best found**" if name == "best" else name
        lines.append(f"| {label} | {' | '.join(cells)} | {'' if name == 'best' else pooled(results, name)} |")
    later = {seed: r for seed, r in results.items() if seed != CHOSEN_ON}
    if 0 < len(later) < len(results):
        lines += ["", f"Without seed {CHOSEN_ON}, on which tasks, zoo, space and criterion were chosen, best minus "]
        lines[-1] += "; ".join(f"{name} {pooled(later, name)}" for name in names) + "."
    lines += ["", "ROUGE-L of the same answers (0 where one is not in Japanese), and exact match in English:", ""]
    lines.append("| model | " + " | ".join(f"seed {s}" for s in results) + " | ROUGE-L: best minus it (95 %) |")
    lines.append("|---|" + "---|" * (len(results) + 1))
    for name in ("best", *names):
        cells = [f"{r['rouge_l'][name]:.3f}; {r['english'][name]:.3f}" for r in results.values()]
        lines.append(f"| {name} | {' | '.join(cells)} | {'' if name == 'best' else pooled(results, name, ROUGE)} |")
    return lines


def figures(seed: int, work: Path) -> dict[str, Any]:
    """Everything of one seed, measured where it is not there yet."""
    folder = work / str(seed)
    file = folder / "figures.json"
    if file.is_file() and SUM not in json.loads(file.read_text())["baselines"]:
        file.unlink()  # of before there was that row; the search itself is there
    found = kept(folder, lambda: measure(seed, folder))
    return found | {"held": held(found)}


def main() -> None:
    """Measure every seed; print the tables on stderr and everything as JSON on stdout, or into a file."""
    args = parser_of(__doc__, "runs/vision", "models and searches").parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    with contextlib.redirect_stdout(sys.stderr):  # training tells of its steps
        results = {str(seed): figures(seed, args.work) for seed in args.seeds}
    failed = [f"seed {s}: {what}" for s, r in results.items() for what, ok in r["held"].items() if not ok]
    tell(results, [*tables(results), "", f"Failed: {'; '.join(failed) or 'none'}"], args.out)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
