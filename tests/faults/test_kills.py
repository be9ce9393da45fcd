"""200 kills at random moments: of drivers, workers, machines and heads, on SQLite and PostgreSQL.

After each the same command goes on. The seed is printed; EVOMERGE_KILLS_SEED=N draws the same moments again, as far as
a machine's own times let it.
"""

import json
import os
import random
import subprocess
import sys

import pytest

from tests.faults import cheap
from tests.faults.accounts import Account, audit, moment
from tests.faults.cheap import WAYS
from tests.servers import PASSWORD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.xdist_group("kills")]

SEED = int(os.environ.get("EVOMERGE_KILLS_SEED") or random.SystemRandom().randrange(2**31))
# Of the driver alone, of each way to search on each database; and of what a cluster is made of.
DRIVERS = 18
CLUSTERS = {1: {"driver": 3, "worker": 6, "head": 1}, 3: {"driver": 4, "worker": 7, "node": 5, "head": 2}}


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request):
    """The kind of database, and what gives the URL of a new one for an output folder."""
    if request.param == "sqlite":
        return "sqlite", lambda out: f"sqlite:///{out / 'study.db'}"
    server = request.getfixturevalue("postgresql")
    return "postgresql", lambda out: server.url()


def settled(account, record_property, log):
    """The end of a test: the counts are said, and are 0."""
    line = f"seed {SEED}: {account}"
    print(line)
    record_property("kills", line)
    assert account.faults == {}, line
    said = log.read_text()
    assert PASSWORD not in said and "Traceback" not in said, said[-3000:]


@pytest.mark.parametrize("way", WAYS)
def test_of_the_driver(nursery, alone, database, way, tmp_path, record_property):
    """kill -9 of the process that searches, which does the work itself."""
    file, of = alone
    expected, seconds = of(way)
    options, budget, same = WAYS[way]
    kind, new = database
    draw = random.Random(f"{SEED} {way} {kind}")
    account, log = Account(), tmp_path / "log"
    while account.kills["driver"] < DRIVERS:
        out = tmp_path / f"out{account.studies}"
        storage = new(out)
        args = cheap.asked(file, out, budget, *options, "--workers", 0, "--storage", storage)
        while account.kills["driver"] < DRIVERS:
            # Short ones too: each run goes on from where the one before was.
            done = nursery(args, log, draw.uniform(0.05, draw.choice((0.2, 0.4, 0.8)) * seconds))
            if done["code"] != -9:
                break
            account.kills["driver"] += 1
            account.moments[moment(storage)] += 1
        done = nursery(args, log)
        assert done["code"] == 0, log.read_text()[-3000:]
        account.add(audit(storage, out, budget, expected, same))
    settled(account, record_property, log)


@pytest.mark.parametrize("nodes", CLUSTERS)
def test_of_what_a_cluster_is_made_of(alone, database, nodes, tmp_path, record_property):
    """The driver, workers, machines with all that is on them, and the head, of a Ray cluster of one or three nodes."""
    file, of = alone
    ways = {way: WAYS[way] for way in (("whole", "raced", "asynchronous") if nodes > 1 else ("whole", "raced"))}
    kind, new = database
    plan = {
        "seed": f"{SEED} {kind} {nodes}", "file": str(file), "folder": str(tmp_path),
        "nodes": nodes, "kills": CLUSTERS[nodes], "ways": ways,
        "storages": [new(tmp_path / f"out{i}") for i in range(12)],
        "expected": {way: str(of(way)[0][1]) for way in ways},
    }  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.drill"], cwd=cheap.ROOT, input=json.dumps(plan), text=True,
        capture_output=True, timeout=1700, env=environment,
    )  # fmt: skip
    line = next((x for x in done.stdout.splitlines() if x.startswith("ACCOUNT ")), None)
    assert line is not None, done.stdout[-2000:] + done.stderr[-4000:]
    account = Account.read(json.loads(line.removeprefix("ACCOUNT ")))
    assert account.kills == CLUSTERS[nodes]
    assert account.studies >= len(ways), "each way"
    settled(account, record_property, tmp_path / "log")
