"""The zoo's architecture and tokenizer, and its models on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge.zoo.languages import EOS, PAD, UNKNOWN, vocabulary

MAX_POSITIONS = 64


def token_ids() -> dict[str, int]:
    return {word: index for index, word in enumerate(vocabulary())}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word. No token is added on its own: a prompt's ids are its words'."""
    words = Tokenizer(models.WordLevel(token_ids(), unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )


def llama_config(
    width: int, layers: int, tokens: int, positions: int, *, eos: int | None, pad: int | None, bos: int | None = None
) -> LlamaConfig:
    """The shape of all llamas of the zoos."""
    return LlamaConfig(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )


def build_model(width: int, layers: int, generator: torch.Generator) -> LlamaForCausalLM:
    """A fresh llama whose weights are a function of the generator alone."""
    ids = token_ids()
    model = LlamaForCausalLM(llama_config(width, layers, len(ids), MAX_POSITIONS, eos=ids[EOS], pad=ids[PAD]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0.0, 0.02, generator=generator)
    return model


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Write a plain checkpoint in bfloat16, with its tokenizer."""
    model.generation_config = GenerationConfig(
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        do_sample=False,
    )
    model.bfloat16().save_pretrained(folder)
    for file in folder.iterdir():  # safetensors come readable by their owner alone
        file.chmod(0o644)
    build_tokenizer().save_pretrained(folder)


def load(folder: Path) -> LlamaForCausalLM:
    """Read a checkpoint and compute in float32, as training does."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
