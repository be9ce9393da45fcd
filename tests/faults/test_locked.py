"""A whole search whose SQLite file another process holds for some seconds."""

import contextlib
import sqlite3
import time

import pytest

from tests.faults import cheap
from tests.faults.accounts import audit
from tests.faults.drill import answers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("kills")]


def test_it_waits_and_goes_on_to_the_same_end(alone, tmp_path):
    file, of = alone
    options, budget, _ = cheap.WAYS["raced"]
    out, log = tmp_path / "out", tmp_path / "log"
    storage, held, deadline = f"sqlite:///{out / 'study.db'}", [], time.monotonic() + 200
    process = cheap.start(cheap.asked(file, out, budget, *options, "--workers", 0), log, CHEAP_SECONDS="0.2")
    # Of the models at first, and of candidates.
    for after in (3, 20):
        while answers(storage) < after:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.02)
        with contextlib.closing(sqlite3.connect(out / "study.db", isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            before = answers(storage)
            time.sleep(8.0)
            held.append(answers(storage) - before)
            connection.execute("ROLLBACK")
    assert process.wait(200) == 0, log.read_text()[-3000:]
    assert held == [0, 0]  # it did wait
    account = audit(storage, out, budget, of("raced")[0], True)
    assert account.faults == {}, str(account)
    assert "Traceback" not in log.read_text()
