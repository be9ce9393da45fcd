"""Image models: a student of three tiny diffusion models (DMM), then a fourth style added to it, with and without mu.

    python benchmarks/images.py [--seeds 0 1 2] [--work runs/images] [--out FILE.json]

For each seed a base and four fine-tunes in styles of their own are trained (evomerge.zoo.images) and fused by
`kind: fuse_images`, as `evomerge fuse` does. Held against all four models by Fréchet distances of 256 pictures each:

student: three styles. To hold: each style's distance to its own teacher is below .3 of what the average of the three
teachers' weights has, and the least of its row.
mu = 1: the same student after learning the fourth style while keeping what it said in the others; mu = 0: without that.
To hold: the old styles are, with it, below .2 of what they are without.

One thread, nine minutes of a free core for each seed (16 to 18 with others on it); a seed that is done is not measured
again.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml
from by_seed import kept, parser_of, tell

from evomerge.images.config import MeasureConfig
from evomerge.images.frechet import frechet_distance
from evomerge.images.measure import Gallery
from evomerge.images.pipelines import load_denoiser, open_model
from evomerge.images.sampling import plain
from evomerge.images.student import StyledPipeline
from evomerge.pipeline import fuse_images
from evomerge.report.images import write_images
from evomerge.watching.fusing import Fusing
from evomerge.zoo import images as zoo

FIRST, ADDED = ("ember", "ice", "meadow"), "orchid"
STEPS, ADDED_STEPS = 500, 250
TRAINING = {
    "per_device_train_batch_size": 64, "learning_rate": 2e-3, "lr_scheduler_type": "cosine", "warmup_steps": 20,
    "save_steps": 100,
}  # fmt: skip
MEASURE = {"images": 256, "inference_steps": 20}
# What the fusions with a fourth style measure themselves is no figure of this benchmark, which has the teachers' own.
BESIDE = {"images": 4, "inference_steps": 20}
NOISE = 1000


def fusion(seed: int, name: str, **keys: Any) -> dict[str, Any]:
    """A fusion's file."""
    return {"kind": "fuse_images", "name": name, "pictures": "models/pictures", "seed": seed, **keys}


def fused(work: Path, name: str, data: Mapping[str, Any]) -> Path:
    """Run a fusion, or find it done; the student's folder."""
    file, out = work / f"{name}.yaml", work / name
    file.write_text(yaml.safe_dump(dict(data), sort_keys=False), encoding="utf-8")
    with Fusing() as watcher:
        write_images(fuse_images(file, out, watcher))
    return out / "model"


def distances(models: Mapping[str, Path], work: Path, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Of each student, how far each of its styles is from every teacher, by noise that no fusion has used."""
    prompts = list(range(len(zoo.SHAPES)))
    config = MeasureConfig(**MEASURE)
    students = {name: StyledPipeline.from_pretrained(model, "cpu") for name, model in models.items()}
    galleries = {name: Gallery(s, prompts, config, NOISE + seed) for name, s in students.items()}
    some = next(iter(galleries.values()))
    teachers = {
        style: some.gaussian(plain(load_denoiser(open_model(work / "models" / style, style).folder)), "teacher", style)
        for style in (*FIRST, ADDED)
    }
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, student in students.items():
        said = {s: galleries[name].gaussian(student.denoise(s), "student", s) for s in student.styles}
        found[name] = {s: {t: frechet_distance(said[s], g) for t, g in teachers.items()} for s in said}
    return found


def run(work: Path, seed: int) -> dict[str, Any]:
    """Everything of one seed."""
    began = time.monotonic()
    zoo.train(work / "models", seed)
    trained = time.monotonic() - began
    first = fused(work, "student", fusion(
        seed, "student", base="models/base", teachers=[f"models/{s}" for s in FIRST],
        training={"max_steps": STEPS, **TRAINING}, measure=MEASURE,
    ))  # fmt: skip
    found: dict[str, Any] = {"student": json.loads((work / "student" / "result.json").read_text())["distances"]}
    models = {"before": first}
    for mu in (1.0, 0.0):
        name = f"added-mu-{mu:g}"
        models[f"mu = {mu:g}"] = fused(work, name, fusion(
            seed, name, student="student/model", teachers=[f"models/{ADDED}"],
            training={"max_steps": ADDED_STEPS, "old_weight": mu, **TRAINING}, measure=BESIDE,
        ))  # fmt: skip
    every = distances(models, work, seed)
    found["added"] = {name: {style: row[style] for style, row in rows.items()} for name, rows in every.items()}
    found["four"] = {teacher: every["mu = 1"][teacher] for teacher in (*FIRST, ADDED)}
    return {
        **found, "held": held(found), "seconds": {"models": round(trained, 1),
        "all": round(time.monotonic() - began, 1)},
    }  # fmt: skip


WANTED = (
    "each style's distance to its own teacher below .3 of the weight average's, and least in its row; old styles, "
    "after one was added with mu = 1, below .2 of what they are with mu = 0"
)


def held(found: Mapping[str, Any]) -> dict[str, bool]:
    """What was to be shown."""
    student = found["student"]
    own = [row[i] for i, row in enumerate(student["matrix"])]
    kept, lost = (found["added"][f"mu = {mu}"] for mu in (1, 0))
    return {
        "diagonal < .3 of the weight average's": all(
            d < 0.3 * a for d, a in zip(own, student["average"], strict=True)
        ),
        "diagonal least in its row": all(min(row) == d for d, row in zip(own, student["matrix"], strict=True)),
        "old styles with mu < .2 of without": all(kept[s] < 0.2 * lost[s] for s in FIRST),
    }  # fmt: skip


def tables(results: Mapping[str, Any]) -> list[str]:
    """Both tables as Markdown."""
    lines = ["The student of three, rows styles, columns teachers:", ""]
    lines += ["| seed | | " + " | ".join(FIRST) + " |", "|---|---|" + "---|" * len(FIRST)]
    for seed, r in results.items():
        found = r["student"]
        rows = [*zip(found["styles"], found["matrix"], strict=True)]
        rows += [("weight average", found["average"]), ("teacher again", found["floor"])]
        lines += [f"| {seed} | {name} | " + " | ".join(f"{v:.4f}" for v in row) + " |" for name, row in rows]
    lines += ["", f"After {ADDED} was added, each style to its own teacher:", ""]
    names = (*FIRST, ADDED)
    lines += ["| seed | | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for seed, r in results.items():
        for row, found in r["added"].items():
            cells = [f"{found[n]:.4f}" if n in found else "" for n in names]
            lines.append(f"| {seed} | {row} | " + " | ".join(cells) + " |")
    # Seeds that were measured before these rows were kept have none.
    whole = {seed: r["four"] for seed, r in results.items() if "four" in r}
    if whole:
        lines += ["", "The student of four (mu = 1), rows styles, columns teachers:", ""]
        lines += ["| seed | | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
        for seed, rows in whole.items():
            for style, row in rows.items():
                lines.append(f"| {seed} | {style} | " + " | ".join(f"{row[n]:.4f}" for n in names) + " |")
    return lines


def figures(seed: int, work: Path) -> dict[str, Any]:
    """Everything of one seed, measured where it is not there yet."""
    folder = work / str(seed)
    return kept(folder, lambda: run(folder, seed))


def main() -> None:
    """Measure every seed; print the tables on stderr and everything as JSON on stdout, or into a file."""
    args = parser_of(__doc__, "runs/images", "models and fusions").parse_args()
    torch.set_num_threads(1)
    results = {str(seed): figures(seed, args.work) for seed in args.seeds}
    tell(results, tables(results), args.out)
    failed = [f"seed {s}: {what}" for s, r in results.items() for what, ok in r["held"].items() if not ok]
    if failed:
        sys.exit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
