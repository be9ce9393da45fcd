"""The search loop without generations: whichever worker is free gets the next candidate at once.

The optimizer is told of each candidate as it ends. What it proposes then depends on which ended first. So with each
candidate are kept its place among the tells, before it is told, and how many had been told when it was asked for: a
search that goes on feeds the optimizer the same asks and tells. Candidates that were cut off are run again.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from evomerge.errors import StudyError
from evomerge.optimizers.protocol import Worth
from evomerge.score import TOLD, State, Trial, Value
from evomerge.study.candidates import Spent, attributes_of, record_end, record_stop
from evomerge.study.contest import SETTLED
from evomerge.study.job import Answer
from evomerge.study.raced import Raced
from evomerge.study.scoring import Ask, Underway
from evomerge.study.window import Window

if TYPE_CHECKING:
    from evomerge.study.loop import Search

# An attribute of a candidate: how many had been told when it was asked for.
AFTER = "asked_after"
# So many generations in a row of which every candidate was there before end a search.
IDLE_GENERATIONS = 25


@dataclass
class _Running(Underway):
    """A candidate under way.

    Attributes:
        seen: How many items it has.
        asked: How many it will have when its block is back.
    """

    seen: int = 0
    asked: int = 0


class Asynchronous(Iterator[Ask]):
    """One search; the scoring draws what to run next from it, whenever a worker has room.

    Args:
        search: What it needs; its optimizer was made `asynchronous`.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        self._ended: list[Trial] = []  # in the order of tells
        self._spent = Spent()
        self._running: dict[int, _Running] = {}
        # Of those under way: what they are charged together, and how many there are of each recipe.
        self._charged = 0.0
        self._equal: Counter[str] = Counter()
        self._ready: deque[Ask] = deque()
        self._again: deque[tuple[int, dict[str, Value], dict[str, Any]]] = deque()  # cut off in an earlier run
        self._held: list[_Running] = []  # have their block back and wait for the others: see `_release`
        self._finalist: int | None = None
        self._next = 0
        self._payers: dict[str, int] = {}
        self._known: set[str] = set()
        self._idle = 0
        self._stopped = "budget"
        race = search.race
        self._told: list[float] = []  # what those that ended last were told with
        self._window = None
        if race is not None:
            self._window = Window(race.rules, search.optimizer.generation, search.optimizer.parents)

    def run(self) -> tuple[list[Trial], str]:
        """Search until the budget is spent; see `Search.run`."""
        self._replay()
        for ask, answer in self._search.scoring.answers(self, late=True):
            self._came(self._running[ask.number], answer)
        self._search.study.note("seconds", self._search.spent())
        return sorted(self._ended, key=lambda t: t.number), self._stopped

    def _replay(self) -> None:
        """Feed the optimizer what was asked and told before.

        Raises:
            StudyError: the stored candidates are not those that this search proposes.
        """
        search = self._search
        stored = search.study.trials()
        told = sorted((t for t in stored if t.state is not State.RUNNING), key=lambda t: t.told)
        for trial in stored:
            while len(self._ended) < int(trial.attributes[AFTER]):
                self._tell(told[len(self._ended)], replayed=True)
            search.recall([trial])
            (params,) = search.optimizer.ask(1)
            search.check_same(trial, params)
            if trial.state is State.RUNNING:
                self._again.append((trial.number, params, {AFTER: trial.attributes[AFTER]}))
        while len(self._ended) < len(told):
            self._tell(told[len(self._ended)], replayed=True)
        self._next = len(stored)

    def __next__(self) -> Ask:
        """What a worker that is free runs next: a candidate's next block, one that was cut off, or a new one."""
        if self._ready:
            return self._ready.popleft()
        if self._again:
            return self._start(*self._again.popleft())
        if not self._may_ask():
            raise StopIteration
        (params,) = self._search.optimizer.ask(1)
        number, self._next = self._next, self._next + 1
        return self._start(number, params, {AFTER: len(self._ended)})

    def _may_ask(self) -> bool:
        search = self._search
        if search.optimizer.done:
            self._stopped = "converged"
        elif search.patience is not None and self._spent.since_best >= search.patience:
            self._stopped = "patience"
        elif self._idle >= IDLE_GENERATIONS * search.optimizer.generation:
            self._stopped = "known"
        else:
            self._stopped = "budget"
            # So much that it, or in its place whoever turns out to be the best, can have all items: see `_allows`.
            return search.budget.allows(self._units + 1.0, search.spent())
        return False

    @property
    def _units(self) -> float:
        """What is spent, what those under way are charged, and those that are to be run again at least."""
        again = len(self._again) * self._share(0) if self._window is not None else 0.0
        return self._spent.units + self._charged + again

    def _allows(self, share: float) -> bool:
        """Whether a block of some share may start: what whoever turns out to be the best has yet to get is kept."""
        search = self._search
        return search.budget.allows(self._units + share + 1.0 - self._share(0), search.spent())

    def _able(self, running: _Running) -> bool:
        """Whether the budget reaches for all items of a candidate under way, if nobody else gets any; time apart."""
        budget = self._search.budget
        left = 1.0 - running.asked / len(self._race.draw)
        return budget.candidates is None or budget.allows(self._units + left, 0.0)

    def _share(self, seen: int) -> float:
        """The share of the items that a block from here on has."""
        return (self._race.rules.next_end(seen) - seen) / len(self._race.draw)

    @property
    def _race(self) -> Raced:
        race = self._search.race
        assert race is not None
        return race

    def _start(self, number: int, params: Mapping[str, Value], attributes: dict[str, Any]) -> Ask:
        search = self._search
        recipe = search.decode(params)
        ask = Ask(number, params, recipe, search.hash(recipe))
        attributes = attributes_of(recipe, ask.hash) | attributes
        search.study.start(number, params, attributes)
        search.watcher.started(number, params)
        running = self._running[number] = _Running(ask, attributes)
        self._equal[ask.hash] += 1
        if self._window is not None:
            self._window.start(number)
        return self._block(running)

    def _block(self, running: _Running) -> Ask:
        """The next items of a candidate, charged to it, or to the equal one that is under way already."""
        search, ask = self._search, running.ask
        if search.race is not None:
            end = search.race.rules.next_end(running.seen)
            ask = replace(ask, places=search.race.draw.places(running.seen, end))
            running.asked = end
        payer = self._payers.setdefault(ask.hash, ask.number)
        if payer == ask.number:
            taken = search.scoring.cost(ask)
            running.charged += taken
            self._charged += taken
        return replace(ask, payer=payer)

    def _came(self, running: _Running, answer: Answer) -> None:
        """A candidate's block was scored."""
        race, number = self._search.race, running.ask.number
        running.take(answer)
        if answer.score is None or race is None or self._window is None:
            self._complete(running, answer)
            self._release()
            return
        end = race.rules.next_end(running.seen)
        why = self._window.see(number, race.draw.results(running.parts[-1], running.seen, end))
        running.seen = end
        if end == len(race.draw):
            self._complete(running, answer)
            self._release()
            return
        if why is not None and not self._window.led and not self._others(running):
            why = None  # else nobody would ever have all items
        if why is not None:
            self._stop(running, why)
        elif self._allows(self._share(end)):
            self._ready.append(self._block(running))
        else:
            self._held.append(running)
        self._release()

    def _others(self, running: _Running) -> bool:
        """Whether another than this one can still have all items."""
        return bool(self._again) or any(r is not running and self._able(r) for r in self._running.values())

    def _release(self) -> None:
        """The last of the budget goes to the best of those that are left, when everybody's block is back.

        So it is not spent by who came back first. Where time is the budget, the best is finished when it is out.
        """
        if self._window is None or self._again or len(self._held) < len(self._running):
            return
        finalist = next((r for r in self._held if r.ask.number == self._finalist), None) or self._chosen()
        if finalist is None:
            while self._held:
                self._stop(self._held.pop(0), SETTLED)
            return
        self._finalist = finalist.ask.number
        self._held.remove(finalist)
        self._ready.append(self._block(finalist))

    def _chosen(self) -> _Running | None:
        """The best of those that are held; None: there is none that can be better than what there is."""
        window = self._window
        assert window is not None
        if self._search.budget.candidates is None and window.led and self._finalist is not None:
            return None  # time is out, and one was finished since
        able = [r.ask.number for r in self._held if self._able(r) and window.hopeful(r.ask.number)]
        found = window.best(able)
        return None if found is None else self._running[found]

    def _complete(self, running: _Running, answer: Answer) -> None:
        """It has all items, or failed."""
        search, race = self._search, self._search.race
        if race is not None and answer.score is not None:
            answer = replace(answer, score=race.draw.joined(running.parts))
        seen = None if race is None else running.seen
        self._end(record_end(search.study, running, answer, search.goals, seen, {TOLD: len(self._ended)}))

    def _stop(self, running: _Running, why: str) -> None:
        study, race = self._search.study, self._search.race
        assert race is not None
        part = race.draw.joined(running.parts)
        estimate = race.draw.estimate(part, running.seen)
        self._end(record_stop(study, running, part, why, running.seen, estimate, {TOLD: len(self._ended)}))

    def _end(self, trial: Trial) -> None:
        running = self._running.pop(trial.number)
        if self._window is not None:
            self._window.end(trial.number, failed=trial.state is State.FAIL)
        ask = running.ask
        if self._payers.get(ask.hash) == ask.number:
            del self._payers[ask.hash]
        self._charged = self._charged - running.charged if self._running else 0.0  # no error of rounding is left
        self._equal[ask.hash] -= 1
        if not self._equal[ask.hash]:
            del self._equal[ask.hash]
            self._search.scoring.forget([ask.hash])
        self._tell(trial, replayed=False)
        self._search.study.note("seconds", self._search.spent())

    def _limit(self) -> float:
        """What one that was raced out is below: of the last generation's worth that ended, the last of the parents."""
        size, parents = self._search.optimizer.generation, self._search.optimizer.parents
        recent = sorted(self._told[-size:], reverse=True)[:parents]
        return recent[-1] if len(recent) == parents else math.inf

    def _tell(self, trial: Trial, replayed: bool) -> None:
        search = self._search
        limit = self._limit() if trial.state is State.PRUNED else math.inf
        (told,) = search.told([trial], self._ended, search.race, limit)
        self._ended.append(trial)
        self._spent.add(trial)
        hash_ = trial.attributes.get("recipe_hash")
        self._idle = self._idle + 1 if hash_ in self._known else 0
        self._known.add(str(hash_))
        if replayed and self._window is not None:
            found = trial.score or trial.part
            if found is not None and search.race is not None:
                seen = trial.seen or len(search.race.draw)
                self._window.add(trial.number, search.race.draw.results(found, 0, seen))
        search.tell([dict(trial.params)], [told], [trial])
        if not (worth := Worth.of(told)).failed:
            self._told.append(worth.values[0])
        if self._window is not None:
            self._window.resize(search.optimizer.generation, search.optimizer.parents)
        search.watcher.finished(trial, replayed)


def check_begun(stored: list[Trial], asynchronous: bool, name: str) -> None:
    """Raise where a study's candidates were asked for the other way.

    Raises:
        StudyError: they were.
    """
    if stored and all(AFTER in t.attributes for t in stored) != asynchronous:
        was, now = ("without", "with") if asynchronous else ("with", "without")
        raise StudyError(f'study "{name}" was begun {was} --async, now it is {now}; give the same, or another --study')

