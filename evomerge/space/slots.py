"""Paths as in Evolutionary Model Merge (arXiv 2403.13187): all layers in order, some times over, each in or out.

Every pair of layers that may follow each other has a scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from evomerge.errors import SpaceError
from evomerge.recipe import Recipe
from evomerge.score import Value
from evomerge.space.dataflow import SIGMA, DataflowConfig
from evomerge.space.grid import PLACE
from evomerge.space.parameters import Float, Parameter, check, initial
from evomerge.space.pool import Pool
from evomerge.space.scale import Scale, unfit
from evomerge.space.shape import Shape
from evomerge.space.starts import Start, path_starts

# Two standard deviations of the paper's search.
START = 2 * (2 * SIGMA)


class SlotSpace:
    """T = M r slots: the M candidate layers of all sources in order, r times.

    A slot is in where its indicator (in [-1, 1]) is above 0. At the start those of the first source's layers in the
    first repetition stand at +2 sigma, all others at -2 sigma. W_ij scales the residual stream where layer j begins
    after layer i, the same in all repetitions; the first hop has scale 1.

    Depth bounds are kept by repair: where too few are in, those with the highest indicators are taken in; where too
    many, those with the lowest go (of equal ones the later).

    Attributes:
        config: The space as its file says it.
        names: Short names of the sources.
        slots: The layer of each slot.
        indicators: The parameter of each slot, such as `slot.2.maths.3`.
        scales: The parameter of each admissible transition i -> j between candidate layers: j after i for r = 1, else
            all; such as `scale.maths.3>kovesh.0`. None where scales are fixed.
        ends: Where embeddings (and head) are a choice, an indicator for every source that may give them, such as
            `embeddings.maths`; the highest has it.
        parameters: All of the above.
    """

    def __init__(self, config: DataflowConfig, shapes: Mapping[str, Shape]) -> None:
        self.config = config
        self.pool = Pool(config, shapes)
        self.names = self.pool.names
        layers = self.pool.layers
        self.slots = layers * config.repetitions
        if config.depth.low > len(self.slots):
            raise SpaceError(f"depth.low = {config.depth.low}: there are {len(self.slots)} slots")
        own = self.pool.num_layers[self.names[0]]
        self.indicators = tuple(
            Float(
                f"slot.{t // len(layers) + 1}.{name}.{layer}",
                -1.0,
                1.0,
                START if t < own else -START,
                place=layer / self.pool.num_layers[name],
            )
            for t, (name, layer) in enumerate(self.slots)
        )
        self.scales = {
            (a, b): config.scale.parameter(f"scale.{_label(a)}>{_label(b)}", b[1] / self.pool.num_layers[b[0]])
            for i, a in enumerate(layers)
            for b in (layers if config.repetitions > 1 else layers[i + 1 :])
        }
        scales = [p for p in self.scales.values() if p is not None]
        self.ends = {
            end: {
                n: Float(f"{end}.{n}", -1.0, 1.0, START if n == names[0] else -START, place=PLACE[end]) for n in names
            }
            for end, names in self.pool.choices.items()
        }
        ends = [p for parameters in self.ends.values() for p in parameters.values()]
        self.parameters: tuple[Parameter, ...] = (*self.indicators, *scales, *ends)

    sigma = SIGMA

    @property
    def sampler(self) -> str:
        """The paper's; it has one objective."""
        return "evolution" if self.config.depth.objective else "cma"

    def initial(self) -> dict[str, Value]:
        """The starting value of every parameter, in their order."""
        return initial(self.parameters)

    def select(self, indicators: Sequence[float]) -> tuple[int, ...]:
        """The slots that are in, in order, after repair.

        Raises:
            SpaceError: not one indicator for every slot.
        """
        if len(indicators) != len(self.slots):
            raise SpaceError(
                f"indicators: expected {len(self.slots)} ({len(self.pool.layers)} layers x {self.config.repetitions} "
                f"repetitions), got {len(indicators)}"
            )
        order = sorted(range(len(indicators)), key=lambda t: -indicators[t])
        wanted = sum(value > 0 for value in indicators)
        depth = self.config.depth
        wanted = min(max(wanted, depth.low), depth.high or len(self.slots))
        return tuple(sorted(order[:wanted]))

    def starts(self) -> list[Start]:
        """See `SearchSpace.starts`."""
        return path_starts(self)

    def decode(self, params: Mapping[str, Value], seed: int = 0) -> Recipe:
        """The recipe of some parameters: a plain mergekit passthrough.

        Raises:
            SpaceError: a value is missing, unknown or out of bounds.
        """
        params = check(self.parameters, params)
        layers = [self.slots[t] for t in self.select([float(params[p.name]) for p in self.indicators])]
        scales = [1.0]
        for pair in pairwise(layers):
            parameter = self.scales[pair]
            scales.append(1.0 if parameter is None else float(params[parameter.name]))
        ends = {
            end: max(parameters, key=lambda name: float(params[parameters[name].name]))
            for end, parameters in self.ends.items()
        }
        return self.pool.recipe(layers, scales, ends, seed)

    def decode_indicators(
        self, indicators: Sequence[float], others: Mapping[str, Value] | None = None, seed: int = 0
    ) -> Recipe:
        """The recipe of an indicator vector (in [-1, 1]; 0 and 1 will do), all else at its start but `others`.

        Raises:
            SpaceError: the vector has another length, or a value is unknown or out of bounds.
        """
        self.select(indicators)
        chosen = {p.name: float(value) for p, value in zip(self.indicators, indicators, strict=True)}
        return self.decode({**self.initial(), **chosen, **(others or {})}, seed)

    def encode(self, recipe: Recipe) -> dict[str, Value]:
        """The parameters of a path: each hop in the first slot of its layer after the slot before.

        Raises:
            SpaceError: the path needs more repetitions, has one transition with two scales, or a scale out of bounds.
        """
        layers, scales, ends = self.pool.read(recipe)
        out = self.initial() | {p.name: -START for p in self.indicators}
        for end, parameters in self.ends.items():
            out |= {p.name: START if name == ends[end] else -START for name, p in parameters.items()}
        last = -1
        for number, layer in enumerate(layers):
            slot = next((t for t in range(last + 1, len(self.slots)) if self.slots[t] == layer), None)
            if slot is None:
                raise SpaceError(
                    f"hop {number} of the recipe's path ({_label(layer)}) needs more than the space's "
                    f"{self.config.repetitions} repetitions of all layers"
                )
            out[self.indicators[slot].name] = START
            last = slot
        if Scale.encoded(None, scales[0]) is None:
            raise SpaceError(f"the recipe's first hop has scale {scales[0]:g}; in this encoding it is 1")
        given: dict[str, float] = {}
        for (a, b), scale in zip(pairwise(layers), scales[1:], strict=True):
            parameter = self.scales[a, b]
            value = Scale.encoded(parameter, scale)
            if value is None:
                raise unfit(f"the recipe's transition {_label(a)} > {_label(b)}", scale, self.config.scale)
            if parameter is None:
                continue
            if Scale.encoded(None, given.setdefault(parameter.name, value) / value) is None:
                raise SpaceError(
                    f"the recipe's transition {_label(a)} > {_label(b)} has scales {given[parameter.name]:g} and "
                    f"{value:g}; the space has one for both"
                )
        return out | given

    def fingerprint(self) -> dict[str, Any]:
        """What makes this space this space, as plain data; the file's name and way of writing do not count."""
        return self.pool.fingerprint()

    def describe(self) -> str:
        """One line for printing: what paths consist of, and where the number of parameters comes from."""
        counts = [f"slot {len(self.indicators)} ({len(self.pool.layers)} layers x {self.config.repetitions})"]
        counts += [f"scale {n}"] if (n := sum(p is not None for p in self.scales.values())) else []
        counts += [f"{end} {len(parameters)}" for end, parameters in self.ends.items()]
        return f"{self.pool.describe()}; {len(self.parameters)} parameters: {', '.join(counts)}"


def _label(layer: tuple[str, int]) -> str:
    return f"{layer[0]}.{layer[1]}"
