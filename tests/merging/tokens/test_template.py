"""Chat templates by name, against mergekit's; "auto"; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from evomerge.errors import RecipeError
from evomerge.merging.tokens.template import chat_template, check_template, named_template, names, template_of
from evomerge.recipe import parse_recipe

Conversation = list[dict[str, str]]
CONVERSATIONS: list[Conversation] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?\nTwo?"},
        {"role": "assistant", "content": "Three."},
        {"role": "user", "content": "Bye"},
    ],
]


def rendered(template: str, conversation: Conversation, prompt: bool) -> str:
    found, _ = render_jinja_template(
        conversations=[conversation],
        chat_template=template,
        add_generation_prompt=prompt,
        bos_token="<s>",
        eos_token="</s>",
    )
    return str(found[0])


def theirs(name: str) -> str:
    import importlib.resources

    return importlib.resources.files("mergekit._data.chat_templates").joinpath(f"{name}.jinja").read_text()


def test_mergekits_names() -> None:
    package = pytest.importorskip("mergekit._data.chat_templates")
    assert names() == sorted(f.stem for f in Path(package.__file__).parent.glob("*.jinja"))


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("name", names())
def test_the_same_conversation_as_mergekits(name: str, prompt: bool) -> None:
    pytest.importorskip("mergekit")
    for conversation in CONVERSATIONS:
        ours, expected = (rendered(t, conversation, prompt) for t in (named_template(name), theirs(name)))
        if name in ("chatml", "mistral"):
            assert ours == expected
        # mergekit's others have stray newlines and indentation, which their models were not trained with.
        assert "".join(ours.split()) == "".join(expected.split())


def test_formats_to_the_letter() -> None:
    """Published formats: Stanford Alpaca's, Llama 3's and EXAONE's model cards."""
    system = CONVERSATIONS[2]
    assert rendered(named_template("llama3"), system[:2], True) == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nOne?\nTwo?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert rendered(named_template("alpaca"), system[:3], False) == (
        "Be brief.\n\n### Instruction:\nOne?\nTwo?\n\n### Response:\nThree."
    )
    assert rendered(named_template("alpaca"), CONVERSATIONS[0], True) == "### Instruction:\nHi\n\n### Response:\n"
    assert rendered(named_template("exaone"), CONVERSATIONS[1], True) == (
        "[|system|][|endofturn|]\n[|user|]Hi\n[|assistant|]Hello.[|endofturn|]\n[|assistant|]"
    )


def test_mistral_refuses_what_it_has_no_form_for() -> None:
    for roles, words in (
        (["assistant"], "take turns"),
        (["user", "user"], "take turns"),
        (["user", "tool"], "got: tool"),
    ):
        with pytest.raises(Exception, match=words):
            rendered(named_template("mistral"), [{"role": r, "content": "x"} for r in roles], False)


def recipe(template: str) -> Any:
    text = {"merge_method": "linear", "models": [{"model": m} for m in "abc"], "parameters": {"weight": 1}}
    return parse_recipe(json.dumps({**text, "chat_template": template}))


@pytest.mark.parametrize("given", ["auto", "{{ messages }}", *names()])
def test_accepted(given: str) -> None:
    check_template(given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{% if %}", "line 1: Expected an expression"),
        ("{% for m in messages %}\n{{ m.content }}", "line 2: Unexpected end of template"),
        ("{% generation %}{{ x }}{% endfor %}", "line 1: Encountered unknown tag 'endfor'"),
        ("{{ messages | tojsn }}", "line 1: No filter named 'tojsn'"),
        ("{{" + "(" * 5000 + "x" + ")" * 5000 + "}}", "it is nested too deeply"),
    ],
)
def test_what_is_no_template(given: str, words: str) -> None:
    with pytest.raises(RecipeError) as e:
        check_template(given)
    assert f"expected the text of a Jinja template; {words}" in str(e.value) and len(str(e.value)) < 300


def test_tags_and_filters_of_transformers() -> None:
    given = (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{% generation %}{{ m | tojson(indent=2) }}{% endgeneration %}"
        "{% if loop.last %}{% break %}{% endif %}{% endfor %}"
        "{{ raise_exception('no') if not messages }}{{ strftime_now('%Y') }}"
    )
    check_template(given)
    assert rendered(given, [{"role": "user", "content": "x"}], False).startswith("{")


@pytest.mark.parametrize(("given", "near"), [("chatlm", "chatml"), ("lama3", "llama3"), ("x", None), ("a" * 500, None)])
def test_unknown_names(given: str, near: str | None) -> None:
    with pytest.raises(RecipeError) as e:
        check_template(given)
    assert (f'did you mean "{near}"?' in str(e.value)) == (near is not None)
    assert all(name in str(e.value) for name in ("auto", *names())) and len(str(e.value)) < 300


def test_the_most_common_of_the_models(tmp_path: Path) -> None:
    class Folder:
        def __init__(self, name: str, config: dict[str, Any] | None, jinja: str | None = None) -> None:
            self.path = tmp_path / name
            self.path.mkdir()
            if config is not None:
                (self.path / "tokenizer_config.json").write_text(json.dumps(config))
            if jinja is not None:
                (self.path / "chat_template.jinja").write_text(jinja)

    other = {"name": "tool_use", "template": "tools"}
    sources: Any = {
        "a": Folder("a", {"chat_template": "one {{ x }}"}),
        "b": Folder("b", {"chat_template": [other, {"name": "default", "template": "two {{ x }}"}]}),
        "c": Folder("c", {"chat_template": "not this one"}, "two {{ x }}\n"),
    }
    assert [chat_template(s.path) for s in sources.values()] == ["one {{ x }}", "two {{ x }}", "two {{ x }}"]
    assert template_of(recipe("auto"), sources) == "two {{ x }}"
    assert template_of(recipe("own {{ x }}"), sources) == "own {{ x }}"
    assert template_of(recipe("chatml"), sources) == named_template("chatml")
    empty: Any = {name: Folder(f"empty {name}", None) for name in "abc"}
    assert template_of(recipe("auto"), empty) is None
