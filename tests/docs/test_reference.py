"""The generated reference: every key and every option says what it is, and the pages have them all."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import yaml
from _generate import commands, keys
from _generate.pages import generated
from pydantic import BaseModel, Field

from evomerge.cli.commands import COMMANDS
from evomerge.methods import METHODS
from evomerge.optimizers.table import OPTIMIZERS

SECTIONS = [pytest.param(m, id=f"{file}-{m.__name__}") for file, _, _, parts in keys.PAGES for _, m in parts]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("model", SECTIONS)
def test_every_key_says_what_it_is(model: type[BaseModel]) -> None:
    for key in keys.keys(model):
        assert len(key.meaning) >= 10 and key.meaning.endswith((".", ")", "`")), f"{model.__name__}.{key.name}"


def test_every_model_of_a_file_is_in_the_reference() -> None:
    """A mapping that some key holds is a section of its own, so that its keys are there too."""
    shown = {model for _, _, _, parts in keys.PAGES for _, model in parts}

    def held(model: type[BaseModel]) -> set[type[BaseModel]]:
        from evomerge.config import _models_in

        below = {m for field in model.model_fields.values() for m in _models_in(field.annotation)}
        return below.union(*(held(m) for m in below))

    assert set().union(*map(held, keys.FILES)) <= shown


def test_a_key_has_type_default_bounds_and_meaning() -> None:
    class Example(BaseModel):
        """Two keys.

        Attributes:
            share: How much of it,
                in words of two lines.
            names, words: Of both.
        """

        share: float = Field(default=0.5, gt=0, le=1)
        names: list[str]
        words: dict[str, int] | None = None
        unsaid: bool = True

    share, names, words, unsaid = keys.keys(Example)
    assert (share.type, share.default, share.bounds) == ("number", "0.5", "above 0, at most 1")
    assert share.meaning == "How much of it, in words of two lines."
    assert (names.type, names.default) == ("list of text", None)
    assert (words.type, words.default, words.meaning) == ("mapping of names to whole number", "null", "Of both.")
    assert unsaid.meaning == ""


def test_every_option_has_help() -> None:
    silent = [
        f"{words} {'/'.join(action.option_strings) or action.dest}"
        for words, parser in commands.parsers().items()
        for _, actions in commands.groups(parser)
        for action in actions
        if len(commands.help_of(parser, action)) < 8
    ]
    assert silent == []


def test_the_pages_have_every_command_option_method_and_optimizer() -> None:
    pages = generated()
    page = pages["reference/commands.md"]
    for words, parser in commands.parsers().items():
        assert f"## `evomerge {words}`" in page
        for action in parser._actions:
            if not isinstance(action, argparse._HelpAction | argparse._VersionAction | argparse._SubParsersAction):
                assert all(f"`{o}" in page or f", {o}" in page for o in action.option_strings), (words, action)
    assert {words.split()[0] for words in commands.parsers()} == set(COMMANDS)
    assert all(f"`{name}`" in pages["reference/methods.md"] for name in METHODS)
    assert all(f"`{name}`" in pages["reference/optimizers.md"] for name in OPTIMIZERS)


@pytest.mark.parametrize("preset", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda p: p.stem)
def test_keys_of_the_presets_are_on_the_page(preset: Path) -> None:
    page = generated()["reference/space.md"]
    for name in yaml.safe_load(preset.read_text(encoding="utf-8")):
        assert f"`{name}`{{#" in page, name
