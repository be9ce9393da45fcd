"""Racing: the best are dropped as rarely as is said, whatever the order, the blocks and the rivals."""

import numpy as np
import pytest

from evomerge.study.contest import FAILED, RACED_OUT, SETTLED, Contest, Rules, below, reliability
from evomerge.study.racing import STAKES, Race


def raced(table, best, drop, ends, rivals=None, weights=None):
    """(candidates dropped, items that each had)."""
    items = table.shape[1]
    race = Race(len(table), best, np.full(items, 1 / items) if weights is None else weights, drop, rivals)
    start, had = 0, {}
    for end in ends:
        dropped = race.see({c: table[c, start:end] for c in race.left})
        had.update({c: end for c in dropped})
        start = end
    return had


def answers(random, abilities, items):
    difficulty = random.normal(0, 1, items)
    return (random.random((len(abilities), items)) < 1 / (1 + np.exp(difficulty - np.array(abilities)[:, None]))) * 1.0


def test_hopeless_candidates_are_dropped_early():
    random = np.random.default_rng(0)
    table = answers(random, [1.5] * 5 + [-1.5] * 5, 800)
    had = raced(table, 5, 0.1, (80, 160, 280, 400, 600, 800))
    assert set(had) == {5, 6, 7, 8, 9} and max(had.values()) <= 280


@pytest.mark.parametrize("close", [0.0, 0.05, 0.3])
def test_the_true_best_is_dropped_in_at_most_the_stated_share(close):
    """Over all items, which is what is meant; half of the studies may end with the best far down a short prefix."""
    drop, studies, lost = 0.3, 300, 0
    for seed in range(studies):
        random = np.random.default_rng(seed)
        table = answers(random, [close, *[0.0] * 3], 60)
        best = int(np.argmax(table.mean(axis=1)))
        lost += best in raced(table, 1, drop, range(1, 61))  # looks after every item
    assert lost / studies <= drop


def test_a_bet_is_fair_where_both_are_as_good():
    """Over all orders of the items the capital's mean is 1: by hand for one pair, each stake by itself."""
    from itertools import permutations

    ours, other = np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.0, 1.0, 1.0, 0.0])
    capitals = []
    for order in permutations(range(4)):
        race = Race(2, 1, np.full(4, 0.25), 1e-9)
        # Three of the four: with the last one nothing is left to chance.
        race.see({0: ours[list(order)][:3], 1: other[list(order)][:3]})
        capitals.append(np.exp(race._capital[:, 0, 1]))
    np.testing.assert_allclose(np.mean(capitals, axis=0), np.ones(len(STAKES)), rtol=1e-12)


def test_blocks_change_nothing_but_when_one_looks():
    table = answers(np.random.default_rng(3), [1.0, 0.5, 0.0, -0.5, -1.0, -2.0], 300)
    whole, parts = (Race(6, 2, np.full(300, 1 / 300), 1e-100) for _ in range(2))
    whole.see({c: table[c, :200] for c in range(6)})
    for start in range(0, 200, 25):
        parts.see({c: table[c, start : start + 25] for c in range(6)})
    assert whole.evidence() == pytest.approx(parts.evidence())


def test_rivals_take_places_and_are_never_dropped():
    random = np.random.default_rng(1)
    table, rivals = answers(random, [-2.0] * 3, 400), answers(random, [2.0] * 2, 400)
    assert not raced(table, 3, 0.1, (100, 400))
    assert set(raced(table, 2, 0.1, (100, 400), rivals)) == {0, 1, 2}


def test_heavier_items_count_more():
    """Candidate 0 wins the one item that makes up half of the score, candidate 1 all the others but loses."""
    items = 101
    table = np.zeros((2, items))
    table[0, 50], table[1] = 1.0, 1.0
    table[1, 50] = 0.0
    weights = np.full(items, 0.4 / 100)
    weights[50] = 0.6
    assert 0 not in raced(table, 1, 0.1, (20, 40, 60, 80, 101), weights=weights)


def test_results_must_be_those_of_who_is_left_and_within_bounds():
    race = Race(2, 1, np.full(10, 0.1), 0.1)
    with pytest.raises(ValueError, match="expected those that are left"):
        race.see({0: [1.0]})
    with pytest.raises(ValueError, match="from 0 to 1"):
        race.see({0: [1.0], 1: [1.5]})


def test_reliability_is_kuder_and_richardsons_formula_20():
    """KR-20 = k / (k - 1) (1 - sum p q / s^2), with the variance over candidates of their sums."""
    table = answers(np.random.default_rng(5), [1, 0.5, 0, -0.5, -1], 40)
    p, k = table.mean(axis=0), table.shape[1]
    kr20 = k / (k - 1) * (1 - (p * (1 - p)).sum() / table.sum(axis=1).var())
    assert reliability(table, 10**12) == pytest.approx(kr20)
    assert reliability(table, 40) == 1.0  # with all items nothing is left to the draw
    assert reliability(np.tile([0.0, 1.0], (3, 5)), 100) == 1.0


def contest(table, parents=3, leader=None, **rules):
    items = table.shape[1]
    made = Contest(Rules.over(np.full(items, 1 / items), **rules), len(table), parents, leader)
    for start, end in made.blocks():
        made.see({c: table[c, start:end] for c in made.left})
    return made


def test_a_settled_generation_stops_and_its_best_goes_on_alone():
    table = answers(np.random.default_rng(0), np.linspace(-2, 2, 8), 640)
    made = contest(table)
    assert made.stopped and set(made.stopped.values()) <= {RACED_OUT, SETTLED}
    whole = [c for c in range(8) if made.seen(c) == 640]
    assert whole == [7] and max(made.seen(c) for c in range(7)) <= 224
    assert made.estimate(7) == pytest.approx(table[7].mean())


def test_a_leader_out_of_reach_leaves_nobody():
    table = answers(np.random.default_rng(0), np.linspace(-2, 0, 8), 640)
    made = contest(table, leader=answers(np.random.default_rng(0), [3.0], 640)[0])
    assert not [c for c in range(8) if made.seen(c) == 640]


def test_alike_candidates_have_all_items():
    made = contest(answers(np.random.default_rng(2), [0.0] * 6, 640))
    assert [made.seen(c) for c in range(6)] == [640] * 6 and not made.stopped


def test_results_out_of_bounds_are_compared_and_nobody_is_dropped():
    table = -answers(np.random.default_rng(0), np.linspace(-2, 2, 8), 640) * 3
    made = contest(table)
    assert set(made.stopped.values()) == {SETTLED} and made.seen(0) == 640


def test_one_that_fails_takes_no_further_part():
    table = answers(np.random.default_rng(2), [0.0] * 4, 160)
    made = Contest(Rules.over(np.full(160, 1 / 160), reliability=2.0), 4, 2)
    for number, (start, end) in enumerate(made.blocks()):
        if number == 1:
            made.fail(2)
        made.see({c: table[c, start:end] for c in made.left})
    assert made.stopped == {2: FAILED} and made.seen(2) == 16 and made.seen(0) == 160


def test_raced_out_ones_are_told_below_all_others():
    assert below([0.5, 0.6, 0.7, None, 0.2], {0: 100, 2: 200, 1: 100}) == [
        np.nextafter(np.nextafter(np.nextafter(0.2, -1), -1), -1),
        np.nextafter(np.nextafter(0.2, -1), -1),
        np.nextafter(0.2, -1),
        None,
        0.2,
    ]
    assert below([0.1, 0.5], {0: 10}) == [0.1, 0.5]


@pytest.mark.parametrize(
    ("items", "ends"), [(5, (5,)), (31, (31,)), (64, (22, 32, 48, 64)), (800, (80, 160, 280, 400, 600, 800))]
)
def test_blocks(items, ends):
    assert Rules.over(np.full(items, 1 / items)).ends == ends
