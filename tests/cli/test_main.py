"""Exit codes, errors with the nearest choice, and --json's promise: one value on stdout, whatever happens."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Callable

import pytest

import evomerge
from evomerge.cli import zoo
from evomerge.cli.commands import COMMANDS, build_parser
from evomerge.errors import CandidateError, InputError
from evomerge.zoo import NAMES


def test_version_and_help(command: Callable) -> None:
    assert command("--version").out.strip() == f"evomerge {evomerge.__version__}"
    done = command("--help")
    assert done.code == 0
    assert all(f"    {name}" in done.out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_takes_json(command: Callable, name: str) -> None:
    done = command(name, "--help")
    assert done.code == 0 and "--json" in done.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_sets_run(name: str) -> None:
    module = importlib.import_module(f"evomerge.cli.{name}")
    assert callable(module.run) and callable(module.add_parser)


def test_unknown_command_names_the_nearest(command: Callable) -> None:
    assert command("chek", "x").error.startswith('unknown command "chek"; did you mean "check"?')


def test_unknown_option_names_the_nearest(command: Callable) -> None:
    assert command("zoo", "--jsno").error == 'evomerge zoo: unknown option "--jsno"; did you mean "--json"?'
    # Also where one that is required is missed for it.
    assert command("search", "--budgt", "10").error.endswith('unknown option "--budgt"; did you mean "--budget"?')
    assert "required: --budget" in command("search", "--seed", "1").error
    assert '"--overwirte"; did you mean "--overwrite"?' in command("merge", "a", "b", "--overwirte=1").error


def test_options_are_not_abbreviated(command: Callable) -> None:
    assert '"--over"' in command("merge", "a", "b", "--over").error


def test_missing_argument(command: Callable) -> None:
    assert "required: OUT" in command("merge", "recipe.yaml").error


def test_no_command(command: Callable) -> None:
    assert command().error.startswith("expected a command; one of: ")


def test_json_error_is_one_value_on_stdout(command: Callable) -> None:
    done = command("zoo", "copy", "mats", "out", "--json")
    assert done.code == 2
    words = f'no model "mats" in the zoo; did you mean "maths"? Valid: {", ".join(NAMES)}'
    assert done.json == {"error": words}
    assert "mats" in done.err


def test_json_error_of_the_parser_too(command: Callable) -> None:
    assert "unknown command" in command("nope", "--json").json["error"]


def test_prints_of_libraries_do_not_spoil_json(command: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    real = zoo._list

    def noisy(args: argparse.Namespace) -> int:
        print("a library says hello")
        return real(args)

    monkeypatch.setattr(zoo, "_list", noisy)
    done = command("zoo", "--json")
    assert done.json["models"] and "a library says hello" in done.err


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (InputError("wrong input"), 2, "wrong input"),
        (CandidateError("broken"), 1, "broken"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("a bug"), 1, "ZeroDivisionError: a bug"),
    ],
)
def test_exit_codes(
    command: Callable, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, words: str
) -> None:
    def fail(args: argparse.Namespace) -> int:
        raise raised

    monkeypatch.setattr(zoo, "run", fail)
    done = command("zoo", "--json")
    assert (done.code, done.json) == (code, {"error": words})
    assert ("Traceback" in done.err) == isinstance(raised, ZeroDivisionError)


def test_a_closed_pipe_is_quiet() -> None:
    """`evomerge zoo | true`: no traceback."""
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read(); from evomerge.cli import main; sys.exit(main(['zoo']))"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdin and child.stdout and child.stderr
    child.stdout.close()  # before it writes: it waits for the end of its stdin
    child.stdin.close()
    assert child.stderr.read() == ""
    assert child.wait() in (0, 1)


def test_parser_is_built_anew() -> None:
    assert build_parser() is not build_parser()
