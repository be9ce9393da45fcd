"""What a search will take, told before it is spent."""

from __future__ import annotations

import math
import tempfile
from typing import TYPE_CHECKING

from evomerge.pipeline.controls import PARAMETER_SPACE, control_searches
from evomerge.space import DataflowConfig

if TYPE_CHECKING:
    from evomerge.pipeline.plan import Plan


def cost_of(plan: Plan, workers: int) -> list[str]:
    """What a search will take, in lines.

    Args:
        workers: How many there are.
    """
    from evomerge.merging.memory import PROGRAM, in_words

    options = plan.options
    paths = isinstance(plan.config, DataflowConfig)
    read = sum(s.bytes for s in plan.sources.values())
    largest = max(s.bytes for s in plan.sources.values())
    counts = [math.prod(t.shape) for s in plan.sources.values() for t in s.tensors.values()]
    one = max(sum(math.prod(t.shape) for t in s.tensors.values()) for s in plan.sources.values())
    items = sum(n["count"] for n in plan.items["search"].values())
    # In float32: of merges one live model, with sources mapped from disk, whose pages workers share; of paths
    # every source, and the hidden states of common beginnings.
    memory = PROGRAM + (4 * sum(counts) + options.prefix_bytes if paths else 4 * one + read)
    controls = control_searches(plan) if options.controls else []
    lines = [
        f"{len(plan.space.parameters)} parameters over {len(plan.config.sources)} sources, {plan.sampler}, "
        f"seed {options.seed}",
        f"budget {options.budget}, on {f'{items} items' if items else 'items of the function'}; "
        f"{workers} worker{'s' if workers != 1 else ''}",
    ]
    if controls:
        lines.append(f"controls: {len(controls)} more searches at the same cost")
        if paths and not any(c.name == PARAMETER_SPACE for c in controls):
            lines.append("controls: none over merged weights, for these sources cannot be merged")
    return [
        *lines,
        f"reads {in_words(read)}, about {in_words(memory)} of memory per worker; "
        f"writes {in_words(largest)} to "
        f"{plan.out} at the end, and as much for a while to {tempfile.gettempdir()} for each model scored there",
    ]
