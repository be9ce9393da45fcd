"""Forward passes over a path's layers: counted, and started from the longest prefix whose hidden states are kept."""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.errors import SourceError
from evomerge.recipe import Path
from evomerge.routing.prefixes import KeptStates

# What a forward pass may be given without its hidden states depending on anything else.
_BATCH = ("input_ids", "attention_mask", "position_ids")
# And what does not change hidden states.
_HARMLESS = ("return_dict", "logits_to_keep")
# Beginnings of paths whose number is counted, before all are halved and those seen once forgotten.
_COUNTED = 1 << 16


@dataclass(frozen=True, slots=True)
class LayerCounts:
    """Layer evaluations; the unit is one layer on one sequence.

    Attributes:
        asked: Those that the passes consisted of.
        run: Those that were computed; the others began with kept hidden states.
    """

    asked: int
    run: int


@dataclass(slots=True)
class _Pass:
    """A forward pass under way.

    Attributes:
        batch: Names what goes in; None where hidden states are neither kept nor reused.
        start: The first hop that is computed.
        state: What the hop before it gave.
        next: The hop whose turn it is.
    """

    batch: bytes | None
    start: int = 0
    state: Tensor | None = None
    next: int = 0


class Passes:
    """Runs the hops of one path after the other for as many forward passes as are asked for.

    Args:
        prefix_bytes: Memory for the hidden states of prefixes; 0: none are kept.
    """

    def __init__(self, prefix_bytes: int = 0) -> None:
        self.kept = KeptStates(prefix_bytes)
        self._asked = self._computed = 0
        self._hops = 0
        self._prefixes: list[bytes] = []
        self._seen: Counter[bytes] = Counter()
        self._current: _Pass | None = None
        # How layers give hidden states back: alone (0), or before so many values that are None.
        self._nones: int | None = None
        self._parameters: dict[type, tuple[str, ...]] = {}

    @property
    def counts(self) -> LayerCounts:
        """Since the last path."""
        return LayerCounts(self._asked, self._computed)

    def follow(self, path: Path) -> None:
        """Begin a path; what is kept of others stays."""
        self._asked = self._computed = 0
        self._hops = len(path.hops)
        self._current = None
        self._prefixes = []
        name = hashlib.blake2b(repr(path.embeddings).encode(), digest_size=16).digest()
        for hop in path.hops:
            name = hashlib.blake2b(name + repr((hop.model, hop.layer, hop.factor)).encode(), digest_size=16).digest()
            self._prefixes.append(name)
        if self.kept.limit:
            if len(self._seen) > _COUNTED:
                self._seen = Counter({prefix: times // 2 for prefix, times in self._seen.items() if times > 1})
            self._seen.update(self._prefixes)

    def watch(self, model: nn.Module) -> None:
        """Be told where each forward pass of a model begins and ends."""
        model.register_forward_pre_hook(self._begin, with_kwargs=True)
        model.register_forward_hook(self._end, always_call=True)

    def at(self, place: int, run: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the hop at a place gives; called by its layer in the model's forward pass."""
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        sequences = hidden.shape[0]
        self._asked += sequences
        current = self._current
        if current is None:  # a part of the model is called by itself
            self._computed += sequences
            return run(*args, **kwargs)
        if place != current.next:
            raise SourceError(
                f"this kind of model cannot be run as a path: it runs hop {place} where hop {current.next} is due"
            )
        current.next += 1
        if place < current.start:
            # Whatever passes through the hops before the last one that is left out, nobody looks at it.
            if place == current.start - 1 and current.state is not None:
                hidden = current.state.clone()  # the next layer may write over what it is given
                current.state = None  # it may be dropped from here on
            return hidden if not self._nones else (hidden, *[None] * self._nones)
        self._computed += sequences
        output = run(*args, **kwargs)
        if current.batch is not None:
            self._keep(current.batch, place, output)
        return output

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        batch = self._named(model, args, kwargs) if self.kept.limit else None
        self._current = _Pass(batch)
        if batch is None or self._nones is None:
            return
        for depth in range(self._hops, 0, -1):
            key = (batch, self._prefixes[depth - 1])
            if key in self.kept:
                self._current.start, self._current.state = depth, self.kept.get(key)
                return

    def _end(self, _model: nn.Module, _args: Any, output: Any) -> None:
        current, self._current = self._current, None
        if output is not None and current is not None and current.next != self._hops:
            raise SourceError(f"this kind of model cannot be run as a path: it ran {current.next} of {self._hops} hops")

    def _keep(self, batch: bytes, place: int, output: Any) -> None:
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        if any(value is not None for value in rest):
            return
        self._nones = len(rest)
        # Beside the next shorter prefix, which is likely to be kept too, any prefix saves one layer. What tells them
        # apart is how likely they are to come again: the more paths came this way and the shorter they are, the more.
        # In simulated searches that saved more than the layers saved from the start, most where memory is short.
        prefix = self._prefixes[place]
        self.kept.keep((batch, prefix), hidden, cost=self._seen[prefix] / (place + 1))

    def _named(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes | None:
        """A name for what a pass is given; None where its hidden states cannot be kept or reused."""
        if torch.is_grad_enabled() or model.training:
            return None
        kind = type(model)
        if kind not in self._parameters:
            self._parameters[kind] = tuple(inspect.signature(kind.forward).parameters)[1:]
        given = {**dict(zip(self._parameters[kind], args, strict=False)), **kwargs}
        given = {k: v for k, v in given.items() if v is not None and k not in _HARMLESS}
        if given.get("use_cache") is False:
            del given["use_cache"]
        if "input_ids" not in given or not all(k in _BATCH and isinstance(v, Tensor) for k, v in given.items()):
            return None
        config = getattr(model, "config", None)
        if any(getattr(config, key, False) for key in ("output_attentions", "output_hidden_states", "use_cache")):
            return None
        device = given["input_ids"].device.type
        digest = hashlib.blake2b(digest_size=16)
        if torch.is_autocast_enabled(device):
            digest.update(str(torch.get_autocast_dtype(device)).encode())
        for key in _BATCH:
            value = given.get(key)
            if value is not None:
                digest.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.digest()
