"""Run a command in this process and see what a user and a program would see."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from evomerge.cli import main


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON value on stdout; anything beside it fails."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The error's text, which must have come with exit code 2 and no traceback."""
        assert self.code == 2, (self.code, self.err)
        assert "Traceback" not in self.err
        last = self.err[self.err.index("evomerge: error: ") :]
        return last.removeprefix("evomerge: error: ").rstrip("\n")


Command = Callable[..., Done]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: object) -> Done:
        capsys.readouterr()
        code = main([str(w) for w in words])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run
