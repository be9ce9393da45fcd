"""Where a model comes from: its sources, what their own cards say that they were made from, and all their licences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from evomerge.publishing.licences import DISCLAIMER, Conflict, Stated, common, conflicts
from evomerge.recipe import Chain, ModelReference, Recipe
from evomerge.sources import local_folder
from evomerge.sources.cards import Card, Cards, Licence
from evomerge.sources.folder import HUB_ID
from evomerge.sources.source import ZOO

# Of whose cards the hub is asked where the local cache lacks them: nobody's, those of the models that a recipe names,
# or those of all that they were made from too.
Ask = Literal["nobody", "named", "all"]
# Generations of ancestors that are followed.
DEEPEST = 8
# Models whose cards are read at most: a card may name any number of others.
_MOST = 100


@dataclass(frozen=True)
class Origin:
    """A model that something was made from.

    Attributes:
        name: How a card names it: a hub id or zoo:NAME as it is, a folder by its last part (paths are private).
        role: "base", "source", "LoRA adapter on NAME", ...; of an ancestor who says so ("its card").
        revision: Which was asked for; None: whichever there was.
        card: What its own card says.
        content: SHA-256 of its content, as the recipe has it.
        parents: What it was made from.
    """

    name: str
    role: str
    revision: str | None
    card: Card
    content: str | None = None
    parents: tuple[Origin, ...] = ()

    @property
    def licence(self) -> Licence | None:
        """As its card states it."""
        return self.card.licence

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        licence = self.licence
        return {
            "model": self.name,
            "role": self.role,
            "hub_id": self.card.hub_id,
            "revision": self.revision,
            "commit": self.card.commit,
            "sha256": self.content,
            "license": None if licence is None else licence.id,
            "license_name": None if licence is None else licence.name,
            "license_link": None if licence is None else licence.link,
            "made_from": [p.to_dict() for p in self.parents],
        }


@dataclass(frozen=True)
class Lineage:
    """Everything that a model was made from."""

    origins: tuple[Origin, ...]

    @cached_property
    def hub_ids(self) -> list[str]:
        """The hub's models among those that were merged, each once. Others have no place in a card's `base_model`."""
        return list(dict.fromkeys(o.card.hub_id for o in self.origins if o.card.hub_id))

    @cached_property
    def _stated(self) -> list[Stated]:
        return [Stated(o.name, o.licence) for o in self.origins] + [
            stated for o in self.origins for stated in _ancestry(o)
        ]

    @cached_property
    def conflicts(self) -> tuple[Conflict, ...]:
        """What of their licences needs to be looked at."""
        return conflicts(self._stated)

    @cached_property
    def licence(self) -> Licence | None:
        """The licence that a card may state: that of all sources; None where they do not all state the same one."""
        return common(self._stated)

    def to_dict(self) -> dict[str, Any]:
        """{"sources": [...], "license": the common one or None, "conflicts": [{"kind", "models", "text"}]}."""
        return {
            "sources": [o.to_dict() for o in self.origins],
            "license": None if self.licence is None else self.licence.id,
            "conflicts": [{"kind": c.kind, "models": list(c.models), "text": c.text} for c in self.conflicts],
        }

    def section(self, of: str = "a merge", whose: str = "its sources") -> str:
        """The card's sections of sources and licences.

        Args:
            of: What was made of them.
            whose: Whose licences it takes on.
        """
        lines = [line for o in self.origins for line in _lines(o, 0)]
        text = f"## Sources\n\n{chr(10).join(lines)}\n\n## Licences\n\n"
        text += f"The licence of {of} follows from the licences of {whose}: all of them apply."
        if self.conflicts:
            warned = "\n".join(f"- {c.text}" for c in self.conflicts)
            text += f"\n\n**Look at these before you use or pass on the model:**\n\n{warned}\n\n{DISCLAIMER}"
        return text


def lineage(recipe: Recipe | Chain, contents: Mapping[str, str] | None = None, ask: Ask = "nobody") -> Lineage:
    """Where a recipe's model comes from.

    Args:
        contents: SHA-256 by reference; default: those that the recipe holds.
        ask: Of whose cards the hub is asked where the local cache lacks them.
    """
    steps = [recipe] if isinstance(recipe, Recipe) else [step.recipe for step in recipe.steps]
    known = {r: c for step in steps for r, c in step.evomerge.sources.items()} | dict(contents or {})
    roles = {reference: _role(reference, steps) for reference in recipe.references()}
    return lineage_of(roles, known, ask)


def lineage_of(roles: Mapping[str, str], contents: Mapping[str, str], ask: Ask = "nobody") -> Lineage:
    """Where something comes from that is no merge by a recipe.

    Args:
        roles: What each model was there for, by reference.
        contents: SHA-256 by reference.
    """
    reader = _Reader(Cards(asking=ask != "nobody"), ancestors=ask == "all")
    for reference in roles:  # all of them first: one may be what another was made from
        reader.fetch(reference)
    origins: list[Origin] = []
    for reference, role in roles.items():
        for found in reader.named(reference, role, contents.get(reference)):
            # One base under several adapters stands there once.
            if not any((o.name, o.revision, o.role) == (found.name, found.revision, found.role) for o in origins):
                origins.append(found)
    return Lineage(tuple(origins))


def model_name(reference: str) -> str:
    """How a card names a model: a hub id or zoo:NAME as it is, a folder by its last part (paths are private).

    A model with an adapter is named by both.
    """
    try:
        parsed = _parsed(reference)
    except ValueError:
        return _name(reference)
    return _name(parsed.path) + (f"+{_name(parsed.lora)}" if parsed.lora else "")


def published_reference(reference: str) -> str:
    """How a published recipe names a model: as `model_name`, and of the hub's with the revision that was taken."""
    try:
        parsed = _parsed(reference)
    except ValueError:
        return _name(reference)
    found = []
    for path, revision in ((parsed.path, parsed.revision), (parsed.lora, parsed.lora_revision)):
        if path:
            name = _name(path)
            found.append(f"{name}@{revision}" if revision and name == path else name)
    return "+".join(found)


def _name(path: str) -> str:
    if path.startswith(ZOO) or (HUB_ID.fullmatch(path) and local_folder(path, None) is None):
        return path
    return Path(path).name or path


def _role(reference: str, steps: Sequence[Recipe]) -> str:
    if any(step.base_model == reference for step in steps):
        return "base"
    if any(reference in step.merged_models() for step in steps):
        return "source"
    return "merged into" if any(step.evomerge.into == reference for step in steps) else "tokenizer"


class _Reader:
    """Reads the cards of models and of their ancestors, each once."""

    def __init__(self, cards: Cards, *, ancestors: bool) -> None:
        self._cards = cards
        self._ancestors = ancestors
        self._read = 0

    def fetch(self, reference: str) -> None:
        """See to it that the local cache has the cards of a model that a recipe names."""
        parsed = _parsed(reference)
        self._cards.read(parsed.path, parsed.revision)
        if parsed.lora is not None:
            self._cards.read(parsed.lora, parsed.lora_revision)

    def named(self, reference: str, role: str, content: str | None) -> Iterator[Origin]:
        """A model that a recipe names; with an adapter on it they are two."""
        parsed = _parsed(reference)
        if parsed.lora is None:
            yield self._origin(parsed.path, role, parsed.revision, content)
            return
        yield self._origin(parsed.path, role, parsed.revision, None)
        on = f"LoRA adapter on {_name(parsed.path)}"
        yield self._origin(parsed.lora, on, parsed.lora_revision, content)

    def _origin(self, path: str, role: str, revision: str | None, content: str | None) -> Origin:
        card = self._cards.read(path, revision)
        self._read += 1
        return Origin(_name(path), role, revision, card, content, tuple(self._parents(card, (path,))))

    def _parents(self, card: Card, below: tuple[str, ...]) -> Iterator[Origin]:
        for path in card.parents:
            if path in below or len(below) > DEEPEST or self._read >= _MOST:
                continue
            self._read += 1
            found = self._cards.read(path, ask=self._ancestors)
            parents = tuple(self._parents(found, (*below, path)))
            yield Origin(_name(path), card.said_by, None, found, None, parents)


def _parsed(reference: str) -> ModelReference:
    """A reference in its parts; a folder may have a + or @ in its name."""
    return ModelReference(reference) if local_folder(reference, None) else ModelReference.parse(reference)


def _ancestry(origin: Origin) -> Iterator[Stated]:
    for parent in origin.parents:
        yield Stated(parent.name, parent.licence, origin.name, origin.licence)
        yield from _ancestry(parent)


def _lines(origin: Origin, depth: int) -> Iterator[str]:
    licence = origin.licence
    if depth:
        shown = f"{licence}" if licence else "its licence is not known here"
        yield f"{'  ' * depth}- made from `{origin.name}`, says {origin.role}: {shown}"
    else:
        words = [str(licence) if licence else "licence not stated here: see its own page"]
        if origin.revision:
            words.append(f"revision `{origin.revision}`")
        if origin.card.commit and origin.card.commit != origin.revision:
            words.append(f"commit `{origin.card.commit[:12]}`")
        if origin.content:
            words.append(f"content sha256 `{origin.content[:16]}`")
        yield f"- `{origin.name}` ({origin.role}): {'; '.join(words)}"
    for parent in origin.parents:
        yield from _lines(parent, depth + 1)
