"""Which licences go together, and what is said where they do not."""

from __future__ import annotations

import pytest

from evomerge.publishing.licences import KINDS, NO_DERIVATIVES, NON_COMMERCIAL, SAME, Stated, common, conflicts
from evomerge.sources.cards import Licence


def stated(**models: str | None) -> list[Stated]:
    return [Stated(name, None if id_ is None else Licence(id_)) for name, id_ in models.items()]


def kinds(models: list[Stated]) -> set[str]:
    return {c.kind for c in conflicts(models)}


def test_one_licence_for_all_is_the_merges() -> None:
    for id_ in ("apache-2.0", "cc-by-nc-4.0", "gpl-3.0", "llama3.1"):
        models = stated(a=id_, b=id_)
        assert conflicts(models) == () and common(models) == Licence(id_)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("apache-2.0", "mit", {"differ"}),
        ("apache-2.0", "cc-by-nc-4.0", {"differ", "non-commercial"}),
        ("cc-by-nc-4.0", "cc-by-nc-3.0", {"differ"}),
        ("gpl-3.0", "mit", {"differ", "same-licence"}),
        ("gpl-3.0", "llama3.1", {"differ", "same-licence", "terms"}),
        ("cc-by-nc-sa-4.0", "gpl-3.0", {"differ", "non-commercial", "same-licence"}),
        ("cc-by-nd-4.0", "cc-by-nd-4.0", {"no-derivatives"}),
        ("apache-2.0", "acme-1.0", {"differ", "own"}),
        ("other", "other", {"own"}),
        ("apple-amlr", "mit", {"differ", "non-commercial", "terms"}),
    ],
)
def test_what_two_licences_bring(one: str, other: str, expected: set[str]) -> None:
    models = stated(a=one, b=other)
    assert kinds(models) == kinds(models[::-1]) == expected
    assert (common(models) is None) == (one != other or one == "other")


def test_copyleft_beside_a_permissive_licence_is_told_from_one_that_cannot_be() -> None:
    (easy,) = [c for c in conflicts(stated(a="gpl-3.0", b="mit")) if c.kind == "same-licence"]
    (hard,) = [c for c in conflicts(stated(a="gpl-3.0", b="cc-by-nc-4.0")) if c.kind == "same-licence"]
    assert "may not allow" not in easy.text and "cc-by-nc-4.0 may not allow" in hard.text


def test_a_model_without_a_licence_is_named_and_nothing_is_claimed() -> None:
    (found,) = conflicts(stated(a="mit", b=None, c=None))
    assert found.kind == "unknown" and found.models == ("b", "c") and "nothing is permitted" in found.text
    assert common(stated(a="mit", b=None)) is None and common(stated(a=None)) is None


def test_an_ancestor_whose_licence_is_stricter_than_what_its_descendant_states() -> None:
    child = Stated("tune", Licence("apache-2.0"))
    strict = [child, Stated("base", Licence("llama3.1"), "tune", Licence("apache-2.0"))]
    (found,) = conflicts(strict)
    assert found.kind == "ancestor" and found.models == ("tune", "base")
    assert "states apache-2.0, but was made from base, which states llama3.1" in found.text
    assert common(strict) is None
    free = [Stated("tune", Licence("cc-by-nc-4.0")), Stated("base", Licence("mit"), "tune", Licence("cc-by-nc-4.0"))]
    assert conflicts(free) == () and common(free) == Licence("cc-by-nc-4.0")


def test_own_licences_of_one_id_are_not_one_licence() -> None:
    a, b = Licence("other", "a-licence", "https://a.example"), Licence("other", "b-licence")
    models = [Stated("a", a), Stated("b", b)]
    assert kinds(models) == {"differ", "own"} and common(models) is None
    assert "other (a-licence, https://a.example)" in conflicts(models)[0].text
    assert common([Stated("a", a), Stated("b", a)]) == a


def test_the_table_holds_together() -> None:
    for id_, found in KINDS.items():
        assert ("-nc" in id_) == (NON_COMMERCIAL in found) or not id_.startswith("cc-")
        assert ("-sa" in id_) == (SAME in found) or not id_.startswith("cc-by")
        assert ("-nd" in id_) == (NO_DERIVATIVES in found) or not id_.startswith("cc-")
    assert len(KINDS) > 70
