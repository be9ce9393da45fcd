"""Candidates that fail alone, and scores that are the same every time."""

import pytest

from evomerge.study.store import Store


def test_weights_that_overflow_are_failed_candidates_with_the_tensors_name(here, small_evaluator, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text(
        "method: task_arithmetic\nbase_model: zoo:base\nsources: [zoo:maths]\n"
        "parameters: {weight: {low: 1.0e+38, high: 3.0e+42, log: true}}\ndtype: float32\n"
    )
    out = tmp_path / "o"
    args = (
        "search",
        space,
        "--evaluator",
        small_evaluator,
        "--workers",
        0,
        "--budget",
        4,
        "--study",
        "s",
        "--out",
        out,
    )
    done = here(*args, check=False)
    assert done.returncode == 1 and "all 4 candidates failed" in done.stderr
    trials = Store(f"sqlite:///{out / 'study.db'}").open("s").trials()
    assert [t.state.value for t in trials] == ["FAIL"] * 4
    assert all(".weight" in t.reason for t in trials), [t.reason for t in trials]


def test_an_evaluator_that_raises_fails_its_candidate_alone(here, tmp_path):
    (tmp_path / "score.py").write_text(
        "calls = 0\n"
        "def score(model, tokenizer, split):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if split == 'search' and calls % 4 == 0:\n"
        "        raise ValueError('no luck')\n"
        "    return {f'{split}-{i}': float(model.model.norm.weight[i]) for i in range(8)}\n"
    )
    evaluator = tmp_path / "e.yaml"
    evaluator.write_text("kind: python\nfunction: score.py:score\ntasks: [norm]\n")
    args = ("search", "--evaluator", evaluator, "--workers", 0, "--budget", 8, "--study", "s", "--out", tmp_path / "o")
    # The baselines are scored first (5 of them, 1 of which hits the fourth call): a source that cannot be scored stops.
    refused = here(*args, check=False)
    assert refused.returncode == 1 and "cannot be scored: ValueError: no luck" in refused.stderr
    done = here(*args, "--json")
    assert done.result["candidates"]["failed"] >= 1 and done.result["candidates"]["complete"] >= 5
    failed = [t for t in Store(f"sqlite:///{tmp_path / 'o' / 'study.db'}").open("s").trials() if t.reason]
    assert {t.reason for t in failed} == {"ValueError: no luck"}


@pytest.mark.ci
def test_a_function_that_draws_draws_the_same_every_time(here, tmp_path):
    (tmp_path / "score.py").write_text(
        "import random\nimport numpy as np\nimport torch\n"
        "def score(model, tokenizer, split):\n"
        "    noise = random.random() + np.random.rand() + float(torch.rand(1))\n"
        "    return {f'{split}-{i}': float(model.model.norm.weight[i]) + noise for i in range(8)}\n"
    )
    (tmp_path / "e.yaml").write_text("kind: python\nfunction: score.py:score\ntasks: [norm]\n")
    args = ("search", "--evaluator", tmp_path / "e.yaml", "--workers", 0, "--budget", 3, "--json", "--out")
    first, second = (here(*args, tmp_path / name).result for name in "ab")
    assert first["best"] == second["best"] and first["baselines"] == second["baselines"]
