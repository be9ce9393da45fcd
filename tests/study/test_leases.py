"""One process drives a study: it is told of, taken over where it died, and cannot write once it is."""

import os
import subprocess
import sys
import threading
import time

import pytest
import sqlalchemy as sa

from evomerge.errors import InputError, StudyError
from evomerge.score import State
from evomerge.space import Float
from evomerge.study import schema
from evomerge.study.leases import Lease, LeaseLost, driver_of, leased, term
from evomerge.study.store import Store

PARAMETERS = (Float("w", 0.0, 1.0, 0.5),)

DRIVER = """
import sys, time
from evomerge.space import Float
from evomerge.study.leases import Lease
from evomerge.study.store import Store
store = Store(sys.argv[1], create=True)
Lease(store, "s").take()
study = store.create("s", (Float("w", 0.0, 1.0, 0.5),), {})
study.start(0, {"w": 0.5}, {})
print("driving", flush=True)
time.sleep(600)
"""


@pytest.fixture
def driving(anywhere):
    """Another process that drives a study, with a candidate under way."""
    process = subprocess.Popen([sys.executable, "-c", DRIVER, anywhere], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "driving\n"
    yield process
    process.kill()
    process.wait()


def elsewhere(store, expires=None):
    """The lease as if another machine held it, whose processes we cannot see; to run out in so many seconds."""
    values = {"machine": "another", "host": "node7"}
    with store.engine.begin() as connection:
        connection.execute(sa.update(schema.leases).values(**values))
        if expires is not None:
            connection.execute(sa.update(schema.leases).values(expires=schema.clock() + expires))


def test_a_second_driver_is_told_who_and_since_when(anywhere, driving):
    store = Store(anywhere, create=True)
    for name in ("s", "s/random search"):  # a control belongs to its study
        with pytest.raises(StudyError) as error:
            Lease(store, name).take()
        said = str(error.value)
        assert f'study "s" in {store.url.partition("://")[0]}://' in said and ":pw" not in said
        assert f"is driven by another process (process {driving.pid} on " in said and "--join" in said
        assert time.strftime("since %Y-%m-%d") in said
    with leased(store, "other"):
        assert driver_of(store, "other").process.pid == os.getpid()
    assert driver_of(store, "other") is None


def test_of_a_driver_that_died_here_the_study_is_taken_up_at_once(anywhere, driving):
    driving.kill()
    driving.wait()
    store = Store(anywhere, create=True)
    with leased(store, "s"):
        study = store.create("s", PARAMETERS, {})
        assert [t.state for t in study.trials()] == [State.RUNNING]
        study.start(0, {"w": 0.5}, {})
        study.fail(0, "again", {})
    assert [(t.number, t.state) for t in store.open("s").trials()] == [(0, State.FAIL)]


def test_of_one_on_another_machine_when_its_lease_has_run_out(anywhere):
    store = Store(anywhere, create=True)
    first, second = Lease(store, "s", 600.0), Lease(Store(anywhere), "s", 600.0)
    first.take()
    elsewhere(store)
    with pytest.raises(StudyError, match=r"on node7, .* \(or 60 s, if it has died\)"):
        second.take()
    elsewhere(store, -0.01)
    second.take()
    assert driver_of(store, "s").token == second.token
    second.release()


def test_it_lasts_as_long_as_it_is_renewed(anywhere):
    store = Store(anywhere, create=True)
    lease = Lease(store, "s", 0.9)
    lease.take()
    for _ in range(8):
        time.sleep(0.25)
        assert driver_of(store, "s").left > 0
    lease.release()


def test_who_has_lost_it_writes_nothing(anywhere):
    """Every way to write, Optuna's too."""
    store = Store(anywhere, create=True)
    lease = Lease(store, "s", 600.0)
    lease.take()
    study = store.create("s", PARAMETERS, {})
    study.start(0, {"w": 0.5}, {})
    elsewhere(store, -1.0)
    other = Store(anywhere)
    taken = Lease(other, "s", 600.0)
    taken.take()
    before = content(other)
    for write in (
        lambda: study.start(1, {"w": 0.25}, {}),
        lambda: study.attribute(0, {"x": 1}),
        lambda: study.fail(0, "late", {}),
        lambda: study.note("seconds", 99.0),
        lambda: study.scores.write("model/base", "test", _score()),
        lambda: study.results.write("m", [("e", ("a",), (1.0,))], 0),
        lambda: study.mark_winner(0, {"search": 1.0}),
        lambda: store.create("s/control", PARAMETERS, {}),
        lambda: lease.offer({"device": "cpu"}) or study.note("seconds", 99.0),
    ):
        with pytest.raises(LeaseLost, match=f"another process has taken it over .process {os.getpid()} on "):
            write()
    assert content(other) == before
    lease.release(patient=False)  # the other's stays
    assert driver_of(other, "s").token == taken.token
    theirs = other.create("s", PARAMETERS, {})
    theirs.trials()
    theirs.fail(0, "taken up again", {})
    taken.release()
    assert [t.reason for t in theirs.trials()] == ["taken up again"]


def _score():
    from evomerge.score import Score, TaskScore

    return Score((TaskScore("t", "acc", 0.5),))


def content(store):
    """Everything that the database holds, but for how long leases last."""
    metadata = sa.MetaData()
    metadata.reflect(store.engine)
    found = {}
    with store.engine.connect() as connection:
        for table in metadata.sorted_tables:
            columns = [c for c in table.columns if c.name != "expires"]
            found[table.name] = sorted(map(repr, connection.execute(sa.select(*columns)).all()))
    return found


def test_of_many_at_once_one_gets_it(anywhere):
    """Neither a free lease, nor one that has run out, goes to two."""
    store = Store(anywhere, create=True)
    for round_ in range(3):
        if round_:
            elsewhere(store, -1.0)
        leases, got = [Lease(Store(anywhere), "s", 600.0) for _ in range(4)], []

        def take(lease, got=got):
            try:
                lease.take()
            except StudyError:
                return
            got.append(lease)

        threads = [threading.Thread(target=take, args=(lease,)) for lease in leases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1 and driver_of(store, "s").token == got[0].token


def test_how_long_it_lasts_can_be_said(monkeypatch):
    monkeypatch.setenv("EVOMERGE_LEASE_SECONDS", "5")
    assert term() == 5.0
    monkeypatch.setenv("EVOMERGE_LEASE_SECONDS", "soon")
    with pytest.raises(InputError, match='EVOMERGE_LEASE_SECONDS="soon": expected seconds from 1 to 86400'):
        term()
