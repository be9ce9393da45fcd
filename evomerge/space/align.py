"""A path as departures from one source's own path: the inverse of `CompactSpace.decode`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from evomerge.errors import SpaceError
from evomerge.space.scale import Scale

if TYPE_CHECKING:
    from evomerge.space.compact import CompactSpace
    from evomerge.space.pool import Layer

# Of a departure where a swap, a skip or a repeat is one: what can be had without an insertion is.
INSERTION = 2


@dataclass(frozen=True)
class Departures:
    """What differs from the first source's path.

    Attributes:
        sources: Whose layers each position has.
        times: How often each is passed.
        scales: Scale of a position, where it is known.
        insertions: (position after which it stands, name of the choice), in their order.
    """

    sources: Sequence[str]
    times: Sequence[int]
    scales: Mapping[int, float]
    insertions: Sequence[tuple[int, str]]


class _Way(NamedTuple):
    """The rest of an alignment: number of departures, then per position (source, times, insertions)."""

    cost: int
    steps: tuple[tuple[str, int, tuple[str, ...]], ...]


def align(space: CompactSpace, layers: Sequence[Layer], scales: Sequence[float]) -> Departures:
    """The fewest departures that make a path, each swap, skip and repeat counting one, an insertion two.

    Raises:
        SpaceError: none do.
    """
    own = space.names[0]
    reached = [0]

    @cache
    def rest(p: int, hop: int, left: int) -> _Way | None:
        """The best way on from a position with `hop` hops behind and `left` insertions unused."""
        reached[0] = max(reached[0], hop)
        if p == len(space.positions):
            return _Way(0, ()) if hop == len(layers) else None
        best: _Way | None = None
        for source, times, end in passes(p, hop):
            for inserted, after in insertions(end, left):
                way = rest(p + 1, after, left - len(inserted))
                if way is None:
                    continue
                cost = way.cost + INSERTION * len(inserted) + abs(times - 1) + (source != own and times > 0)
                if best is None or cost < best.cost:
                    best = _Way(cost, ((source, times, inserted), *way.steps))
        return best

    def passes(p: int, hop: int) -> Iterator[tuple[str, int, int]]:
        """(source, times, hops behind) of every way to pass a position."""
        yield own, 0, hop
        group = space.positions[p]
        if hop == len(layers) or Scale.encoded(space.scales[p], scales[hop]) is None:
            return
        for source in space.choices[p]:
            piece = [(source, layer) for layer in range(group.first, group.end)]
            for times in range(1, space.config.repeats + 1):
                end = hop + times * len(piece)
                if list(layers[end - len(piece) : end]) != piece or not plain(end - len(piece) + (times == 1), end):
                    break
                yield source, times, end

    def insertions(hop: int, left: int) -> Iterator[tuple[tuple[str, ...], int]]:
        """(choices, hops behind) of every row of insertions that may stand here."""
        yield (), hop
        for choice, piece in space.insertable.items() if left else ():
            end = hop + len(piece)
            if tuple(layers[hop:end]) == piece and plain(hop, end):
                for more, after in insertions(end, left - 1):
                    yield (choice, *more), after

    def plain(first: int, end: int) -> bool:
        return all(Scale.encoded(None, scale) is not None for scale in scales[first:end])

    found = rest(0, 0, space.config.insertions)
    if found is None:
        raise SpaceError(_why(space, layers, scales, reached[0]))
    behind, at = 0, {}
    for p, (_, times, inserted) in enumerate(found.steps):
        scale = space.scales[p]
        if times and scale is not None:
            value = Scale.encoded(scale, scales[behind])
            assert value is not None
            at[p] = value
        group = space.positions[p]
        behind += times * (group.end - group.first) + sum(len(space.insertable[choice]) for choice in inserted)
    return Departures(
        sources=[source for source, _, _ in found.steps],
        times=[times for _, times, _ in found.steps],
        scales=at,
        insertions=[(p, choice) for p, (_, _, inserted) in enumerate(found.steps) for choice in inserted],
    )


def _why(space: CompactSpace, layers: Sequence[Layer], scales: Sequence[float], hop: int) -> str:
    """Where the longest alignment stopped, in words."""
    config = space.config
    own = f'"{space.names[0]}"\'s own path'
    if hop == len(layers):
        return (
            f"the recipe's path departs from {own} in more ways than the space has: a position may be passed "
            f"{config.repeats} times, {config.insertions} layers (groups) may be inserted"
        )
    name, layer = layers[hop]
    return (
        f"hop {hop} of the recipe's path ({name}:{layer}, scale {scales[hop]:g}) is not in reach of {own} by "
        f"{config.repeats} passes of a position, {config.insertions} insertions (of scale 1) and scales "
        f"{config.scale.words()}"
    )
