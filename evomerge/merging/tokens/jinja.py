"""Whether a text is a Jinja template as transformers reads chat templates."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


@lru_cache(maxsize=16)  # a search plans hundreds of candidates with one template
def syntax_problem(text: str) -> str | None:
    """What is wrong with the text of a chat template, in words; None where it can be read."""
    from jinja2 import TemplateSyntaxError

    try:
        # Parsed, and compiled too: unknown filters and tests show only then.
        _environment().compile(text, raw=True)
    except TemplateSyntaxError as e:
        return f"line {e.lineno}: {e.message}"
    except RecursionError:
        return "it is nested too deeply"
    return None


@lru_cache(maxsize=1)
def _environment() -> Environment:
    """Jinja with the tags and filters that transformers adds (`chat_template_utils._compile_jinja_template`)."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}: what stands in it is the assistant's."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    return ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
