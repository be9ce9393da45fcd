"""Databases on servers: what is refused, in which words, and that what is written comes back to the bit."""

import json
import math
import urllib.parse

import numpy as np
import pytest
import sqlalchemy as sa

from evomerge.errors import StudyError
from evomerge.score import Score, TaskScore
from evomerge.space import Float
from evomerge.study.database import connectable, make_engine, shown
from evomerge.study.leases import driver_of, leased
from evomerge.study.store import Store
from tests.servers import PASSWORD, USER, free_port

PARAMETERS = (Float("w", 0.0, 1.0, 0.5),)


def refused(url, create=True):
    with pytest.raises(StudyError) as error:
        Store(url, create=create)
    said = str(error.value)
    assert PASSWORD not in said and "\n" not in said
    return said


def execute(url, *statements):
    engine = make_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.fixture(params=["postgresql", pytest.param("mariadb", marks=pytest.mark.slow)])
def server(request):
    return request.getfixturevalue(request.param)


def test_what_a_server_refuses(server):
    database = server.new_database()
    assert f"no server answers at 127.0.0.1:{(port := free_port())}" in refused(server.url(database, port=port))
    assert 'the server has no database "nowhere"' in refused(server.url("nowhere"))
    said = refused(server.url(database, password="wrong-one"))
    assert f'does not take user "{USER}" with this password' in said and "wrong-one" not in said and ":***@" in said
    if server.scheme == "postgresql":
        url = server.url(database).replace(f":{PASSWORD}@", "@")
        assert f'the server wants a password of user "{USER}", and there is none in the URL, in PG' in refused(url)
    assert "holds no study" in refused(server.url(database), create=False)
    assert Store(server.url(database), create=True).names() == []


def test_a_database_of_something_else_is_left_alone(server):
    url = server.url()
    execute(url, "CREATE TABLE recipes (name INTEGER)")
    assert "is not a study (its tables: recipes)" in refused(url)
    assert sa.inspect(make_engine(url)).get_table_names() == ["recipes"]


def test_tables_of_other_versions(anywhere):
    """Optuna's, older and newer, and our own."""
    url = anywhere
    Store(url, create=True).create("s", PARAMETERS, {})
    execute(url, "UPDATE evomerge_schema SET version = 99, program = '9.1.0'")
    assert "was written by evomerge 9.1.0 (tables of version 99)" in refused(url, create=False)
    execute(url, "UPDATE evomerge_schema SET version = 1")
    assert Store(url, create=True).names() == ["s"]
    execute(url, "UPDATE alembic_version SET version_num = 'v2.6.0.a'")
    assert "optuna storage upgrade --storage" in refused(url, create=False)
    execute(url, "UPDATE alembic_version SET version_num = 'v99'")
    assert "updating optuna to the latest version" in refused(url)
    execute(url, "UPDATE alembic_version SET version_num = 'v3.2.0.a'", "DROP TABLE evomerge_results",
            "CREATE TABLE evomerge_results (model INTEGER)")  # fmt: skip
    assert "its table evomerge_results is not evomerge's: it has no column evaluator" in refused(url)


def test_a_database_of_the_first_version_is_read_and_gets_the_new_tables(anywhere):
    study = Store(anywhere, create=True).create("s", PARAMETERS, {"a": 1})
    study.start(0, {"w": 0.5}, {})
    new = ("evomerge_schema", "evomerge_texts", "evomerge_leases", "evomerge_joiners", "evomerge_jobs")
    execute(anywhere, *(f"DROP TABLE {name}" for name in new))
    reader = Store(anywhere)
    assert [t.number for t in reader.open("s").trials()] == [0] and driver_of(reader, "s") is None
    assert not set(sa.inspect(reader.engine).get_table_names()) & set(new)
    with leased(Store(anywhere, create=True), "s"):
        assert driver_of(reader, "s") is not None


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql+psycopg2://u:sesame@h/d", "its driver psycopg2 is not installed: pip install 'psycopg2'"),
        ("postgresql+asyncpg://u:sesame@h/d", 'driver "asyncpg" is not supported; did you mean "postgresql+psycopg"?'),
        ("oracle://u:sesame@h/d", 'unknown kind of database "oracle"; Valid: sqlite, postgresql, mysql'),
        ("postgres1://u:sesame@h/d", 'did you mean "postgresql"?'),
        ("postgresql://u:ses@me@h/d", "a password with @ in it is written with %40"),
        ("postgresql://u:sesame@h:port/d", "expected a database URL"),
        ("postgresql://h:port/d?password=sesame", "expected a database URL"),
        ("u:sesame@h/d", "expected a database URL"),
    ],
)
def test_urls_that_name_no_storage(url, words):
    with pytest.raises(StudyError) as error:
        Store(url)
    assert words in str(error.value) and "ses" not in str(error.value)


def test_urls_get_the_driver_that_is_installed():
    assert connectable("postgresql://h/d").drivername == "postgresql+psycopg"
    assert connectable("mysql://h/d").drivername == connectable("mariadb://h/d").drivername == "mysql+pymysql"
    assert connectable("sqlite:///x.db").drivername == "sqlite"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:sesame@h/d", "postgresql://u:***@h/d"),
        ("postgresql://h/d?user=u&password=sesame", "postgresql://h/d?password=***&user=u"),
        ("postgresql://u:ses@me@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:sesame@h:port/d", "postgresql://u:***@h:port/d"),
        ("postgresql:/u:sesame@h/d", "postgresql:/u:***@h/d"),
        ("u:sesame@h/d", "u:***@h/d"),
        ("postgresql://h:port/d?password=sesame", "postgresql://h:port/d?password=***"),
        ("postgresql://u:open 'sesame@h:port/d?sslpassword=se same", "postgresql://u:***@h:port/d?sslpassword=***"),
        ("sqlite:////runs/a b.db", "sqlite:////runs/a b.db"),
    ],
)
def test_passwords_are_never_shown(url, expected):
    assert shown(url) == expected


def test_a_password_with_every_kind_of_sign(postgresql):
    """Optuna fills in what stands in braces, alembic what follows a per cent sign."""
    odd = "a{b}%c@d/e:f?g#h"
    database = postgresql.new_database()
    postgresql.execute(f"CREATE ROLE odd LOGIN PASSWORD '{odd.replace('%', '%%')}'")
    postgresql.execute(f"ALTER DATABASE {database} OWNER TO odd")
    store = Store(postgresql.url(database, user="odd", password=urllib.parse.quote(odd, safe="")), create=True)
    store.create("s", PARAMETERS, {})
    assert store.names() == ["s"] and odd not in shown(store.url)


NUMBERS = [math.pi, 1 / 3, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, -1e-17, 0.1 + 0.2, 123456789.123456]


def test_scores_come_back_to_the_bit(anywhere):
    study = Store(anywhere, create=True).create("s", PARAMETERS, {})
    rng = np.random.default_rng(0)
    # Every kind of float32 that there is, numbers that are none too.
    results = rng.integers(0, 2**32, 5000, dtype=np.uint32).view(np.float32)
    items = tuple(f"{i:016x}" for i in range(5000))
    written = {}
    for i, value in enumerate(NUMBERS):
        written[f"source/{i}"] = Score((TaskScore("t", "m", value, value, items, results), TaskScore("ü", "m", -value)))
    for subject, score in written.items():
        study.scores.write(subject, "search", score)
    found = Store(anywhere).open("s").scores.read("search")
    assert set(found) == set(written)
    for subject, score in written.items():
        for a, b in zip(found[subject].tasks, score.tasks, strict=True):
            assert (a.task, a.value.hex(), a.weight.hex()) == (b.task, b.value.hex(), b.weight.hex())
            assert a.results.tobytes() == b.results.tobytes() and a.items == b.items


def test_results_by_item_come_back_to_the_bit_and_are_kept_once(anywhere):
    study = Store(anywhere, create=True).create("s", PARAMETERS, {})
    items, results = ("a", "b"), [float(np.float32(0.1)), float("inf")]
    study.results.write("m", [("e", items, results)], 3)
    study.results.write("m", [("e", items, [0.5, 0.5])], 4)
    found = Store(anywhere).open("s").results.read("m", "e")
    assert {i: (k.result, k.payer[1]) for i, k in found.items()} == {"a": (results[0], 3), "b": (results[1], 3)}


def test_names_that_differ_in_case_only(anywhere):
    store = Store(anywhere, create=True)
    study = store.create("s", PARAMETERS, {})
    for subject in ("source/Maths", "source/maths"):
        study.scores.write(subject, "test", Score((TaskScore(subject, "m", float(len(subject))),)))
    found = {subject: score.tasks[0].task for subject, score in study.scores.read("test").items()}
    assert found == {"source/Maths": "source/Maths", "source/maths": "source/maths"}
    if "mysql" in anywhere:
        with pytest.raises(StudyError, match='holds study "s", and this database takes "S" for the same name'):
            store.create("S", PARAMETERS, {})
    else:
        store.create("S", PARAMETERS, {"other": 1})
        assert store.names() == ["s", "S"]


def test_notes_and_fingerprints_of_any_length(anywhere):
    """MySQL's TEXT ends after 64 KiB."""
    long = {"layers": [f"layer {i}" for i in range(30_000)]}
    store = Store(anywhere, create=True)
    study = store.create("s", PARAMETERS, long)
    study.note("space", long)
    study.note("space", long | {"more": 1})
    study.note("few", 1)
    again = Store(anywhere)
    assert again.names() == ["s"] and again.open("s").fingerprint == long
    assert again.open("s").notes() == {"space": long | {"more": 1}, "few": 1}
    assert Store(anywhere, create=True).create("s", PARAMETERS, json.loads(json.dumps(long))).name == "s"


def test_killed_between_a_table_and_its_index_there_is_one_study_of_a_name(tmp_path):
    """SQLite's DDL is no transaction: Optuna's tables may be there without the index that keeps names apart."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    Store(url, create=True)
    unfinished = ("DROP INDEX ix_studies_study_name", "DROP TABLE alembic_version", "DROP TABLE version_info")
    execute(url, *unfinished, "DROP TABLE trials")
    ids = [Store(url, create=True).create("s", PARAMETERS, {})._id for _ in range(2)]
    assert ids[0] == ids[1]
    engine = make_engine(url)
    names = {index["name"] for index in sa.inspect(engine).get_indexes("studies")}
    assert "ix_studies_study_name" in names
    engine.dispose()
