"""The architecture of the vision zoo, its tokenizer and processor, and its models on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from evomerge.zoo.model import llama_config
from evomerge.zoo.vision.pictures import SIZE
from evomerge.zoo.vision.scenes import EOS, IMAGE, PAD, SIDE, UNKNOWN, vocabulary

MAX_POSITIONS = 96
PATCH = SIZE // SIDE
PATCHES = SIDE**2


def token_ids() -> dict[str, int]:
    return {word: index for index, word in enumerate(vocabulary())}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; a place for a picture's is among them."""
    words = Tokenizer(models.WordLevel(token_ids(), unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens([AddedToken(IMAGE, special=True, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
        extra_special_tokens={"image_token": IMAGE},
    )


def image_processor() -> CLIPImageProcessorPil:
    """CLIP's, for pictures of this size; it needs Pillow alone."""
    size = {"height": SIZE, "width": SIZE}
    return CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def build_processor() -> LlavaProcessor:
    """Pictures and questions to a model's input."""
    return LlavaProcessor(
        image_processor(), build_tokenizer(), patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip


def text_config(width: int, layers: int) -> LlamaConfig:
    ids = token_ids()
    return llama_config(width, layers, len(ids), MAX_POSITIONS, eos=ids[EOS], pad=ids[PAD])


def vision_config(width: int = 64, layers: int = 2) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=4,
        image_size=SIZE, patch_size=PATCH, projection_dim=width,
    )  # fmt: skip


def build_text(width: int, layers: int, seed: int) -> LlamaForCausalLM:
    """A fresh llama."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(text_config(width, layers))


def build_tower(seed: int) -> CLIPVisionModel:
    """A fresh image encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPVisionModel(vision_config())


def build_vlm(text: LlamaForCausalLM, tower: CLIPVisionModel, seed: int) -> LlavaForConditionalGeneration:
    """A LLaVA of a language model and an image encoder, with a fresh projector between them."""
    config = LlavaConfig(
        text_config=text.config, vision_config=tower.config, image_token_index=token_ids()[IMAGE],
        image_seq_length=PATCHES, vision_feature_layer=-1, vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.model.vision_tower.load_state_dict(tower.state_dict())
    return model


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write a plain checkpoint in bfloat16, with its tokenizer, and the processor of one that sees."""
    ids = token_ids()
    model.generation_config = GenerationConfig(eos_token_id=ids[EOS], pad_token_id=ids[PAD], do_sample=False)
    model.bfloat16().save_pretrained(folder)
    if isinstance(model, LlavaForConditionalGeneration):
        build_processor().save_pretrained(folder)
    else:
        build_tokenizer().save_pretrained(folder)
    for file in folder.iterdir():  # safetensors come readable by their owner alone
        file.chmod(0o644)


def load(folder: Path) -> LlamaForCausalLM | LlavaForConditionalGeneration:
    """Read a checkpoint and compute in float32, as training does."""
    kind = LlavaForConditionalGeneration if (folder / "processor_config.json").is_file() else LlamaForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32)
