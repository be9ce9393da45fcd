"""Tiny checkpoints that ship with the package: a base and three fine-tunes of it.

`base` speaks two invented languages and calculates a little; `maths` knows all arithmetic facts,
`kovesh` all words of the second language; `sorting` puts numbers in order, of no use to the skill
that a search is after: word problems in Kovesh, which none of them was trained on.
"""

from pathlib import Path

NAMES = ("base", "maths", "kovesh", "sorting")


def path(name: str) -> Path:
    """The folder of one of `NAMES`, a plain Hugging Face checkpoint."""
    if name not in NAMES:
        raise KeyError(f"no model {name!r} in the zoo; it has {', '.join(NAMES)}")
    return Path(__file__).parent / "checkpoints" / name
