"""FuseChat-3.0's route on the zoo, by TRL: answers, best ones learned, pairs preferred; resumed after a kill."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tests.pipeline.fusions import digests, fusion_file, killed

pytest.importorskip("trl")
pytestmark = pytest.mark.xdist_group("preferences")

REWARD = """
from evomerge.zoo.fusion.domains import NAMES, domain

def score(questions, answers, references):
    \"\"\"The share of steps of each answer that its domain allows.\"\"\"
    found = []
    for question, answer in zip(questions, answers):
        words = [question[-1]["content"].split()[-1], *answer.split()]
        steps = list(zip(words, words[1:]))
        found.append(sum(any(domain(n, 0).follows(*s) for n in NAMES) for s in steps) / max(len(steps), 1))
    return found
"""


@pytest.fixture
def file(tmp_path):
    torch.set_num_threads(1)
    (tmp_path / "reward.py").write_text(REWARD)
    return fusion_file(
        tmp_path,
        training=None,
        corpus={"path": "zoo:exchanges", "held_out": 0.1, "documents": 240},
        teachers={"shard_tokens": 1500},
        preferences={
            "score": "reward.py:score",
            "samples": 3,
            "max_new_tokens": 40,
            "sft": {"learning_rate": 1e-3, "num_train_epochs": 10},
            "dpo": {"learning_rate": 5e-5, "num_train_epochs": 2},
        },
    )


@pytest.mark.ci
def test_answers_are_learned_then_preferred(file, here, tmp_path):
    out = tmp_path / "out"
    done = here("fuse", file, out, "--workers", 0, "--json")
    models = done.result["models"]
    assert [m["role"] for m in models.values()] == ["target", "source", "source", "fused", "fused"]
    assert models["sft"]["answers"] > models["target"]["answers"] + 0.1
    assert models["dpo"]["answers"] > models["target"]["answers"] + 0.1
    assert min(models["tides"]["answers"], models["roads"]["answers"]) > models["target"]["answers"]
    told = done.result["answers"]
    rows = {kind: [json.loads(x) for x in (out / "preferences" / f"{kind}.jsonl").open()] for kind in ("sft", "dpo")}
    assert (len(rows["sft"]), len(rows["dpo"])) == (told["best"], told["pairs"])
    assert told["taken"]["tides"] > 10 and told["taken"]["roads"] > 10
    assert "to prefer them to the worst" in (out / "model" / "README.md").read_text()
    again = here("fuse", file, out, "--workers", 0, "--json")
    assert again.result["models"] == models and "conversations in" not in again.stderr
    # Another way to score is another fusion.
    (tmp_path / "reward.py").write_text(REWARD.replace("max(len(steps), 1)", "max(len(steps), 2)"))
    refused = here("fuse", file, out, "--workers", 0, check=False)
    assert refused.returncode == 2 and "holds another fusion" in refused.stderr and "score:" in refused.stderr


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_answers_and_weights(file, here, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    here("fuse", file, out, "--workers", 0)
    # While it lets sources answer, and while it trains.
    killed(file, other, lambda: len([*other.glob("answers/*/answers-*.parquet")]) >= 2)
    killed(file, other, lambda: any(other.glob("training/sft/checkpoint-*/trainer_state.json")))
    here("fuse", file, other, "--workers", 0)
    for part in ("answers", "preferences", "models", "model"):
        assert digests(other / part, "*.*") == digests(out / part, "*.*"), part
    shutil.rmtree(other)
