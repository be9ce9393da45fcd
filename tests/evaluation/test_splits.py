"""Items fall into search, select and test by their content alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import EvaluatorError
from evomerge.evaluation.config import SplitConfig, Splits
from evomerge.evaluation.splits import content_id, divide, place

ITEMS = [{"prompt": f"question {i}", "answer": str(i)} for i in range(400)]


def ids(found, split):
    return [i.id for i in found[split]]


def test_splits_are_disjoint_and_cover_their_shares():
    found = divide(ITEMS, Splits(), 0, "t")
    names = [i for split in found for i in ids(found, split)]
    assert len(names) == len(set(names)) == len(ITEMS)
    # Binomial: 4 standard deviations of 400 draws.
    for split, share in (("search", 0.3), ("select", 0.2), ("test", 0.5)):
        assert abs(len(found[split]) - 400 * share) < 4 * (400 * share * (1 - share)) ** 0.5


def test_an_items_split_does_not_depend_on_the_others():
    whole = divide(ITEMS, Splits(), 0, "t")
    half = divide(ITEMS[::2], Splits(), 0, "t")
    for split in whole:
        assert set(ids(half, split)) <= set(ids(whole, split))


def test_the_seed_changes_the_split_and_the_order_of_the_data_does_not():
    first, other = divide(ITEMS, Splits(), 0, "t"), divide(ITEMS, Splits(), 1, "t")
    assert ids(first, "test") != ids(other, "test")
    assert set(ids(divide(ITEMS[::-1], Splits(), 0, "t"), "test")) == set(ids(first, "test"))


def test_equal_items_share_a_split_and_keep_ids_of_their_own():
    found = divide(ITEMS + ITEMS[:50], Splits(), 0, "t")
    for split in found:
        names = ids(found, split)
        assert len(set(names)) == len(names)
        assert all(n.removesuffix("#2") in names for n in names)


def test_a_cap_keeps_the_first_by_hash_in_the_order_of_the_data():
    capped = divide(ITEMS, Splits(test=SplitConfig(share=0.5, items=20)), 0, "t")["test"]
    whole = divide(ITEMS, Splits(), 0, "t")["test"]
    assert [i.index for i in capped] == sorted(i.index for i in capped)
    first = sorted(whole, key=lambda i: place(i.id, 0))[:20]
    assert {i.id for i in capped} == {i.id for i in first}


@pytest.mark.parametrize(
    ("items", "splits", "words"),
    [
        (ITEMS[:2], Splits(), "holds 0 of the 2 items"),
        (
            ITEMS,
            Splits(search=SplitConfig(share=0.3, items=1000)),
            r"splits\.search: items = 1,000 are asked for, and its share of 0\.3 holds 117 of the 400 items; expected "
            "items of at most 117 or more items in the task",
        ),
        (ITEMS, Splits(select=SplitConfig(share=0.2, items=90)), r"splits\.select: items = 90 .* holds \d+ of the 400"),
    ],
)
def test_a_split_that_cannot_be_filled_is_refused(items, splits, words):
    with pytest.raises(EvaluatorError, match=words):
        divide(items, splits, 0, "t")


@pytest.mark.parametrize(("split", "share"), [("search", 0.3), ("select", 0.2), ("test", 0.4)])
def test_a_split_larger_than_its_items_says_which_share_would_do(split, share):
    """The share that the message names holds as many as were asked for, one a thousandth smaller does not."""
    shares = {"search": 0.3, "select": 0.2, "test": 0.4} | {split: share}

    def splits(changed):
        given = {name: SplitConfig(share=min(s, 0.99)) for name, s in (shares | {split: changed}).items()}
        given[split] = given[split].model_copy(update={"items": wanted})
        rest = [name for name in ("search", "select", "test") if name != split]
        # Room for it: those that follow shrink, those before stay, for they say where it starts.
        for name in rest[("search", "select", "test").index(split) :]:
            given[name] = SplitConfig(share=0.01)
        return Splits(**given)

    wanted = len(divide(ITEMS, splits_of(shares), 0, "t")[split]) + 12
    with pytest.raises(EvaluatorError) as caught:
        divide(ITEMS, splits(share), 0, "t")
    needed = float(str(caught.value).partition("a share of ")[2].split()[0].rstrip(","))
    assert len(divide(ITEMS, splits(needed), 0, "t")[split]) == wanted
    with pytest.raises(EvaluatorError):
        divide(ITEMS, splits(needed - 0.001), 0, "t")


def test_less_for_the_others_where_the_shares_are_given_away():
    with pytest.raises(EvaluatorError, match=r"a share of 0\.[34]\d*, and so much less for the others"):
        divide(ITEMS, Splits(search=SplitConfig(share=0.3, items=140)), 0, "t")


def splits_of(shares):
    return Splits(**{name: SplitConfig(share=s) for name, s in shares.items()})


@given(st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.lists(st.text()))))
def test_the_id_follows_the_content_not_the_order_of_keys(content):
    assert content_id(content) == content_id(dict(reversed(content.items())))
