"""A database that is gone for a while: nothing is lost, nothing is doubled. Real servers, real broken connections."""

import contextlib
import socket
import sqlite3
import threading
import time

import numpy as np
import pytest
import sqlalchemy as sa

from evomerge.errors import EvoMergeError
from evomerge.score import Score, State, TaskScore
from evomerge.space import Float
from evomerge.study.retrying import Patience
from evomerge.study.store import Store

PARAMETERS = (Float("w", 0.0, 1.0, 0.5),)
SCORE = Score((TaskScore("t", "acc", 0.5, 1.0, ("a", "b"), np.array([0, 1], np.float32)),))


class Line:
    """Forwards to a server; asked to, it lets a commit through and cuts the line before its acknowledgement."""

    def __init__(self, port):
        self.server = port
        self.cut = 0
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listening.accept()
                server = socket.create_connection(("127.0.0.1", self.server))
                ends = threading.Event()
                threading.Thread(target=self.forward, args=(client, server, ends), daemon=True).start()
                threading.Thread(target=self.back, args=(server, client, ends), daemon=True).start()

    def forward(self, client, server, committing):
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if b"COMMIT" in data and self.cut:
                    self.cut -= 1
                    committing.set()
                server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def back(self, server, client, committing):
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if committing.is_set():  # this is the acknowledgement: the transaction is done
                    break
                client.sendall(data)
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self):
        self.listening.close()


@pytest.mark.ci
@pytest.mark.parametrize("kind", ["postgresql", pytest.param("mariadb", marks=pytest.mark.slow)])
def test_a_lost_acknowledgement_doubles_nothing(kind, request):
    """Each write in turn is done, and its word does not come back."""
    server = request.getfixturevalue(kind)
    database, line, said = server.new_database(), Line(server.port), []
    Store(server.url(database), create=True)
    store = Store(server.url(database, port=line.port), create=True, say=said.append)
    line.cut = 1
    study = store.create("s", PARAMETERS, {"a": 1}, {"score": False})
    steps = [
        lambda n: study.start(n, {"w": n / 10}, {"recipe_hash": str(n)}),
        lambda n: study.attribute(n, {"x": n}),
        lambda n: study.note("seconds", n),
        lambda n: study.results.write(f"m{n}", [("e", ("a", "b"), (0.0, 1.0))], n),
    ]
    ends = [
        lambda n: study.complete(n, SCORE, {"build": 1.0}),
        lambda n: study.fail(n, "NaN", {}),
        lambda n: study.prune(n, SCORE, {"y": 1}, {}, 3, 0.25),
    ]
    for n, end in enumerate(ends):
        for step in (*steps, end):
            line.cut = 1
            step(n)
            assert line.cut == 0
    line.close()
    trials = Store(server.url(database)).open("s").trials()
    assert [(t.number, t.state) for t in trials] == [(0, State.COMPLETE), (1, State.FAIL), (2, State.PRUNED)]
    assert [dict(t.params) for t in trials] == [{"w": n / 10} for n in range(3)]
    assert trials[0].value == 0.5 and trials[1].reason == "NaN" and trials[2].attributes["y"] == 1
    assert said.count(said[-1]) >= 1 and all("pw" not in text for text in said)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_server_that_restarts(kind, request):
    """It is killed and started again while candidates are recorded."""
    server, said = request.getfixturevalue(kind), []
    url = server.url()
    study = Store(url, create=True, say=said.append).create("s", PARAMETERS, {})
    recorded = 0

    def restart():
        while recorded < 3:
            time.sleep(0.01)
        server.stop("immediate")
        time.sleep(1.0)
        server.start()

    restarting = threading.Thread(target=restart)
    restarting.start()
    while recorded < 10 or restarting.is_alive():
        study.start(recorded, {"w": 0.5}, {"recipe_hash": "h"})
        study.complete(recorded, SCORE, {})
        recorded += 1
    restarting.join()
    trials = Store(url).open("s").trials()
    assert [(t.number, t.state, t.value) for t in trials] == [(n, State.COMPLETE, 0.5) for n in range(recorded)]
    # Said once: the first thing that failed, and that it answers again. (Not where Optuna itself tried it again.)
    assert [t.rpartition("; ")[2] for t in said if "trying" in t] in ([], ["trying again for 5 minutes"])
    assert sum("it answers again" in t for t in said) == len(said) - 1 if said else True


@pytest.mark.slow
def test_a_server_that_stays_away(postgresql):
    server, said = postgresql, []
    store = Store(server.url(), create=True, say=said.append)
    study = store.create("s", PARAMETERS, {})
    study._patience._seconds = 1.0
    server.stop("fast")
    try:
        with pytest.raises(EvoMergeError, match=r"no server answers at .*The same command goes on") as error:
            study.note("seconds", 1.0)
    finally:
        server.start()
    assert error.value.exit_code == 1 and len(said) == 1


def test_a_refusal_is_not_tried_again(postgresql):
    """Of rights that were taken away, of a table that is not there, of what does not fit."""
    url, said = postgresql.url(), []
    store = Store(url, create=True, say=said.append)
    study = store.create("s", PARAMETERS, {})
    started = time.monotonic()
    with store.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE evomerge_results")
    with pytest.raises(EvoMergeError, match="evomerge_results"):
        study.results.write("m", [("e", ("a",), (0.0,))], 0)
    with pytest.raises(EvoMergeError, match="too long"):
        study.scores.write("x" * 300, "search", SCORE)
    assert time.monotonic() - started < 5 and said == []


def test_a_sqlite_file_that_another_process_has_locked(tmp_path):
    file, said = tmp_path / "study.db", []
    store = Store(f"sqlite:///{file}", create=True, say=said.append)
    sa.event.listen(store.engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout=1"))
    study = store.create("s", PARAMETERS, {})
    store.engine.dispose()
    locked = threading.Event()

    def lock():
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            locked.set()
            time.sleep(1.0)
            connection.execute("ROLLBACK")

    locking = threading.Thread(target=lock)
    locking.start()
    locked.wait()
    study.note("seconds", 1.0)
    locking.join()
    assert study.notes() == {"seconds": 1.0}
    assert len(said) == 2 and "locked" in said[0] and "answers again" in said[1]


def test_what_is_no_trouble_of_the_database_is_raised_at_once():
    def fail():
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        Patience("sqlite://")(fail)
