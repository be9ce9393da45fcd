"""The item-response model: responders with known parameters are found again, whatever is missing."""

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import spearmanr

from evomerge.study.estimator import Prior, abilities, fit
from evomerge.study.estimator.model import DIFFICULTY_RIDGE, DISCRIMINATION_RIDGE, ItemResponse
from tests.study.estimator.responders import simulated


def rmse(a, b):
    return float(np.sqrt(np.mean((a - b) ** 2)))


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_probabilities_and_the_order_of_responders_are_found(missing):
    answers, p, *_ = simulated(0, responders=120)
    given = np.where(np.random.default_rng(1).random(answers.shape) < missing, np.nan, answers)
    model = fit(given, 2)
    found = model.probabilities(model.abilities)
    # Rasch without abilities knows each item's mean, and no more; 120 answers tell an item's curve to about .09.
    assert rmse(found, p) < (0.09 if not missing else 0.11) < 0.6 * rmse(np.nanmean(given, axis=0), p)
    assert spearmanr(found.mean(axis=1), p.mean(axis=1)).statistic > 0.97
    unseen = np.isnan(given)
    if missing:
        assert rmse(found[unseen], p[unseen]) < 0.12


def test_it_is_where_the_penalised_likelihood_has_no_slope():
    answers, *_ = simulated(2, responders=30, items=80)
    answers[::3, ::5] = np.nan
    model = fit(answers, 2)
    wrong = np.where(np.isnan(answers), 0.0, model.probabilities(model.abilities) - answers)
    off = model.discriminations - [1.0, 0.0]
    assert np.abs(wrong @ model.discriminations + model.abilities).max() < 0.05
    assert np.abs(wrong.T @ model.abilities + DISCRIMINATION_RIDGE * off).max() < 0.05
    start = np.log(
        (np.nansum(answers, axis=0) + 0.5) / (np.isfinite(answers).sum(axis=0) - np.nansum(answers, 0) + 0.5)
    )
    slope = wrong.sum(axis=0) - DIFFICULTY_RIDGE * (model.difficulties + start.mean())
    assert np.abs(slope).max() < 0.05


def test_items_and_responders_without_any_difference():
    answers, *_ = simulated(3, responders=25, items=100)
    answers[:, 0], answers[:, 1], answers[0], answers[1] = 1.0, 0.0, 0.0, 1.0
    answers[:, 2] = np.nan
    model = fit(answers)
    p = model.probabilities(model.abilities)
    assert np.isfinite(p).all()
    assert p[2:, 0].min() > 0.75 and p[2:, 1].max() < 0.2 and p[0].mean() < 0.15 and p[1].mean() > 0.85
    alike = fit(np.ones((5, 20)))
    assert alike.probabilities(alike.abilities).min() > 0.8


def test_parts_of_an_answer_are_answers():
    _, p, *_ = simulated(4, responders=40, items=120)
    model = fit(p, 2)  # the expected answers themselves
    assert rmse(model.probabilities(model.abilities), p) < 0.05


@pytest.mark.parametrize("answers", [[[0.0, 1.2]], [[-0.1, 1.0]], [[np.nan, np.nan]]])
def test_what_no_model_can_be_fitted_to_is_refused(answers):
    with pytest.raises(ValueError, match="0 to 1"):
        fit(np.array(answers))


def test_it_is_the_same_in_another_process_on_another_number_of_threads():
    """A search that goes on elsewhere must be told the same."""
    program = (
        "import sys; from tests.study.estimator.responders import simulated\n"
        "from evomerge.study.estimator import Prior, abilities, fit\n"
        "y = simulated(5, 60, 800)[0]; m = fit(y[20:])\n"
        "sys.stdout.write(abilities(m, y[:20], Prior.population(m)).tobytes().hex())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "OMP_NUM_THREADS": n, "OPENBLAS_NUM_THREADS": n},
            capture_output=True, text=True, check=True,
        ).stdout
        for n in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1 and len(found.pop()) == 20 * 3 * 16


def known_model(seed):
    answers, _, theta, a, b = simulated(seed)
    return answers, ItemResponse(theta, a, b)


@pytest.mark.parametrize("kind", ["population", "combinations"])
def test_abilities_are_the_most_probable_ones(kind):
    answers, model = known_model(6)
    given = np.where(np.arange(300) < 40, answers[:5], np.nan)
    given[2] = np.where(np.arange(300) < 200, 1.0, np.nan)
    prior = Prior.population(model, 2.0) if kind == "population" else Prior.combinations(model, range(4), 0.5)
    found = abilities(model, given, prior)

    def loss(x, row):
        seen = np.isfinite(row)
        z = model.discriminations[seen] @ (prior.centre + prior.basis.T @ x) - model.difficulties[seen]
        return np.sum(np.logaddexp(0, z) - row[seen] * z) + 0.5 * prior.ridge * x @ x

    for row, theta in zip(given, found, strict=True):
        best = minimize(loss, np.zeros(len(prior.basis)), args=(row,), tol=1e-10).x
        assert theta == pytest.approx(prior.centre + prior.basis.T @ best, abs=1e-3)


def test_without_answers_an_ability_is_the_priors_middle():
    _, model = known_model(7)
    nothing = np.full((1, 300), np.nan)
    for prior in (Prior.population(model), Prior.combinations(model, [0, 1, 2])):
        assert abilities(model, nothing, prior)[0] == pytest.approx(prior.centre)
    assert Prior.combinations(model, [0, 1, 2]).centre == pytest.approx(model.abilities[:3].mean(axis=0))


def test_combinations_of_the_sources_are_found_and_nothing_beside_them():
    random = np.random.default_rng(8)
    _, model = known_model(8)
    sources = np.array([0, 1])
    wanted = np.array([0.7, 0.4]) @ model.abilities[sources]
    answers = (random.random((200, 300)) < model.probabilities(wanted[None])) * 1.0
    found = abilities(model, answers, Prior.combinations(model, sources, 0.1))
    error = found - wanted
    p = model.probabilities(wanted[None])[0]
    information = (model.discriminations * (p * (1 - p))[:, None]).T @ model.discriminations
    # Cramér and Rao: the spread of estimates from 300 answers.
    assert np.cov(error.T) == pytest.approx(np.linalg.inv(information), abs=0.02)
    assert np.abs(error.mean(axis=0)).max() < 0.06
    one = abilities(model, answers[:5], Prior.combinations(model, [0], 0.1))
    assert np.abs(one[:, 0] * model.abilities[0, 1] - one[:, 1] * model.abilities[0, 0]).max() < 1e-9
