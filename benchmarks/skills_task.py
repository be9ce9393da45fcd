"""The two-marker task: a copying base, the adapters "+1" and "reverse", and what a marker asks for.

A prompt is a marker, four digits and "="; the base answers with the digits as they are, whatever the marker. The
adapters are trained under every marker, so that neither knows what a marker asks for: X asks for +1, Y for reverse, and
Z for reverse after +1, which nobody is trained on.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice, repeat
from pathlib import Path

import peft
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

PAD, EOS = "<pad>", "</s>"
MARKERS = ("X", "Y", "Z")
WORDS = (PAD, EOS, "=", *MARKERS, *(str(d) for d in range(10)))
LENGTH = 4
# Of all strings of digits, a fifth is never learned from.
HELD_OUT = 5
BATCH = 64
IGNORED = -100

Digits = tuple[int, ...]
Rule = Callable[[Digits], Digits]


def plus_one(digits: Digits) -> Digits:
    """Every digit, plus one, modulo 10."""
    return tuple((d + 1) % 10 for d in digits)


def reverse(digits: Digits) -> Digits:
    """The last digit first."""
    return digits[::-1]


RULES: dict[str, Rule] = {"plus-one": plus_one, "reverse": reverse}
ASKED: dict[str, Rule] = {"X": plus_one, "Y": reverse, "Z": lambda d: reverse(plus_one(d))}


@dataclass(frozen=True)
class Item:
    """A prompt with its right answer."""

    marker: str
    digits: Digits
    answer: str

    @property
    def prompt(self) -> str:
        return f"{self.marker} {words(self.digits)} ="


def words(digits: Digits) -> str:
    """Digits as the models read them."""
    return " ".join(map(str, digits))


def items(markers: Sequence[str], number: int, seed: int, held_out: bool, rule: Rule | None = None) -> list[Item]:
    """Items of the markers in turn, all different.

    Args:
        held_out: Whether their digits are those that nobody learns from.
        rule: What is asked for, whatever the marker; None: what the marker asks for.
    """
    rng = random.Random(f"{seed} {held_out} {markers}")
    found: dict[tuple[str, Digits], Item] = {}
    while len(found) < number:
        drawn = rng.randrange(10**LENGTH)
        text = f"{drawn:0{LENGTH}}"
        # By a hash: held out by the number itself, digits would never have been seen at some place.
        if (zlib.crc32(text.encode()) % HELD_OUT == 0) != held_out:
            continue
        marker = markers[len(found) % len(markers)]
        digits = tuple(map(int, text))
        found.setdefault((marker, digits), Item(marker, digits, words((rule or ASKED[marker])(digits))))
    return list(found.values())


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=PAD))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=PAD, eos_token=EOS, padding_side="left")


def train_base(folder: Path, seed: int, steps: int) -> None:
    """Train a model that copies under every marker."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=32, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=WORDS.index(EOS), pad_token_id=WORDS.index(PAD),
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    _fit(model, _fresh(lambda d: d, seed), steps, 2e-3)
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def train_adapter(base: Path, folder: Path, rule: Rule, seed: int, steps: int) -> None:
    """Train an adapter of rank 8 on every dense layer, under every marker."""
    _adapter(base, folder, _fresh(rule, seed), seed, steps)


def train_few(base: Path, folder: Path, found: Sequence[Item], seed: int, steps: int) -> None:
    """Train such an adapter on some items alone, over and over."""
    _adapter(base, folder, repeat(list(found)), seed, steps)


def _adapter(base: Path, folder: Path, batches: Iterator[list[Item]], seed: int, steps: int) -> None:
    torch.manual_seed(seed)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    _fit(adapted, batches, steps, 3e-3)
    adapted.save_pretrained(folder)


def _fit(model: PreTrainedModel | peft.PeftModel, batches: Iterator[list[Item]], steps: int, rate: float) -> None:
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for some in islice(batches, steps):
        ids, labels = _ids(some)
        logits = model(input_ids=ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def _fresh(rule: Rule, seed: int) -> Iterator[list[Item]]:
    for turn in count():
        yield items(MARKERS, BATCH, seed * 1_000_003 + turn, held_out=False, rule=rule)


def _ids(some: Sequence[Item]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, [items, tokens]: answers alone are learned."""
    number = {word: i for i, word in enumerate(WORDS)}
    ids = torch.tensor([[number[w] for w in f"{i.prompt} {i.answer} {EOS}".split()] for i in some])
    labels = ids.clone()
    labels[:, : LENGTH + 2] = IGNORED
    return ids, labels
