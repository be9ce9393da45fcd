"""Secrets in texts."""

import time

import pytest

from evomerge.errors import CandidateError, EvoMergeError, StudyError, first_line
from evomerge.hiding import hidden


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("storage postgresql://u:sesame@h/d: no server", "storage postgresql://u:***@h/d: no server"),
        ("postgresql+psycopg://u:se/s@me@h:5432/d", "postgresql+psycopg://u:***@h:5432/d"),
        ("postgresql:/u:sesame@h/d", "postgresql:/u:***@h/d"),
        ("runs/postgresql:/u:sesame@h/d/model", "runs/postgresql:/u:***@h/d/model"),
        ("redis://:sesame@h", "redis://:***@h"),
        ("--storage=u:sesame@h/d", "--storage=u:***@h/d"),
        ('study "u:sesame@h/d": none', 'study "u:***@h/d": none'),
        ("postgresql://h/d?user=u&password=ses:ame, or", "postgresql://h/d?user=u&password=***, or"),
        ("http://h/d?x=1&access_token=sesame", "http://h/d?x=1&access_token=***"),
        ("mysql://h/d?ssl_passwd=sesame;pwd=sesame", "mysql://h/d?ssl_passwd=***;pwd=***"),
        ("host=h password=sesame user=u", "host=h password=*** user=u"),
    ],
)
def test_secrets(text, expected):
    assert hidden(text) == hidden(hidden(text)) == expected


def test_of_one_url_spaces_and_quotes_are_its_own():
    url = "postgresql://u:open \"sesame'@h/d?sslpassword=open sesame&x=1"
    assert hidden(url, whole=True) == "postgresql://u:***@h/d?sslpassword=***&x=1"


@pytest.mark.parametrize(
    "text",
    [
        "space.yaml:3: models.0 = org/name@main: no such model",
        "postgresql://me@db.example.org/evomerge",
        "git@github.com:org/name",
        "/opt/a:/opt/python@3",
        "{'a':'b@c'}",
        "tokenizer_source=union, pad_token=<pad>, --max-tokens=3",
        "sqlite:////runs/a b.db",
    ],
)
def test_what_is_no_secret_stays(text):
    assert hidden(text) == text


def test_long_texts_take_no_time():
    began = time.process_time()
    for text in ("a:" * 20000 + " =@", "x@ " + "a:" * 20000, "?passtoken" * 5000 + "@=", "a" * 200000 + "=@"):
        hidden(text)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("kind", [EvoMergeError, StudyError, CandidateError])
def test_errors_have_none(kind):
    error = kind("storage postgresql://u:sesame@h/d: gone", 3)
    assert error.args == ("storage postgresql://u:***@h/d: gone", 3)
    assert first_line(ValueError("postgresql://u:sesame@h/d")) == "postgresql://u:***@h/d"
