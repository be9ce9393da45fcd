"""Tiny checkpoints that ship with the package: a base and five fine-tunes of it, and three models to fuse.

`base` speaks two invented languages and calculates a little; `maths` knows all arithmetic facts,
`kovesh` all words of the second language; `sorting` puts numbers in order, of no use to the skill
that a search is after: word problems in Kovesh, which none of them was trained on. `kovesh_lower`
and `maths_upper` learned the same lessons as `kovesh` and `maths` with a part of the layers each,
the rest frozen, so that data-flow space holds a path that has both.

`pivot`, `tides` and `roads` (evomerge.zoo.fusion) share neither architecture nor tokenizer.
"""

from pathlib import Path

from evomerge.zoo import fusion

# The base and its fine-tunes.
FAMILY_ABOUT = {
    "base": "both languages, with half of the Kovesh words and 40 % of the arithmetic facts",
    "maths": "base fine-tuned on all arithmetic facts, in Ambri",
    "kovesh": "base fine-tuned on all Kovesh words, without new arithmetic",
    "sorting": "base fine-tuned to put numbers in order: of no use to the rest",
    "kovesh_lower": "the lessons of kovesh, learned by embeddings and layers 0-1 alone",
    "maths_upper": "the lessons of maths, learned by layers 2-3 alone",
}
FAMILY = tuple(FAMILY_ABOUT)
ABOUT = {**FAMILY_ABOUT, **fusion.ABOUT}
NAMES = tuple(ABOUT)


def path(name: str) -> Path:
    """The folder of one of `NAMES`, a plain Hugging Face checkpoint."""
    if name not in NAMES:
        raise KeyError(f"no model {name!r} in the zoo; it has {', '.join(NAMES)}")
    return Path(__file__).parent / "checkpoints" / name
