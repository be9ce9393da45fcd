"""The search loop without generations: whichever worker is free gets the next candidate at once.

The optimizer is told of each candidate as it ends. What it proposes then depends on which ended first. So with each
candidate are kept its place among the tells, before it is told, and how many had been told when it was asked for: a
search that goes on feeds the optimizer the same asks and tells. Candidates that were cut off are run again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from evomerge.errors import StudyError
from evomerge.score import TOLD, State, Trial, Value, cost
from evomerge.study.candidates import attributes_of, best, record_end, record_stop
from evomerge.study.contest import SETTLED
from evomerge.study.job import Answer
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
    """A candidate under way, and how many items it has."""

    seen: int = 0


class Asynchronous(Iterator[Ask]):
    """One search; the scoring draws what to run next from it, whenever a worker has room.

    Args:
        search: What it needs; its optimizer was made `asynchronous`.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        self._ended: list[Trial] = []  # in the order of tells
        self._running: dict[int, _Running] = {}
        self._ready: deque[Ask] = deque()
        self._again: deque[tuple[int, dict[str, Value], dict[str, Any]]] = deque()  # cut off in an earlier run
        self._next = 0
        self._payers: dict[str, int] = {}
        self._known: set[str] = set()
        self._idle = 0
        self._stopped = "budget"
        race = search.race
        self._window = None
        if race is not None:
            self._window = Window(race.rules, search.optimizer.generation, search.optimizer.parents)

    def run(self) -> tuple[list[Trial], str]:
        """Search until the budget is spent; see `Search.run`."""
        self._replay()
        for ask, answer in self._search.scoring.answers(self):
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
        elif search.patience is not None and self._stale() >= search.patience:
            self._stopped = "patience"
        elif self._idle >= IDLE_GENERATIONS * search.optimizer.generation:
            self._stopped = "known"
        else:
            self._stopped = "budget"
            # What a candidate takes at least; with a race, the best one under way is to have all items too.
            least = 1.0 if self._window is None else self._share(0) + 1.0
            return search.budget.allows(self._units + least, search.spent())
        return False

    @property
    def _units(self) -> float:
        """What is spent, and what those under way are charged."""
        return cost(self._ended) + sum(r.charged for r in self._running.values())

    def _stale(self) -> float:
        ranked = best(self._ended)
        place = next((i for i, t in enumerate(self._ended) if ranked and t.number == ranked[0].number), -1)
        return cost(self._ended[place + 1 :])

    def _share(self, seen: int) -> float:
        """The share of the items that a block from here on has."""
        race = self._search.race
        assert race is not None
        return (race.rules.next_end(seen) - seen) / len(race.draw)

    def _start(self, number: int, params: Mapping[str, Value], attributes: dict[str, Any]) -> Ask:
        search = self._search
        recipe = search.decode(params)
        ask = Ask(number, params, recipe, search.hash(recipe))
        attributes = attributes_of(recipe, ask.hash) | attributes
        search.study.start(number, params, attributes)
        running = self._running[number] = _Running(ask, attributes)
        if self._window is not None:
            self._window.start(number)
        return self._block(running)

    def _block(self, running: _Running) -> Ask:
        """The next items of a candidate, charged to it, or to the equal one that is under way already."""
        search, ask = self._search, running.ask
        if search.race is not None:
            end = search.race.rules.next_end(running.seen)
            ask = replace(ask, places=search.race.draw.places(running.seen, end))
        payer = self._payers.setdefault(ask.hash, ask.number)
        if payer == ask.number:
            running.charged += search.scoring.cost(ask)
        return replace(ask, payer=payer)

    def _came(self, running: _Running, answer: Answer) -> None:
        """A candidate's block was scored."""
        search, race, number = self._search, self._search.race, running.ask.number
        running.take(answer)
        if answer.score is None or race is None or self._window is None:
            self._complete(running, answer)
            return
        end = race.rules.next_end(running.seen)
        why = self._window.see(number, race.draw.results(running.parts[-1], running.seen, end))
        running.seen = end
        if end == len(race.draw):
            self._complete(running, answer)
            return
        total = self._units + self._share(end)
        if why is None and not search.budget.allows(total, search.spent()):
            why = SETTLED
        if why is None:
            self._ready.append(self._block(running))
        else:
            self._stop(running, why)

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
        if all(r.ask.hash != ask.hash for r in self._running.values()):
            self._search.scoring.forget([ask.hash])
        self._tell(trial, replayed=False)
        self._search.study.note("seconds", self._search.spent())

    def _tell(self, trial: Trial, replayed: bool) -> None:
        search = self._search
        (told,) = search.told([trial], self._ended, search.race)
        self._ended.append(trial)
        hash_ = trial.attributes.get("recipe_hash")
        self._idle = self._idle + 1 if hash_ in self._known else 0
        self._known.add(str(hash_))
        if replayed and self._window is not None:
            found = trial.score or trial.part
            if found is not None and search.race is not None:
                seen = trial.seen or len(search.race.draw)
                self._window.add(search.race.draw.results(found, 0, seen))
        search.tell([dict(trial.params)], [told], [trial])
        search.watcher.finished(trial, replayed)


def check_begun(stored: list[Trial], asynchronous: bool, name: str) -> None:
    """Raise where a study's candidates were asked for the other way.

    Raises:
        StudyError: they were.
    """
    if stored and all(AFTER in t.attributes for t in stored) != asynchronous:
        was, now = ("without", "with") if asynchronous else ("with", "without")
        raise StudyError(f'study "{name}" was begun {was} --async, now it is {now}; give the same, or another --study')

