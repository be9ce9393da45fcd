"""The fusion zoo: its domains, its texts, and its three models."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge import zoo
from evomerge.zoo.fusion import domains, texts
from evomerge.zoo.fusion.train import COURSES, train_one


def test_domains_share_no_word_and_each_word_has_followers():
    own = [domains.domain(name, 0) for name in domains.NAMES]
    assert not set(own[0].words) & set(own[1].words)
    for d in own:
        assert len(set(d.words)) == domains.WORDS
        assert d.followers.shape == (domains.WORDS, domains.FOLLOWERS)
        np.testing.assert_allclose(d.shares.sum(1), 1)
    assert not np.array_equal(own[0].followers, domains.domain("tides", 1).followers)
    assert own[0].words == domains.domain("tides", 1).words


def test_texts_are_walks():
    for name in domains.NAMES:
        d = domains.domain(name, 0)
        for sentence in d.document(np.random.default_rng(0)).split(". "):
            words = sentence.rstrip(".").split()
            assert all(d.follows(a, b) for a, b in pairwise(words))
        question, answer = d.exchange(np.random.default_rng(0))
        words = [*question.split(), *answer.split()]
        assert len(words) == domains.OPENING + domains.ANSWER
        assert all(d.follows(a, b) for a, b in pairwise(words))
        assert not d.follows("no", "such")


@pytest.mark.parametrize("name", zoo.fusion.CORPORA)
def test_shipped_texts_are_what_the_code_writes(name, tmp_path):
    texts.write(0, tmp_path)
    assert (tmp_path / f"{name}.jsonl").read_bytes() == zoo.fusion.corpus(name).read_bytes()


def test_nothing_is_measured_on_that_is_learned_from():
    learned = {json.loads(line)["text"] for line in zoo.fusion.corpus("chains").open()}
    held = {json.loads(line)["text"] for line in zoo.fusion.corpus("chains-held-out").open()}
    items = {str(row["text"]) for name in domains.NAMES for row in texts.items(name, 0)}
    assert not learned & held and not learned & items and not held & items


@pytest.mark.parametrize(("name", "kind"), [("pivot", "Llama"), ("tides", "Llama"), ("roads", "GPTNeoX")])
def test_checkpoints_are_small_and_plain(name, kind):
    folder = zoo.path(name)
    assert sum(f.stat().st_size for f in folder.iterdir()) < 1_000_000
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == f"{kind}ForCausalLM" and model.dtype == torch.bfloat16
    assert all(p.isfinite().all() for p in model.parameters())


def test_three_tokenizers():
    sizes = {name: len(AutoTokenizer.from_pretrained(zoo.path(name))) for name in zoo.fusion.ABOUT}
    assert sizes == {name: COURSES[name].vocabulary for name in sizes}
    text = "lonnel rimo ranno wesen. Café!"
    assert len({tuple(AutoTokenizer.from_pretrained(zoo.path(n))(text)["input_ids"]) for n in sizes}) == 3
    for name in sizes:
        tokenizer = AutoTokenizer.from_pretrained(zoo.path(name))
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == text
        messages = texts.conversation("lonnel rimo", "wesen")
        shown = tokenizer.apply_chat_template(messages, tokenize=False)
        asked = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        assert shown.startswith(asked)


def test_unknown_texts():
    with pytest.raises(KeyError, match="chains"):
        zoo.fusion.corpus("chain")


def test_training_is_a_function_of_the_seed(tmp_path, monkeypatch):
    from dataclasses import replace

    monkeypatch.setitem(COURSES, "tides", replace(COURSES["tides"], steps=3))
    for folder, seed in (("a", 5), ("b", 5), ("c", 6)):
        train_one("tides", seed, tmp_path / folder)
    files = [(tmp_path / f / "tides" / "model.safetensors").read_bytes() for f in "abc"]
    assert files[0] == files[1] != files[2]
