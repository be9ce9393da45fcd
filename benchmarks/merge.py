"""Merging speed and memory, against mergekit and against this machine's copy bandwidth, in one run.

    python benchmarks/merge.py                          all methods, about 15 minutes on 2 cores
    python benchmarks/merge.py --methods ties linear --repeats 1
    python benchmarks/merge.py --part rebuild           only the rebuilds into a live model

Makes a 0.5B llama-shaped base and two fine-tunes of it (random, bfloat16, 0.95 GB each) and a recipe for each method.
Cold: the whole process, `mergekit-yaml RECIPE OUT` and `evomerge merge RECIPE OUT` in turn, wall time (the best of the
repeats) and the peak of private memory (RssAnon, sampled). Rebuild: one process, candidates of new weights and
densities into a live model; bytes that must be read and written once, over time, as a share of what an in-place copy
of the same size reaches here.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from process_memory import time_and_memory
from sized_models import write_models

SHAPE = {"hidden": 1024, "inner": 3584, "layers": 24, "vocabulary": 64000, "key_values": 8}
TWO = "models: [{model: A, parameters: {weight: 0.6}}, {model: B, parameters: {weight: 0.5}}]"
BASED = f"base_model: BASE\n{TWO}"
RECIPES = {
    "linear": f"merge_method: linear\n{TWO}",
    "slerp": "merge_method: slerp\nbase_model: A\nmodels: [{model: B}]\nparameters: {t: 0.4}",
    "task_arithmetic": f"merge_method: task_arithmetic\n{BASED}",
    "ties": f"merge_method: ties\n{BASED}\nparameters: {{density: 0.5}}",
    "dare_ties": f"merge_method: dare_ties\n{BASED}\nparameters: {{density: 0.5}}",
    "della": f"merge_method: della\n{BASED}\nparameters: {{density: 0.5, epsilon: 0.15}}",
    "sce": "merge_method: sce\nbase_model: BASE\nmodels: [{model: A}, {model: B}]\nparameters: {select_topk: 0.5}",
    "model_stock": "merge_method: model_stock\nbase_model: BASE\nmodels: [{model: A}, {model: B}]",
}
# What it is meant to reach: how many times faster than mergekit, in which share of its memory, and at least which share
# of copy bandwidth.
FASTER = {
    "linear": 2, "task_arithmetic": 2, "model_stock": 2, "slerp": 3, "sce": 3, "dare_ties": 5, "ties": 12, "della": 12,
}  # fmt: skip
MEMORY = 0.5
SHARES = {"linear": 0.8, "task_arithmetic": 0.8, "ties": 0.5, "dare_ties": 0.5, "slerp": 0.45}


def write_recipe(folder: Path, method: str) -> Path:
    """The recipe file, with models by full path, in bfloat16."""
    text = RECIPES[method]
    for name in ("BASE", "A", "B"):
        text = text.replace(f"model: {name}", f"model: {folder / name}")
    file = folder / f"{method}.yaml"
    file.write_text(f"{text}\ndtype: bfloat16\n")
    return file


def run(command: list[str]) -> tuple[float, float]:
    """Wall time (s) and peak RssAnon (GB) of a whole process. Content hashes kept by earlier runs are forgotten."""
    shutil.rmtree(Path(os.environ["EVOMERGE_CACHE"]) / "hashes", ignore_errors=True)
    took, peak = time_and_memory(command)
    return took, peak / 1e9


def cold(folder: Path, methods: list[str], repeats: int) -> dict[str, Any]:
    """Both programs on each recipe, in turn."""
    found: dict[str, Any] = {}
    heads = ("mergekit s", "evomerge s", "faster", "asked", "GB", "GB", "memory", "asked")
    print("\n" + f"{'cold':16}" + "".join(f"{head:>11}" for head in heads))
    for method in methods:
        recipe = write_recipe(folder, method)
        theirs, ours = [], []
        for _ in range(repeats):
            for times, command in (
                (theirs, [str(Path(sys.executable).parent / "mergekit-yaml"), str(recipe), str(folder / "out"),
                          "--no-copy-tokenizer"]),
                (ours, [sys.executable, "-m", "evomerge", "merge", str(recipe), str(folder / "out")]),
            ):  # fmt: skip
                shutil.rmtree(folder / "out", ignore_errors=True)
                times.append(run(command))
        shutil.rmtree(folder / "out", ignore_errors=True)
        (a, c), (b, d) = ((min(t for t, _ in x), max(m for _, m in x)) for x in (theirs, ours))
        figures = (f"{a:.2f}", f"{b:.2f}", f"{a / b:.1f}", str(FASTER[method]), f"{c:.2f}", f"{d:.2f}",
                   f"{d / c:.2f}", f"{MEMORY:.1f}")  # fmt: skip
        print(f"{method:16}" + "".join(f"{figure:>11}" for figure in figures), flush=True)
        found[method] = {"mergekit_s": a, "evomerge_s": b, "ratio": a / b, "mergekit_gb": c, "evomerge_gb": d}
    return found


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    into.append(time.perf_counter() - start)


def rebuild(folder: Path, methods: list[str], repeats: int, threads: int) -> dict[str, Any]:
    """Candidates into one live model, new numbers each time."""
    import torch

    from evomerge.merging.engine import Engine
    from evomerge.merging.live import live_model_for
    from evomerge.recipe import load_recipe
    from evomerge.sources import open_sources

    torch.set_num_threads(threads)
    found: dict[str, Any] = {}
    heads = ("GB moved", "s", "GB/s", "copy GB/s", "share", "asked")
    print("\n" + f"{'rebuild':16}" + "".join(f"{head:>11}" for head in heads) + f"   {threads} threads")
    for method in methods:
        recipe = load_recipe(write_recipe(folder, method))
        engine = Engine(open_sources(recipe.references()), threads=threads)
        plan = engine.plan(recipe)
        live = live_model_for(plan)
        parameters = [p.data for p in live.parameters()]
        copies = [p.clone() for p in parameters]
        engine.build_into(recipe, live)  # thresholds, dot products, page cache
        times: list[float] = []
        copy_times: list[float] = []
        for number in range(repeats):
            candidate = _varied(recipe, number)
            with timed(times):
                engine.build_into(candidate, live)
            with timed(copy_times):
                for p, c in zip(parameters, copies, strict=True):
                    p.copy_(c)
        moved = plan.bytes_read + plan.bytes_written
        size = 2 * sum(p.nbytes for p in parameters)
        rate, copying = moved / min(times) / 1e9, size / min(copy_times) / 1e9
        asked = SHARES.get(method)
        figures = (f"{moved / 1e9:.2f}", f"{min(times):.3f}", f"{rate:.1f}", f"{copying:.1f}", f"{rate / copying:.0%}",
                   f"{asked:.0%}" if asked else "")  # fmt: skip
        print(f"{method:16}" + "".join(f"{figure:>11}" for figure in figures), flush=True)
        found[method] = {"seconds": min(times), "gb_s": rate, "copy_gb_s": copying, "share": rate / copying}
        del live, parameters, copies, engine
    return found


def _varied(recipe: Any, number: int) -> Any:
    """Another candidate of the same search: every number a little different."""
    step = 1 + 0.03 * (number + 1)

    def change(parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        return parameters and {k: v * step if k in ("weight", "density", "t") else v for k, v in parameters.items()}

    models = [m.model_copy(update={"parameters": change(m.parameters)}) for m in recipe.models]
    return recipe.model_copy(update={"models": models, "parameters": change(recipe.parameters)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--part", choices=["all", "cold", "rebuild"], default="all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, help="where models are made and kept; a temporary folder by default")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).absolute()
        if not (folder / "B" / "model.safetensors").is_file():
            write_models(folder, **SHAPE)
        # A cache of its own: kernels are compiled once, before anything is timed; hashes never survive a run.
        os.environ["EVOMERGE_CACHE"] = str(folder / "cache")
        from evomerge.merging.native import library

        compiling: list[float] = []
        with timed(compiling):
            library()
        print(f"kernels compiled or loaded in {compiling[0]:.1f} s")
        found: dict[str, Any] = {}
        if args.part != "rebuild":
            found["cold"] = cold(folder, args.methods, args.repeats)
        if args.part != "cold":
            found["rebuild"] = rebuild(folder, args.methods, args.repeats + 2, args.threads)
        if args.json:
            args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
