"""Whether the licences of a merge's sources go together: one small table, and words for what it tells.

No legal advice: the table says what kind a licence is of, by the Hub's identifier, and the words say what to read.

Identifiers: https://huggingface.co/docs/hub/repositories-licenses. What kinds they are of is taken from: software and
data licences, https://choosealicense.com/appendix (its column "same license") and
https://www.gnu.org/licenses/license-list; Creative Commons, the deeds at https://creativecommons.org/licenses;
OpenRAIL, https://www.licenses.ai (restrictions of use pass on to derived models); Llama, https://www.llama.com/license,
and Gemma, https://ai.google.dev/gemma/terms (terms and use policy pass on, Llama's with a name to carry); those for
research alone say so in their name or first section.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.sources.cards import Licence

DISCLAIMER = "This is told from what cards state and a small table of evomerge's; it is no legal advice."

# What is derived must carry the same licence (copyleft, share-alike).
SAME = "same licence"
# No commercial use, or research alone.
NON_COMMERCIAL = "non-commercial"
# Nothing that is derived may be passed on.
NO_DERIVATIVES = "no derivatives"
# Terms of its own (restrictions of use, names to carry) that pass on to what is derived.
TERMS = "terms of its own"

_OF_KIND: Mapping[tuple[str, ...], str] = {
    (): (
        "apache-2.0 mit afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear cc0-1.0 "
        "cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 etalab-2.0 isc "
        "ms-pl odc-by postgresql ncsa unlicense zlib pddl"
    ),
    (SAME,): (
        "agpl-3.0 gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 lgpl-lr mpl-2.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 osl-3.0 "
        "gfdl odbl ofl-1.1 cc-by-sa-3.0 cc-by-sa-4.0 cdla-sharing-1.0"
    ),
    (NON_COMMERCIAL,): "cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0",
    (NON_COMMERCIAL, SAME): "cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0",
    (NO_DERIVATIVES,): "cc-by-nd-4.0",
    (NON_COMMERCIAL, NO_DERIVATIVES): "cc-by-nc-nd-3.0 cc-by-nc-nd-4.0",
    (TERMS,): (
        "openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m openrail++ "
        "llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma"
    ),
    (NON_COMMERCIAL, TERMS): (
        "apple-amlr deepfloyd-if-license fair-noncommercial-research-license intel-research"
    ),
}  # fmt: skip
KINDS: Mapping[str, frozenset[str]] = {id_: frozenset(kinds) for kinds, ids in _OF_KIND.items() for id_ in ids.split()}


@dataclass(frozen=True)
class Conflict:
    """Why the licences of a merge's sources need to be looked at.

    Attributes:
        kind: unknown, own (one of the model's own), differ, same-licence, non-commercial, no-derivatives, terms, or
            ancestor.
        models: Whom it concerns.
        text: In a sentence or two.
    """

    kind: str
    models: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Stated:
    """A model with what it states, and the model above it in the lineage, where it is an ancestor."""

    name: str
    licence: Licence | None
    child: str | None = None
    child_licence: Licence | None = None


def conflicts(models: Sequence[Stated]) -> tuple[Conflict, ...]:
    """What to look at before something made from these models is passed on; of one plain licence for all nothing."""
    direct = [m for m in models if m.child is None]
    found: list[Conflict] = []
    unknown = [m.name for m in direct if m.licence is None]
    if unknown:
        says = "states" if len(unknown) == 1 else "state"
        words = f"{_list(unknown)} {says} no licence that could be found: without one nothing is permitted."
        found.append(Conflict("unknown", tuple(unknown), words))
    stated: dict[Licence, list[str]] = {}
    for m in direct:
        if m.licence is not None:
            stated.setdefault(m.licence, []).append(m.name)
    for licence, names in stated.items():
        others = [other for other in stated if other != licence]
        found += _of(licence, names, others)
    if len(stated) > 1:
        words = "; ".join(f"{licence}: {_list(names)}" for licence, names in stated.items())
        every = tuple(name for names in stated.values() for name in names)
        found.insert(0, Conflict("differ", every, f"The licences differ ({words}): all of them apply together."))
    return (*found, *_ancestors(models))


def common(models: Sequence[Stated]) -> Licence | None:
    """The licence that may be stated of what is made from these models: that of all of them, where no ancestor has one
    that says otherwise."""
    stated = {m.licence for m in models if m.child is None}
    if len(stated) != 1 or _ancestors(models):
        return None
    (found,) = stated
    # The Hub wants a name with one that is a model's own.
    return None if found is not None and found.id == "other" and not found.name else found


def _of(licence: Licence, names: Sequence[str], others: Sequence[Licence]) -> list[Conflict]:
    """What one licence brings with it, beside others."""
    who, models = _list(names), tuple(names)
    kinds = KINDS.get(licence.id)
    if kinds is None:
        words = f"{licence} ({who}) is not in evomerge's table: read it, and whether it allows a merge to be passed on."
        return [Conflict("own", models, words)]
    found = []
    if NO_DERIVATIVES in kinds:
        words = f"{licence} ({who}) does not allow that anything derived is passed on; a merge is derived."
        found.append(Conflict("no-derivatives", models, words))
    if not others:
        return found
    if NON_COMMERCIAL in kinds and any(NON_COMMERCIAL not in KINDS.get(o.id, ()) for o in others):
        words = f"{licence} ({who}) allows no commercial use, whatever the others allow; nor does the merge, then."
        found.append(Conflict("non-commercial", models, words))
    if SAME in kinds:
        against = [str(o) for o in others if KINDS.get(o.id, frozenset([TERMS]))]
        words = f"{licence} ({who}) asks that what is derived carries that licence too"
        words += f", which {_list(against)} may not allow." if against else "."
        found.append(Conflict("same-licence", models, words))
    if TERMS in kinds:
        words = f"The terms of {licence} ({who}), as restrictions of use or a name to carry, pass on to the merge."
        found.append(Conflict("terms", models, words))
    return found


def _ancestors(models: Sequence[Stated]) -> list[Conflict]:
    """Models that state a freer licence than what they say that they were made from."""
    found = []
    for m in models:
        if m.child is None or m.licence is None or m.licence == m.child_licence:
            continue
        if KINDS.get(m.licence.id, frozenset([TERMS])):
            says = f"states {m.child_licence}" if m.child_licence else "states no licence"
            words = f"{m.child} {says}, but was made from {m.name}, which states {m.licence}: that may apply too."
            found.append(Conflict("ancestor", (m.child, m.name), words))
    return found


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
