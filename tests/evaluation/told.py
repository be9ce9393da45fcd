"""Models that answer a prompt's last word by what they were told: every word of their vocabulary is a token."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from evomerge import presets

RIGHT = "りんごを合わせると、答えは1,200個です。"
ENGLISH = "Altogether she has 1,200 of them, which is the answer to the question."  # right
WRONG = "りんごを合わせると、答えは200個です。"
NUMBER = "1,200"  # right, in no language
# Asked one of these words it gives one of those answers.
ANSWERS = {"one": RIGHT, "two": ENGLISH, "three": WRONG, "four": NUMBER}
WORDS = ["<eos>", "<unk>", *ANSWERS, *ANSWERS.values()]


def tokenizer() -> Any:
    """One token for each word and each answer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    base = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.Split("|", "removed")
    return PreTrainedTokenizerFast(tokenizer_object=base, eos_token="<eos>", unk_token="<unk>", pad_token="<eos>")


def model(answers: Mapping[str, str] = ANSWERS) -> Any:
    """A llama that answers so."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=1024, tie_word_embeddings=False, eos_token_id=0, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    live = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if "layers" in name and parameter.ndim == 2:
                parameter.zero_()  # what is left of the layer is the residual stream: a token's own embedding
        live.model.embed_tokens.weight.copy_(torch.eye(len(WORDS), 16))
        head = torch.zeros(len(WORDS), 16)
        for question, answer in answers.items():
            head[WORDS.index(answer), WORDS.index(question)] = 1.0
        for answer in ANSWERS.values():
            head[0, WORDS.index(answer)] = 1.0  # an answer is followed by the end
        live.lm_head.weight.copy_(head)
    return live


def evaluator(folder: Path, items: int = 40, keys: Mapping[str, Any] | None = None, **task: Any) -> Path:
    """The file of an evaluator of the preset's task on items of our own, of which 1,200 is the right answer.

    Args:
        keys: More keys of the file.
        task: More keys of its task.
    """
    shutil.copytree(presets.folder("evaluators") / "mgsm_ja", folder / "tasks", dirs_exist_ok=True)
    questions = list(ANSWERS)
    rows = [{"question": f"{n}|{questions[n % 4]}", "answer_number": 1200, "kind": n % 4} for n in range(items)]
    (folder / "items.jsonl").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows))
    file = folder / "tasks" / "mgsm_ja_steps.yaml"
    local = f"json\ndataset_kwargs: {{data_files: {{test: {folder}/items.jsonl}}}}"
    file.write_text(
        file.read_text()
        .replace("juletxara/mgsm\ndataset_name: ja", local)
        .replace("{{question | replace('問題：', '')}}\\n\\n解答：", "|{{question}}")
    )
    entry = {"name": "mgsm_ja_steps", "metric": "exact_match,last-number"} | task
    data = {"include_path": "tasks", "tasks": [entry], "batch_size": 8} | dict(keys or {})
    (folder / "e.yaml").write_text(yaml.safe_dump(data))
    return folder / "e.yaml"
