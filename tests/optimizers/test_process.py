"""The Gaussian process is what its scores make it: held against GPyTorch's, whatever the threads."""

from __future__ import annotations

import itertools
import math

import gpytorch
import numpy as np
import pytest
import torch
from scipy.optimize import check_grad
from threadpoolctl import threadpool_info

from evomerge.optimizers import hyperparameters, process
from evomerge.optimizers.hyperparameters import Hyperparameters, Likelihood, fit, one_thread, standardised
from evomerge.optimizers.process import Process

MEAN_AND_MANY = [True] + [False] * 4000


def scores(seed, count=40):
    random = np.random.default_rng(seed)
    points = random.uniform(size=(count, 3))
    errors = random.uniform(0.02, 0.3, count)
    return points, np.sin(4 * points).sum(axis=1) + errors * random.standard_normal(count), errors


class Exact(gpytorch.models.ExactGP):
    """GPyTorch's process, which ours is held against."""

    def __init__(self, x, y, likelihood):
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        size = x.shape[1]
        prior = gpytorch.priors.LogNormalPrior(math.sqrt(2) + 0.5 * math.log(size), math.sqrt(3))
        self.covar_module = gpytorch.kernels.MaternKernel(nu=2.5, ard_num_dims=size, lengthscale_prior=prior)

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def exact(points, found, errors, hyper):
    """GPyTorch's process of these scores with these hyperparameters, and its likelihood."""
    y, noise = standardised(found, errors)
    likelihood = gpytorch.likelihoods.FixedNoiseGaussianLikelihood(noise, learn_additional_noise=True).double()
    model = Exact(torch.as_tensor(points), y, likelihood).double()
    prior = gpytorch.priors.LogNormalPrior(-4.0, 1.0)
    likelihood.second_noise_covar.register_prior("noise_prior", prior, lambda m: m.noise)
    model.covar_module.lengthscale = torch.as_tensor(hyper.lengths)
    model.mean_module.constant = hyper.mean
    likelihood.second_noise = hyper.error**2
    return model, likelihood


def flat(hyper):
    return np.array([*np.log(hyper.lengths), hyper.mean, 2 * math.log(hyper.error)])


HYPER = Hyperparameters(np.array([0.5, 0.8, 1.3]), 0.1, 0.15)


def test_functions_have_the_posterior_s_mean_and_covariance():
    """Against GPyTorch's own exact posterior, with the same hyperparameters, at new places."""
    points, found, errors = scores(1)
    model, _ = exact(points, found, errors, HYPER)
    model.eval()
    where = torch.as_tensor(np.random.default_rng(2).uniform(size=(6, 3)))
    with torch.no_grad():
        posterior = model(where)
    mean = posterior.mean.numpy() - HYPER.mean
    double = Process(points, found, errors, HYPER, torch.float64)
    drawn = double.functions(MEAN_AND_MANY, np.random.default_rng(3))(where).numpy()
    assert drawn.shape == (4001, 6)
    np.testing.assert_allclose(drawn[0], mean, atol=1e-8)
    np.testing.assert_allclose(drawn[1:].mean(axis=0), mean, atol=0.05)
    # One basis of random features for all of them: covariances are near, not exact.
    np.testing.assert_allclose(np.cov(drawn[1:].T), posterior.covariance_matrix.numpy(), atol=0.05)
    single = Process(points, found, errors, HYPER).functions(MEAN_AND_MANY, np.random.default_rng(3))(where.float())
    np.testing.assert_allclose(single.numpy(), drawn, atol=1e-3)


def test_what_single_precision_cannot_tell_apart_is_reckoned_in_double():
    """Length scales of the shortest, in many parameters, and places nearly alike."""
    random = np.random.default_rng(24)
    points = 0.9 + 1e-7 * random.uniform(size=(200, 100))
    hyper = Hyperparameters(np.full(100, hyperparameters.SHORTEST), 0.0, 0.01)
    found, errors = random.standard_normal(200), np.full(200, 0.01)
    with pytest.raises(torch.linalg.LinAlgError):
        process._factored(points, hyper.lengths, torch.full((200,), 0.01), torch.float32)
    maxima = Process(points, found, errors, hyper).maxima([True, False], random)
    assert maxima.shape == (2, 100) and np.isfinite(maxima).all()


def test_other_points_for_each_function_are_the_same_functions():
    points, found, errors = scores(4)
    known = Process(points, found, errors, fit(points, found, errors), torch.float64)
    functions = known.functions([True, False, False], np.random.default_rng(5))
    where = torch.as_tensor(np.random.default_rng(6).uniform(size=(7, 3)))
    together = functions(where)
    torch.testing.assert_close(functions.each(where.expand(3, 7, 3)), together)


def test_gradients_are_those_of_the_functions():
    points, found, errors = scores(12)
    functions = Process(points, found, errors, HYPER, torch.float64).functions([True, False], np.random.default_rng(13))
    # One of a score's own places among them, where the kernel has no kink.
    where = torch.as_tensor(np.random.default_rng(14).uniform(size=(2, 4, 3)))
    where[1, 2] = torch.as_tensor(points[0])
    found = functions.gradients(where)
    for axis in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[axis] = 1e-5
        slope = (functions.each(where + step) - functions.each(where - step)) / 2e-5
        torch.testing.assert_close(found[:, :, axis], slope, atol=1e-5, rtol=1e-5)


def test_climbing_keeps_to_the_cube_and_comes_higher():
    points, found, errors = scores(15)
    functions = Process(points, found, errors, HYPER).functions([True] + [False] * 7, np.random.default_rng(16))
    starts = torch.as_tensor(np.random.default_rng(17).uniform(size=(8, 5, 3))).float()
    climbed = functions.climbed(starts)
    assert ((climbed >= 0) & (climbed <= 1)).all()
    assert (functions.each(climbed) > functions.each(starts)).float().mean() > 0.9
    fine = torch.as_tensor(np.stack(np.meshgrid(*[np.linspace(0, 1, 25)] * 3), axis=-1).reshape(-1, 3)).float()
    lacks = functions(fine).amax(dim=1) - functions.each(climbed).amax(dim=1)
    assert (lacks < 0.1).float().mean() > 0.7


def test_the_likelihood_is_gpytorch_s():
    """But for a constant; and its gradient is its own."""
    points, found, errors = scores(18)
    ours = Likelihood(points, found, errors)
    values = []
    for hyper in (HYPER, Hyperparameters(np.array([2.0, 0.1, 4.0]), -0.3, 0.4)):
        model, likelihood = exact(points, found, errors, hyper)
        model.train()
        with torch.no_grad():
            density = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
            theirs = density(model(*model.train_inputs), model.train_targets)
        values.append((ours(flat(hyper))[0], -float(theirs)))
        assert check_grad(lambda x: ours(x)[0], lambda x: ours(x)[1], flat(hyper)) < 1e-5
    (one, other), (two, another) = values
    assert one - two == pytest.approx(other - another, abs=1e-8)


def test_nothing_is_more_likely_than_what_is_fitted():
    points, found, errors = scores(19)
    ours, fitted = Likelihood(points, found, errors), flat(fit(points, found, errors))
    random = np.random.default_rng(20)
    assert all(ours(fitted + 0.05 * random.standard_normal(5))[0] > ours(fitted)[0] for _ in range(50))


def test_a_line_search_that_steps_far_overflows_nothing():
    """Of 3,000 drawn tables this one took the logarithm of the noise to 7,950 where it had no bound."""
    random = np.random.default_rng(1344)
    count, size = int(random.integers(16, 60)), int(random.integers(1, 16))
    points = np.clip(0.5 + random.uniform(0.01, 0.4) * random.standard_normal((count, size)), 0, 1)
    found = random.choice([0, 1]) * np.sin(3 * points).sum(1) + random.uniform(0, 1) * random.standard_normal(count)
    errors = random.uniform(0, 2) * random.uniform(0, 1, count) * random.choice([0, 1])
    ours = Likelihood(points, found, errors)
    lengths, remains = ours.bounds[0], ours.bounds[-1]
    for corner in itertools.product(lengths, (-1e6, 1e6), remains):
        value, grad = ours(np.array([*[corner[0]] * size, *corner[1:]]))
        assert math.isfinite(value) and np.isfinite(grad).all()
    fitted = flat(fit(points, found, errors))
    assert np.isfinite(fitted).all()
    assert ours(fitted)[0] < ours(ours.start)[0]


def test_fit_finds_which_parameters_matter():
    random = np.random.default_rng(7)
    points = random.uniform(size=(60, 4))
    found = fit(points, np.sin(5 * points[:, 1]) + 0.3 * points[:, 3], np.full(60, 0.01))
    assert np.argsort(found.lengths)[:2].tolist() == [1, 3]
    assert found.error < 0.2


def test_maxima_lie_where_the_function_is_highest():
    random = np.random.default_rng(8)
    points = random.uniform(size=(80, 2))
    found = -((points - [0.3, 0.9]) ** 2).sum(axis=1)
    errors = np.full(80, 0.001)
    process_ = Process(points, found, errors, fit(points, found, errors))
    maxima = process_.maxima([True] + [False] * 7, np.random.default_rng(9))
    assert ((maxima >= 0) & (maxima <= 1)).all()
    np.testing.assert_allclose(maxima, np.tile([0.3, 0.9], (8, 1)), atol=0.15)


def test_threads_change_nothing():
    points, found, errors = scores(10, 200)
    with one_thread():
        hyper = fit(points, found, errors)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
            np.testing.assert_array_equal(fit(points, found, errors).lengths, hyper.lengths)
            maxima = Process(points, found, errors, hyper).maxima([False] * 3, np.random.default_rng(21))
        assert torch.get_num_threads() == 2
        again = Process(points, found, errors, hyper).maxima([False] * 3, np.random.default_rng(21))
        np.testing.assert_array_equal(again, maxima)
    finally:
        torch.set_num_threads(before)


def test_scipy_has_one_thread_too(monkeypatch):
    threads = []

    class Watched(Likelihood):
        def __call__(self, flat):
            threads.extend(i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas")
            return super().__call__(flat)

    monkeypatch.setattr(hyperparameters, "Likelihood", Watched)
    fit(*scores(22))
    assert threads and set(threads) == {1}
