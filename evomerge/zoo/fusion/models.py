"""The three architectures and tokenizers, and their models on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GenerationConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from evomerge.zoo.model import llama_config

BOS, EOS, PAD, UNKNOWN = "<s>", "</s>", "<pad>", "<unk>"
QUESTION, ANSWER = "[INST]", "[/INST]"
TURN_BEGIN, TURN_END = "<|im_start|>", "<|im_end|>"
MAX_POSITIONS = 1024

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
INSTRUCTION = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST]' + message['content'] + "
    "'[/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def byte_level(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """BPE over bytes, as GPT-NeoX and Llama 3 have it; nothing is put before or after a text."""
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [EOS, PAD, TURN_BEGIN, TURN_END]
    tokens.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=special, show_progress=False),
    )
    return _finished(tokens, CHATML, bos_token=EOS, eos_token=EOS, pad_token=PAD)


def metaspace(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """BPE over characters with bytes for those it does not know, as Llama 2 has it; <s> stands before every text."""
    splitting = pre_tokenizers.Metaspace(prepend_scheme="always")
    learner = Tokenizer(models.BPE(unk_token=UNKNOWN))
    learner.pre_tokenizer = splitting
    learner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size - 256 - 6, show_progress=False))
    learned = learner.model
    # Bytes stand behind the special tokens and before what was learned, in sentencepiece's order.
    special = [UNKNOWN, BOS, EOS, PAD, QUESTION, ANSWER]
    first = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    words = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    vocabulary = {token: i for i, token in enumerate([*first, *(w for w, _ in words)])}
    merges = _merges(learned)
    tokens = Tokenizer(models.BPE(vocabulary, merges, unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    tokens.pre_tokenizer = splitting
    tokens.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    tokens.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, vocabulary[BOS])]
    )
    tokens.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return _finished(tokens, INSTRUCTION, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=UNKNOWN)


def _merges(model: models.BPE) -> list[tuple[str, str]]:
    """A trained model's merges in their order."""
    probe = Tokenizer(model)
    return [
        tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in json.loads(probe.to_str())["model"]["merges"]
    ]


def _finished(tokens: Tokenizer, template: str, **roles: str) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
        **roles,
    )
    made.chat_template = template
    return made


def llama(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> PreTrainedModel:
    """A fresh llama."""
    config = llama_config(
        width, layers, len(tokenizer), MAX_POSITIONS, eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id,
        bos=tokenizer.bos_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def gpt_neox(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> PreTrainedModel:
    """A fresh gpt_neox."""
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=width * 4,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def initialised(model: PreTrainedModel, generator: torch.Generator) -> PreTrainedModel:
    """The same model with weights that are a function of the generator alone."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.02, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
    return model


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a plain checkpoint in bfloat16, with its tokenizer."""
    config = model.config
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        do_sample=False,
    )
    model.bfloat16().save_pretrained(folder)
    for file in folder.iterdir():  # safetensors come readable by their owner alone
        file.chmod(0o644)
    tokenizer.save_pretrained(folder)
