"""The search loop: ask a generation, score it, tell it in the order of asking.

Because tells come in ask order and the optimizer is a pure function of its seed and its tells, the sequence of
candidates is the same for any number of workers, and resuming is replay: stored candidates are told again, the ones
that were cut off run again. With a race the candidates of a generation are scored block by block (see `raced`), else
one by one on all items.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from evomerge.errors import StudyError
from evomerge.optimizers import Optimizer
from evomerge.optimizers.behaviours import Archiving
from evomerge.optimizers.protocol import Recalling, Told, Worth
from evomerge.recipe import Path, Recipe
from evomerge.score import COST, State, Trial, Value, cost
from evomerge.study.asynchronous import IDLE_GENERATIONS, Asynchronous, check_begun
from evomerge.study.budget import Budget
from evomerge.study.candidates import Spent, attributes_of, behaviour, record
from evomerge.study.contest import RACED_OUT, below
from evomerge.study.estimator.told import standard_errors, worth
from evomerge.study.goals import Goals
from evomerge.study.heap import settled_heap
from evomerge.study.raced import Raced, RacedGeneration
from evomerge.study.scoring import Ask, Scoring
from evomerge.study.store import Study
from evomerge.study.watcher import Watcher

Decode = Callable[[Mapping[str, Value]], Recipe]
T = TypeVar("T")
# Candidates for each worker that are ordered at once where time is the budget.
ROUNDS = 4


@dataclass(frozen=True)
class Search:
    """One search over one space: what the loop needs.

    Attributes:
        decode: Parameters to recipe.
        hash: Recipe to its hash.
        patience: Stop where so many candidates' cost brought no better score (checked between generations).
        order: Where candidates build on what a worker knows of earlier ones: a key that puts those beside each other
            that share most. A generation is scored in that order; what is asked and told stays in the order of asks.
        goals: Objectives and constraints; with others than the score alone no candidate is raced.
        asynchronous: Whichever worker is free gets the next candidate at once (see `asynchronous`).
        race: Score the candidates of a generation block by block; None: each on all items.
    """

    study: Study
    optimizer: Optimizer
    decode: Decode
    hash: Callable[[Recipe], str]
    scoring: Scoring
    budget: Budget
    watcher: Watcher
    patience: int | None = None
    order: Callable[[Recipe], Any] | None = None
    goals: Goals = field(default_factory=Goals)
    race: Raced | None = None
    asynchronous: bool = False
    _clock: list[float] = field(default_factory=list)

    def run(self) -> tuple[list[Trial], str]:
        """Search until the budget is spent.

        Returns:
            Every candidate by number, and why the search ended: "budget", "patience", "converged" or "known".

        Raises:
            StudyError: the stored candidates are not those that this search proposes (another version's study).
            Interrupted: the search was asked to end; see `stopping`.
        """
        self.scoring.heard = self.watcher.scored
        stored = {t.number: t for t in self.study.trials()}
        for trial in stored.values():
            if trial.score is not None and "recipe_hash" in trial.attributes:
                self.scoring.remember(trial.attributes["recipe_hash"], trial.score)
        self._clock[:] = [float(self.study.notes().get("seconds", 0.0)), time.monotonic()]
        check_begun([*stored.values()], self.asynchronous, self.study.name)
        with settled_heap():
            return Asynchronous(self).run() if self.asynchronous else self._generations(stored)

    def _generations(self, stored: Mapping[int, Trial]) -> tuple[list[Trial], str]:
        trials: list[Trial] = []
        taken = Spent()
        known: set[str | None] = set()
        stopped, idle, generations = "budget", 0, 0
        while True:
            self.scoring.pool.stop.check()
            if self.optimizer.done:
                stopped = "converged"
                break
            if self.patience is not None and taken.since_best >= self.patience:
                stopped = "patience"
                break
            if idle >= IDLE_GENERATIONS:
                stopped = "known"
                break
            number = len(trials)
            finished_before = number in stored and stored[number].state is not State.RUNNING
            if not finished_before and not self.budget.left(taken.units, self.spent()):
                break
            size = self.optimizer.generation
            self.recall(stored[n] for n in itertools.takewhile(stored.__contains__, range(number, number + size)))
            asked = self.optimizer.ask(size)
            race = self.race and self.race.turned(generations)
            generation = self._generation(asked, stored, trials, taken.units, race)
            told = self.told(generation, trials, race)
            hashes = {t.attributes.get("recipe_hash") for t in generation}
            idle = idle + 1 if hashes <= known else 0
            known |= hashes
            trials += generation
            for trial in generation:
                taken.add(trial)
            if len(generation) < len(asked):
                # The budget cut the generation short: it is told when a larger budget completes it.
                self._close(asked[: len(generation)], told, generation)
                break
            self.tell(asked, told, generation)
            generations += 1
        self.study.note("seconds", self.spent())
        return trials, stopped

    def spent(self) -> float:
        """Seconds of the search so far, earlier runs together with this one."""
        before, started = self._clock
        return before + time.monotonic() - started

    def tell(self, asked: Sequence[Mapping[str, Value]], told: Sequence[Told], trials: Sequence[Trial]) -> None:
        """Tell the optimizer what became of candidates."""
        self.optimizer.tell(asked, told, [behaviour(t) for t in trials] if self.optimizer.whole else None)

    def _close(self, asked: Sequence[Mapping[str, Value]], told: Sequence[Told], trials: Sequence[Trial]) -> None:
        """Let the last candidates into the archive of an optimizer that has one, and is told whole generations."""
        if trials and isinstance(self.optimizer, Archiving):
            self.optimizer.close(asked, told, [behaviour(t) for t in trials])

    def told(
        self, generation: Sequence[Trial], earlier: Sequence[Trial], race: Raced | None, limit: float = math.inf
    ) -> list[Told]:
        """What candidates are worth to the optimizer.

        Args:
            race: That they were in.
            limit: What those raced out are below, where neither the generation nor earlier candidates say it.
        """
        if not self.goals.plain:
            return self.goals.told(generation)
        values: list[float | None] = [t.value for t in generation]
        stopped = {i: t for i, t in enumerate(generation) if t.state is State.PRUNED}
        if not stopped or race is None:
            return [*values]
        for i, value in worth(race.draw, race.estimates, generation, earlier).items():
            values[i] = value
        if self.optimizer.weighs:
            errors = standard_errors(race.draw, race.estimates, generation, earlier)
            return [v if i not in errors or v is None else Worth((v,), error=errors[i]) for i, v in enumerate(values)]
        dropped = {i: t.seen or 0 for i, t in stopped.items() if t.stopped == RACED_OUT}
        if self.optimizer.elitist:
            alive = [v for i, v in enumerate(values) if v is not None and i not in dropped]
            pool = sorted([*alive, *(t.value for t in earlier if t.value is not None)], reverse=True)
            limit = pool[self.optimizer.parents - 1] if len(pool) >= self.optimizer.parents else math.inf
        return [*below(values, dropped, limit)]

    def _generation(
        self,
        asked: list[dict[str, Value]],
        stored: Mapping[int, Trial],
        trials: Sequence[Trial],
        units: float,
        race: Raced | None,
    ) -> list[Trial]:
        """Score a generation, as far as the budget reaches. Returns a prefix of it, in ask order.

        Args:
            trials: Of earlier generations, which took `units` of the budget.
        """
        first = len(trials)
        numbers = list(range(first, first + len(asked)))
        ended: dict[int, Trial] = {}
        params = dict(zip(numbers, asked, strict=True))
        for number in numbers:
            old = stored.get(number)
            if old is not None:
                self.check_same(old, params[number])
                if old.state is not State.RUNNING:
                    ended[number] = old
                    self.watcher.finished(old, True)
        waiting = [n for n in numbers if n not in ended]
        if not waiting:
            return [ended[n] for n in numbers]
        asks = {n: self._ask(n, params[n]) for n in numbers}
        if race is not None:
            raced = RacedGeneration(
                self.study, self.scoring, self.budget, self.watcher, race, self.spent, self._in_order, asks,
                ended,
            )  # fmt: skip
            if self.budget.allows(units + raced.least, self.spent()):
                return raced.run(self.optimizer, trials, units)
        self._whole(asks, waiting, ended, units + cost(ended.values()))
        self.scoring.forget([a.hash for a in asks.values()])
        return [ended[n] for n in itertools.takewhile(ended.__contains__, numbers)]

    def recall(self, trials: Iterable[Trial]) -> None:
        """Remind an optimizer of candidates of an earlier run that it is about to be asked for, in their order."""
        if isinstance(self.optimizer, Recalling):
            self.optimizer.recall([t.params for t in trials])

    def check_same(self, old: Trial, params: Mapping[str, Value]) -> None:
        """Raise where a stored candidate is not the one that this search proposes."""
        if set(old.params) != set(params) or any(not _equal(old.params[k], params[k]) for k in params):
            raise StudyError(
                f'study "{self.study.name}": candidate {old.number} is stored with other parameters than this version '
                "of evomerge proposes for the same seed; start a new study (--study NAME)"
            )

    def _ask(self, number: int, params: Mapping[str, Value]) -> Ask:
        recipe = self.decode(params)
        return Ask(number, params, recipe, self.hash(recipe))

    def _whole(
        self,
        asks: Mapping[int, Ask],
        waiting: list[int],
        ended: dict[int, Trial],
        units: float,
    ) -> None:
        """Score candidates on all items, as far as the budget reaches."""
        attributes: dict[int, dict[str, Any]] = {}
        for ask, answer in self.scoring.answers(self._started(waiting, asks, attributes, units)):
            n = ask.number
            ended[n] = record(self.study, n, ask.params, attributes[n], answer, self.goals)
            self.study.note("seconds", self.spent())
            self.watcher.finished(ended[n], False)

    def _started(
        self,
        waiting: list[int],
        asks: Mapping[int, Ask],
        attributes: dict[int, dict[str, Any]],
        units: float,
    ) -> Iterator[Ask]:
        """The candidates to score, recorded in the order of asks as running; no more where the budget is spent.

        One after the other, unless they are to be ordered: then the generation, or, where time is the budget, a few
        rounds of the workers, lest it be overrun.
        """
        size = 1
        if self.order is not None:
            size = len(waiting) if self.budget.candidates is not None else ROUNDS * self.scoring.pool.size
        # By hash, who pays: a twin in the same generation is scored once.
        seen = {asks[n].hash: n for n in list(asks)[::-1] if n not in waiting}
        while waiting:
            found: list[Ask] = []
            while waiting and len(found) < size:
                ask = asks[waiting[0]]
                n = ask.number
                charged = 0.0 if ask.hash in seen else self.scoring.cost(ask)
                if not self.budget.allows(units + charged, self.spent()):
                    waiting.clear()
                    break
                waiting.pop(0)
                payer = seen.setdefault(ask.hash, n)
                units += charged
                attributes[n] = attributes_of(ask.recipe, ask.hash) | ({COST: charged} if charged < 1.0 else {})
                self.study.start(n, ask.params, attributes[n])
                self.watcher.started(n, ask.params)
                found.append(replace(ask, payer=payer))
            if not found:
                return
            yield from self._in_order(found)

    def _in_order(self, asks: Sequence[Ask]) -> list[Ask]:
        order = self.order
        if order is None:
            return list(asks)
        return dealt(sorted(asks, key=lambda ask: (order(ask.recipe), ask.number)), self.scoring.pool.size)


def dealt(ordered: Sequence[T], workers: int) -> list[T]:
    """As if to card players: where workers take turns, each gets a run of neighbours, as long as all the others'."""
    size = max(1, math.ceil(len(ordered) / workers))
    return [x for place in range(size) for x in ordered[place::size]]


def path_order(recipe: Recipe) -> tuple[Any, ...]:
    """Sorts paths so that those with a common beginning stand together; other recipes by themselves."""
    path = Path.read(recipe)
    return (path.embeddings, *((h.model, h.layer, h.factor) for h in path.hops)) if path is not None else ()


def _equal(a: Value, b: Value) -> bool:
    if isinstance(a, float) or isinstance(b, float):
        # Databases and log-scaled parameters may lose the last bits.
        return abs(float(a) - float(b)) <= 1e-9 * max(1.0, abs(float(a)))
    return a == b
