"""Tokenizers of four kinds, trained here on text of many scripts, and models of the zoo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from evomerge.fusion.tokenized import Reader
from evomerge.fusion.vocabulary import Vocabulary
from evomerge.zoo import path
from evomerge.zoo.fusion.models import byte_level, metaspace

TEXT = (
    r"""
The harbour was quiet, and nobody knew where the boats had gone. Getting there took utter nonsense of hours.
Der Straßenbahnfahrer grüßte höflich; l'été dernier, à Besançon, il neigeait déjà. ¿Dónde está la niña? Mañana será
Привет, как дела? Сегодня хорошая погода. Γειά σου Κόσμε. 日本語の文章も少しあります。東京は大きい都市です。
naïve café coöperate — “quoted” … 3.14159 × 10⁻⁵ ≈ ﬁne ﬂow 🎉🙂 2024 한국어 문장도 있습니다.
def f(x):\n    return x ** 2\n\n\tif x: pass  # two  spaces
""".strip()
    .replace("\\n", "\n")
    .replace("\\t", "\t")
    .split("\n")
)
KINDS = ("byte-level", "metaspace", "unigram", "wordpiece")


def unigram() -> PreTrainedTokenizerFast:
    """SentencePiece's other algorithm, with its usual normalisation; what it cannot write is <unk>."""
    tokens = Tokenizer(models.Unigram())
    tokens.normalizer = normalizers.NFKC()
    tokens.pre_tokenizer = pre_tokenizers.Metaspace()
    tokens.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    tokens.train_from_iterator(
        TEXT * 3,
        trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>", special_tokens=special, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="<unk>", eos_token="</s>")


def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's, which lowers case, drops accents and white space and knows no end of a text but [SEP]."""
    tokens = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokens.normalizer = normalizers.BertNormalizer()
    tokens.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokens.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    tokens.train_from_iterator(
        TEXT * 3, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    tokens.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[SEP]"
    )


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """One of each kind."""
    return {
        "byte-level": byte_level(TEXT * 3, 600),
        "metaspace": metaspace(TEXT * 3, 700),
        "unigram": unigram(),
        "wordpiece": wordpiece(),
    }


@pytest.fixture(scope="session")
def vocabularies(tokenizers) -> dict[str, Vocabulary]:
    return {kind: Vocabulary(tokenizer, kind) for kind, tokenizer in tokenizers.items()}


@pytest.fixture(scope="session")
def readers(vocabularies) -> dict[str, Reader]:
    return {kind: Reader(vocabulary, kind) for kind, vocabulary in vocabularies.items()}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def zoo_readers() -> dict[str, Reader]:
    """Of the fusion zoo."""
    from evomerge.merging.live import load_tokenizer

    return {name: Reader(Vocabulary(load_tokenizer(path(name)), name), name) for name in ("pivot", "tides", "roads")}


def lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()
