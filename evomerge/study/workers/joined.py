"""A pool and, beside its own workers, those of the processes that joined the search."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable

from evomerge.study.board import TRIES, Board, Joiner
from evomerge.study.exchange import read_answer, write_job
from evomerge.study.job import Answer, Job, Told
from evomerge.study.workers.pools import Pool

# Seconds between two looks at the board: while an answer may come, and else.
SOON, SELDOM = 0.25, 1.0


class _Came(Exception):
    """Ends a wait for one's own workers: there is something to do."""


class JoinedPool:
    """Its own workers get jobs first, those that joined what is left.

    What is scored, and in what order it is told, does not depend on who scores it.

    Args:
        own: The driver's workers.
        board: Where those that joined take their jobs.
        say: Is told who comes and goes, and what answers note.
    """

    def __init__(self, own: Pool, board: Board, say: Callable[[str], None]) -> None:
        self._own = own
        self._board = board
        self._say, self._told = say, Told(say)
        self.device = own.device
        self.stop = own.stop
        self.ahead, self.eager = own.ahead, own.eager
        self._joined: dict[str, Joiner] = {}
        self._waiting: deque[tuple[Hashable, Job]] = deque()
        self._mine = 0
        self._out: dict[str, tuple[Hashable, Job]] = {}
        self._come: deque[tuple[Hashable, Answer]] = deque()
        self._looked = -SELDOM
        self._at_home: deque[tuple[Hashable, Job]] = deque()

    @property
    def size(self) -> int:
        """Number of workers, those that joined too."""
        self._look(SELDOM)
        return self._own.size + self._others

    @property
    def _others(self) -> int:
        return sum(j.workers for j in self._joined.values())

    def submit(self, key: Hashable, job: Job) -> None:
        """Hand in a job; see `Pool`."""
        self._waiting.append((key, job))
        self._look(SELDOM)
        self._hand_out()

    def wait(self, poll: Callable[[], None] | None = None) -> tuple[Hashable, Answer]:
        """The next answer; see `Pool`.

        Raises:
            Interrupted: the search is to end, and nothing is under way any more.
        """
        while True:
            if self.stop.asked:
                self.recall()
                if not (self._mine or self._out or self._come):
                    self.stop.check()
            self._look(SOON if self._out else SELDOM)
            self._hand_out()
            if self._come:
                return self._come.popleft()
            if self._mine:
                try:
                    found = self._own.wait(lambda: self._poll(poll))
                except _Came:
                    continue
                self._mine -= 1
                self._hand_out()
                return found
            if not self._out:
                raise RuntimeError("nothing was submitted")
            if poll is not None:
                poll()
            time.sleep(SOON)

    def recall(self) -> list[Hashable]:
        """Take back what nobody has begun, here or on the board; see `Pool`."""
        found = self._own.recall()
        self._mine -= len(found)
        there = [key for key in self._out if self._board.withdraw(key)]
        found += [self._out.pop(key)[0] for key in there]
        for queue in self._waiting, self._at_home:
            found += [key for key, _ in queue]
            queue.clear()
        return found

    def close(self) -> None:
        """Stop its own workers."""
        self._own.close()

    def _poll(self, poll: Callable[[], None] | None) -> None:
        if poll is not None:
            poll()
        if self.stop.asked:
            self.recall()
            if not self._mine:
                raise _Came
        self._look(SOON if self._out else SELDOM)
        if self._come or (self._waiting and self._room):
            raise _Came

    @property
    def _room(self) -> int:
        """How many jobs more the board takes: one for each worker there, and one for each process ahead."""
        return self._others + len(self._joined) - len(self._out)

    def _hand_out(self) -> None:
        own = self._own
        while self._at_home and self._mine < own.size + own.ahead:
            self._run_here(*self._at_home.popleft())
        while self._waiting and self._mine < own.size:
            self._run_here(*self._waiting.popleft())
        while self._waiting and len(self._out) < self._others:
            self._put_up(*self._waiting.popleft())
        while self._waiting and self._mine < own.size + own.ahead:
            self._run_here(*self._waiting.popleft())
        while self._waiting and self._room > 0:
            self._put_up(*self._waiting.popleft())

    def _run_here(self, key: Hashable, job: Job) -> None:
        self._own.submit(key, job)
        self._mine += 1

    def _put_up(self, key: Hashable, job: Job) -> None:
        self._out[self._board.put(write_job(job))] = (key, job)

    def _look(self, every: float) -> None:
        """Look at the board, unless that was just done: who is there, what was answered, and what nobody does."""
        if time.monotonic() - self._looked < every:
            return
        joined = {j.token: j for j in self._board.joined()}
        for token, joiner in joined.items():
            if token not in self._joined:
                self._say(f"{joiner} joined: {joiner.workers} more worker{'s' if joiner.workers != 1 else ''}")
        for token, joiner in self._joined.items():
            if token not in joined:
                self._say(f"{joiner} left")
        self._joined = joined
        if self._out:
            posted = self._board.posted()
            self._take_in([p.key for p in posted if p.done and p.key in self._out])
            # Where one of its own workers is free, what nobody has begun is done here. So is what two processes died
            # over, and everything where nobody is left.
            idle = self._own.size - self._mine - len(self._waiting)
            for p in (p for p in reversed(posted) if p.free and p.key in self._out):
                late = p.tries >= TRIES or not joined
                if (late or idle > 0) and self._board.withdraw(p.key):
                    (self._at_home if p.tries >= TRIES else self._waiting).appendleft(self._out.pop(p.key))
                    idle -= 1
        self._looked = time.monotonic()

    def _take_in(self, keys: list[str]) -> None:
        answers = self._board.answers(keys) if keys else {}
        for key, text in answers.items():
            asked, _ = self._out.pop(key)
            answer = read_answer(text)
            self._told.of(answer)
            self._come.append((asked, answer))
        if answers:
            self._board.remove(answers)
