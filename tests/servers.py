"""Real database servers for a test run: PostgreSQL and MariaDB, each in a folder of its own, on loopback."""

import glob
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

import pytest
import sqlalchemy as sa

# Not a password that could stand in a text by chance: tests look for it where it must not be.
USER, PASSWORD = "searcher", f"pw{secrets.token_hex(8)}"


def found(name, folders=()):
    """A program on the PATH or in some folders (patterns), the newest version first; None where there is none."""
    for folder in folders:
        for path in sorted(glob.glob(f"{folder}/{name}"), reverse=True):
            return path
    return shutil.which(name)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """One server: stopped and started again on the same port and data."""

    scheme = ""

    def __init__(self, account):
        # Servers refuse to run as root; a test run in a container often is.
        self.user = account if os.getuid() == 0 else None
        self.port = free_port()
        # Short: the name of a socket in it has a limit. Not pytest's own, which other accounts cannot enter.
        self.folder = Path(tempfile.mkdtemp(prefix="evomerge-db-"))
        if self.user:
            shutil.chown(self.folder, self.user)

    def run(self, *command, **options):
        done = subprocess.run(
            [str(c) for c in command], user=self.user, cwd=self.folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240, **options,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    def url(self, database=None, *, user=USER, password=PASSWORD, port=None):
        at = f"{user}:{password}@127.0.0.1:{port or self.port}"
        return f"{self.scheme}://{at}/{database or self.new_database()}"

    def new_database(self):
        """An empty database of its own for a test."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self.execute(f"CREATE DATABASE {name}")
        return name

    def execute(self, statement):
        engine = sa.create_engine(self.admin(), isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)

    def watched(self, *stop):
        """Ends the server with this process, however that ends: the pipe that the watch reads from closes with it."""
        program = f'read -r line; "$@"; rm -rf "{self.folder}"'
        self.watch = subprocess.Popen(
            ["sh", "-c", program, "sh", *map(str, stop)], user=self.user, stdin=subprocess.PIPE, cwd="/",
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def close(self):
        self.watch.stdin.close()
        self.watch.wait(240)


class PostgreSQL(Server):
    scheme = "postgresql"
    FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/local/pgsql/bin")

    def __init__(self):
        super().__init__("postgres")
        self.programs = {name: found(name, self.FOLDERS) for name in ("initdb", "pg_ctl")}
        self.data = self.folder / "data"
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        if self.user:
            shutil.chown(secret, self.user)
        self.run(
            self.programs["initdb"], "-D", self.data, "-U", USER, f"--pwfile={secret}", "--auth=scram-sha-256",
            "--encoding=UTF8", "--no-locale", "--no-sync",
        )  # fmt: skip
        self.watched(self.programs["pg_ctl"], "-D", self.data, "-m", "immediate", "-w", "stop")
        self.start()

    def start(self):
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='{self.folder}'"
        log = self.folder / "log"
        # pg_ctl's own output goes to the server's too, whose end nobody waits for.
        self.run(self.programs["pg_ctl"], "-D", self.data, "-l", log, "-o", options, "-w", "-t", "180", "start")

    def stop(self, mode="immediate"):
        self.run(self.programs["pg_ctl"], "-D", self.data, "-m", mode, "-w", "stop")

    def admin(self):
        return f"postgresql+psycopg://{USER}:{PASSWORD}@127.0.0.1:{self.port}/postgres"


class MariaDB(Server):
    scheme = "mysql"

    def __init__(self):
        super().__init__("mysql")
        self.data = self.folder / "data"
        self.run(
            found("mariadb-install-db"), "--no-defaults", f"--datadir={self.data}",
            "--auth-root-authentication-method=normal", "--skip-test-db",
        )  # fmt: skip
        self.process = None
        self.watched("sh", "-c", f'kill -9 "$(cat {self.folder}/pid)"')
        self.start()
        root = sa.create_engine(self.admin("root", ""), isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
        with root.connect() as connection:
            connection.exec_driver_sql(f"CREATE USER {USER}@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'")
            connection.exec_driver_sql(f"GRANT ALL ON *.* TO {USER}@'127.0.0.1'")

    def start(self):
        self.process = subprocess.Popen(
            [
                found("mariadbd", ["/usr/sbin"]), "--no-defaults", f"--datadir={self.data}", f"--port={self.port}",
                "--bind-address=127.0.0.1", f"--socket={self.folder}/s", f"--pid-file={self.folder}/pid",
                f"--log-error={self.folder}/log", "--skip-name-resolve", "--innodb-flush-log-at-trx-commit=2",
            ],
            user=self.user, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 180
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                log = self.folder / "log"
                assert self.process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.1)

    def stop(self, mode="immediate"):
        if mode == "immediate":
            self.process.kill()
        else:
            self.process.terminate()
        self.process.wait(240)

    def admin(self, user=USER, password=PASSWORD):
        return f"mysql+pymysql://{user}:{password}@127.0.0.1:{self.port}/mysql"


@pytest.fixture(scope="session")
def postgresql():
    """A PostgreSQL server of this test run, with password authentication."""
    pytest.importorskip("psycopg", reason="needs evomerge[postgresql]")
    if found("initdb", PostgreSQL.FOLDERS) is None:
        pytest.skip("no PostgreSQL server on this machine (Debian: apt-get install postgresql)")
    _account("postgres")
    server = PostgreSQL()
    yield server
    server.close()


@pytest.fixture(scope="session")
def mariadb():
    """The same with MariaDB, which speaks MySQL's protocol."""
    pytest.importorskip("pymysql", reason="needs evomerge[mysql]")
    if found("mariadb-install-db") is None or found("mariadbd", ["/usr/sbin"]) is None:
        pytest.skip("no MariaDB server on this machine (Debian: apt-get install mariadb-server)")
    _account("mysql")
    server = MariaDB()
    yield server
    server.close()


def _account(name):
    if os.getuid() == 0:
        try:
            pwd.getpwnam(name)
        except KeyError:
            pytest.skip(f'the server cannot run as root, and there is no account "{name}"')
