"""Searches on a Ray cluster of one or three nodes on this machine, of which one part after another is killed.

    python -m tests.faults.drill < PLAN

A process of its own: Ray's nodes are its children, and end with it. Prints `ACCOUNT {...}`; see `test_kills`.
"""

import contextlib
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import sqlalchemy as sa

from evomerge.errors import StudyError
from evomerge.study import schema
from evomerge.study.store import Store
from tests.faults import cheap
from tests.faults.accounts import Account, audit, moment, sequence

# A candidate whose workers died twice has failed, which is as it is to be. So that many answers at least are between
# two kills, counted from when the search has seen the first and given the candidate to another worker: Ray may see only
# after some answers of the other worker that a node is gone.
APART = 4
PATIENCE = 180
WORKERS = 2


class Nodes:
    """A head with two CPUs; or one without, and two nodes with one each."""

    def __init__(self, count):
        self._count = count
        self._start()

    def _start(self):
        from ray.cluster_utils import Cluster

        head = {"num_cpus": WORKERS if self._count == 1 else 0, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(self._count - 1):
            self._cluster.add_node(num_cpus=1)

    @property
    def address(self):
        return self._cluster.address

    def lose(self, draw):
        """A machine is gone, and another one comes."""
        node = draw.choice(sorted(self._cluster.worker_nodes, key=lambda n: n.node_id))
        self._cluster.remove_node(node, allow_graceful=False)
        self._cluster.add_node(num_cpus=1)

    def behead(self):
        """The head is gone, and with it what the cluster knew; it is started anew."""
        self._cluster.remove_node(self._cluster.head_node, allow_graceful=False)
        for node in list(self._cluster.worker_nodes):
            self._cluster.remove_node(node, allow_graceful=False)
        self._start()

    def workers(self):
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::_Worker"):
                    found.append(process)
        return sorted(found, key=lambda p: p.pid)

    def close(self):
        self._cluster.shutdown()


def answers(storage):
    """How many jobs have been recorded."""
    with contextlib.suppress(StudyError, sa.exc.SQLAlchemyError):
        store = Store(storage)
        scored = sa.and_(schema.scores.c.subject.like("trial/%"), schema.scores.c.split == "search")
        counts = (
            sa.select(sa.func.count()).select_from(schema.results),
            sa.select(sa.func.count()).select_from(schema.scores).where(~scored),
        )
        with store.engine.connect() as connection:
            found = sum(connection.execute(c).scalar_one() for c in counts)
        store.engine.dispose()
        return found
    return 0


class Drill:
    def __init__(self, plan):
        self.plan, self.draw = plan, random.Random(plan["seed"])
        self.folder = Path(plan["folder"])
        self.nodes, self.account = Nodes(plan["nodes"]), Account()
        self.victims = [what for what, count in plan["kills"].items() for _ in range(count)]
        self.draw.shuffle(self.victims)
        self.process = None

    def run(self):
        ways = list(self.plan["ways"].items())
        while self.victims:
            number = self.account.studies
            way, (options, budget, same) = ways[number % len(ways)]
            storage, out = self.plan["storages"][number], self.folder / f"out{number}"
            self.args = cheap.asked(Path(self.plan["file"]), out, budget, *options, "--storage", storage)
            self.study(storage)
            reference = Path(self.plan["expected"][way])
            expected = sequence(f"sqlite:///{reference / 'study.db'}"), reference
            self.account.add(audit(storage, out, budget, expected, same))
        return self.account

    def study(self, storage):
        """One search to its end, with kills until there are none left."""
        self.start()
        since, ended_alone = 0, 0
        while True:
            apart, deadline = APART + self.draw.randrange(3), time.monotonic() + PATIENCE
            while self.process.poll() is None and (not self.victims or answers(storage) - since < apart):
                assert time.monotonic() < deadline, self.log.read_text()[-4000:]
                time.sleep(0.05)
            if self.process.poll() is None:
                time.sleep(self.draw.uniform(0, 0.4))
            code = self.process.poll()
            if code == 0:
                return
            if code is not None:  # with the node that it was on
                ended_alone += 1
                assert ended_alone <= 8, self.log.read_text()[-4000:]
                print(f"the driver ended with {code}", self.log.read_text()[-600:], file=sys.stderr)
                self.start()
                continue
            self.seen(self.kill(storage))
            since = answers(storage)

    def kill(self, storage):
        """Kills what is next. Returns the workers that there were."""
        workers = self.nodes.workers()
        what = self.victims.pop()
        if what == "worker":
            try:
                victim = self.draw.choice(workers)
                victim.kill()
                victim.wait(PATIENCE)
            except (IndexError, psutil.NoSuchProcess):
                self.victims.insert(0, what)
                return workers
        with self.log.open("a") as log:
            print(f"drill: {what} killed after {answers(storage)} answers", file=log)
        self.account.moments[moment(storage)] += 1
        self.account.kills[what] += 1
        match what:
            case "driver":
                self.process.kill()
                self.process.wait()
                self.start()
            case "node":
                self.nodes.lose(self.draw)
            case "head":
                self.nodes.behead()
                # Its workers are gone too. Ray ends it by itself after a minute, or we do before.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(self.draw.choice((5, PATIENCE)))
                self.process.kill()
                self.process.wait()
                self.start()
        return workers if what in ("driver", "head") else []

    def seen(self, old):
        """Waits until the search has all of its workers (again) and none of some, or is over."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            found = self.nodes.workers()
            if len(found) >= WORKERS and not set(found) & set(old):
                return
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.2)

    @property
    def log(self):
        return self.folder / "log"

    def start(self):
        words = [*self.args, "--workers", str(WORKERS), "--address", self.nodes.address]
        self.process = cheap.start(words, self.log)

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.nodes.close()


def main():
    plan = json.load(sys.stdin)
    # Not below the test's folder: a socket's path has at most 107 bytes.
    folder = tempfile.mkdtemp(prefix="evo", dir="/tmp")
    token = Path(folder) / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ |= {
        "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "PYTHONPATH": str(cheap.ROOT),
        "CHEAP_SECONDS": "0.25",  # workers have the variables of their node
    }  # fmt: skip
    drill = Drill(plan)
    try:
        print("ACCOUNT", json.dumps(drill.run().to_dict()))
    finally:
        drill.close()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
