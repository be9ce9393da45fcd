"""CMA-ES and CatCMA: what is special to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from evomerge.optimizers import make_optimizer
from evomerge.score import Value
from evomerge.space import Categorical, Float, Integer, Parameter, load_space

TEN: tuple[Parameter, ...] = tuple(Float(f"x{i}", 0.0, 1.5, 0.5) for i in range(10))


@pytest.mark.parametrize("name", ["cma", "catcma"])
def test_population_is_4_plus_3_ln_n(name: str) -> None:
    assert make_optimizer(name, TEN, seed=1).generation == 4 + math.floor(3 * math.log(10))


@pytest.mark.parametrize("name", ["cma", "catcma"])
@pytest.mark.parametrize("sigma", [1 / 6, 0.05])
def test_the_first_generation_has_the_asked_mean_and_spread(name: str, sigma: float) -> None:
    drawn = make_optimizer(name, TEN, seed=1, population=400, sigma=sigma).ask(400)
    values = np.array([[p[q.name] for q in TEN] for p in drawn], dtype=float) / 1.5
    assert values.mean(axis=0) == pytest.approx(np.full(10, 0.5 / 1.5), abs=0.04)
    assert values.std() == pytest.approx(sigma, rel=0.12)


@pytest.mark.parametrize("name", ["cma", "catcma"])
def test_the_first_step_is_a_quarter_of_each_range(name: str) -> None:
    assert make_optimizer(name, TEN, seed=1).ask(10) == make_optimizer(name, TEN, seed=1, sigma=0.25).ask(10)


@pytest.mark.parametrize("name", ["cma", "catcma"])
def test_of_wide_ranges_the_first_step_is_three_eighths(name: str) -> None:
    """Beside narrow ones, logarithms and integers, of which it is a quarter as else."""
    wide = [Float(f"w{i}", -20.0, 20.0, 0.5) for i in range(3)]
    narrow = [Float("n", 0.0, 0.5, 0.25), Float("l", 1e-4, 1.0, 1e-2, log=True), Integer("k", 0, 40, 20)]
    drawn = make_optimizer(name, [*wide, *narrow], seed=1, population=2000).ask(2000)
    for p in wide:
        assert np.std([float(d[p.name]) for d in drawn]) == pytest.approx(0.375, rel=0.06)
    # Cut off or folded back at the bounds, two steps away.
    assert np.std([float(d["n"]) for d in drawn]) == pytest.approx(0.125, rel=0.15)
    assert np.std([math.log10(float(d["l"])) for d in drawn]) == pytest.approx(1.0, rel=0.15)
    assert np.std([int(d["k"]) for d in drawn]) == pytest.approx(10.0, rel=0.15)
    alone = make_optimizer(name, wide, seed=1, population=2000).ask(2000)
    assert np.std([float(d["w0"]) for d in alone]) == pytest.approx(0.375, rel=0.06)


def test_initial_moves_the_mean() -> None:
    start: dict[str, Value] = {p.name: 1.2 for p in TEN}
    drawn = make_optimizer("cma", TEN, seed=1, population=200, sigma=0.02, initial=start).ask(200)
    assert np.mean([p["x3"] for p in drawn]) == pytest.approx(1.2, abs=0.02)  # type: ignore[arg-type]


def test_converges_and_says_so() -> None:
    optimizer = make_optimizer("cma", TEN[:4], seed=1, restarts="none")
    asked = 0
    while not optimizer.done and asked < 4000:
        candidates = optimizer.ask(optimizer.generation)
        optimizer.tell(candidates, [-sum((float(v) - 0.7) ** 2 for v in p.values()) for p in candidates])
        asked += len(candidates)
    assert optimizer.done and asked < 2000
    assert list(candidates[0].values()) == pytest.approx([0.7] * 4, abs=1e-2)


def test_a_plateau_is_no_convergence() -> None:
    """Accuracies on a few items tie for many generations."""
    optimizer = make_optimizer("cma", TEN, seed=1, restarts="none")
    for _ in range(60):
        candidates = optimizer.ask(optimizer.generation)
        optimizer.tell(candidates, [0.25] * len(candidates))
    assert not optimizer.done


def test_leaves_no_files_and_reads_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cma_signals.in").write_text("{'maxfevals': 1}")
    optimizer = make_optimizer("cma", TEN, seed=1)
    for _ in range(5):
        candidates = optimizer.ask(optimizer.generation)
        optimizer.tell(candidates, [float(p["x0"]) for p in candidates])
    assert not optimizer.done
    assert [p.name for p in tmp_path.iterdir()] == ["cma_signals.in"]


def test_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("cma", "catcma", "tpe", "random"):
        optimizer = make_optimizer(name, TEN[:1], seed=1)
        for _ in range(3):
            candidates = optimizer.ask(optimizer.generation)
            optimizer.tell(candidates, [0.1] * len(candidates))
    assert capfd.readouterr() == ("", "")


def test_catcma_finds_the_best_category_with_the_numbers() -> None:
    parameters = (*TEN[:4], Categorical("a", ("u", "v", "w"), "u"), Categorical("b", ("u", "v", "w", "x"), "u"))

    def score(p: Mapping[str, Value]) -> float:
        return -sum((float(p[f"x{i}"]) - 0.9) ** 2 for i in range(4)) + 0.5 * (p["a"] == "w") + 0.5 * (p["b"] == "v")

    optimizer = make_optimizer("catcma", parameters, seed=1)
    for _ in range(40):
        candidates = optimizer.ask(optimizer.generation)
        optimizer.tell(candidates, [score(p) for p in candidates])
    last = max(candidates, key=score)
    assert (last["a"], last["b"]) == ("w", "v")
    assert score(last) > 0.98


@pytest.mark.ci
@pytest.mark.parametrize("name", ["quickstart", "ties_dare_layerwise"])
def test_presets_are_searched_from_their_start(name: str) -> None:
    """A stand-in landscape on a preset's own parameters: sources 1 and 2 wanted at 0.8, the third at 0."""
    space = load_space(name).bind(4)

    def score(p: Mapping[str, Value]) -> float:
        return -float(np.mean([(float(v) - (0 if ".sorting." in n else 0.8)) ** 2 for n, v in p.items()]))

    optimizer = make_optimizer("auto", space.parameters, seed=0, initial=space.initial())
    best = -1.0
    for _ in range(200 // optimizer.generation):
        candidates = optimizer.ask(optimizer.generation)
        scores = [score(p) for p in candidates]
        assert space.decode(candidates[0], seed=1).evomerge.seed == 1
        optimizer.tell(candidates, scores)
        best = max(best, *scores)
    assert best > score(space.initial()) / 3
