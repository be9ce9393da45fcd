"""A vision-language model and a text model, merged: answers in Japanese about pictures, which neither was taught.

    python benchmarks/vision.py [--seeds 0 1 2] [--work runs/vision] [--out FILE.json]

For each seed the three models of the vision zoo are trained (evomerge.zoo.vision.train), and the weights of both task
vectors are searched, with all controls at equal budget: each vector alone, put into the vision-language model, random
search, and, measured once, the uniform merge. Sources: `seeing` answers in English about pictures, with all sums;
`japanese`, a text model, knows all Japanese words; it is measured as the language model of `seeing`, and so is their
base. Scores are ROUGE-L of answers, 0 where one is not in Japanese, on scenes that no model was trained on.

One thread, some four minutes for each seed on a quiet machine; a seed that is done is not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import transformers
import yaml

from evomerge.pipeline import Options, search
from evomerge.report.result import to_dict
from evomerge.study.budget import Budget
from evomerge.study.outcome import Outcome
from evomerge.study.workers import Cluster
from evomerge.zoo.vision.train import train

BUDGET = 40
SOURCES = ("seeing", "japanese")
TASK = "pictures_ja"
ROOT = Path(__file__).resolve().parents[1]


def searched(seed: int, work: Path) -> Outcome:
    """The search of a seed, over models that are trained where they are missing."""
    train(work / "zoo", seed)
    space = {
        "method": "task_arithmetic", "base_model": str((work / "zoo" / "base").resolve()),
        "sources": [str((work / "zoo" / name).resolve()) for name in SOURCES],
        "granularity": {"layers_per_group": 1, "embeddings": "together"},
        "parameters": {"weight": {"low": 0.0, "high": 1.5, "init": 0.75}, "normalize": False},
        "dtype": "float32", "out_dtype": "bfloat16",
    }  # fmt: skip
    evaluator = {
        "include_path": str(ROOT / "evaluators" / "pictures"),
        "tasks": [{"name": TASK, "metric": "rouge_l", "language": "ja"},
                  {"name": "pictures_en", "metric": "rouge_l", "weight": 0}],
        "splits": {"search": {"share": 0.3, "items": 100}, "select": {"share": 0.2, "items": 100},
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


def measure(seed: int, work: Path) -> dict[str, Any]:
    """Everything of one seed."""
    began = time.monotonic()
    outcome = searched(seed, work)
    result = to_dict(outcome)
    found = {
        "baselines": result["baselines"],
        "best": {"test": result["best"]["test"], "params": dict(outcome.best.params)},
        "english": {m.name: _english(m.test) for m in outcome.measured},
        "items": {m.name: _items(m.test) for m in outcome.measured},
        "loads": loads(outcome.model, work / "zoo" / "seeing"),
    }  # fmt: skip
    return {**found, "held": held(found), "seconds": round(time.monotonic() - began, 1)}


def _english(score: Any) -> float:
    """What is kept of English, which is not searched for."""
    return round(float(next(t.value for t in score.tasks if t.task == "pictures_en")), 4)


def _items(score: Any) -> list[float]:
    """Results on the test items, in the order of their ids, which is the same in every seed."""
    task = next(t for t in score.tasks if t.task == TASK)
    return [round(float(r), 4) for _, r in sorted(zip(task.items, task.results.tolist(), strict=True))]


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
    """What was to be shown of a seed: better than sources and base beyond a 95 % interval; a plain checkpoint."""
    beaten = {name: found["baselines"][name]["difference"]["low"] > 0 for name in ("base", *SOURCES)}
    return {**{f"best > {name}": ok for name, ok in beaten.items()}, "loads": all(found["loads"].values())}


def pooled(results: Mapping[str, Any], name: str) -> str:
    """The best found minus another model: over all seeds, paired by item, and as a t interval over the seeds."""
    from scipy.stats import norm, t

    each = [np.array(r["items"]["best"]) - np.array(r["items"][name]) for r in results.values()]
    mean = np.mean(each, axis=0)
    half = norm.ppf(0.975) * mean.std(ddof=1) / math.sqrt(len(mean))
    words = f"{mean.mean():+.3f} ({mean.mean() - half:+.3f} .. {mean.mean() + half:+.3f})"
    if len(each) > 1:
        seeds = np.array([e.mean() for e in each])
        wide = t.ppf(0.975, len(seeds) - 1) * seeds.std(ddof=1) / math.sqrt(len(seeds))
        words += f"; over seeds ({mean.mean() - wide:+.3f} .. {mean.mean() + wide:+.3f})"
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
    lines += ["", "In English, which is not searched for:", "", "| model | " + " | ".join(f"seed {s}" for s in results),
              "|---|" + "---|" * len(results)]  # fmt: skip
    lines[-2] += " |"
    for name in ("best", *SOURCES):
        lines.append(f"| {name} | " + " | ".join(f"{r['english'][name]:.3f}" for r in results.values()) + " |")
    return lines


def figures(seed: int, work: Path) -> dict[str, Any]:
    """Everything of one seed, measured where it is not there yet."""
    folder = work / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "figures.json"
    if not file.is_file():
        file.write_text(json.dumps(measure(seed, folder), indent=1) + "\n")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def main() -> None:
    """Measure every seed; print the tables on stderr and everything as JSON on stdout, or into a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/vision"), help="models and searches; resumable")
    parser.add_argument("--out", type=Path, help="file of the figures (default: stdout)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    results = {str(seed): figures(seed, args.work) for seed in args.seeds}
    failed = [f"seed {s}: {what}" for s, r in results.items() for what, ok in r["held"].items() if not ok]
    print("\n".join([*tables(results), "", f"Failed: {'; '.join(failed) or 'none'}"]), file=sys.stderr)
    text = json.dumps(results, indent=1) + "\n"
    if args.out:
        args.out.write_text(text)
    else:
        print(text, end="")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
