"""What a model reads of a document: places of tokens, what is learned, chat templates."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from evomerge.errors import SourceError
from evomerge.fusion.chat import TemplateProblem, rendered
from evomerge.fusion.documents import Document, Message
from evomerge.fusion.tokenized import Reader
from evomerge.fusion.vocabulary import Vocabulary, byte_characters


def said(reader, tokens, mask) -> list[str]:
    return [reader.vocabulary.tokens[i] for i in tokens.ids[mask]]


def test_byte_characters_are_gpt2s():
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    assert byte_characters() == {c: b for b, c in bytes_to_unicode().items()}


def test_the_end_of_a_text_is_marked_and_learned(readers):
    for kind, end in (("byte-level", "</s>"), ("metaspace", "</s>"), ("unigram", "</s>"), ("wordpiece", "[SEP]")):
        (tokens,) = readers[kind].read([Document("the harbour")])
        assert readers[kind].vocabulary.tokens[tokens.ids[-1]] == end
        assert tokens.ends[-1] == -1 and tokens.learned[-1] and not tokens.scored[-1]


def test_what_stands_before_a_text_is_not_learned_but_a_place(readers):
    (tokens,) = readers["metaspace"].read([Document("the harbour")])
    assert tokens.ends[0] == 0 and tokens.boundary[0] and not tokens.learned[0]
    (tokens,) = readers["byte-level"].read([Document("the harbour")])
    assert tokens.learned.all() and tokens.ends[0] > 0


def test_characters_of_several_tokens(readers):
    """Bytes of one character are places of their own; parts of what a normaliser made of one are none."""
    (tokens,) = readers["byte-level"].read([Document("ßﬁ🎉")])
    assert tokens.boundary[:-1].all() and tokens.ends[-2] == len("ßﬁ🎉".encode())
    (tokens,) = readers["unigram"].read([Document("a ﬁne")])
    pieces = said(readers["unigram"], tokens, tokens.ends >= 0)
    whole = np.flatnonzero(tokens.ends == 2 + len("ﬁ".encode()))
    assert len(whole) == 1 or not tokens.boundary[whole[:-1]].any(), pieces
    assert tokens.sizes.sum() == len("a ﬁne".encode())


def test_what_cannot_be_written_is_said(readers):
    (tokens,) = readers["wordpiece"].read([Document("the 龍 harbour")])
    unknown = ~tokens.known
    assert said(readers["wordpiece"], tokens, unknown) == ["[UNK]"]
    assert tokens.sizes[unknown].tolist() == [1 + len("龍".encode())]


def chat(*turns: tuple[str, str]) -> Document:
    return Document(messages=tuple(Message(role, content) for role, content in turns))


def test_instructions_are_masked_and_the_end_of_a_turn_is_learned(zoo_readers):
    document = chat(
        ("system", "lomen"), ("user", "rimo wesen"), ("assistant", "silmol"), ("user", "more"), ("assistant", "naramil")
    )
    reader = zoo_readers["tides"]
    (tokens,) = reader.read([document])
    learned = tokens.ids[tokens.learned].tolist()
    assert reader.vocabulary.tokenizer.decode(learned) == "silmol<|im_end|>naramil<|im_end|>"
    reader = zoo_readers["pivot"]
    (tokens,) = reader.read([chat(("user", "rimo wesen"), ("assistant", "silmol"))])
    assert said(reader, tokens, tokens.learned)[-1] == "</s>"
    text = reader.vocabulary.tokenizer.decode(tokens.ids[tokens.learned & (tokens.ends >= 0)])
    assert text.strip() == "silmol"
    # Only what the assistant says counts for bits per byte, all of it.
    assert tokens.sizes[tokens.scored].sum() == len("silmol")


def test_the_end_of_a_turn_is_learned_with_the_space_before_it(readers):
    """As Llama 2's template has it."""
    template = "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"  # noqa: E501
    reader = Reader(Vocabulary(with_template(readers["metaspace"], template)))
    (tokens,) = reader.read(
        [chat(("user", "the harbour"), ("assistant", "was quiet"), ("user", "where"), ("assistant", "gone"))]
    )
    learned = "".join(said(reader, tokens, tokens.learned)).replace("▁", " ")
    assert learned.split("</s>")[0].strip() == "was quiet" and learned.count("</s>") == 2
    assert "[INST]" not in learned and "where" not in learned
    assert reader.vocabulary.turn_end == reader.vocabulary.eos


def test_a_text_that_goes_on_does_not_end(readers):
    for kind in ("byte-level", "metaspace", "wordpiece"):
        whole, part = readers[kind].read([Document("the harbour"), Document("the harbour", continued=True)])
        assert whole.learned[-1] and whole.ends[-1] == -1
        ends = part.ends[part.learned]
        assert (ends >= 0).all() and ends[-1] == len("the harbour")


def test_a_token_that_the_model_does_not_have(readers):
    reader = Reader(readers["byte-level"].vocabulary, "mine", rows=20)
    with pytest.raises(SourceError, match=r"mine: its tokenizer gives token \d+, its embedding has 20 rows"):
        reader.read([Document("the harbour")])


def with_template(reader, template: str) -> PreTrainedTokenizerFast:
    import copy

    tokenizer = copy.deepcopy(reader.vocabulary.tokenizer)
    tokenizer.chat_template = template
    return tokenizer


TURNS = (Message("user", " what? "), Message("assistant", "a"), Message("user", "a"), Message("assistant", "aa "))


def test_messages_are_found_where_they_stand_not_where_they_also_occur(readers):
    """The role's name holds the message; whitespace is left out around it."""
    tokenizer = with_template(
        readers["byte-level"], "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}\n{% endfor %}"
    )
    text, segments = rendered(tokenizer, TURNS)
    assert [text[s.start : s.end] for s in segments] == ["what?", "a", "a", "aa"]
    assert [s.skipped for s in segments] == [1, 0, 0, 0]
    assert [s.learned for s in segments] == [False, True, False, True]
    reader = Reader(Vocabulary(tokenizer), "it")
    (tokens,) = reader.read([Document(messages=TURNS)])
    # Positions are those of the message as it is, the space that the template leaves out included.
    first = np.flatnonzero(tokens.sizes > 0)[0]
    assert tokens.starts[first] == 1


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "changes what message 1 says"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }};{% endfor %}", "does not show message 1 once"),
        ("{{ messages[0].content }}", "does not show message 2 once"),
        ("{{ raise_exception('roles must alternate') }}", "refuses it: roles must alternate"),
        ("{% for m in messages %}{{ messages | length if 'a' in m.content else '' }}{{ m.content }}{% endfor %}",
         "depends on what the messages say|changes what message"),
    ],
)  # fmt: skip
def test_templates_that_do_not_show_messages_as_they_are(readers, template, why):
    reader = Reader(Vocabulary(with_template(readers["byte-level"], template)), "mine")
    with pytest.raises(TemplateProblem, match=f"mine: the chat template .*({why})|mine: .*({why})"):
        reader.read([Document(messages=(Message("user", "what?"), Message("assistant", "a")))])


def test_a_tokenizer_of_python_is_refused():
    from transformers import CanineTokenizer

    with pytest.raises(SourceError, match="none of the tokenizers library"):
        Vocabulary(CanineTokenizer(), "mine")


def test_digests_tell_tokenizers_apart(vocabularies):
    assert len({v.digest for v in vocabularies.values()}) == 4


def test_documents_are_equal_by_what_they_say():
    assert Document("a", domain="x", place="here").digest == Document("a", domain="y").digest
    assert Document("a").digest != chat(("assistant", "a")).digest
    assert chat(("user", "a"), ("assistant", "b")).offsets == (0, 2)
