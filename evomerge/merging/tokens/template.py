"""Chat templates: a recipe's own text, one of the well-known formats by name, or the one that most models have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from evomerge.errors import RecipeError, choose
from evomerge.merging.tokens.jinja import syntax_problem
from evomerge.recipe import Recipe
from evomerge.sources import Source, read_object, read_text, small_file

AUTO = "auto"
FILE = "chat_template.jinja"
_FOLDER = Path(__file__).parent / "templates"


def names() -> list[str]:
    """The formats that can be named, as mergekit names them."""
    return sorted(file.stem for file in _FOLDER.glob("*.jinja"))


def named_template(name: str) -> str:
    """The Jinja text of a format."""
    return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def check_template(given: str | None) -> None:
    """Raise RecipeError where `chat_template` is neither "auto", a known name nor the text of a template."""
    if given is None or given in (AUTO, *names()):
        return
    shown = given if len(given) <= 80 else given[:77] + "..."
    if "{" not in given:
        raise RecipeError(
            f'chat_template = "{shown}": expected a name or the text of a Jinja template; '
            f"{choose(given, [AUTO, *names()])}"
        )
    problem = syntax_problem(given)
    if problem:
        raise RecipeError(f'chat_template = "{shown}": expected the text of a Jinja template; {problem}')


def template_of(recipe: Recipe, sources: Mapping[str, Source]) -> str | None:
    """The chat template that the merge is to have, or None where it keeps its tokenizer's."""
    given = recipe.chat_template
    if given == AUTO:
        found = [t for r in recipe.merged_models() if (t := chat_template(sources[r].path))]
        # Where two are as common, the first model's.
        return Counter(found).most_common(1)[0][0] if found else None
    return named_template(given) if given in names() else given


def chat_template(folder: Path) -> str | None:
    """A model's chat template, or None.

    Raises:
        SourceError: the file that would say it cannot be read.
    """
    file = small_file(folder, FILE)
    if file is not None:
        return read_text(file).strip()
    template = read_object(folder, "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        named = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
        template = named[0].get("template") if named else None
    return template.strip() if isinstance(template, str) else None
