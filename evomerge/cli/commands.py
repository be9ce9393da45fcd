"""The one table of commands, and the parser made of it.

A command is a module of `evomerge.cli` with `add_parser(subparsers)`, which sets `run(args) -> int` as a default. It
imports what is heavy inside `run`, because all of them are loaded for `evomerge --help`; with a command named, only its
own is.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from evomerge import __version__, arguments
from evomerge.errors import InputError, choose, nearest

# In the order of --help. Adding a command is one line here and one file beside.
COMMANDS: tuple[str, ...] = (
    "search",
    "merge",
    "fuse",
    "skills",
    "statistics",
    "evaluate",
    "report",
    "export",
    "list",
    "status",
    "check",
    "init",
    "dashboard",
    "zoo",
)

Subparsers = argparse._SubParsersAction  # the type of what add_subparsers() returns has no public name


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose problems are InputErrors (one line, exit code 2) instead of a usage dump."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found wrong."""
        raise InputError(f"{message} (see: {self.prog} --help)")


def build_parser(commands: Sequence[str] = COMMANDS) -> Parser:
    """The parser of the whole command line, or of some of its commands: what the others import is then not loaded."""
    parser = Parser(
        prog="evomerge",
        description="Evolutionary search for model-merge recipes.",
        epilog="evomerge COMMAND --help explains one command. Start with: evomerge search --budget 100",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"evomerge {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name in commands:
        importlib.import_module(f"evomerge.cli.{name}").add_parser(subparsers)
    return parser


def add_command(subparsers: Subparsers[Parser], name: str, help: str, description: str) -> Parser:
    """A command's parser with what every command has: `--json`, no abbreviated options, its own name for messages."""
    parser = subparsers.add_parser(
        name,
        help=help,
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one machine-readable result on stdout")
    parser.set_defaults(parser=parser)
    return parser


def add_cluster(where: argparse._ActionsContainer) -> None:
    """The options of a command whose work runs on Ray."""
    where.add_argument(
        "--workers", type=lambda text: whole(text, 0, 10**6), metavar="N",
        help="processes that work side by side, on Ray; default: one per GPU, else per CPU; 0: this one alone",
    )  # fmt: skip
    where.add_argument(
        "--gpus-per-worker", type=_share, metavar="X", help="GPU share of a worker: 0 (CPUs), up to 1, or several for "
        "a model that one does not hold (default: 1 where there are any)",
    )  # fmt: skip
    where.add_argument(
        "--address", metavar="A", help="a Ray cluster: auto, HOST:PORT of its head, or ray://HOST:PORT from outside "
        "(default: this machine)",
    )  # fmt: skip


def _share(text: str) -> float:
    try:
        return arguments.share("share", float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}": expected 0, a share up to 1, or a whole number of GPUs') from None


def whole(text: str, low: int, high: int) -> int:
    """An argument's whole number."""
    try:
        number = int(text)
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        raise argparse.ArgumentTypeError(f'"{text}": expected a whole number from {low} to {high}')
    return number


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    """An argument's `type` that takes one of some words; argparse's own `choices` does not name the nearest."""

    def check(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f'unknown "{text}"; {choose(text, choices)}')
        return text

    return check


def parse(argv: Sequence[str], parser: Parser | None = None) -> argparse.Namespace:
    """Parse a command line.

    Raises:
        InputError: unknown command or option (the nearest one named), or anything else that argparse refuses.
    """
    first = next((a for a in argv if not a.startswith("-")), None)
    if first is not None and first not in COMMANDS:
        raise InputError(f'unknown command "{first}"; {choose(first, COMMANDS)}')
    parser = parser or build_parser(COMMANDS if first is None else (first,))
    _check_inner(argv, parser)
    try:
        args, unknown = parser.parse_known_args(list(argv))
    except InputError as e:
        # argparse misses what is required before it says that it does not know what was written instead.
        strange = _strange(argv, parser, first) if "required" in str(e) else None
        raise (InputError(strange) if strange else e) from None
    if args.command is None and not unknown:
        raise InputError(f"expected a command; one of: {', '.join(COMMANDS)} (see: evomerge --help)")
    if not hasattr(args, "run") and not unknown:
        words, inner = _innermost(argv, parser)
        known = ", ".join(_commands(inner))
        raise InputError(f"expected a command behind {' '.join(words)}; one of: {known} (see: {inner.prog} --help)")
    if unknown:
        raise InputError(_unknown(unknown[0], parser if args.command is None else args.parser))
    return args


def _strange(argv: Sequence[str], parser: Parser, command: str | None) -> str | None:
    """What is wrong with the first option that is none, or None."""
    if command is None:
        return None
    own = _innermost(argv, parser)[1]
    known = [option for a in own._actions for option in a.option_strings]
    names = (a.split("=", 1)[0] for a in argv if a.startswith("--") and a != "--")
    return next((_unknown(n, own) for n in names if n not in known), None)


def _commands(parser: Parser) -> Mapping[str, Parser]:
    """The commands inside a parser."""
    return next((a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)), {})


def _innermost(argv: Sequence[str], parser: Parser) -> tuple[list[str], Parser]:
    """The words of the command that is named, of commands inside a command too, and its parser."""
    words = []
    for word in (a for a in argv if not a.startswith("-")):
        inner = _commands(parser)
        if word not in inner:
            break
        words.append(word)
        parser = inner[word]
    return words, parser


def _check_inner(argv: Sequence[str], parser: Parser) -> None:
    """Raise InputError where a command has commands of its own, and none of that name."""
    words, found = _innermost(argv, parser)
    inner, given = _commands(found), [a for a in argv if not a.startswith("-")]
    if words and inner and len(given) > len(words):
        name = given[len(words)]
        raise InputError(f'unknown command "{" ".join([*words, name])}"; {choose(name, list(inner))}')


def _unknown(argument: str, parser: Parser) -> str:
    if not argument.startswith("-"):
        return f'{parser.prog}: unexpected argument "{argument}" (see: {parser.prog} --help)'
    name = argument.split("=", 1)[0]
    near = nearest(name, [option for action in parser._actions for option in action.option_strings])
    hint = f'; did you mean "{near}"?' if near else f" (see: {parser.prog} --help)"
    return f'{parser.prog}: unknown option "{name}"{hint}'
