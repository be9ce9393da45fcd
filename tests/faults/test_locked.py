"""A whole search whose database another process holds for longer than SQLite waits by itself."""

import contextlib
import sqlite3
import time

import pytest

from tests.faults import cheap
from tests.faults.accounts import audit, sequence
from tests.faults.drill import answers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_it_waits_and_goes_on_to_the_same_end(tmp_path):
    """Twice: while it searches, and while the winner is chosen."""
    file, log = cheap.evaluator(tmp_path), tmp_path / "log"
    alone, out = tmp_path / "alone", tmp_path / "out"
    for folder in (alone, out):
        process = cheap.start(cheap.asked(file, folder, 8, "--workers", 0), log, CHEAP_SECONDS="0.1")
        if folder is out:
            for words in (None, "choosing the winner"):
                storage, deadline = f"sqlite:///{out / 'study.db'}", time.monotonic() + 100
                said = log.read_text().count("choosing the winner")
                while answers(storage) < 9 if words is None else log.read_text().count(words) == said:
                    assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                    time.sleep(0.02)
                with contextlib.closing(sqlite3.connect(out / "study.db", isolation_level=None)) as connection:
                    connection.execute("BEGIN IMMEDIATE")
                    time.sleep(9.0)
                    connection.execute("ROLLBACK")
        assert process.wait(200) == 0, log.read_text()[-3000:]
    expected = sequence(f"sqlite:///{alone / 'study.db'}"), alone
    account = audit(storage, out, 8, expected, True)
    assert (account.lost, account.doubled, account.corrupt, account.differing) == (0, 0, 0, 0)
    said = log.read_text()
    assert said.count("; trying again for 5 minutes") == said.count("it answers again") == 2, said[-3000:]
    assert "Traceback" not in said
