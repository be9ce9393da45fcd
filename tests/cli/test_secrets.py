"""No password in what a command says, wherever a database's URL was put and however it is mistyped."""

import io
import json

import pytest

from evomerge.cli.commands import COMMANDS
from evomerge.errors import StudyError
from evomerge.space import Float
from evomerge.study.finding import open_study
from evomerge.study.store import Store
from evomerge.watching.events import Events
from evomerge.watching.fusing import Fusing
from evomerge.watching.progress import Progress

URL = "postgresql://u:sesame@localhost/d"
WRONG = (
    "postgresql:/u:sesame@localhost/d",
    "u:sesame@localhost/d",
    "postgresql://localhost:port/d?password=sesame",
    "postgresql://u:open 'sesame@localhost:port/d",
    "oracle://u:sesame@localhost/d",
    "postgresql://u:sesame@127.0.0.1:1/d",
)


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("url", [URL, *WRONG])
@pytest.mark.parametrize(
    "words",
    [
        ("status",), ("list",), ("dashboard",), ("report",), ("export", "OUT"),
        ("search", "--budget", 3, "--workers", 0, "--warm-start"), ("search", "--budget", 3, "--study"),
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)  # fmt: skip
def test_a_url_in_the_place_of_a_study(command, words, url, as_json, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = ["--json"] if as_json else []
    done = command(*words[:1], url, *words[1:], *more) if words[0] == "export" else command(*words, url, *more)
    assert "sesame" not in done.out + done.err
    assert "--storage" in done.error and "is the URL of a database" in done.error
    assert list(tmp_path.iterdir()) == [] and (not as_json or done.json == {"error": done.error})


@pytest.mark.parametrize("url", WRONG)
@pytest.mark.parametrize("name", ["status", "list", "dashboard"])
def test_a_storage_that_is_none(command, name, url):
    assert "***" in (said := command(name, "--storage", url).error) and "sesame" not in said


@pytest.mark.parametrize("name", COMMANDS)
def test_a_url_where_no_command_expects_one(command, name):
    done = command(name, URL, URL, URL, "--json")
    assert done.code == 2 and "sesame" not in done.out + done.err


def test_python_is_told_the_same():
    with pytest.raises(StudyError, match=r'^study "postgresql://u:\*\*\*@localhost/d": is the URL of a database'):
        open_study(URL, None)


def test_a_bug_shows_none_in_its_traceback(command, monkeypatch):
    def broken(args):
        raise RuntimeError(f"cannot reach {URL}")

    monkeypatch.setattr("evomerge.cli.zoo.run", broken)
    done = command("zoo", "--json")
    assert done.code == 1 and "Traceback" in done.err and "sesame" not in done.out + done.err
    assert done.json == {"error": "RuntimeError: cannot reach postgresql://u:***@localhost/d"}


def test_who_watches_is_told_none(capsys):
    stream = io.StringIO()
    events = Events("-", stream, print)
    with pytest.raises(ValueError), events:
        events.say(f"storage {URL}: is gone")
        raise ValueError(f"cannot reach {URL}")
    for watcher in (Progress(), Fusing()):
        watcher.say(f"storage {URL}: is gone")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["message", "error"]
    said = stream.getvalue() + capsys.readouterr().err
    assert said.count("u:***@localhost/d") == 4 and "sesame" not in said


def test_a_study_keeps_none(tmp_path):
    """What an evaluator said of a database of its own is the reason why a candidate failed."""
    study = Store(f"sqlite:///{tmp_path}/s.db", create=True).create("s", (Float("w", 0.0, 1.0, 0.5),), {})
    study.start(0, {"w": 0.5}, {})
    study.fail(0, f"ValueError: cannot reach {URL}", {}, {})
    (trial,) = study.trials()
    assert trial.reason == "ValueError: cannot reach postgresql://u:***@localhost/d"
    assert not [f for f in tmp_path.iterdir() if b"sesame" in f.read_bytes()]
