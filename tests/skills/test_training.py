"""Training a gate: it alone learns, the same seed gives the same bytes, and what is wrong is told first."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
import yaml
from tokenizers.processors import TemplateProcessing

from evomerge import presets
from evomerge.errors import EvoMergeError, InputError
from evomerge.library import Library
from evomerge.skills import GatedModel, add
from evomerge.skills.examples import Example, prompt_ids, read_examples, tokenized
from evomerge.skills.training import GateTraining, _Arguments, _hidden_size, fit, train_gate
from evomerge.sources import open_source
from evomerge.zoo.languages import vocabulary
from tests.skills.conftest import make_lora
from tests.skills.test_gated import tiny

Here = Callable[..., SimpleNamespace]
SHORT = GateTraining(steps=30, learning_rate=1e-2, batch_size=8, width=8, device="cpu")


@pytest.fixture(scope="module")
def lines(shared: Library) -> list[dict[str, str]]:
    """Prompts with what one skill or another answers, by the prompt's first word: a gate has something to learn."""
    words = [w for w in vocabulary() if w.isalpha()]
    model = train_free(shared)
    rng = random.Random(0)
    prompts = [" ".join([words[i % 2]] * 3 + rng.sample(words[40:], 2)) for i in range(48)]
    ids = model.tokenizer(prompts, return_tensors="pt")["input_ids"]
    weights = torch.tensor([[[1.5, 0.0]], [[0.0, 1.5]]]).repeat(24, 1, 1)
    out = model.generate(ids, weights=weights, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    answers = model.tokenizer.batch_decode(out[:, ids.shape[1] :])
    return [{"prompt": p, "completion": f" {a}"} for p, a in zip(prompts, answers, strict=True)]


@pytest.fixture
def data(lines: list[dict[str, str]], tmp_path: Path) -> Path:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def train_free(library: Library) -> GatedModel:
    from evomerge.skills.folder import GateConfig
    from evomerge.skills.gate import Gate
    from evomerge.skills.opened import open_library

    names = ("two", "eight")
    config = GateConfig(skills=names, groups=1, hidden_size=16, width=8)
    return GatedModel(open_library(library, names), Gate(16, 2, width=8), config)


def test_it_learns_and_nothing_else_does(shared: Library, data: Path, tmp_path: Path) -> None:
    files = {p: p.read_bytes() for p in [*shared.folder.rglob("*"), *Path(shared.base).rglob("*")] if p.is_file()}
    found = train_gate(shared, ("two", "eight"), read_examples(data), tmp_path / "gated", SHORT)
    assert found.examples == 48 and found.left_out == 0
    assert found.losses[-1] < found.losses[0] - 0.1, found.losses
    assert {p: p.read_bytes() for p in files} == files
    plain = transformers.AutoModelForCausalLM.from_pretrained(shared.base, dtype=torch.float32)
    assert all(torch.equal(p, found.model.base.state_dict()[n]) for n, p in plain.state_dict().items())
    assert not any(p.requires_grad for p in found.model.parameters())
    # By the prompt's first word the weights go apart.
    model = GatedModel.from_pretrained(tmp_path / "gated")
    prompts = [str(e.prompt) for e in read_examples(data)]
    alpha = model.weights(**model.tokenizer(prompts, return_tensors="pt"))[:, 0]
    assert (
        float(alpha[::2, 0].mean() - alpha[::2, 1].mean()) > float(alpha[1::2, 0].mean() - alpha[1::2, 1].mean()) + 0.2
    )
    said = json.loads((tmp_path / "gated" / "gate_config.json").read_text())
    assert (
        said["skills"] == ["two", "eight"] and said["trained"]["steps"] == 30 and len(said["trained"]["losses"]) == 10
    )
    index = yaml.safe_load((tmp_path / "gated" / "library" / "skills.yaml").read_text())
    assert index["base"]["sha256"] == shared.index.base.sha256
    assert {n: s["sha256"] for n, s in index["skills"].items()} == {
        n: shared.index.skills[n].sha256 for n in ("two", "eight")
    }


@pytest.mark.ci
def test_the_same_seed_gives_the_same_bytes(shared: Library, data: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        options = GateTraining(**{**SHORT.__dict__, "steps": 5, "seed": seed})
        train_gate(shared, shared.names, read_examples(data), tmp_path / name, options)
    a, b, c = ((tmp_path / n / "gate.safetensors").read_bytes() for n in "abc")
    assert a == b != c


def test_long_examples_are_left_out(shared: Library, data: Path, tmp_path: Path) -> None:
    with data.open("a") as file:
        file.write(json.dumps({"prompt": "aki " * 40, "completion": "aki"}) + "\n")
    said: list[str] = []
    options = GateTraining(**{**SHORT.__dict__, "steps": 2, "max_length": 20})
    found = train_gate(shared, shared.names, read_examples(data), tmp_path / "gated", options, say=said.append)
    assert (found.examples, found.left_out) == (48, 1) and "left out: 1 examples" in said[0]
    options = GateTraining(**{**SHORT.__dict__, "max_length": 3})
    with pytest.raises(InputError, match="every example has more than 3 tokens"):
        train_gate(shared, shared.names, read_examples(data), tmp_path / "none", options)
    assert not (tmp_path / "none").exists()


@pytest.mark.filterwarnings("ignore")
def test_examples_longer_than_the_base_s_positions_are_left_out(data: Path, tmp_path: Path) -> None:
    """GPT-2 has a learned row for each position, and none behind the last."""
    config = transformers.GPT2Config(
        vocab_size=134, n_embd=16, n_layer=1, n_head=2, n_positions=16, eos_token_id=1, pad_token_id=0
    )
    base = tiny(tmp_path / "gpt2", config)
    library = add(tmp_path / "library", "a", make_lora(base, tmp_path / "a", target_modules=["c_attn"]))
    with data.open("a") as file:
        file.write(json.dumps({"prompt": "aki " * 20, "completion": "aki"}) + "\n")
    said: list[str] = []
    options = GateTraining(**{**SHORT.__dict__, "steps": 2})
    found = train_gate(library, ("a",), read_examples(data), tmp_path / "gated", options, say=said.append)
    assert (found.examples, found.left_out) == (48, 1)
    assert said[0] == "left out: 1 examples of more than 16 tokens, the base has no more positions"
    data.write_text(json.dumps({"prompt": "aki " * 20, "completion": "aki"}))
    with pytest.raises(InputError, match="more than 16 tokens, and the base has no more positions"):
        train_gate(library, ("a",), read_examples(data), tmp_path / "none", options)


@pytest.mark.ci
def test_losses_are_of_tenths_of_the_steps(shared: Library, data: Path, tmp_path: Path) -> None:
    for steps, count in ((15, 10), (4, 4)):
        options = GateTraining(**{**SHORT.__dict__, "steps": steps})
        found = train_gate(shared, shared.names, read_examples(data), tmp_path / str(steps), options)
        assert len(found.losses) == count and all(x > 0 for x in found.losses)


def test_a_training_leaves_the_process_as_it_was(shared: Library, data: Path) -> None:
    import numpy as np
    from transformers.utils import logging

    model = train_free(shared)
    learned = [t for t in tokenized(read_examples(data), model.tokenizer, 99) if t is not None]
    logging.enable_progress_bar()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    fit(model, learned, GateTraining(**{**SHORT.__dict__, "steps": 1}))
    assert state == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert logging.is_progress_bar_enabled()


def test_a_loss_that_is_not_finite_is_told(shared: Library, data: Path, tmp_path: Path) -> None:
    options = GateTraining(**{**SHORT.__dict__, "steps": 3, "learning_rate": 1e38})
    with pytest.raises(EvoMergeError, match="the gate's weights are not finite"):
        train_gate(shared, shared.names, read_examples(data), tmp_path / "gated", options)
    assert not (tmp_path / "gated").exists()


def test_one_gpu_of_several(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There are two as far as the Trainer can see: by itself it takes the first, and copies the model to the other."""
    import transformers.training_args as there

    chosen: list[torch.device] = []

    class Two:
        @staticmethod
        def is_available() -> bool:
            return True

        @staticmethod
        def device_count() -> int:
            return 2

        @staticmethod
        def set_device(device: torch.device) -> None:
            chosen.append(device)

    options = {"output_dir": str(tmp_path), "report_to": [], "use_cpu": True}
    plain, ours = transformers.TrainingArguments(**options), _Arguments(**options)
    ours.on = "cuda:1"
    for arguments in (plain, ours):
        arguments.use_cpu = False
        arguments.__dict__.pop("_setup_devices", None)
    with monkeypatch.context() as patch:
        for name in ("is_available", "device_count", "set_device"):
            patch.setattr(torch.cuda, name, getattr(Two, name))
        patch.setattr(there, "PartialState", lambda **_: SimpleNamespace(distributed_type=there.DistributedType.NO,
                                                                        device=torch.device("cuda")))  # fmt: skip
        assert (plain.device, plain.n_gpu) == (torch.device("cuda:0"), 2), "what is to be mended"
        assert (ours.device, ours.n_gpu) == (torch.device("cuda:1"), 1)
    assert chosen[-1] == torch.device("cuda:1")


def test_a_base_that_says_no_hidden_size(shared: Library) -> None:
    source = open_source(shared.base)
    for key, value in (("n_embd", 24), ("d_model", 32)):
        assert _hidden_size(replace(source, config={key: value})) == value
    with pytest.raises(InputError, match="says no hidden_size"):
        _hidden_size(replace(source, config={}))


CONVERSATION = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a"}', r'data.jsonl:1: "completion" is no text; expected an object .*; its keys: "prompt"'),
        ('{"prompt": 3, "completion": "b"}', '"prompt" is no text'),
        ('["a", "b"]', "data.jsonl:1: expected an object with texts"),
        ("{", "data.jsonl:1: is not JSON"),
        ('{"messages": []}', "expected a list of a question and the right answer"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
            "no answer of the assistant",
        ),
        (
            '{"messages": [{"role": "usr", "content": "a"}, {"role": "assistant", "content": "b"}]}',
            r"messages\[0\]: expected",
        ),
        ("", "holds no example"),
    ],
)
def test_data_that_is_wrong(tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(line)
    with pytest.raises(InputError, match=words):
        read_examples(file)


def test_data_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r'no such file; did you mean ".*data.jsonl"'):
        read_examples(tmp_path / "dat.jsonl")
    with pytest.raises(InputError, match=r"is a folder, expected a \.jsonl file"):
        read_examples(tmp_path)
    (tmp_path / "data.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_examples(tmp_path / "data.jsonl")
    (tmp_path / "data.jsonl").write_text("1\n" * 9)
    with pytest.raises(InputError, match="expected an object with texts") as found:
        read_examples(tmp_path / "data.jsonl")
    assert str(found.value).endswith("read no further") and len(str(found.value).splitlines()) == 6


def test_formats(shared: Library, tmp_path: Path) -> None:
    """Every format is the same tokens where it says the same; the answer ends."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared.base)
    a, b, c = [w for w in vocabulary() if w.isalpha()][:3]
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(json.dumps(x) for x in (
        {"prompt": f"{a} {b}", "completion": f" {c}"}, {"prompt": f"{a} {b}", "answer": c},
        {"messages": [{"role": "user", "content": f"{a} {b}"}, {"role": "assistant", "content": c}]},
    )))  # fmt: skip
    examples = read_examples(file)
    with pytest.raises(InputError, match="the base has no chat template"):
        list(tokenized(examples, tokenizer, 99))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] + (' ' + eos_token if m['role'] == 'assistant' else ' ') }}{% endfor %}"
    )
    found = list(tokenized(examples, tokenizer, 99))
    ids = tokenizer.convert_tokens_to_ids
    assert all(t is not None and t.prompt == ids([a, b]) for t in found)
    assert all(t is not None and t.answer == [*ids([c]), tokenizer.eos_token_id] for t in found)
    tokenizer.chat_template = "{{ messages | length }}"
    with pytest.raises(InputError, match="does not begin a whole conversation as it begins the prompt"):
        list(tokenized(examples, tokenizer, 99))


def test_a_byte_order_mark_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}\n')
    assert [e.prompt for e in read_examples(tmp_path / "data.jsonl")] == ["a"]


def test_an_end_that_the_tokenizer_adds_is_no_part_of_a_prompt(shared: Library) -> None:
    """Neither where a gate learns nor where it answers: generation would begin behind the end of the text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared.base)
    end, number = tokenizer.eos_token, tokenizer.eos_token_id
    example = Example("aki", " aki", "here")
    plain, plain_ids = next(tokenized([example], tokenizer, 99)), prompt_ids("aki", tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, number)])
    assert tokenizer("aki")["input_ids"][-1] == number
    assert next(tokenized([example], tokenizer, 99)) == plain
    assert prompt_ids("aki", tokenizer) == plain_ids and number not in plain_ids
    assert prompt_ids(f"aki {end}", tokenizer)[-1] == number, "one that is in the text"


EXACT = """
import torch


@torch.no_grad()
def score(model, tokenizer, items):
    inputs = tokenizer([i["prompt"] for i in items], return_tensors="pt", padding=True)
    ids = inputs["input_ids"]
    out = model.generate(input_ids=ids, attention_mask=inputs["attention_mask"], max_new_tokens=2, do_sample=False)
    texts = tokenizer.batch_decode(out[:, ids.shape[1] :])
    return [float(a.strip() == i["completion"].strip()) for a, i in zip(texts, items)]
"""


@pytest.mark.ci
def test_from_the_command_to_a_score(here: Here, shared: Library, data: Path, tmp_path: Path) -> None:
    """The gate is trained, loaded, and scored by what it generates; in each of evaluate's ways that can."""
    out = tmp_path / "gated"
    made = here(
        "skills", "gate", shared.folder, data, out, "--skills", "two", "eight", "--steps", 40, "--lr", "0.01",
        "--width", 8, "--per-layer", "--device", "cpu", "--json",
    ).result  # fmt: skip
    assert made["skills"] == ["two", "eight"] and made["examples"] == 48
    assert made["loss"]["last"] < made["loss"]["first"]
    assert GatedModel.from_pretrained(out).gate.groups == 3
    (tmp_path / "exact.py").write_text(EXACT)
    evaluator = tmp_path / "evaluator.yaml"
    keys = {"kind": "python", "function": "exact.py:score", "items": "data.jsonl", "tasks": ["words"]}
    evaluator.write_text(yaml.safe_dump(keys))
    done = here("evaluate", out, "--evaluator", evaluator, "--split", "test", "--device", "cpu", "--json").result
    model = GatedModel.from_pretrained(out)
    items = [json.loads(line) for line in data.read_text().splitlines()]
    answers = model.answers([i["prompt"] for i in items], max_new_tokens=2, do_sample=False)
    right = sum(a.strip() == i["completion"].strip() for a, i in zip(answers, items, strict=True)) / len(items)
    assert done["score"] > 0.5 and abs(done["score"] - right) < 0.35

    # lm-eval's tasks generate too; what reads off likelihoods cannot tell the prompt from the answer.
    keys = {"include_path": str(presets.folder("evaluators") / "zoo"), "tasks": ["kovesh_problems"]}
    keys["splits"] = {n: {"share": 0.3, "items": 10} for n in ("search", "select", "test")}
    evaluator.write_text(yaml.safe_dump(keys))
    assert here("evaluate", out, "--evaluator", evaluator, "--json").result["tasks"]["kovesh_problems"]["items"] == 10
    likely = tmp_path / "likely.yaml"
    likely.write_text(yaml.safe_dump(keys | {"tasks": ["kovesh_direction"]}))
    for words in (("--evaluator", likely), ("--evaluator", "quickstart_likelihood", "--split", "search")):
        refused = here("evaluate", out, *words, check=False)
        assert refused.returncode == 2 and "does not say which tokens that is" in refused.stderr
    command = tmp_path / "command.yaml"
    command.write_text(yaml.safe_dump({"kind": "command", "command": ["true", "{model}"], "tasks": ["x"]}))
    refused = here("evaluate", out, "--evaluator", command, check=False)
    assert refused.returncode == 2 and "expected another kind" in refused.stderr


def test_bad_input(here: Here, shared: Library, data: Path, tmp_path: Path) -> None:
    def refused(*words: object) -> str:
        done = here("skills", "gate", *words, "--json", check=False)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        return str(done.result["error"])

    out = tmp_path / "out"
    assert 'has no skill "egiht"; did you mean "eight"' in refused(shared.folder, data, out, "--skills", "egiht")
    assert "is named twice" in refused(shared.folder, data, out, "--skills", "two", "two")
    assert "no such skill library" in refused(tmp_path / "nowhere", data, out)
    assert "no such file" in refused(shared.folder, tmp_path / "nowhere.jsonl", out)
    assert "expected a learning rate above 0" in refused(shared.folder, data, out, "--lr", "0")
    assert "expected a whole number from 1" in refused(shared.folder, data, out, "--steps", "0")
    assert "nowhere" in refused(shared.folder, data, out, "--device", "nowhere")
    assert not out.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for more in ((), ("--overwrite",)):
        assert "is not empty" in refused(shared.folder, data, tmp_path / "mine", *more)
    assert "lies in the skill library" in refused(shared.folder, data, shared.folder / "gated")
    assert "is not the model that the library was made on" in refused(shared.folder, data, out, "--base", "zoo:base")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]
