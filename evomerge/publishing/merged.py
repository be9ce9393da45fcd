"""The card of a merge that nobody searched for: where it comes from and how to make it again; no evidence."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge import __version__
from evomerge.publishing.front import front_matter
from evomerge.publishing.lineage import Lineage
from evomerge.publishing.sections import made, rebuild_section
from evomerge.recipe import Chain


def merge_card(chain: Chain, contents: Mapping[str, str], lineage: Lineage, name: str) -> str:
    """README.md of what `evomerge merge` wrote.

    Args:
        contents: SHA-256 of each of the chain's models by reference.
        name: What the model is called.
    """
    signed = chain.with_hashes(contents)
    shown = signed.steps[0].recipe if len(signed.steps) == 1 else signed
    return f"""{front_matter(lineage, name=name)}
# {name}

{made(shown)} Made by evomerge {__version__} (`evomerge merge`).

Nothing was measured: there is no evidence here of what this model is worth. `evomerge evaluate` scores it.

{lineage.section()}

{rebuild_section(shown, chain.hash(contents))}
"""
