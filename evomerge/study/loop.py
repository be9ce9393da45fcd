"""The search loop: ask a generation, score it, tell it in the order of asking.

Because tells come in ask order and the optimizer is a pure function of its seed and its tells, the sequence of
candidates is the same for any number of workers, and resuming is replay: stored candidates are told again, the ones
that were cut off run again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from evomerge.errors import EvoMergeError, StudyError
from evomerge.optimizers import Optimizer
from evomerge.recipe import Path, Recipe
from evomerge.score import State, Trial, Value
from evomerge.study.budget import Budget
from evomerge.study.job import Answer, Job
from evomerge.study.store import Study
from evomerge.study.watcher import Watcher
from evomerge.study.workers import Pool

Decode = Callable[[Mapping[str, Value]], Recipe]
T = TypeVar("T")
# Attributes of a trial that is a path: its number of layers, and the evaluations of layers that it took.
DEPTH = "depth"
LAYERS = "layer_evaluations"
# Candidates for each worker that are ordered at once where time is the budget.
ROUNDS = 4


@dataclass(frozen=True)
class Search:
    """One search over one space: what the loop needs.

    Attributes:
        decode: Parameters to recipe.
        hash: Recipe to its hash.
        patience: Stop after so many candidates in a row without a better score (checked between generations).
        order: Where candidates build on what a worker knows of earlier ones: a key that puts those beside each other
            that share most. A generation is scored in that order; what is asked and told stays in the order of asks.
        by_depth: Whether the number of layers of a path is an objective too (fewer are better).
    """

    study: Study
    optimizer: Optimizer
    decode: Decode
    hash: Callable[[Recipe], str]
    pool: Pool
    budget: Budget
    watcher: Watcher
    patience: int | None = None
    order: Callable[[Recipe], Any] | None = None
    by_depth: bool = False

    def run(self) -> tuple[list[Trial], str]:
        """Search until the budget is spent.

        Returns:
            Every candidate by number, and why the search ended: "budget", "patience" or "converged".

        Raises:
            StudyError: the stored candidates are not those that this search proposes (another version's study).
        """
        stored = {t.number: t for t in self.study.trials()}
        before = float(self.study.notes().get("seconds", 0.0))
        started = time.monotonic()

        def spent() -> float:
            return before + time.monotonic() - started

        trials: list[Trial] = []
        number, stopped = 0, "budget"
        while True:
            if self.optimizer.done:
                stopped = "converged"
                break
            if self.patience is not None and _stale(trials) >= self.patience:
                stopped = "patience"
                break
            finished_before = number in stored and stored[number].state is not State.RUNNING
            if not finished_before and not self.budget.left(number, spent()):
                break
            asked = self.optimizer.ask(self.optimizer.generation)
            generation = self._generation(number, asked, stored, spent)
            trials += generation
            if len(generation) < len(asked):
                # The budget cut the generation short: it is told when a larger budget completes it.
                break
            self.optimizer.tell(asked, [self._told(t) for t in generation])
            number += len(asked)
        self.study.note("seconds", spent())
        return trials, stopped

    def _told(self, trial: Trial) -> float | tuple[float, ...] | None:
        """What a candidate is worth to the optimizer: higher is better, of each objective."""
        if trial.value is None or not self.by_depth:
            return trial.value
        return trial.value, -float(trial.attributes[DEPTH])

    def _generation(
        self,
        first: int,
        asked: list[dict[str, Value]],
        stored: Mapping[int, Trial],
        spent: Callable[[], float],
    ) -> list[Trial]:
        """Score a generation, as far as the budget reaches. Returns a prefix of it, in ask order."""
        ended: dict[int, Trial] = {}
        waiting: list[int] = []
        for number, params in enumerate(asked, first):
            old = stored.get(number)
            if old is not None:
                _same(old, params, self.study.name)
            if old is not None and old.state is not State.RUNNING:
                ended[number] = old
                self.watcher.finished(old, True)
            else:
                waiting.append(number)
        running = 0
        ready: list[tuple[int, Recipe]] = []
        attributes: dict[int, dict[str, Any]] = {}
        while True:
            # One more than there are workers, so that none waits while the driver records.
            while running <= self.pool.size:
                ready = ready or self._started(waiting, first, asked, attributes, spent)
                if not ready:
                    break
                number, recipe = ready.pop(0)
                self.pool.submit(number, Job("search", recipe))
                running += 1
            if not running:
                break
            key, answer = self.pool.wait()
            running -= 1
            assert isinstance(key, int)
            ended[key] = self._record(key, asked[key - first], attributes[key], answer)
            self.study.note("seconds", spent())
            self.watcher.finished(ended[key], False)
        return [ended[n] for n in range(first, first + len(asked)) if n in ended]

    def _started(
        self,
        waiting: list[int],
        first: int,
        asked: list[dict[str, Value]],
        attributes: dict[int, dict[str, Any]],
        spent: Callable[[], float],
    ) -> list[tuple[int, Recipe]]:
        """The next candidates to submit, recorded in the order of asks as running; none where the budget is spent.

        One, unless they are to be ordered: then the rest of the generation, or, where time is the budget, a few rounds
        of the workers, lest it be overrun.
        """
        size = 1
        if self.order is not None:
            size = len(waiting) if self.budget.candidates is not None else ROUNDS * self.pool.size
        found: list[tuple[int, Recipe]] = []
        while waiting and len(found) < size and self.budget.left(waiting[0], spent()):
            number = waiting.pop(0)
            recipe = self.decode(asked[number - first])
            attributes[number] = _attributes(recipe, self.hash(recipe))
            self.study.start(number, asked[number - first], attributes[number])
            found.append((number, recipe))
        order = self.order
        if order is None:
            return found
        return dealt(sorted(found, key=lambda pair: (order(pair[1]), pair[0])), self.pool.size)

    def _record(self, number: int, params: Mapping[str, Value], attributes: dict[str, Any], answer: Answer) -> Trial:
        if answer.score is None:
            reason = answer.reason or "no reason given"
            self.study.fail(number, reason, answer.seconds)
            return Trial(number, params, State.FAIL, None, reason, answer.seconds, attributes)
        if answer.layers is not None:
            layers = {LAYERS: dict(zip(("asked", "run"), answer.layers, strict=True))}
            self.study.attribute(number, layers)
            attributes = attributes | layers
        self.study.complete(number, answer.score, answer.seconds, [float(attributes[DEPTH])] if self.by_depth else ())
        return Trial(number, params, State.COMPLETE, answer.score, None, answer.seconds, attributes)


def dealt(ordered: Sequence[T], workers: int) -> list[T]:
    """As if to card players: where workers take turns, each gets a run of neighbours, as long as all the others'."""
    size = max(1, math.ceil(len(ordered) / workers))
    return [x for place in range(size) for x in ordered[place::size]]


def path_order(recipe: Recipe) -> tuple[Any, ...]:
    """Sorts paths so that those with a common beginning stand together; other recipes by themselves."""
    path = Path.read(recipe)
    return (path.embeddings, *((h.model, h.layer, h.factor) for h in path.hops)) if path is not None else ()


def layer_evaluations(trials: list[Trial]) -> tuple[int, int] | None:
    """(asked, run) over all candidates that are paths: the rest was known from earlier candidates. None without any."""
    counted = [t.attributes[LAYERS] for t in trials if LAYERS in t.attributes]
    return (sum(c["asked"] for c in counted), sum(c["run"] for c in counted)) if counted else None


def front(trials: list[Trial]) -> list[Trial]:
    """The paths that no other one beats: none at least as good has fewer layers, and none as deep is better.

    From the fewest layers on; of equals the earliest.
    """
    found: list[Trial] = []
    paths = [t for t in best(trials) if DEPTH in t.attributes]
    for trial in sorted(paths, key=lambda t: t.attributes[DEPTH]):  # stable: of one depth the best comes first
        if not found or (trial.value or 0.0) > (found[-1].value or 0.0):
            found.append(trial)
    return found


def _attributes(recipe: Recipe, recipe_hash: str) -> dict[str, Any]:
    path = Path.read(recipe)
    return {"recipe_hash": recipe_hash} | ({DEPTH: len(path.hops)} if path is not None else {})


def best(trials: list[Trial]) -> list[Trial]:
    """The complete candidates, best first; the earlier one first among equals."""
    complete = [t for t in trials if t.score is not None]
    return sorted(complete, key=lambda t: (-(t.value or 0.0), t.number))


def _stale(trials: list[Trial]) -> int:
    """How many candidates have ended since the best one."""
    ranked = best(trials)
    return len(trials) - 1 - ranked[0].number if ranked else len(trials)


def _same(old: Trial, params: Mapping[str, Value], study: str) -> None:
    if set(old.params) != set(params) or any(not _equal(old.params[k], params[k]) for k in params):
        raise StudyError(
            f'study "{study}": candidate {old.number} is stored with other parameters than this version of evomerge '
            "proposes for the same seed; start a new study (--study NAME)"
        )


def _equal(a: Value, b: Value) -> bool:
    if isinstance(a, float) or isinstance(b, float):
        # Databases and log-scaled parameters may lose the last bits.
        return abs(float(a) - float(b)) <= 1e-9 * max(1.0, abs(float(a)))
    return a == b


def check_some_complete(trials: list[Trial]) -> None:
    """Raise where every candidate failed, with the most frequent reason."""
    if any(t.score is not None for t in trials):
        return
    reasons = [t.reason or "" for t in trials]
    common = max(dict.fromkeys(reasons), key=reasons.count) if reasons else "none was run"
    raise EvoMergeError(f"all {len(trials)} candidates failed; most often: {common}")
