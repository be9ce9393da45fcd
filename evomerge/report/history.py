"""The history picture: every candidate, the best so far, and the lines to beat, on the search items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from evomerge.score import State, Trial

SIZE_INCHES = (9.0, 5.0)
DPI = 120


class Course(Protocol):
    """What is drawn: an `Outcome`, or a search that has none yet, whose `best` may be None."""

    @property
    def study(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def trials(self) -> Sequence[Trial]: ...
    @property
    def lines(self) -> Mapping[str, float]: ...
    @property
    def best(self) -> Trial | None: ...


def write_history_png(outcome: Course, path: Path) -> None:
    """Draw the search's history as a PNG.

    Args:
        outcome: Values are those of the search items (higher is better), by candidate number.
        path: File to write; replaced when it exists.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: no global state, no display
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    done = [(t.number, t.value) for t in outcome.trials if t.value is not None and t.state is State.COMPLETE]
    numbers, values = [n for n, _ in done], [v for _, v in done]
    axes.plot(numbers, values, "o", markersize=4, alpha=0.5, color="tab:blue", label="candidates")
    axes.step(numbers, running_best(values), where="post", color="tab:blue", label="best so far")
    for state, marker, word in ((State.PRUNED, "|", "stopped early"), (State.FAIL, "x", "failed")):
        at = [t.number for t in outcome.trials if t.state is state]
        if at:  # they have no value: shown at the bottom edge (y in axes coordinates)
            axes.plot(at, [0.02] * len(at), marker, color="tab:red" if state is State.FAIL else "tab:gray",
                      transform=axes.get_xaxis_transform(), linestyle="none", label=f"{word} ({len(at)})")  # fmt: skip
    for i, (name, value) in enumerate(outcome.lines.items()):
        axes.axhline(value, linestyle="--", linewidth=1, color=f"C{1 + i % 9}", label=name)
    best = outcome.best
    if best is not None and any(t.number == best.number for t in outcome.trials) and best.value is not None:
        axes.plot([best.number], [best.value], "*", markersize=14, color="tab:orange", label="chosen")
    axes.set_xlabel("candidate")
    axes.set_ylabel("score on the search items")
    axes.set_title(f"{outcome.study} (seed {outcome.seed})")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=DPI, format="png", metadata={"Software": "evomerge"})


def running_best(values: list[float]) -> list[float]:
    """Highest value up to and with each place."""
    best: list[float] = []
    for value in values:
        best.append(value if not best or value > best[-1] else best[-1])
    return best
