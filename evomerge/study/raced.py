"""A generation that is raced: its candidates are scored block by block, until each has stopped or has all items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evomerge.evaluation.draw import Draw
from evomerge.optimizers import Optimizer
from evomerge.score import COST, RACE, Score, State, Trial, Value, cost
from evomerge.study.budget import Budget
from evomerge.study.candidates import attributes_of, best, layers, record
from evomerge.study.contest import Contest, Rules
from evomerge.study.job import Answer
from evomerge.study.scoring import Ask, Scoring
from evomerge.study.store import Study
from evomerge.study.watcher import Watcher


@dataclass(frozen=True)
class Raced:
    """What a race needs.

    Attributes:
        draw: The search items in the order in which they are scored.
        rules: When candidates stop.
    """

    draw: Draw
    rules: Rules


@dataclass
class _Candidate:
    """One of them while it is raced: what it was scored and charged so far."""

    ask: Ask
    params: Mapping[str, Value]
    parts: list[Score]
    seconds: dict[str, float]
    charged: float = 0.0
    layers: tuple[int, int] | None = None

    @property
    def attributes(self) -> dict[str, Any]:
        return attributes_of(self.ask.recipe, self.ask.hash)

    def take(self, answer: Answer) -> None:
        """Add what a block took, and its score."""
        for step, seconds in answer.seconds.items():
            self.seconds[step] = self.seconds.get(step, 0.0) + seconds
        if answer.layers is not None:
            asked, ran = self.layers or (0, 0)
            self.layers = (asked + answer.layers[0], ran + answer.layers[1])
        if answer.score is not None:
            self.parts.append(answer.score)


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
        params: Mapping[int, Mapping[str, Value]],
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
        self._candidates = [_Candidate(ask, params[n], [], {}) for n, ask in asks.items()]
        self._ended = dict(ended)

    @property
    def least(self) -> float:
        """What the race takes at least: the first block of all of them, and all items of the best."""
        end, count = self._race.rules.ends[0], len(self._race.draw)
        places = self._race.draw.places(0, end)
        first = {i: replace(c.ask, places=places) for i, c in enumerate(self._candidates)}
        return sum(self._costs(first).values()) + 1.0 - end / count

    def run(self, optimizer: Optimizer, earlier: Sequence[Trial]) -> list[Trial]:
        """Race them.

        Args:
            earlier: All candidates of earlier generations.

        Returns:
            The whole generation in the order of asks; nothing where time ran out within it.
        """
        draw, count = self._race.draw, len(self._race.draw)
        for n, candidate in zip(self._numbers, self._candidates, strict=True):
            self._study.start(n, candidate.params, candidate.attributes)
        contest = self._contest(optimizer, earlier)
        units = cost(earlier)
        for start, end in contest.blocks():
            if self._budget.candidates is None and not self._budget.allows(0.0, self._spent()):
                return []
            block = self._block(contest, start, end)
            # What is left of the budget must reach for the best to be scored on all items.
            total = (
                units + sum(c.charged for c in self._candidates) + sum(self._costs(block).values()) + 1 - end / count
            )
            if start and self._budget.candidates is not None and not self._budget.allows(total, 0.0):
                for c in contest.settle():
                    self._stop(contest, c)
                block = self._block(contest, start, end)
                if not block:
                    break
            failed = self._score(block)
            for c in failed:
                contest.fail(c)
                self._fail(c, failed[c])
            came = {c: draw.results(self._candidates[c].parts[-1], start, end) for c in contest.left}
            for c in contest.see(came):
                self._stop(contest, c)
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
        twins: set[str] = set()
        for c, ask in block.items():
            costs[c] = 0.0 if ask.hash in twins else self._scoring.cost(ask)
            twins.add(ask.hash)
        return costs

    def _score(self, block: Mapping[int, Ask]) -> dict[int, Answer]:
        """Score a block. Returns those that failed, in the order of asks."""
        for c, charged in self._costs(block).items():
            self._candidates[c].charged += charged
        failed: dict[int, Answer] = {}
        waiting = []
        for c, ask in block.items():
            old = self._ended.get(ask.number)
            if old is not None and old.state is State.FAIL and not self._scoring.is_known(ask):
                failed[c] = Answer(None, old.reason)
            else:
                waiting.append(ask)
        for ask, answer in self._scoring.answers(iter(self._in_order(waiting))):
            c = ask.number - self._numbers[0]
            self._candidates[c].take(answer)
            if answer.score is None:
                failed[c] = answer
        return {c: failed[c] for c in sorted(failed)}

    def _fail(self, c: int, answer: Answer) -> None:
        n, candidate = self._numbers[c], self._candidates[c]
        if n not in self._ended:
            kept = {COST: candidate.charged}
            self._study.attribute(n, kept)
            attributes = candidate.attributes | kept
            self._end(
                record(self._study, n, candidate.params, attributes, replace(answer, seconds=candidate.seconds), False)
            )

    def _stop(self, contest: Contest, c: int) -> None:
        n, candidate = self._numbers[c], self._candidates[c]
        if n not in self._ended:
            estimate, seen = contest.estimate(c), contest.seen(c)
            kept = {RACE: {"stopped": contest.stopped[c], "seen": seen, "estimate": estimate, COST: candidate.charged}}
            kept |= layers(Answer(None, layers=candidate.layers))
            self._study.prune(n, kept, candidate.seconds, seen, estimate)
            attributes = candidate.attributes | kept
            self._end(Trial(n, candidate.params, State.PRUNED, None, None, candidate.seconds, attributes))

    def _complete(self, c: int) -> None:
        n, candidate = self._numbers[c], self._candidates[c]
        kept = {RACE: {"seen": len(self._race.draw), COST: candidate.charged}}
        self._study.attribute(n, kept)
        answer = Answer(self._race.draw.joined(candidate.parts), None, candidate.seconds, candidate.layers)
        self._end(record(self._study, n, candidate.params, candidate.attributes | kept, answer, False))

    def _end(self, trial: Trial) -> None:
        self._ended[trial.number] = trial
        self._watcher.finished(trial, False)
