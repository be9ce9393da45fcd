"""The card of a merge that nobody searched for: where it comes from and how to make it again; no evidence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evomerge import __version__
from evomerge.publishing.front import front_matter
from evomerge.publishing.lineage import Lineage, lineage, model_name
from evomerge.publishing.sections import library_of, made, rebuild_section, task_of
from evomerge.recipe import Chain
from evomerge.sources import ZOO

# Models that a title names.
_MOST = 4


def card_beside(chain: Chain, contents: Mapping[str, str]) -> dict[str, Path | str]:
    """README.md of a chain that is being built, as `merging.build` takes it."""
    recipe = chain.final if len(chain.steps) == 1 else chain
    return {"README.md": merge_card(chain, contents, lineage(recipe, contents, ask="named"))}


def merge_card(chain: Chain, contents: Mapping[str, str], of: Lineage) -> str:
    """README.md of what `evomerge merge` wrote: the same for the same recipe, whatever the folder is called.

    Args:
        contents: SHA-256 of each of the chain's models by reference.
        of: Where they come from.
    """
    signed = chain.with_hashes(contents)
    shown = signed.steps[0].recipe if len(signed.steps) == 1 else signed
    title = _title(chain)
    return f"""{front_matter(of, name=title, library=library_of(shown), task=task_of(shown))}
# {title}

{made(shown)} Made by evomerge {__version__} (`evomerge merge`).

Nothing was measured: there is no evidence here of what this model is worth. `evomerge evaluate` scores it.

{of.section()}

{rebuild_section(shown, chain.hash(contents))}
"""


def _title(chain: Chain) -> str:
    """`ties of maths and kovesh`, the final step's."""
    final = chain.final
    merged = [r for r in final.merged_models() if r != final.base_model] or final.merged_models()
    names = [model_name(r).rpartition("/")[2].removeprefix(ZOO) for r in merged]
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"{final.merge_method} of {listed if len(names) <= _MOST else f'{len(names)} models'}"
