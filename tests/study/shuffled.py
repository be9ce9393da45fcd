"""A pool for tests of the loop: answers come in a shuffled order, until it is killed."""

import random
from collections import deque

from evomerge.study.stopping import Stop


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


class ShuffledPool:
    """Workers that end in any order.

    Args:
        answer: What becomes of a job.
        kill_after: So many answers come, and no more.

    Attributes:
        run: How many answers were asked for.
    """

    device, ahead, eager = "cpu", 0, True

    def __init__(self, answer, size=1, seed=0, kill_after=None):
        self.size, self.jobs, self.run, self.stop = size, deque(), 0, Stop()
        self._answer, self._random, self._kill = answer, random.Random(seed), kill_after

    def submit(self, key, job):
        self.jobs.append((key, job))

    def wait(self):
        self.run += 1
        if self._kill is not None and self.run > self._kill:
            raise Killed
        place = self._random.randrange(min(self.size, len(self.jobs)))
        key, job = self.jobs[place]
        del self.jobs[place]
        return key, self._answer(job)

    def recall(self):
        found = [key for key, _ in self.jobs]
        self.jobs.clear()
        return found

    def close(self):
        pass


def a_second_each(pool, monkeypatch):
    """The same kind of pool, where each answer takes a second of the loop's clock; and that clock, in a list."""
    now = [0.0]
    monkeypatch.setattr("evomerge.study.loop.time.monotonic", lambda: now[0])

    class Slow(pool):
        def wait(self):
            now[0] += 1.0
            return super().wait()

    return Slow, now


def weights(recipe):
    """The weight of each model of a recipe."""
    return [m.parameters["weight"] for m in recipe.models]
