"""Merged vocabularies: ids, what text becomes, and tokenizers of every kind and form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2Tokenizer, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from evomerge.errors import SourceError
from evomerge.merging.tokens.union import united
from evomerge.merging.tokens.vocabulary import Vocabulary, read_vocabulary, reader

ENGLISH = "the quick brown fox and the lazy dog sat on the other mat with cats and dogs"
CODE = "import numpy as np\n    return function(self, value)"


def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer.to_str())


def test_the_base_keeps_its_ids_and_the_rest_follow_in_order(
    english: Tokenizer, code: Tokenizer, chat: Tokenizer
) -> None:
    base = vocabulary(english)
    found = united(base, [(base, 300), (vocabulary(code), 310), (vocabulary(chat), 302)], ["more", "the"])
    ids = found.tokenizer().get_vocab(with_added_tokens=True)
    assert {t: i for t, i in ids.items() if i < 300} == base.ids
    assert sorted(ids.values()) == list(range(len(ids))) == list(range(found.size))
    new = [t for t, _ in sorted(ids.items(), key=lambda item: item[1])][300:]
    plain = [t for t, _ in sorted(code.get_vocab().items(), key=lambda item: item[1]) if t not in base.ids]
    special = ["<|end|>", "<|pad|>"]
    assert new == [*(t for t in plain if t not in special), *special, "<|im_start|>", "<|im_end|>", "more"]
    assert {t["content"] for t in found.added} == {"<s>", "</s>", *special, "<|im_start|>", "<|im_end|>", "more"}
    assert {t["content"] for t in found.added if not t["special"]} == {"more"}


def test_text_of_each_model_is_split_much_as_before(english: Tokenizer, code: Tokenizer) -> None:
    base, other = vocabulary(english), vocabulary(code)
    union = united(base, [(base, 300), (other, 310)], []).tokenizer()
    added = base.tokenizer()  # what mergekit does: every foreign token is matched first, wherever its letters stand
    added.add_tokens([t for t in other.ids if t not in base.ids])

    def kept(tokenizer: Tokenizer, of: Tokenizer, text: str) -> float:
        before, after = of.encode(text).offsets, tokenizer.encode(text).offsets
        return len({*before} & {*after}) / len(before)

    for of, text in ((english, ENGLISH), (code, CODE)):
        assert kept(union, of, text) > 0.8
        assert kept(union, of, text) >= kept(added, of, text)
    assert kept(union, english, "the fox jumps") == 1 > kept(added, english, "the fox jumps")
    assert "Ġnump" in union.encode("import numpy").tokens and "Ġnump" not in added.encode("import numpy").tokens
    for text in (ENGLISH, CODE, "naïve 狐 \t"):
        assert union.decode(union.encode(text).ids) == text


def test_nothing_new_is_the_very_same(english: Tokenizer, chat: Tokenizer) -> None:
    base = vocabulary(chat)
    assert united(base, [(base, 302), (vocabulary(english), 300)], ["<s>", "the"]) is base


def test_a_fine_tunes_special_tokens_leave_the_model_alone(english: Tokenizer, chat: Tokenizer) -> None:
    found = json.loads(united(vocabulary(english), [(vocabulary(chat), 302)], []).text)
    assert found["model"] == json.loads(english.to_str())["model"]
    assert [(t["content"], t["id"]) for t in found["added_tokens"]][-2:] == [("<|im_start|>", 300), ("<|im_end|>", 301)]


def test_tokens_without_an_embedding_are_left_out(chat: Tokenizer, english: Tokenizer) -> None:
    found = vocabulary(chat).below(290)
    assert sorted(found.ids.values()) == list(range(290))
    assert "<|im_end|>" not in found.ids and found.tokenizer().encode(ENGLISH).tokens != english.encode(ENGLISH).tokens
    assert found.tokenizer().decode(found.tokenizer().encode(ENGLISH).ids) == ENGLISH
    back = united(found, [(found, 290), (vocabulary(english), 300)], [])
    assert back.ids.keys() == english.get_vocab().keys()
    assert back.tokenizer().encode(ENGLISH).tokens == english.encode(ENGLISH).tokens


def test_old_forms_of_merges(english: Tokenizer, code: Tokenizer) -> None:
    old = [json.loads(t.to_str()) for t in (english, code)]
    for data in old:
        data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]
    found = [united(a, [(b, 310)], []) for a, b in ([Vocabulary(json.dumps(d)) for d in old],
                                                    [vocabulary(t) for t in (english, code)])]  # fmt: skip
    assert found[0].ids == found[1].ids
    assert found[0].tokenizer().encode(CODE).ids == found[1].tokenizer().encode(CODE).ids


def test_ids_with_gaps_stay(english: Tokenizer, code: Tokenizer) -> None:
    data = json.loads(english.to_str())
    last = max(data["model"]["vocab"].items(), key=lambda item: item[1])[0]
    data["model"]["vocab"][last] = 400
    base = Vocabulary(json.dumps(data))
    found = united(base, [(base, 500), (vocabulary(code), 310)], ["new"])
    ids = found.tokenizer().get_vocab(with_added_tokens=True)
    assert ids == found.ids and len({*ids.values()}) == len(ids)
    assert {t: ids[t] for t in base.ids} == base.ids
    assert min(i for t, i in ids.items() if t not in base.ids) == 401 and ids["new"] == found.size - 1


def _of(kind: str, words: list[str]) -> Tokenizer:
    if kind == "Unigram":
        tokenizer = Tokenizer(models.Unigram([(w, -float(i)) for i, w in enumerate(["<unk>", *words])], unk_id=0))
    elif kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    else:
        tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.mark.parametrize("kind", ["Unigram", "WordPiece", "WordLevel"])
def test_other_kinds(kind: str, code: Tokenizer) -> None:
    base, other = (vocabulary(_of(kind, words)) for words in (["fox", "dog"], ["dog", "cat", "mouse"]))
    assert base.kind == kind
    found = united(base, [(base, 3), (other, 4)], [])
    assert [t for t, _ in sorted(found.ids.items(), key=lambda item: item[1])][3:] == ["cat", "mouse"]
    assert found.tokenizer().encode("fox cat mouse").tokens == ["fox", "cat", "mouse"]
    assert list(other.below(3).ids.values()) and max(other.below(3).ids.values()) == 2
    # Of another kind: as mergekit does, matched before the text is split.
    mixed = united(base, [(base, 3), (vocabulary(code), 310)], [])
    assert len(mixed.ids) == mixed.size == len({*base.ids, *code.get_vocab()})
    assert {t["content"] for t in mixed.added} == code.get_vocab().keys() - base.ids.keys()


# ---- tokenizers as they lie on disk


@pytest.mark.parametrize("form", ["json", "slow files", "GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizer"])
def test_read_as_transformers_sees_it(form: str, english: Tokenizer, tmp_path: Path) -> None:
    vocab, merges = (json.loads(english.to_str())["model"][k] for k in ("vocab", "merges"))
    pairs = [tuple(m) for m in merges]
    if form == "json":
        PreTrainedTokenizerFast(tokenizer_object=english, eos_token="</s>", pad_token="<new>").save_pretrained(tmp_path)
    elif form == "slow files":
        (tmp_path / "vocab.json").write_text(json.dumps(vocab))
        (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges))
        config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "</s>", "unk_token": "<s>", "bos_token": "<s>"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    else:
        kind = {"GPT2Tokenizer": GPT2Tokenizer, "Qwen2Tokenizer": Qwen2Tokenizer, "LlamaTokenizer": LlamaTokenizer}[
            form
        ]
        kind(vocab=vocab, merges=pairs, unk_token="<s>", eos_token="</s>", pad_token="[PAD]").save_pretrained(tmp_path)
    assert read_vocabulary(tmp_path).ids == AutoTokenizer.from_pretrained(tmp_path).get_vocab()


@pytest.mark.parametrize("kind", [GPT2Tokenizer, Qwen2Tokenizer, LlamaTokenizer])
def test_a_union_is_loaded_with_its_ids_by_every_class(
    kind: type, english: Tokenizer, code: Tokenizer, tmp_path: Path
) -> None:
    vocab, merges = (json.loads(english.to_str())["model"][k] for k in ("vocab", "merges"))
    kind(vocab=vocab, merges=[tuple(m) for m in merges], unk_token="<s>", eos_token="</s>").save_pretrained(tmp_path)
    base = read_vocabulary(tmp_path)
    found = united(base, [(base, base.size), (vocabulary(code), 310)], ["more"])
    (tmp_path / "tokenizer.json").write_text(found.text)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == found.ids
    assert {t: found.ids[t] for t in base.ids} == base.ids


def test_special_tokens_that_only_the_configuration_names(english: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(english.to_str())
    config = {
        "eos_token": {"content": "<eot>", "lstrip": False, "normalized": False, "__type": "AddedToken"},
        "additional_special_tokens": ["<img>"], "tokenizer_class": "PreTrainedTokenizerFast",
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = read_vocabulary(tmp_path)
    assert found.ids == AutoTokenizer.from_pretrained(tmp_path).get_vocab()
    assert {t["content"] for t in found.added if t["special"]} == {"<s>", "</s>", "<eot>", "<img>"}


def test_equal_tokenizers_are_read_once(english: Tokenizer, chat: Tokenizer, tmp_path: Path) -> None:
    for name, tokenizer in (("a", english), ("b", english), ("c", chat)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(tokenizer.to_str())
    read = reader()
    assert read(tmp_path / "a") is read(tmp_path / "b") is not read(tmp_path / "c")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model": {"type": "BPE"}}', ""])
def test_a_damaged_tokenizer_is_one_message(text: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no tokenizer"):
        read_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(SourceError, match="its tokenizer cannot be read"):
        read_vocabulary(tmp_path)
