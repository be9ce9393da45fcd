"""Evaluators that hang, crash, raise, end their process or return nonsense: failed candidates with their reasons."""

import re

import pytest
import yaml

from evomerge.score import State
from evomerge.study.store import Store

# The role of a candidate is drawn by the order in which they are first seen, and stays with its weights: a candidate
# that is tried again on another worker does the same again.
SCORE = """
import hashlib, os, pathlib, signal, sys, time
import torch

SEEN = pathlib.Path(__file__).parent / "seen"
ROLES = {8: "hang", 9: "crash", 10: "raise", 11: "garbage", 12: "exit", 13: "memory", 14: "nan"}

def score(model, tokenizer, items):
    weights = model.get_input_embeddings().weight.detach().numpy().tobytes()
    name = SEEN / hashlib.sha256(weights).hexdigest()
    if not name.exists():
        SEEN.mkdir(exist_ok=True)
        name.write_text(ROLES.get(len(list(SEEN.iterdir())), ""))
    role = name.read_text()
    if role == "hang":
        while True:
            time.sleep(1000)
    if role == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if role == "raise":
        raise ValueError("no such thing")
    if role == "garbage":
        return "good"
    if role == "exit":
        sys.exit(0)
    if role == "memory":
        torch.empty(1 << 55)
    if role == "nan":
        return [float("nan")] * len(items)
    return [len(weights) % 7 + i % 3 for i in range(len(items))]
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_is_one_failed_candidate(evomerge, tmp_path):
    (tmp_path / "score.py").write_text(SCORE)
    (tmp_path / "items.jsonl").write_text("".join(f'{{"prompt": "{i}"}}\\n' for i in range(30)).replace("\\n", "\n"))
    data = {"kind": "python", "function": "score.py:score", "items": "items.jsonl", "tasks": ["t"]}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(data))
    done = evomerge(
        "search", "--evaluator", tmp_path / "e.yaml", "--budget", 20, "--study", "s", "--workers", 1, "--timeout", 6,
        "--no-starts", "--out", tmp_path / "out", "--json", timeout=500,
    )  # fmt: skip
    trials = Store(f"sqlite:///{tmp_path / 'out' / 'study.db'}").open("s").trials()
    reasons = [t.reason for t in trials if t.state is State.FAIL]
    assert len(trials) == 20 and all(t.state is State.COMPLETE for t in trials if t.reason is None)
    for words in (
        "took longer than its timeout of 6 s",
        "its worker died 2 times: ",
        "ValueError: no such thing",
        "score.py:score returned str good",
        "SystemExit: 0",
        "out of memory while it was scored: RuntimeError: ",
        'score.py:score returned nan for task "t", item 1 of',
    ):
        assert sum(words in reason for reason in reasons) == 1, (words, reasons)
    assert len(reasons) == 7 and done.result["candidates"]["failed"] == 7


def test_a_timeout_needs_workers(here, tmp_path):
    (tmp_path / "score.py").write_text(SCORE)
    (tmp_path / "e.yaml").write_text(
        yaml.safe_dump({"kind": "python", "function": "score.py:score", "tasks": ["t"], "timeout": 9})
    )
    args = ["search", "--evaluator", tmp_path / "e.yaml", "--budget", 2, "--workers", 0, "--out", tmp_path / "out"]
    done = here(*args, check=False)
    assert done.returncode == 2 and f"{tmp_path}/e.yaml: timeout = 9: with --workers 0" in done.stderr
    done = here(*args, "--timeout", 3, check=False)
    assert done.returncode == 2 and "--timeout 3: with --workers 0" in done.stderr
    done = here("search", "--budget", 2, "--timeout", "soon", check=False)
    assert done.returncode == 2 and '"soon": expected a number of seconds above 0' in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_not_finite_is_one_failed_candidate_with_its_name(evomerge, small_evaluator, tmp_path):
    """Weights that overflow, and weights that are finite while what the model computes with them is not."""
    space = {
        "kind": "parameter", "method": "linear", "base_model": "zoo:base", "sources": ["zoo:maths", "zoo:kovesh"],
        "parameters": {"weight": {"low": 1e-3, "high": 1e44, "log": True}, "normalize": False}, "out_dtype": "float32",
    }  # fmt: skip
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    done = evomerge(
        "search", tmp_path / "space.yaml", "--evaluator", small_evaluator, "--budget", 24, "--study", "s",
        "--workers", 1, "--sampler", "cma", "--no-starts", "--fidelity", "full", "--out", tmp_path / "out", "--json",
        timeout=500,
    )  # fmt: skip
    trials = Store(f"sqlite:///{tmp_path / 'out' / 'study.db'}").open("s").trials()
    reasons = [t.reason for t in trials if t.state is State.FAIL]
    weights = [r for r in reasons if re.match(r'tensor "model\.\S+" .*: weights too large for the type\?\)$', r)]
    logits = [r for r in reasons if r.startswith('the logits hold NaN or infinite values (task "kovesh_')]
    assert weights and logits and len(weights) + len(logits) == len(reasons), reasons
    assert len(trials) == 24 and done.result["candidates"]["failed"] == len(reasons) < 24
    assert all(t.score is not None for t in trials if t.state is State.COMPLETE)
