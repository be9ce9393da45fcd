"""A real search that costs next to nothing: the zoo's models, and a function that looks at weights alone."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
STUDY = "s"
# Options, budget, and whether the search must be that of an uninterrupted one, candidate by candidate.
WAYS = {
    "whole": (("--fidelity", "full"), 14, True),
    "raced": (("--fidelity", "race"), 8, True),
    "one at a time": (("--fidelity", "full", "--async"), 14, True),
    "asynchronous": (("--fidelity", "race", "--async"), 8, False),
}

# Right or wrong by a threshold of the item's own, so that races are as they are elsewhere. It takes CHEAP_SECONDS.
SCORE = """
import hashlib, math, os, time
import numpy as np

def uniform(text):
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little") / 2**56

def score(model, tokenizer, items):
    time.sleep(float(os.environ.get("CHEAP_SECONDS", "0")))
    weights = [p.detach().float().numpy().ravel()[:64] for _, p in sorted(model.named_parameters())]
    away = np.array([float(np.linalg.norm(w - 0.01)) for w in weights])
    quality = math.sin(2.0 * away.sum()) + math.cos(5.0 * away[::2].sum())
    return [float(uniform(str(i["number"])) < 1 / (1 + math.exp(-quality))) for i in items]
"""


def evaluator(folder):
    """Its file, with 200 items."""
    (folder / "score.py").write_text(SCORE)
    (folder / "items.jsonl").write_text("".join(f'{{"number": {i}}}\n' for i in range(200)))
    parts = {"search": {"share": 0.5}, "select": {"share": 0.25}, "test": {"share": 0.25}}
    data = {"kind": "python", "function": "score.py:score", "items": "items.jsonl", "tasks": ["t"], "splits": parts}
    (folder / "cheap.yaml").write_text(yaml.safe_dump(data))
    return folder / "cheap.yaml"


def asked(file, out, budget, *more):
    """The command's words."""
    where = ["--budget", budget, "--study", STUDY, "--out", out, "--json"]
    return [str(a) for a in ("search", "--evaluator", file, *where, *more)]


def start(args, log, **environment):
    """A search in the background, in a session of its own; what it prints goes to `log` and `log`.out."""
    with log.open("a") as err, log.with_suffix(".out").open("w") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "evomerge", *args], stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            start_new_session=True, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        )  # fmt: skip
