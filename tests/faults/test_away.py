"""A whole search whose PostgreSQL server is away for longer than the driver's lease lasts."""

import time

import pytest

from evomerge.study.leases import driver_of
from evomerge.study.store import Store
from tests.faults import cheap
from tests.faults.accounts import audit
from tests.faults.drill import answers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), pytest.mark.xdist_group("kills")]

# Seconds of the lease (60 by default).
LEASE = 3


@pytest.mark.parametrize(("way", "workers", "away"), [("raced", 0, 8), ("asynchronous", 0, 8), ("asynchronous", 1, 61)])
def test_the_driver_goes_on_with_what_it_had_under_way(postgresql, alone, way, workers, away, tmp_path):
    """Its lease has run out when the server is back, and nobody has taken it: it is the driver's again.

    A worker (on Ray) goes on meanwhile with what it has.
    """
    file, of = alone
    options, budget, same = cheap.WAYS[way]
    out, log, storage = tmp_path / "out", tmp_path / "log", postgresql.url()
    args = cheap.asked(file, out, budget, *options, "--workers", workers, "--storage", storage)
    process = cheap.start(args, log, CHEAP_SECONDS="0.2", EVOMERGE_LEASE_SECONDS=str(LEASE))
    deadline = time.monotonic() + 300
    try:
        # Of the models at first, and of candidates.
        for after, seconds in ((3, 8), (20, away)):
            while answers(storage) < after:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.02)
            token = driver_of(Store(storage), cheap.STUDY).token
            postgresql.stop("immediate")
            try:
                time.sleep(seconds)  # renewed just before, it would have run out after LEASE of these
            finally:
                postgresql.start()
            before = answers(storage)
            while answers(storage) == before:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.02)
            driver = driver_of(Store(storage), cheap.STUDY)
            assert driver.token == token and driver.left > 0
        assert process.wait(200) == 0, log.read_text()[-3000:]
    finally:
        process.kill()
        process.wait()
    account = audit(storage, out, budget, of(way)[0], same)
    assert account.faults == {}, str(account)
    said = log.read_text()
    # It may be importing all the while that the server is away for the first time, and never notice.
    assert "it answers again" in said and "Traceback" not in said
