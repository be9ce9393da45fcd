"""Every command with every option, merge method and optimizer: from the tables that the program uses."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from textwrap import dedent

from evomerge.cli.commands import COMMANDS, Parser, build_parser
from evomerge.methods import METHODS, Method
from evomerge.optimizers.table import OPTIMIZERS, Entry

Group = tuple[str, list[argparse.Action]]


def parsers() -> dict[str, Parser]:
    """Each command's parser, those of commands inside a command (`zoo copy`) included, by its words."""
    found: dict[str, Parser] = {}

    def add(words: str, parser: Parser) -> None:
        if words:
            found[words] = parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, inner in action.choices.items():
                    add(f"{words} {name}".strip(), inner)

    add("", build_parser(COMMANDS))
    return found


def groups(parser: Parser) -> Iterator[Group]:
    """A command's options by their groups, its arguments first; those of commands inside it are their own."""
    for group in parser._action_groups:
        actions = [
            a for a in group._group_actions
            if not isinstance(a, argparse._SubParsersAction | argparse._HelpAction | argparse._VersionAction)
        ]  # fmt: skip
        if actions:
            yield group.title or "", actions


def help_of(parser: Parser, action: argparse.Action) -> str:
    """What `--help` says of an option; empty where it says nothing."""
    if action.help in (None, argparse.SUPPRESS):
        return ""
    return parser._get_formatter()._expand_help(action)


def page() -> str:
    """The page of commands as Markdown."""
    out = [
        "# Commands", "",
        "Every command takes `--json`: one result on stdout, progress on stderr. Exit codes: 0 done, 2 the input is "
        "wrong ([troubleshooting](../troubleshooting.md)), 130 and 143 stopped by a signal, 1 anything else. `evomerge "
        "COMMAND --help` says the same as this page.", "",
    ]  # fmt: skip
    for words, parser in parsers().items():
        slug = words.replace(" ", "-")
        out += [f"## `evomerge {words}` {{#{slug}}}", ""]
        for paragraph in (parser.description or "").split("\n\n"):
            example = paragraph.startswith("  ")
            out += ["```text", dedent(paragraph), "```", ""] if example else [" ".join(paragraph.split()), ""]
        for title, actions in groups(parser):
            if title not in ("options", "positional arguments"):
                out += [f"### {title[0].upper()}{title[1:]} {{#{slug}-{title.replace(' ', '-')}}}", ""]
            for action in actions:
                out += [*_entry(slug, parser, action), ""]
    return "\n".join(out)


def methods_table() -> str:
    """The merge methods and their parameters as a Markdown table."""
    rows = ["| method | what it does | base_model | parameters (default) |", "|---|---|---|---|"]
    return "\n".join(rows + [_method(m) for m in METHODS.values()])


def optimizers_page() -> str:
    """The page of optimizers as Markdown."""
    rows = [
        "| `--sampler` | what it is | categories | several objectives | `--async` | least population |",
        "|---|---|---|---|---|---|",
        *(_optimizer(name, entry) for name, entry in OPTIMIZERS.items()),
    ]
    return "\n".join([
        "# Optimizers", "",
        "`--sampler NAME`; `auto` takes `catcma` where the space has categories, `evolution` for paths, else `thompson`"
        " (`cma` of more than 200 parameters, with constraints, and where `--restarts` is given). "
        "[What each brought](../search.md#optimizers) has the measurements.", "", *rows, "",
        "*Categories*: whether it takes spaces in which the merge method, or a word, is searched too. *Several "
        "objectives*: the outcome is then a front. *Least population*: the fewest candidates of a "
        "generation, see `--population`.", "",
    ])  # fmt: skip


def _entry(slug: str, parser: Parser, action: argparse.Action) -> Sequence[str]:
    metavar = action.metavar or action.dest.upper()
    value = "" if action.nargs == 0 else parser._get_formatter()._format_args(action, str(metavar))
    if action.option_strings:
        name = ", ".join(f"{option} {value}".strip() for option in action.option_strings)
        anchor = action.option_strings[-1].lstrip("-")
    else:
        name, anchor = value, action.dest
    facts = ["**required**"] if action.required and action.option_strings else []
    if action.choices:
        facts.append(" or ".join(f"`{c}`" for c in action.choices))
    first = f"<small>{' · '.join(facts)}</small><br>" if facts else ""
    return f"`{name}`{{#{slug}-{anchor}}}", f":   {first}{help_of(parser, action)}"


def _method(method: Method) -> str:
    parameters = ", ".join(
        f"`{p.name}` ({'needed' if p.default is None else str(p.default).lower()})" for p in method.parameters
    )
    name = f"[`{method.name}`](../methods.md#{method.name})"
    return f"| {name} | {method.summary} | {method.base} | {parameters or 'none'} |"


def _optimizer(name: str, entry: Entry) -> str:
    cells = (entry.categorical, entry.several, not entry.batches)
    return f"| `{name}` | {entry.summary} | {' | '.join('yes' if c else 'no' for c in cells)} | {entry.least} |"
