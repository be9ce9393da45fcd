"""A generation that is raced: its candidates are scored block by block, until each has stopped or has all items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evomerge.evaluation.draw import Draw
from evomerge.optimizers import Optimizer
from evomerge.score import State, Trial
from evomerge.study.budget import Budget
from evomerge.study.candidates import attributes_of, best, record_end, record_stop
from evomerge.study.contest import SETTLED, Contest, Rules
from evomerge.study.estimator.told import Estimates
from evomerge.study.goals import Goals
from evomerge.study.job import Answer
from evomerge.study.scoring import Ask, Scoring, Underway
from evomerge.study.store import Study
from evomerge.study.watcher import Watcher


@dataclass(frozen=True)
class Raced:
    """What a race needs.

    Attributes:
        draw: The search items in the order in which they are scored.
        rules: When candidates stop.
        estimates: What those that stopped would score, by an item-response model where that is better. None: never.
        turning: Whether each generation begins with other items than the one before (see `turned`).
        represented: Items of every task that an order must rest on before it is settled.
    """

    draw: Draw
    rules: Rules
    estimates: Estimates | None = None
    turning: bool = True
    represented: int = 0

    def turned(self, generation: int) -> Raced:
        """The race of a generation, which begins in the order where the first block of the one before ended.

        If all began with the same items, an optimizer would learn to answer those: candidates descend from ones that
        did well on them. With items that their ancestors were not chosen by, what is measured is not flattered by the
        choice, and the bounds of `racing` hold for them too. All candidates of one generation have the same.
        """
        if not self.turning:
            return self
        draw = self.draw.turned(generation * self.rules.ends[0])
        rules = replace(self.rules, weights=draw.weights, settle_from=draw.represented(self.represented))
        return replace(self, draw=draw, rules=rules)


class RacedGeneration:
    """One generation's race.

    Args:
        spent: Seconds of the search so far.
        in_order: How asks are put in order for the workers.
        asks: The generation by number, in the order of asks.
        ended: Those of it that ended in an earlier run. Their results are known, so that the race ends the same.
    """

    def __init__(
        self,
        study: Study,
        scoring: Scoring,
        budget: Budget,
        watcher: Watcher,
        race: Raced,
        spent: Callable[[], float],
        in_order: Callable[[Sequence[Ask]], list[Ask]],
        asks: Mapping[int, Ask],
        ended: Mapping[int, Trial],
    ) -> None:
        self._study = study
        self._scoring = scoring
        self._budget = budget
        self._watcher = watcher
        self._race = race
        self._spent = spent
        self._in_order = in_order
        self._numbers = list(asks)
        self._candidates = [Underway(ask, attributes_of(ask.recipe, ask.hash)) for ask in asks.values()]
        self._ended = dict(ended)
        # A budget may have cut the generation short, so that some of it was scored whole.
        self._whole = {c for c, n in enumerate(self._numbers) if n in ended and ended[n].seen is None}
        for c in self._whole:
            self._candidates[c].charged = ended[self._numbers[c]].cost

    @property
    def least(self) -> float:
        """What the race takes at least: the first block of all of them, and all items of the best."""
        end, count = self._race.rules.ends[0], len(self._race.draw)
        places = self._race.draw.places(0, end)
        first = {i: replace(c.ask, places=places) for i, c in enumerate(self._candidates)}
        charged = sum(c.charged for c in self._candidates)
        return charged + sum(self._costs(first).values()) + 1.0 - end / count

    def run(self, optimizer: Optimizer, earlier: Sequence[Trial], units: float) -> list[Trial]:
        """Race them.

        Args:
            earlier: All candidates of earlier generations, which took `units` of the budget.

        Where the budget does not reach for another block, time included, it is settled, and its best alone goes on.

        Returns:
            The whole generation in the order of asks.
        """
        draw, count = self._race.draw, len(self._race.draw)
        for n, candidate in zip(self._numbers, self._candidates, strict=True):
            self._study.start(n, candidate.ask.params, candidate.attributes)
            if n not in self._ended:
                self._watcher.started(n, candidate.ask.params)
        contest = self._contest(optimizer, earlier)
        for start, end in contest.blocks():
            block = self._block(contest, start, end)
            costs = self._costs(block)
            # What is left of the budget must reach for the best to be scored on all items.
            charged = sum(c.charged for c in self._candidates) + sum(costs.values())
            total = units + charged + 1.0 - end / count
            if start and len(block) > 1 and not self._budget.allows(total, self._spent()):
                for c in contest.settle():
                    self._stop(contest, c)
                block = {c: ask for c, ask in block.items() if c in contest.left}
                if not block:
                    break
            for c in block:
                self._candidates[c].charged += costs[c]
            failed = self._score(block)
            for c in failed:
                contest.fail(c)
                self._fail(contest, c, failed[c])
            came = {c: draw.results(self._candidates[c].parts[-1], start, end) for c in contest.left}
            for c in contest.see(came):
                self._stop(contest, c)
            self._stop_again(contest)
            self._study.note("seconds", self._spent())
        for c in range(len(self._candidates)):
            if self._numbers[c] not in self._ended:
                self._complete(c)
        self._scoring.forget([c.ask.hash for c in self._candidates])
        return [self._ended[n] for n in self._numbers]

    def _contest(self, optimizer: Optimizer, earlier: Sequence[Trial]) -> Contest:
        draw, count = self._race.draw, len(self._race.draw)
        wanted = best(list(earlier))[: optimizer.parents if optimizer.elitist else 1]
        table = np.array([draw.results(t.score, 0, count) for t in wanted if t.score is not None])
        rivals = table if optimizer.elitist and len(table) else None
        return Contest(
            self._race.rules, len(self._candidates), optimizer.parents, table[0] if len(table) else None, rivals
        )

    def _block(self, contest: Contest, start: int, end: int) -> dict[int, Ask]:
        """What is to be scored next, by place in the generation."""
        places = self._race.draw.places(start, end)
        return {c: replace(self._candidates[c].ask, places=places) for c in contest.left}

    def _costs(self, block: Mapping[int, Ask]) -> dict[int, float]:
        """What candidates are charged for a block; of equal ones only the first."""
        costs: dict[int, float] = {}
        for c, ask in block.items():
            mine = self._payer(ask) == ask.number and c not in self._whole
            costs[c] = self._scoring.cost(ask) if mine else 0.0
        return costs

    def _payer(self, ask: Ask) -> int:
        """The first of the generation's equal candidates."""
        return next(c.ask.number for c in self._candidates if c.ask.hash == ask.hash)

    def _stop_again(self, contest: Contest) -> None:
        """Those that were stopped here in an earlier run stop again, whatever the budget was that stopped them."""
        for c in list(contest.left):
            old = self._ended.get(self._numbers[c])
            if old is not None and old.state is State.PRUNED and contest.seen(c) >= (old.seen or 0):
                contest.stop(c, old.stopped or SETTLED)

    def _score(self, block: Mapping[int, Ask]) -> dict[int, Answer]:
        """Score a block. Returns those that failed, in the order of asks."""
        failed: dict[int, Answer] = {}
        waiting = []
        for c, ask in block.items():
            old = self._ended.get(ask.number)
            if old is not None and old.state is State.FAIL and not self._scoring.is_known(ask):
                failed[c] = Answer(None, old.reason)
            else:
                waiting.append(replace(ask, payer=self._payer(ask)))
        for ask, answer in self._scoring.answers(iter(self._in_order(waiting))):
            c = ask.number - self._numbers[0]
            self._candidates[c].take(answer)
            if answer.score is None:
                failed[c] = answer
        return {c: failed[c] for c in sorted(failed)}

    def _fail(self, contest: Contest, c: int, answer: Answer) -> None:
        if self._numbers[c] not in self._ended:
            self._end(record_end(self._study, self._candidates[c], answer, Goals(), contest.seen(c)))

    def _stop(self, contest: Contest, c: int) -> None:
        candidate = self._candidates[c]
        if self._numbers[c] not in self._ended:
            part = self._race.draw.joined(candidate.parts)
            why, seen, estimate = contest.stopped[c], contest.seen(c), contest.estimate(c)
            self._end(record_stop(self._study, candidate, part, why, seen, estimate))

    def _complete(self, c: int) -> None:
        candidate = self._candidates[c]
        answer = Answer(self._race.draw.joined(candidate.parts))
        self._end(record_end(self._study, candidate, answer, Goals(), len(self._race.draw)))

    def _end(self, trial: Trial) -> None:
        self._ended[trial.number] = trial
        self._watcher.finished(trial, False)
