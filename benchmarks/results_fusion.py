"""Fusion over the heterogeneous zoo: what is learned from sources, beside what the text alone and regularisation give.

Every model of a seed's table reads the same tokens: 300 steps of 16 documents, at the best of twelve measurements. The
self-distillation control learns from itself, at the same weight of the text: what it gains over the text alone is
regularisation, what a fusion gains over it is knowledge.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml
from results_shared import scored

from evomerge import presets
from evomerge.comparison import interval
from evomerge.evaluation import load_evaluator
from evomerge.fusion.measure import Measuring, measure
from evomerge.fusion.prepared import HELD_OUT
from evomerge.merging.engine import Engine
from evomerge.pipeline import FuseOptions, fuse
from evomerge.pipeline.fused_starts import SCE_SHARE, VARM_UNIT
from evomerge.recipe import InputModel, Recipe
from evomerge.report.fusion import write_fusion
from evomerge.sources import open_source, open_sources
from evomerge.study.builder import Builder
from evomerge.study.fused import Fused
from evomerge.study.job import Job
from evomerge.study.workers import Cluster, LocalTasks
from evomerge.watching.fusing import Fusing
from evomerge.watching.progress import Progress
from evomerge.zoo.fusion.domains import NAMES
from evomerge.zoo.fusion.train import COURSES
from evomerge.zoo.fusion.train import train as train_zoo
from evomerge.zoo.tasks import write_texts

# What the criteria are about, and another rate for comparison, on the first seed alone. Settings were chosen on
# seeds 101 and 102.
RATE, OTHER_RATE = 2e-3, 1e-3
CLM_WEIGHT = 0.3
TRAINING = {"max_steps": 300, "evaluations": 12, "early_stopping_patience": None, "weight_decay": 0.01}
SEARCH = {"space": "fused", "budget": 200}
TARGET, SOURCES = "pivot", ("tides", "roads")
CLM, SELF, JOINT, SEARCHED = "text alone (CLM)", "self-distillation", "joint fusion", "pairwise, then searched"
PUBLISHED = "joint fusion as FuseLLM publishes it"
RUNS = {CLM: "clm", SELF: "self", JOINT: "joint", PUBLISHED: "published"}  # names of their folders
MERGES = {"linear": "pairwise, then averaged", "varm": "pairwise, then VaRM", "sce": "pairwise, then SCE"}
FUSELLM = {"aligner": "dynamic", "order": "fusellm", "vocabulary": "edit_distance"}
# What has to hold: shares of bits per byte that a fusion may leave.
OF_CLM, OF_SELF = 0.94, 0.96


def fusion(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train a seed's zoo, fuse it in every way and with every control, at each learning rate."""
    folder = (args.work / f"fusion-{seed}").resolve()
    _zoo(folder, seed)
    found: dict[str, Any] = {"rates": {}}
    for rate in (RATE, OTHER_RATE) if seed == 0 else (RATE,):
        found["rates"][f"{rate:g}"] = _at_rate(folder, seed, rate, args)
    return found


def _zoo(folder: Path, seed: int) -> None:
    """Models, texts and tasks of a seed, where they are not there yet."""
    if all((folder / name / "model.safetensors").is_file() for name in COURSES):
        return
    train_zoo(seed, folder)
    write_texts(folder / "tasks", seed)
    preset = presets.find("evaluators", "fusion")
    assert preset is not None
    evaluator = yaml.safe_load(preset.read_text(encoding="utf-8"))
    (folder / "evaluator.yaml").write_text(yaml.safe_dump({**evaluator, "include_path": "tasks"}, sort_keys=False))


def _at_rate(folder: Path, seed: int, rate: float, args: argparse.Namespace) -> dict[str, Any]:
    changes: dict[str, dict[str, Any]] = {
        JOINT: {},
        SELF: {"sources": [{"model": str(folder / TARGET), "name": "itself"}], "fusion": {"include_target": False}},
        CLM: {"training": {"clm_weight": 1.0}},
        PUBLISHED: {"training": {"renormalize": True, "clm_weight": 0.9}, "alignment": FUSELLM},
    }
    # Each is one training, on one core: side by side, each in a process of its own.
    with ProcessPoolExecutor(args.workers or 1, multiprocessing.get_context("spawn")) as pool:
        runs = {
            name: pool.submit(_fused, folder, f"{RUNS[name]}-{rate:g}", seed, rate, 0, **own)
            for name, own in changes.items()
        }
        alone = {name: run.result() for name, run in runs.items()}
    joint = alone[JOINT]
    models = {m.name: _row(m) for m in joint.models if m.role != "fused"}
    for name, fused in alone.items():
        models[name] = {**_row(next(m for m in fused.models if m.role == "fused")), **_trained(fused)}
    pairwise = _fused(
        folder, f"pairwise-{rate:g}", seed, rate, args.workers, fusion={"mode": "pairwise"}, then={"search": SEARCH}
    )
    for m in pairwise.models:
        if m.role == "fused":
            models[f"pairwise: {m.name}"] = _row(m)
    models.update(_merges(pairwise, folder))
    models[SEARCHED] = _row(next(m for m in pairwise.models if m.role == "merged"))
    assert pairwise.search is not None
    return {
        "models": models,
        "ratios": _ratios(models),
        "tokens": joint.tokens,
        "bytes_per_position": round(joint.cache_bytes, 1),
        "taken": {name: dict(t.taken) for name, t in joint.targets.items()},
        "searched": {"trial": pairwise.search.best.number, "params": dict(pairwise.search.best.params)},
    }


def _fused(folder: Path, name: str, seed: int, rate: float, workers: int, **changes: Any) -> Fused:
    """Run or resume one fusion of the seed's zoo."""
    torch.set_num_threads(1)
    data: dict[str, Any] = {
        "kind": "fuse",
        "target": str(folder / TARGET),
        "sources": [str(folder / source) for source in SOURCES],
        "corpus": {
            "path": str(folder / "corpora" / "chains.jsonl"),
            "held_out": str(folder / "corpora" / "chains-held-out.jsonl"),
        },
        "teachers": {"folder": str(folder / "teachers")},
        "evaluator": str(folder / "evaluator.yaml"),
        "seed": seed,
        **changes,
    }
    data["training"] = {"clm_weight": CLM_WEIGHT, "learning_rate": rate, **TRAINING, **changes.get("training", {})}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    with Fusing() as watcher, Progress() as searching:
        fused = fuse(FuseOptions(file, folder / name, Cluster(workers=workers)), watcher, searching)
    write_fusion(fused)
    return fused


def _merges(pairwise: Fused, folder: Path) -> dict[str, dict[str, Any]]:
    """Merges of the targets without a search: FuseChat's two as it makes them, and the mean."""
    models = [InputModel(model=m.reference) for m in pairwise.models if m.role == "fused"]
    base = str(folder / TARGET)
    types: dict[str, Any] = {"models": models, "base_model": base, "dtype": "float32", "out_dtype": "bfloat16"}
    mean = [m.model_copy(update={"parameters": {"weight": 1.0}}) for m in models]
    recipes = {
        "sce": Recipe(merge_method="sce", parameters={"select_topk": SCE_SHARE}, **types),
        "varm": Recipe(merge_method="varm", parameters={"unit": VARM_UNIT}, **types),
        "linear": Recipe(merge_method="linear", **{**types, "models": mean, "base_model": None}),
    }
    sources = open_sources([base, *(m.model for m in models)])
    builder = Builder(sources, base, load_evaluator(folder / "evaluator.yaml"))
    made = {}
    for name, recipe in recipes.items():
        Engine({r: sources[r] for r in recipe.references()}).write(
            recipe, pairwise.out / "merges" / name, overwrite=True
        )
        made[name] = open_source(str(pairwise.out / "merges" / name))
    corpus = pairwise.out / "corpus"
    asked = Measuring(corpus / HELD_OUT, f"results-{folder.name}", NAMES, 4096, "auto")
    with Fusing() as watcher:
        bits = measure(made, asked, pairwise.out / "merges.json", LocalTasks("cpu"), watcher)
    return {
        MERGES[name]: {
            "bits_per_byte": bits[name],
            "test": interval(scored(builder, Job("test", recipes[name], exported=True))).to_dict("score"),
        }
        for name in MERGES
    }


def _row(model: Any) -> dict[str, Any]:
    return {"bits_per_byte": dict(model.bits_per_byte), "test": interval(model.score).to_dict("score")}


def _trained(fused: Fused) -> dict[str, Any]:
    (training,) = fused.trainings.values()
    return {"best_step": training.step, "steps": training.steps}


def _ratios(models: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """What the criteria are about, on the held-out documents and on the evaluator's test items, which chose nothing."""
    found = {}
    for what, value in (
        ("held out", lambda name: models[name]["bits_per_byte"]["mean"]),
        ("test items", lambda name: -models[name]["test"]["score"]),
    ):
        found[what] = {
            "joint fusion / text alone": value(JOINT) / value(CLM),
            "joint fusion / self-distillation": value(JOINT) / value(SELF),
            "searched / joint fusion": value(SEARCHED) / value(JOINT),
            "searched / best merge without a search": value(SEARCHED) / min(value(m) for m in MERGES.values()),
        }
    return found


def fusion_text(results: Mapping[str, Any]) -> list[str]:
    """Its section of docs/results.md."""
    main, other = f"{RATE:g}", f"{OTHER_RATE:g}"
    lines = [
        f"## Fusion of models that share neither architecture nor tokenizer, {len(results)} training seeds",
        "",
        "`evomerge fuse` on the fusion zoo: a llama (`pivot`) learns from a llama (`tides`) and a gpt_neox (`roads`)",
        "of other tokenizers, each of which knows one of two invented domains. Bits per byte, lower is better. All",
        f"trainings read the same tokens ({TRAINING['max_steps']} steps of 16 texts, text weight {CLM_WEIGHT}) and",
        "are taken at their best of 12 measurements on the held-out documents; the last columns are texts that",
        "chose nothing (the evaluator's test items, with 95 % intervals of the mean). The text alone (CLM) is what",
        "fusion has to beat; self-distillation (the target learns from itself, at the same weight) separates knowledge",
        "from regularisation. To hold, on the held-out documents and at the learning rate of the first table: joint",
        f"fusion at most {OF_CLM} of CLM and {OF_SELF} of self-distillation, the searched merge at least as good as",
        f"joint fusion. The search: {SEARCH['budget']} candidates of the preset `{SEARCH['space']}`, which tries",
        "FuseChat's merges first. As published: FuseLLM's time warping, map, distributions and text weight of .9.",
    ]
    for rate in (main, other):
        lines += [
            "",
            f"### Learning rate {rate}" + ("" if rate == main else ", for comparison"),
            "",
            "| seed | on | fusion / CLM | fusion / self-distillation | searched / joint | searched / other merges |",
            "|---|---|---|---|---|---|",
        ]
        for seed, result in results.items():
            for what, ratios in result["rates"].get(rate, {"ratios": {}})["ratios"].items():
                lines.append(f"| {seed} | {what} | " + " | ".join(f"{r:.3f}" for r in ratios.values()) + " |")
    for seed, result in results.items():
        for rate in result["rates"]:
            lines += ["", f"### Training seed {seed}, learning rate {rate}", ""]
            lines += _table(result["rates"][rate]["models"])
    return lines


def _table(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    domains: Sequence[str] = [*sorted(NAMES), "mean"]
    lines = [f"| model | {' | '.join(domains)} | test items | 95 % |", "|---|" + "---|" * (len(domains) + 2)]
    for name, row in models.items():
        bits, test = row["bits_per_byte"], row["test"]
        shown = f"{name}, step {row['best_step']}" if "best_step" in row else name
        lines.append(
            f"| {shown} | "
            + " | ".join(f"{bits[d]:.4f}" for d in domains)
            + f" | {-test['score']:.4f} | {-test['high']:.4f} .. {-test['low']:.4f} |"
        )
    return lines
