"""Full scores from few answers: as good as theory says, and plain where the model knows no better."""

import numpy as np
import pytest

from evomerge.study.estimator import KINDS, ItemResponse, Prior, anchors, compare, fit, informative, means, paired
from evomerge.study.estimator import predicted as predict
from evomerge.study.estimator.validation import FEWEST, MEAN, PAIRED, Choice
from tests.study.estimator.responders import simulated

EQUAL = np.full(300, 1 / 300)


def test_plain_ones_by_hand():
    answers = np.array([[1.0, 0.0, np.nan, np.nan], [1.0, 1.0, 0.0, np.nan]])
    weights, anchor = np.array([0.1, 0.3, 0.2, 0.4]), np.array([0.0, 1.0, 1.0, 1.0])
    assert means(answers, weights) == pytest.approx([0.25, 0.4 / 0.6])
    # The anchor has .9; on the first two items .75, on the first three .5 / .6.
    assert paired(answers, weights, anchor) == pytest.approx([0.9 + 0.25 - 0.75, 0.9 + (0.4 - 0.5) / 0.6])


def test_with_all_items_every_estimate_is_the_score():
    answers, *_ = simulated(0, responders=20)
    weights = np.random.default_rng(0).dirichlet(np.ones(300))
    model = fit(answers[5:])
    for values in predict(model, answers[:5], weights, Prior.population(model)).values():
        assert values == pytest.approx(answers[:5] @ weights, abs=1e-6)


def test_errors_are_what_theory_says():
    """With the items' true parameters: the plain mean's error is that of a draw without replacement.

    The model's is less, and more than the noise of the answers that were not seen, which nobody knows.
    """
    answers, p, theta, a, b = simulated(1, responders=400)
    model = ItemResponse(theta, a, b)
    count, truth = 60, answers.mean(axis=1)
    given = np.where(np.arange(300) < count, answers, np.nan)
    found = predict(model, given, EQUAL, Prior.population(model)) | {MEAN: means(given, EQUAL)}
    errors = {kind: np.sqrt(np.mean((values - truth) ** 2)) for kind, values in found.items()}
    drawn = np.sqrt(np.mean(answers.var(axis=1, ddof=1)) * (1 - count / 300) / count)
    noise = np.sqrt(np.mean((p * (1 - p))[:, count:].sum(axis=1))) / 300
    assert errors[MEAN] == pytest.approx(drawn, rel=0.25)
    assert noise < errors["p-IRT"] < 0.95 * errors[MEAN]
    assert errors["gp-IRT"] < 0.95 * errors[MEAN] and errors["difference"] < errors[MEAN]


def test_the_difference_estimator_corrects_a_wrong_model():
    answers, _, theta, a, b = simulated(2, responders=40)
    wrong = ItemResponse(theta, a, b + 1.5)
    prior = Prior(theta.mean(axis=0), 0.05 * np.eye(2))  # abilities may not make up for it
    off = dict.fromkeys(KINDS, 0.0)
    for seed in range(20):
        seen = np.random.default_rng(seed).permutation(300) < 60
        found = predict(wrong, np.where(seen, answers, np.nan), EQUAL, prior)
        for kind in KINDS:
            off[kind] += float((found[kind] - answers.mean(axis=1)).mean()) / 20
    assert off["p-IRT"] < -0.1 and abs(off["difference"]) < 0.01


def test_informative_items_tell_most():
    _, _, theta, a, b = simulated(3)
    a[:50] = 0.0  # tell nothing
    model = ItemResponse(theta, a, b)
    chosen = informative(model, 20)
    assert len(set(chosen.tolist())) == 20 and chosen.min() >= 50

    def known(items):
        p = model.probabilities(theta)[:, items]
        m = np.eye(2) + np.einsum("rn,nd,ne->rde", p * (1 - p), a[items], a[items])
        return float(np.linalg.slogdet(m)[1].mean())

    # The first is the best of all, each next one the best beside those before.
    for k in range(4):
        gains = [known([*chosen[:k], i]) if i not in chosen[:k] else -np.inf for i in range(300)]
        assert int(np.argmax(gains)) == chosen[k]
    random = np.random.default_rng(0)
    assert known(chosen) > max(known(random.choice(300, 20, replace=False)) for _ in range(50))


def test_anchors_stand_for_their_likes():
    kinds = np.array([[1.0, 0.0, -2.0], [1.0, 1.0, 0.0], [2.0, -1.0, 2.0]])
    label = np.repeat([0, 1, 2], [50, 30, 20])
    model = ItemResponse(np.zeros((1, 2)), kinds[label, :2], kinds[label, 2])
    chosen, mass = anchors(model, 3, np.full(100, 0.01))
    assert dict(zip(label[chosen].tolist(), mass.tolist(), strict=True)) == pytest.approx({0: 0.5, 1: 0.3, 2: 0.2})


def test_the_model_is_chosen_where_it_is_better():
    answers, *_ = simulated(4, responders=44)
    found = compare(answers[:4], answers[4:], EQUAL, (30, 60, 150, 300))
    assert found.kind in KINDS and found.errors[found.kind] < min(found.errors[MEAN], found.errors[PAIRED])
    said = str(found)
    assert said.startswith(f"estimates: the item-response model ({found.kind}), rmse .0")
    assert "of the paired difference" in said and said.endswith("40 complete candidates")
    assert found.order[found.kind] >= found.order[PAIRED] > 0.5


def test_the_model_is_not_used_where_it_orders_worse():
    errors = {MEAN: 0.03, PAIRED: 0.02, "p-IRT": 0.01, "gp-IRT": 0.015, "difference": 0.025}
    order = {MEAN: 0.8, PAIRED: 0.8, "p-IRT": 0.79, "gp-IRT": 0.8, "difference": 0.9}
    assert Choice(errors, order, 20).kind == "gp-IRT"
    worse = Choice(errors, order | {"gp-IRT": 0.7}, 20)
    assert worse.kind is None
    assert str(worse) == (
        "estimates: plain means, by their difference to the best; the item-response model (p-IRT) is no better: rmse "
        ".0100 against .0200 of the paired difference and .0300 of the plain mean, 79.0 % of near pairs in order "
        "against 80.0 %, 20 complete candidates"
    )


def test_where_nothing_can_be_learned_plain_means_stay():
    """Every answer a coin of its own, the coins alike: no item and no responder tells of another."""
    random = np.random.default_rng(5)
    plain = 0
    for _ in range(4):
        abilities = random.uniform(0.1, 0.9, 20)
        answers = (random.random((20, 100)) < abilities[:, None]) * 1.0
        found = compare(answers[:4], answers[4:], np.full(100, 0.01), (50, 100))
        assert min(found.errors[kind] for kind in KINDS) > 0.85 * found.errors[MEAN]
        if found.kind is None:
            plain += 1
            assert "is no better: rmse" in str(found) and "16 complete candidates" in str(found)
    assert plain


@pytest.mark.parametrize(
    ("rows", "change", "ends", "why"),
    [
        (FEWEST - 1, 0.0, (50, 300), f"{FEWEST - 1} complete candidates, at least {FEWEST} are needed"),
        (20, 2.0, (50, 300), "results that are not from 0 to 1"),
        (20, 0.0, (300,), "nobody stops early"),
    ],
)
def test_plain_means_are_used_and_the_reason_said(rows, change, ends, why):
    answers, *_ = simulated(6, responders=24)
    answers[0, 0] += change
    found = compare(answers[:4], answers[4 : 4 + rows], EQUAL, ends)
    assert found.kind is None and str(found) == f"estimates: plain means, by their difference to the best ({why})"
