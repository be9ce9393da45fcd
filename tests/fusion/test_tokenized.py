"""What a model reads of a document: places of tokens, what is learned, chat templates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from evomerge.errors import SourceError
from evomerge.fusion.chat import TemplateProblem, rendered
from evomerge.fusion.documents import Document, Message
from evomerge.fusion.teachers.observe import wanted
from evomerge.fusion.tokenized import Reader
from evomerge.fusion.vocabulary import Vocabulary, byte_characters
from evomerge.zoo.fusion.models import byte_level
from tests.fusion.conftest import KINDS, TEXT


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


TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}Q:{{ m.content }}\n{% else %}A:{{ m.content + eos_token }}"
    "{% endif %}{% endfor %}"
)


def unknown_at_the_end(how: str, folder: Path) -> PreTrainedTokenizerBase:
    """A tokenizer whose <unk> is what ends a text: by transformers' word alone, or by the algorithm's."""
    if how == "algorithm":
        tokens = Tokenizer(models.WordLevel({"</s>": 0, "the": 1, "harbour": 2, "was": 3, "quiet": 4}, "</s>"))
        tokens.pre_tokenizer = pre_tokenizers.Whitespace()
        tokens.add_special_tokens(["</s>"])
        return PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="</s>", bos_token="</s>", eos_token="</s>")
    byte_level(TEXT, 400).save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": how, "eos_token": "</s>", "unk_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("how", ["GPT2Tokenizer", "GPTNeoXTokenizer", "CodeGenTokenizer", "algorithm"])
def test_the_end_is_learned_where_it_is_also_what_cannot_be_written(how, tmp_path):
    """transformers' classes have `<|endoftext|>` for both."""
    tokenizer = unknown_at_the_end(how, tmp_path)
    assert tokenizer.unk_token_id == tokenizer.eos_token_id is not None
    tokenizer.chat_template = TEMPLATE
    reader = Reader(Vocabulary(tokenizer))
    (tokens,) = reader.read([chat(("user", "the harbour"), ("assistant", "was quiet"))])
    # What is learned of it, and what it teaches as a source.
    told = tokens.ids[wanted(tokens) + 1]
    assert reader.vocabulary.tokens[told[-1]] == "</s>"
    assert tokenizer.decode(told).replace(" ", "") == "wasquiet</s>"
    assert reader.vocabulary.turn_end == reader.vocabulary.eos
    (tokens,) = reader.read([Document("the harbour was quiet")])
    assert tokens.known.all() and tokens.ids[wanted(tokens)[-1] + 1] == reader.vocabulary.eos
    # Of a text that names it, it is a token like any other; what cannot be written is it no less.
    said_so, lost = reader.read([Document("the harbour</s> was"), Document("the 龍 was")])
    assert said_so.known.all() and not said_so.lossy
    assert lost.known.all() == (how != "algorithm") and lost.known[-1]
    if how == "algorithm":
        assert lost.sizes[~lost.known].tolist() == [1 + len("龍".encode())] and not lost.lossy


@pytest.mark.parametrize(
    ("text", "lossy"),
    [
        ("the harbour was quiet", ""),
        (" the harbour was quiet", ""),  # one space before a text is left out, or put there, by design
        ("the harbour, was quiet.", ""),
        ("THE HARBOUR  WAS\n\nQUIET", "wordpiece"),
        ("the harbour  was quiet", "wordpiece"),
        ("  the harbour was quiet", "wordpiece"),
        ("the harbour was quiet\n", "wordpiece"),
        ("cafe\u0301", "wordpiece unigram"),
        ("a \ufb01ne harbour", "unigram"),
        ("the \u2581 harbour", "unigram metaspace"),  # SentencePiece's sign for a space
        ("the 龍 harbour", ""),  # <unk>, which is told by itself
        ("the 龍  harbour", "wordpiece"),
        ("", ""),
    ],
)
def test_text_that_tokens_do_not_give_back(readers, text, lossy):
    found = {kind for kind in KINDS if readers[kind].read([Document(text)])[0].lossy}
    assert found == set(lossy.split())


def test_of_a_conversation_what_is_learned_has_to_be_given_back(readers):
    for kind in KINDS:
        template = "{% for m in messages %}{{ m.role }}:\n{{ m.content | trim }}\n{% endfor %}"
        reader = Reader(Vocabulary(with_template(readers[kind], template)))
        said = (("the", " harbour was quiet "), ("THE  BOATS", "gone"), ("the", "GONE  was"))
        fine, asked, answered = reader.read([chat(("user", u), ("assistant", a)) for u, a in said])
        assert [fine.lossy, asked.lossy, answered.lossy] == [False, False, kind == "wordpiece"]


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
