"""Where a study lies: its output folder, its database, and the lock that keeps a second driver out."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from evomerge import locks
from evomerge.errors import DiskFullError, InputError, StudyError
from evomerge.hiding import hidden

LOCK = ".lock"
# What a finished search writes into its folder: files of these names that are not ours are not overwritten.
OUTPUTS = (
    "README.md", "recipe.yaml", "result.json", "history.png", "path.png", "trials.parquet", "items.parquet", "model",
)  # fmt: skip
_DATABASES = (".db", ".sqlite", ".sqlite3")


def default_storage(out: Path) -> str:
    """The database of a study that names none: one SQLite file in its output folder."""
    return f"sqlite:///{out.resolve() / 'study.db'}"


def storage_url(text: str) -> str:
    """A storage as the user writes it: an SQLAlchemy URL, or the path of a SQLite file.

    Raises:
        StudyError: it is neither.
    """
    if "://" in text:
        return text
    if Path(text).suffix not in _DATABASES:
        raise StudyError(
            f'--storage "{hidden(text, whole=True)}": expected a URL (sqlite:///FILE, postgresql://...) or a file '
            "ending in .db"
        )
    return f"sqlite:///{Path(text).resolve()}"


def prepare(out: Path, storage: str, sources: Iterable[Path] = (), study: str | None = None) -> None:
    """Make the output folder, after checking that it can be written, will not vanish, and is not somebody else's.

    Args:
        sources: Folders of the models, which the output must not replace.
        study: Name of the study whose output it will be.

    Raises:
        InputError: the folder or the database cannot be written, or `check` refuses it.
    """
    check(out, storage, sources, study)
    database = sqlite_path(storage)
    for option, folder in ("--out", out), ("--storage", database.parent if database is not None else out):
        _writable(folder, option)


def check_room(out: Path, model: int, here: bool) -> None:
    """Check that the winner can be written at the end, and candidates can be for as long as they are scored again.

    Args:
        model: Bytes of the largest source; a winner that is a path may have more.
        here: Whether candidates are scored on this machine.

    Raises:
        DiskFullError: a disk has too little room.
    """
    wanted = [("--out", out), ("TMPDIR", Path(tempfile.gettempdir()))][: 2 if here else 1]
    disks: dict[int, list[tuple[str, Path]]] = {}
    for name, folder in wanted:
        disks.setdefault(folder.stat().st_dev, []).append((name, folder))
    for on_it in disks.values():
        usage = shutil.disk_usage(on_it[0][1])
        needed = model * len(on_it)
        if usage.total and usage.free < needed:
            names = " and ".join(f"{name} {folder}" for name, folder in on_it)
            what = "the winner" if on_it[0][0] == "--out" else "a candidate that is scored again"
            raise DiskFullError(f"{names}: {what} needs {needed:,} bytes there, and {usage.free:,} are free")


def check(out: Path, storage: str, sources: Iterable[Path] = (), study: str | None = None) -> None:
    """The checks of `prepare` that write nothing.

    Raises:
        InputError: the folder or the database lies in the temporary copy of a Ray job, or the folder holds what is not
            this search's.
    """
    model = (out / "model").resolve()
    for source in sources:
        if source.resolve().is_relative_to(model):
            raise InputError(f"--out {out}: its model/ would replace the source {source}; give another --out")
    foreign = [name for name in OUTPUTS if (out / name).exists()] if not (out / LOCK).exists() else []
    if foreign:
        raise InputError(
            f"--out {out}: holds {', '.join(foreign)} already, and no search wrote them; give another --out"
        )
    holds = _study_of(out)
    if study is not None and holds not in (None, study):
        raise InputError(f'--out {out}: holds the results of study "{holds}"; give another --out for "{study}"')
    check_stays(out.resolve(), "--out ")
    database = sqlite_path(storage)
    if database is not None:
        check_stays(database.resolve(), "--storage ")


def check_stays(path: Path, option: str = "") -> None:
    """Refuse a place that would vanish with the Ray job that writes there.

    Raises:
        InputError: it lies in the temporary copy of the job's folder.
    """
    temporary = _job_copy()
    if temporary is not None and path.is_relative_to(temporary):
        raise InputError(
            f"{option}{path}: lies in the temporary copy of the folder in which a Ray job runs, and would "
            f"vanish with the job; give {option}an absolute path on storage that stays, e.g. /shared/runs/STUDY"
        )


def sqlite_path(url: str) -> Path | None:
    """The file of a SQLite URL; None for servers and databases in memory."""
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        return None
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    return Path(str(parsed.database))


@contextmanager
def locked(out: Path, storage: str) -> Iterator[None]:
    """Hold a study's output folder and its database file; the locks go with the process, however it ends.

    Raises:
        StudyError: another process holds one of them.
    """
    database = sqlite_path(storage)
    with held(out / LOCK, out):
        if database is None or database.parent.resolve() == out.resolve():
            yield
        else:
            with held(database.with_name(f"{database.name}.lock"), database):
                yield


@contextmanager
def held(lock: Path, what: Path) -> Iterator[None]:
    """Hold a lock file, which goes with the process.

    Args:
        what: What messages say is in use.

    Raises:
        StudyError: another process holds it.
    """

    def busy(holder: str) -> None:
        raise StudyError(f"{what}: a search or fusion is running there ({holder}); wait for it to end")

    # Where there are no locks, the numbering of trials still catches a second writer.
    with locks.held(lock, busy):
        yield


def _study_of(out: Path) -> str | None:
    """The study whose results lie in a folder; None where there are none."""
    try:
        found = json.loads((out / "result.json").read_text(encoding="utf-8"))
        return str(found["study"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _writable(folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        raise InputError(f"{option} {folder}: cannot be written ({e.strerror})") from None


def _job_copy() -> Path | None:
    """The temporary working folder of a submitted Ray job, or None outside of one."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if folder.parent.name == "working_dir_files" and folder.parent.parent.name == "runtime_resources":
            return folder
    return None
