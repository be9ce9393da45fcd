"""Tiny llama checkpoints whose tokenizers really differ: trained on different texts, in the test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

ENGLISH = (
    "the quick brown fox jumps over the lazy dog and the other cat sat on the mat with the cats and dogs of the fox "
)
CODE = (
    "import numpy as np\ndef function(self, value):\n    return np.array(value)\n"
    "class Thing:\n    def yield_value(self): "
)

Save = Callable[..., Path]


def byte_level_bpe(text: str, size: int, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text * 5], trainer)
    return tokenizer


@pytest.fixture(scope="session")
def english() -> Tokenizer:
    return byte_level_bpe(ENGLISH, 300, ["<s>", "</s>"])


@pytest.fixture(scope="session")
def code() -> Tokenizer:
    return byte_level_bpe(CODE, 310, ["<|end|>", "<|pad|>"])


@pytest.fixture(scope="session")
def chat(english: Tokenizer) -> Tokenizer:
    """The commonest case: a fine-tune with a few special tokens more."""
    tokenizer = Tokenizer.from_str(english.to_str())
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>")])
    return tokenizer


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """save(name, tokenizer, rows, seed, tied, bos_token=..., ...): a checkpoint of `rows` embeddings."""
    root = tmp_path_factory.mktemp("tokens")

    def build(name: str, tokenizer: Tokenizer, rows: int, seed: int, tied: bool = False, **special: str) -> Path:
        folder = root / f"{name}{'-tied' if tied else ''}"
        if folder.exists():
            return folder
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
        ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        ids.update({f"{k}_id": fast.convert_tokens_to_ids(v) for k, v in special.items()})
        config = transformers.LlamaConfig(
            vocab_size=rows, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=tied, **ids,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
        model.save_pretrained(folder)
        fast.save_pretrained(folder)
        return folder

    return build


@pytest.fixture(scope="session", params=["untied", "tied"])
def trio(
    request: pytest.FixtureRequest, save: Save, english: Tokenizer, code: Tokenizer, chat: Tokenizer
) -> dict[str, str]:
    """A base, a model of another vocabulary (with rows beyond its tokens) and a fine-tune with two tokens more."""
    tied = request.param == "tied"
    return {
        "<BASE>": str(save("base", english, 300, 0, tied, bos_token="<s>", eos_token="</s>")),
        "<CODE>": str(save("code", code, 320, 1, tied, eos_token="<|end|>", pad_token="<|pad|>")),
        "<CHAT>": str(save("chat", chat, 304, 2, tied, bos_token="<s>", eos_token="<|im_end|>")),
    }
