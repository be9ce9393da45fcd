"""What each tensor of a checkpoint is, told from its name: module, layer, and what it is called inside them.

No hand-written family files: the layers are the run of numbered modules as long as the configuration says
(`model.layers.N.`, `transformer.h.N.`, `gpt_neox.layers.N.`, `h.N.`, ...). A composite model (vision and language) has
several modules: the language model, and what its names say about the rest.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from evomerge.errors import SourceError

# The module that holds the language model; a text model has no other. mergekit's name for it.
TEXT = "text_decoder"
# The only module of a diffusion model, which has no numbered layers of one kind.
DENOISER = "denoiser"
# mergekit's names of the other modules of a composite model, by what stands in the tensors' names. The first that is
# found applies: a merger inside the vision tower is a projector.
_MODULES = (
    ("multi_modal_projector", re.compile(r"projector|merger|connector|aligner|resampler|qformer", re.IGNORECASE)),
    ("vision_tower", re.compile(r"vision|visual|image|pixel", re.IGNORECASE)),
    ("audio_tower", re.compile(r"audio|speech", re.IGNORECASE)),
)
# Decimal digits, as many as any model has layers: \d and isdigit() take more, which int() does not.
_NUMBER = "(?:0|[1-9][0-9]{0,8})"
# The first number in a name is the layer's; later ones (experts) belong to what is inside the layer.
_NUMBERED = re.compile(rf"(?P<prefix>(?:[^.]+\.)*?)(?P<index>{_NUMBER})\.(?P<rest>.+)")
_LANGUAGE = re.compile(r"language|text|llm", re.IGNORECASE)
_HEAD = re.compile(r"(?:^|\.)(?P<rest>(?:lm_head|embed_out)\..+)")
_BEFORE = re.compile(r"embed(?!_out)|wte|wpe|(?:^|\.)pre_|_pre(?:\.|$)", re.IGNORECASE)
_AFTER = re.compile(r"norm|ln_f|head|embed_out|output|score|classifier", re.IGNORECASE)
_BY_TOKEN = re.compile(r"embed|wte|tok|head|output|score", re.IGNORECASE)
_BY_ANYTHING_ELSE = re.compile(r"pos|wpe|type|norm|ln_|rotary|proj", re.IGNORECASE)

Stage = Literal["before", "layer", "after"]


@dataclass(frozen=True, slots=True)
class Place:
    """What a tensor is, whatever its checkpoint calls it: the same in every source of one shape.

    Attributes:
        layer: Number of the layer it belongs to, or None.
        bare: What it is called inside its layer ("mlp.up_proj.weight"), or else inside its module ("norm.weight").
    """

    module: str
    layer: int | None
    bare: str

    @property
    def stage(self) -> Stage:
        """Whether the tensor is used before the layers (embeddings), in one, or after them (final norm, head)."""
        if self.layer is not None:
            return "layer"
        if _BEFORE.search(self.bare):
            return "before"
        return "after" if _AFTER.search(self.bare) else "before"

    @property
    def by_token(self) -> bool:
        """Whether its name is that of a tensor with a row for every token: the embedding or the output head."""
        outside = self.module == TEXT and self.layer is None
        return outside and bool(_BY_TOKEN.search(self.bare)) and not _BY_ANYTHING_ELSE.search(self.bare)


@dataclass(frozen=True)
class Stack:
    """The layers of a module.

    Attributes:
        prefix: What stands before a layer's number ("model.layers.").
    """

    prefix: str
    num_layers: int


@dataclass(frozen=True)
class Layout:
    """The modules of a checkpoint, and the place of each of its tensors.

    Attributes:
        stacks: The layers of each module, by the module's name; None where it has none.
        places: Of every tensor, by name.
    """

    stacks: Mapping[str, Stack | None]
    places: Mapping[str, Place]

    @classmethod
    def of(cls, names: Iterable[str], num_layers: int, model: str = "model", *, composite: bool = False) -> Layout:
        """Find the modules and layers among tensor names; `model` is what messages call it.

        Args:
            num_layers: Of the language model, as the configuration has it.
            composite: Whether there may be other modules than the language model.

        Raises:
            SourceError: no run of exactly `num_layers` numbered modules: the headers and the configuration disagree.
        """
        names = list(names)
        found = _runs(names)
        fitting = {p: sum(c.values()) for p, c in found.items() if _is_run(c, num_layers)}
        if not fitting:
            seen = ", ".join(f"{p}N with {len(c)}" for p, c in found.items()) or "no numbered modules"
            raise SourceError(f"{model}: its configuration has {num_layers} layers, its tensors have {seen}")
        text = Stack(_language(fitting), num_layers)
        stacks: dict[str, Stack | None] = {}
        for name in names:
            module = _module(name, text.prefix) if composite else TEXT
            stacks.setdefault(module, text if module == TEXT else _stack(names, module, text.prefix))
        places = {name: _place(name, text, stacks, composite) for name in names}
        if len(set(places.values())) < len(places):
            # A name with and without the model's prefix, side by side: then names are what they are.
            places = {n: p if p.layer is not None else Place(p.module, None, n) for n, p in places.items()}
        return cls(stacks, places)

    @classmethod
    def flat(cls, names: Iterable[str]) -> Layout:
        """That of a model without layers of one kind (a UNet): every tensor goes by its own name."""
        return cls({DENOISER: None}, {name: Place(DENOISER, None, name) for name in names})

    @cached_property
    def names(self) -> Mapping[Place, str]:
        """The name of each tensor, by its place."""
        return {place: name for name, place in self.places.items()}

    @property
    def num_layers(self) -> int:
        """Number of layers of the language model."""
        return self.layers_of(TEXT)

    def layers_of(self, module: str) -> int:
        """Number of layers of a module; 0 where it has none."""
        stack = self.stacks.get(module)
        return stack.num_layers if stack else 0

    def named(self, place: Place) -> str:
        """The name that a tensor has or would have here: that of a layer beyond the last included."""
        stack = self.stacks.get(place.module)
        if place.layer is None or stack is None:
            return self.names[place]
        return f"{stack.prefix}{place.layer}.{place.bare}"

    def inside(self, module: str, layer: int) -> list[Place]:
        """The tensors of one layer, in the order of the checkpoint."""
        return self._by_layer.get((module, layer), [])

    @cached_property
    def _by_layer(self) -> Mapping[tuple[str, int], list[Place]]:
        found: dict[tuple[str, int], list[Place]] = {}
        for place in self.places.values():
            if place.layer is not None:
                found.setdefault((place.module, place.layer), []).append(place)
        return found


def count_layers(names: Iterable[str]) -> int | None:
    """Number of layers of the language model by the tensors alone, for configurations that leave it out."""
    runs = {p: c for p, c in _runs(names).items() if _is_run(c, len(c))}
    return len(runs[_language({p: sum(c.values()) for p, c in runs.items()})]) if runs else None


def _runs(names: Iterable[str]) -> dict[str, dict[int, int]]:
    """How many tensors each numbered module has, by what stands before the number."""
    found: dict[str, dict[int, int]] = {}
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match:
            counts = found.setdefault(match["prefix"], {})
            counts[int(match["index"])] = counts.get(int(match["index"]), 0) + 1
    return found


def _is_run(numbers: Collection[int], length: int) -> bool:
    """Whether numbers, each there once, are those from 0 up to `length`, which may be anything a file says."""
    return len(numbers) == length > 0 and max(numbers) == length - 1


def _language(runs: Mapping[str, int]) -> str:
    """The prefix that is the language model's: the one named so, else the one not named otherwise, else the larger."""

    def rank(prefix: str) -> tuple[bool, bool, int]:
        other = any(pattern.search(prefix) for _, pattern in _MODULES)
        return not other, bool(_LANGUAGE.search(prefix)), runs[prefix]

    return max(runs, key=rank)


def _outer(prefix: str) -> str:
    """What stands before the layers' own name: "model." of "model.layers."."""
    return prefix[: prefix.rstrip(".").rfind(".") + 1]


def _module(name: str, layers: str) -> str:
    """Which module of a composite model a tensor belongs to; `layers` is the prefix of the language model's layers."""
    if name.startswith(layers):
        return TEXT
    for module, pattern in _MODULES:
        if pattern.search(name):
            return module
    if name.startswith(_outer(layers)) or _HEAD.search(name):
        return TEXT
    return name.removeprefix("model.").partition(".")[0]


def _stack(names: Iterable[str], module: str, layers: str) -> Stack | None:
    """The layers of another module: its longest run of numbered parts."""
    runs = {
        prefix: counts
        for prefix, counts in _runs(n for n in names if _module(n, layers) == module).items()
        if len(counts) > 1 and _is_run(counts, len(counts)) and len(set(counts.values())) == 1
    }
    if not runs:
        return None
    prefix = max(runs, key=lambda p: sum(runs[p].values()))
    return Stack(prefix, len(runs[prefix]))


def _place(name: str, text: Stack, stacks: Mapping[str, Stack | None], composite: bool) -> Place:
    module = _module(name, text.prefix) if composite else TEXT
    stack = stacks[module]
    if stack and name.startswith(stack.prefix):
        index, dot, rest = name[len(stack.prefix) :].partition(".")
        if dot and re.fullmatch(_NUMBER, index):
            return Place(module, int(index), rest)
    if module == TEXT:
        outer = _outer(text.prefix)
        head = _HEAD.search(name) if composite and not name.startswith(outer) else None
        return Place(TEXT, None, head["rest"] if head else name.removeprefix(outer))
    # transformers 5 saves towers without the inner "vision_model" that version 4 had.
    return Place(module, None, name.removeprefix("model.").replace(".vision_model.", ".", 1))
