"""Fusions that were cut off, changed or went wrong: what goes on, what begins anew, what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from evomerge import zoo
from tests.pipeline.fusions import digests, fusion_file, killed, result

pytestmark = [pytest.mark.xdist_group("fusion resume"), pytest.mark.usefixtures("one_thread")]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.slow
def test_patience_is_counted_on_over_a_kill(here, tmp_path):
    """As many measurements after the best one, and so the same checkpoint, as where nothing was cut off."""
    training = {
        "learning_rate": 2e-2, "max_steps": 400, "evaluations": 100, "early_stopping_patience": 6, "clm_weight": 1.0,
    }  # fmt: skip
    file = fusion_file(tmp_path, documents=6, training=training)
    done = here("fuse", file, tmp_path / "whole", "--workers", 0, "--json").result["trainings"]["fused"]
    last = int(done["history"][-1]["step"])
    assert done["stopped"] == "patience" and last > done["step"]
    out = tmp_path / "cut"
    # Killed between the best measurement and the last one.
    between = out / "training" / "fused" / f"checkpoint-{last - 8}" / "trainer_state.json"
    killed(file, out, between.exists)
    again = here("fuse", file, out, "--workers", 0, "--json").result["trainings"]["fused"]
    assert (again["step"], again["history"]) == (done["step"], done["history"])
    assert digests(out / "model") == digests(tmp_path / "whole" / "model")


@pytest.mark.ci
def test_a_loss_that_is_no_number_ends_it_and_leaves_no_model(here, tmp_path):
    file = fusion_file(tmp_path, training={"learning_rate": 1e12, "warmup_steps": 0, "arguments": {"optim": "sgd"}})
    for _ in range(2):
        done = here("fuse", file, tmp_path / "out", "--workers", 0, check=False)
        assert done.returncode == 1 and "try a lower learning_rate" in done.stderr.splitlines()[-1]
        assert not (tmp_path / "out" / "model").exists()


@pytest.mark.slow
def test_no_training_goes_on_from_checkpoints_of_another(here, tmp_path):
    """A checkpoint of a run of other targets, or of another model, is none."""
    file = fusion_file(tmp_path)
    done = here("fuse", file, tmp_path / "out", "--workers", 0, "--json").result
    whole = digests(tmp_path / "out" / "model")
    other = fusion_file(tmp_path / "other", fusion={"include_target": False})
    killed(other, tmp_path / "other" / "out", lambda: any((tmp_path / "other").glob("out/training/fused/checkpoint-8")))
    work = tmp_path / "out" / "training" / "fused"
    shutil.rmtree(work)
    shutil.copytree(tmp_path / "other" / "out" / "training" / "fused", work)
    shutil.rmtree(tmp_path / "out" / "model")
    again = here("fuse", file, tmp_path / "out", "--workers", 0, "--json")
    assert "of them done before" not in next(x for x in again.stderr.splitlines() if x.startswith("training fused"))
    assert digests(tmp_path / "out" / "model") == whole and again.result["models"] == done["models"]


@pytest.mark.slow
def test_a_damaged_model_is_trained_again(here, tmp_path):
    file = fusion_file(tmp_path)
    here("fuse", file, tmp_path / "out", "--workers", 0)
    before = digests(tmp_path / "out" / "model", "*.safetensors")
    weights = tmp_path / "out" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    here("fuse", file, tmp_path / "out", "--workers", 0)
    assert digests(tmp_path / "out" / "model", "*.safetensors") == before


@pytest.mark.ci
def test_a_text_that_changed_is_another_fusion(here, tmp_path):
    file = fusion_file(tmp_path)
    here("fuse", file, tmp_path / "out", "--workers", 0)
    before = digests(tmp_path / "out")
    for name in ("text.jsonl", "held.jsonl"):
        content = (tmp_path / name).read_text()
        (tmp_path / name).write_text(content + json.dumps({"text": "lonnel rimo", "domain": "tides"}) + "\n")
        done = here("fuse", file, tmp_path / "out", "--workers", 0, check=False)
        assert done.returncode == 2 and "holds a fusion of another text" in done.stderr
        (tmp_path / name).write_text(content)
    assert digests(tmp_path / "out") == before


@pytest.mark.ci
def test_scores_are_measured_once(here, tmp_path):
    from evomerge import presets

    evaluator = {
        "include_path": str(presets.folder("evaluators") / "zoo"), "tasks": ["tides_text"],
        "splits": {"search": {"share": 0.4}, "select": {"share": 0.2}, "test": {"share": 0.4, "items": 5}},
    }  # fmt: skip
    (tmp_path / "mine.yaml").write_text(json.dumps(evaluator))
    file = fusion_file(tmp_path, evaluator="mine.yaml")
    done = here("fuse", file, tmp_path / "out", "--workers", 0, "--json")
    assert "scores by mine: 4 models" in done.stderr
    again = here("fuse", file, tmp_path / "out", "--workers", 0, "--json")
    assert "scores by" not in again.stderr and again.result["models"] == done.result["models"]
    # Another evaluator under the same name is another.
    evaluator["splits"]["test"]["items"] = 7
    (tmp_path / "mine.yaml").write_text(json.dumps(evaluator))
    other = here("fuse", file, tmp_path / "out", "--workers", 0, "--json")
    assert other.result["models"]["target"]["score"]["items"] == 7


def characters(texts):
    """A tokenizer of a few tokens that cannot write what it has not seen."""
    tokens = Tokenizer(models.BPE(unk_token="<unk>"))
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<unk>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=special, show_progress=False)
    tokens.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="<unk>", eos_token="</s>")


@pytest.mark.ci
def test_a_source_of_fewer_tokens_than_are_kept_that_cannot_write_all(here, tmp_path):
    """All of its distribution is kept then; what it cannot write is counted, masked, and measured at 8 bits a byte."""
    from evomerge.zoo.fusion.models import initialised, llama, save

    texts = [json.loads(x)["text"] for x in zoo.fusion.corpus("chains").read_text().splitlines()[:20]]
    tokenizer = characters(texts)
    assert len(tokenizer) < 256
    save(initialised(llama(tokenizer, 32, 1), torch.Generator().manual_seed(0)).eval(), tokenizer, tmp_path / "small")
    file = fusion_file(
        tmp_path, sources=[str(tmp_path / "small")], teachers={"top_k": 256}, training={"max_steps": 3},
        fusion={"include_target": False},
    )  # fmt: skip
    for name in ("text.jsonl", "held.jsonl"):
        with (tmp_path / name).open("a") as stream:
            stream.write(json.dumps({"text": "龍" * 40, "domain": "dragons"}, ensure_ascii=False) + "\n")
    done = here("fuse", file, tmp_path / "out", "--workers", 0, "--json")
    found = done.result
    assert found["trainings"]["fused"]["taken"] == {"small": found["trainings"]["fused"]["aligned"]}
    assert "small: its tokenizer cannot write all of 1 documents" in " ".join(done.stderr.split())
    assert "small: its tokenizer cannot write all of 1 held-out documents" in " ".join(done.stderr.split())
    assert found["models"]["small"]["bits_per_byte"]["dragons"] == pytest.approx(8.0)
    assert found["models"]["target"]["bits_per_byte"]["dragons"] != 8.0
    # The cards say so too, but not where it lay on this machine.
    for card in (tmp_path / "out" / "README.md", tmp_path / "out" / "model" / "README.md"):
        text = card.read_text()
        assert "small: its tokenizer cannot write all of 1 documents" in text and str(tmp_path) not in text


@pytest.mark.slow
def test_accumulated_batches_are_one_large_batch(here, tmp_path):
    """The same steps of plain gradient descent, whatever the batch is cut into."""
    plain = {
        "learning_rate": 0.5, "warmup_steps": 0, "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_steps": 4,
        "evaluations": 1, "arguments": {"optim": "sgd"},
    }  # fmt: skip
    found = {}
    for count in (1, 4):
        training = {**plain, "per_device_train_batch_size": 16 // count, "gradient_accumulation_steps": count}
        file = fusion_file(tmp_path / str(count), training=training, out_dtype="float32")
        here("fuse", file, tmp_path / str(count) / "out", "--workers", 0)
        found[count] = load_file(tmp_path / str(count) / "out" / "model" / "model.safetensors")
    base = load_file(zoo.path("pivot") / "model.safetensors")
    moved = max(float((found[1][n] - base[n].float()).abs().max()) for n in base)
    apart = max(float((found[1][n] - found[4][n]).abs().max()) for n in base)
    assert moved > 1e-3 and apart < 1e-4 * moved


@pytest.mark.slow
def test_several_processes_train_one_target(here, tmp_path):
    """Two processes of half a batch each take the same steps of plain gradient descent as one.

    Over all documents at each step: the order in which they come is another with more processes.
    """
    plain = {
        "learning_rate": 0.5, "warmup_steps": 0, "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_steps": 6,
        "evaluations": 2, "arguments": {"optim": "sgd"},
    }  # fmt: skip
    found, bits = {}, {}
    for count in (1, 2):
        training = {**plain, "per_device_train_batch_size": 16 // count, "processes": count}
        file = fusion_file(tmp_path / str(count), documents=16, training=training, out_dtype="float32")
        here("fuse", file, tmp_path / str(count) / "out", "--workers", 0)
        found[count] = load_file(tmp_path / str(count) / "out" / "model" / "model.safetensors")
        bits[count] = result(tmp_path / str(count) / "out")["trainings"]["fused"]["bits_per_byte"]
    base = load_file(zoo.path("pivot") / "model.safetensors")
    moved = max(float((found[1][n] - base[n].float()).abs().max()) for n in base)
    apart = max(float((found[1][n] - found[2][n]).abs().max()) for n in base)
    assert moved > 1e-3 and apart < 1e-4 * moved
    assert bits[1] == pytest.approx(bits[2], abs=1e-5)


@pytest.mark.slow
def test_a_training_of_several_processes_ends_with_its_command_and_goes_on(here, tmp_path):
    import psutil

    training = {"max_steps": 60, "evaluations": 12, "processes": 2, "per_device_train_batch_size": 4}
    file = fusion_file(tmp_path, training=training)
    here("fuse", file, tmp_path / "whole", "--workers", 0)
    out = tmp_path / "out"
    killed(file, out, lambda: any(out.glob("training/fused/checkpoint-10/trainer_state.json")))

    def left() -> list[int]:
        return [p.pid for p in psutil.process_iter(["cmdline"]) if "evomerge.fusion.training.launch" in
                " ".join(p.info["cmdline"] or [])]  # fmt: skip

    assert not left() or not psutil.wait_procs([psutil.Process(p) for p in left()], timeout=10)[1]
    again = here("fuse", file, out, "--workers", 0)
    assert "of them done before" in next(x for x in again.stderr.splitlines() if x.startswith("training fused"))
    assert digests(out / "model") == digests(tmp_path / "whole" / "model")


@pytest.mark.slow
def test_a_process_that_fails_says_why(here, tmp_path):
    training = {"processes": 2, "learning_rate": 1e12, "warmup_steps": 0, "arguments": {"optim": "sgd"}}
    done = here("fuse", fusion_file(tmp_path, training=training), tmp_path / "out", "--workers", 0, check=False)
    assert done.returncode == 1 and "on 2 processes: " in done.stderr
    assert "try a lower learning_rate" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_pairwise_targets_train_side_by_side_and_go_on_after_a_kill(here, tmp_path):
    file = fusion_file(tmp_path, fusion={"mode": "pairwise"}, training={"max_steps": 60, "evaluations": 6})
    here("fuse", file, tmp_path / "alone", "--workers", 0)
    out = tmp_path / "ray"
    killed(file, out, lambda: len([*out.glob("training/*/checkpoint-10")]) == 2, workers=2)
    done = here("fuse", file, out, "--workers", 2)
    assert "of them done before" in next(x for x in done.stderr.splitlines() if x.startswith("training pivot-"))
    card = (out / "README.md").read_text()
    assert "One target from each of `zoo:tides`, `zoo:roads`, below `models/`" in card and "model-index" not in card
    for part in ("teachers", "targets", "models"):
        assert digests(out / part, "*.*") == digests(tmp_path / "alone" / part, "*.*"), part
