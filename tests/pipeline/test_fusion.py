"""Whole fusions on the zoo's models, in this process and on workers: outputs, resuming, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import time

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge import zoo
from evomerge.fusion.files import MANIFEST
from tests.pipeline.fusions import digests, fusion_file, killed, result, started

pytestmark = [pytest.mark.xdist_group("fusion"), pytest.mark.usefixtures("one_thread")]


# Enough to learn something that shows on held-out text.
LEARNING = {"learning_rate": 1e-3, "max_steps": 48, "warmup_steps": 4}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def joint(tmp_path_factory, here):
    """A finished fusion of both sources: (its folder, what the command printed)."""
    folder = tmp_path_factory.mktemp("joint")
    file = fusion_file(folder, documents=120, teachers={"shard_tokens": 4000}, training=LEARNING)
    done = here("fuse", file, folder / "out", "--workers", 0, "--json")
    return folder, done


def test_the_checkpoint_is_plain_and_its_card_says_where_it_is_from(joint):
    folder, done = joint
    out = folder / "out"
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    assert type(model).__name__ == "LlamaForCausalLM" and model.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    assert (
        tokenizer("lonnel rimo")["input_ids"]
        == AutoTokenizer.from_pretrained(zoo.path("pivot"))("lonnel rimo")["input_ids"]
    )
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (out / "model" / name).read_bytes() == (zoo.path("pivot") / name).read_bytes()
    card = (out / "model" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert "base_model" not in front  # the zoo's are no models of the Hub; the text names them
    assert "- `zoo:pivot` (the model that learned; LlamaForCausalLM): apache-2.0" in card
    assert front["base_model_relation"] == "finetune"
    assert "knowledge-fusion" in front["tags"] and front["license"] == "apache-2.0"
    values = {r["dataset"]["type"]: r["metrics"][0]["value"] for r in front["model-index"][0]["results"]}
    assert values == pytest.approx(
        {k: v for k, v in done.result["models"]["fused"]["bits_per_byte"].items() if k != "mean"}, abs=1e-5
    )
    for words in ("zoo:tides", "GPTNeoXForCausalLM", "tides", "kind: fuse", "clm_weight: 0.3"):
        assert words in card
    assert str(folder) not in card  # where it lay on this machine is nobody's business


def test_it_learned_and_the_figures_are_the_models(joint):
    folder, done = joint
    models = done.result["models"]
    assert result(folder / "out")["models"] == json.loads(json.dumps(models))
    assert [m["role"] for m in models.values()] == ["target", "source", "source", "fused"]
    assert models["fused"]["bits_per_byte"]["mean"] < models["target"]["bits_per_byte"]["mean"] - 0.002
    assert models["tides"]["bits_per_byte"]["tides"] < models["target"]["bits_per_byte"]["tides"]
    assert models["roads"]["bits_per_byte"]["roads"] < models["target"]["bits_per_byte"]["roads"]
    training = done.result["trainings"]["fused"]
    assert training["step"] == 48 and training["steps"] == 48 and training["stopped"] == "budget"
    # What the Trainer measured is what is measured of the checkpoint, up to its type.
    best = min(line["bits_per_byte"] for line in training["history"])
    losses = [line["loss"] for line in training["history"]]
    assert losses == sorted(losses, reverse=True)
    assert best == pytest.approx(models["fused"]["bits_per_byte"]["mean"], abs=2e-3)
    assert 0.3 < training["aligned"] / training["learned"] < 0.7
    assert sum(training["taken"].values()) == training["aligned"]
    assert done.result["bytes_per_position"] <= 64


def test_bits_per_byte_are_the_models_own(joint):
    """Against a plain loop over the held-out documents."""
    folder, done = joint
    model = AutoModelForCausalLM.from_pretrained(zoo.path("pivot"), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(zoo.path("pivot"))
    nats, size = {}, {}
    for line in (folder / "held.jsonl").read_text().splitlines():
        row = json.loads(line)
        ids = torch.tensor([tokenizer(row["text"])["input_ids"]])
        with torch.inference_mode():
            loss = model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        nats[row["domain"]] = nats.get(row["domain"], 0) + loss
        size[row["domain"]] = size.get(row["domain"], 0) + len(row["text"].encode())
    for domain, total in nats.items():
        expected = total / size[domain] / np.log(2)
        assert done.result["models"]["target"]["bits_per_byte"][domain] == pytest.approx(expected, abs=1e-4)


def test_the_same_command_again_does_nothing_anew(joint, here):
    folder, done = joint
    before = digests(folder / "out")
    again = here("fuse", folder / "fusion.yaml", folder / "out", "--workers", 0, "--json")
    assert {k: v for k, v in digests(folder / "out").items() if k != "result.json"} == {
        k: v for k, v in before.items() if k != "result.json"
    }
    assert again.result["models"] == done.result["models"]
    assert "training" not in again.stderr.split("tokens learn from what models say")[-1]


@pytest.mark.slow
def test_workers_give_the_same_bytes(joint, here, tmp_path):
    """Passes, alignment and training on two Ray workers: every file of them as in one process."""
    folder, _ = joint
    done = here("fuse", folder / "fusion.yaml", tmp_path / "out", "--workers", 2, "--json")
    for part in ("corpus", "teachers", "maps", "targets", "model"):
        assert digests(tmp_path / "out" / part) == digests(folder / "out" / part), part
    assert done.result["bytes_per_position"] <= 64


def test_a_damaged_shard_is_found_and_it_alone_is_made_again(joint, here, tmp_path):
    folder, _ = joint
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    (cache,) = (out / "teachers").glob("roads-*")
    before = digests(out)
    damaged = cache / "shard-00001.parquet"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    others = {f: f.stat().st_mtime_ns for f in (out / "teachers").rglob("*.parquet") if f != damaged}
    said = here("fuse", folder / "fusion.yaml", out, "--workers", 0).stderr
    assert f"{damaged}: is not what was written there; made again" in " ".join(said.split("\n"))
    assert {f: f.stat().st_mtime_ns for f in others} == others
    after = digests(out)
    assert {k: v for k, v in after.items() if not k.endswith(("result.json",))} == {
        k: v for k, v in before.items() if not k.endswith(("result.json",))
    }


@pytest.mark.parametrize("damage", ["shifted", "cut"])
def test_a_damaged_vocabulary_map_is_found_and_made_again(joint, here, tmp_path, damage):
    """Nothing is learned from it, and nothing else is done again."""
    folder, done = joint
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    before = digests(out)
    files = sorted((out / "maps").glob("*.npy"))
    assert len(files) == 2
    for file in files:
        if damage == "cut":
            file.write_bytes(file.read_bytes()[:-40])
        else:
            np.save(file, np.roll(np.load(file, allow_pickle=False), 1), allow_pickle=False)
    again = here("fuse", folder / "fusion.yaml", out, "--workers", 0, "--json")
    words = " ".join(again.stderr.split("\n"))
    for file in files:
        assert f"{file}: is not what was written there; made again" in words
    assert again.result["models"] == done.result["models"]
    assert {k: v for k, v in digests(out).items() if k != "result.json"} == {
        k: v for k, v in before.items() if k != "result.json"
    }
    assert "alignment and fusion" not in words and "training fused" not in words


@pytest.mark.slow
def test_killed_in_the_passes_it_goes_on_to_the_same_cache(joint, here, tmp_path):
    folder, done = joint
    out = tmp_path / "out"
    killed(folder / "fusion.yaml", out, lambda: len([*out.glob("teachers/*/shard-*.parquet")]) >= 4)
    assert not (out / "model").exists()
    there = len([*out.glob("teachers/*/shard-*.parquet")])
    again = here("fuse", folder / "fusion.yaml", out, "--workers", 0, "--json")
    assert digests(out / "teachers") == digests(folder / "out" / "teachers")
    assert digests(out / "model") == digests(folder / "out" / "model")
    assert again.result["models"] == done.result["models"]
    # What was there was taken: at most the shards in flight were lost.
    words = next(line for line in again.stderr.splitlines() if line.startswith("passes of the sources"))
    assert "of them done before" in words and there >= 4
    assert not [*out.rglob(".*.part")]


@pytest.mark.ci
def test_killed_in_training_it_goes_on_from_the_last_checkpoint(joint, here, tmp_path):
    """To the same weights, bit for bit: batches, dropout and moments are those of a run that was not cut off."""
    folder, done = joint
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    shutil.rmtree(out / "model")
    shutil.rmtree(out / "training")
    killed(folder / "fusion.yaml", out, lambda: any(out.glob("training/fused/checkpoint-16/trainer_state.json")))
    assert not (out / "model").exists()
    # A checkpoint that was being written is none.
    half = out / "training" / "fused" / "checkpoint-33"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    again = here("fuse", folder / "fusion.yaml", out, "--workers", 0, "--json")
    assert digests(out / "model") == digests(folder / "out" / "model")
    training = again.result["trainings"]["fused"]
    assert training["bits_per_byte"] == done.result["trainings"]["fused"]["bits_per_byte"]
    words = next(line for line in again.stderr.splitlines() if line.startswith("training fused"))
    assert "16 of them done before" in words or "32 of them done before" in words
    assert not [*(out / "training" / "fused").glob("checkpoint-*")]


def test_another_fusion_is_refused_where_one_lies(joint, here, tmp_path):
    folder, _ = joint
    before = digests(folder / "out")
    for change, words in (
        ({"training": {**LEARNING, "learning_rate": 0.002}}, "training.learning_rate: 0.001 there, 0.002 now"),
        ({"teachers": {"top_k": 5, "shard_tokens": 4000}}, "teachers.top_k: 10 there, 5 now"),
        ({"sources": ["zoo:tides"]}, "models.roads:"),
    ):
        file = fusion_file(
            tmp_path, documents=120, **{"teachers": {"shard_tokens": 4000}, "training": LEARNING, **change}
        )
        done = here("fuse", file, folder / "out", "--workers", 0, check=False)
        assert done.returncode == 2
        assert "holds another fusion" in done.stderr and words in done.stderr
    assert digests(folder / "out") == before


@pytest.mark.slow
def test_pairwise_makes_one_target_from_each_and_search_merges_them(here, tmp_path, small_texts):
    file = fusion_file(
        tmp_path, documents=120, fusion={"mode": "pairwise"}, evaluator=str(small_texts), training=LEARNING,
        then={"search": {"budget": 6, "space": "fused"}},
    )  # fmt: skip
    done = here("fuse", file, tmp_path / "out", "--workers", 0, "--json")
    out = tmp_path / "out"
    assert sorted(p.name for p in (out / "models").iterdir()) == ["pivot-roads", "pivot-tides"]
    models = done.result["models"]
    assert [m["role"] for m in models.values()] == ["target", "source", "source", "fused", "fused", "merged"]
    assert set(done.result["trainings"]["pivot-tides"]["taken"]) == {"target", "tides"}
    assert done.result["search"]["candidates"]["complete"] == 6
    # FuseChat's merges, and weights by how far each target moved, were tried first.
    assert sorted(p.name for p in (out / "search" / "starts").iterdir()) == ["layerwise.yaml", "sce.yaml", "varm.yaml"]
    import pandas as pd

    trials = pd.read_parquet(out / "search" / "trials.parquet").sort_values("number")
    weights = trials[[c for c in trials.columns if "weight" in c]].to_numpy()[:3]
    # SCE keeps a tenth of the entries, VaRM's weights sum to one at each place.
    half = weights.shape[1] // 2
    assert (weights[0].mean() < weights[1:].mean()) and abs(weights[2][:half] + weights[2][half:] - 1).max() < 1e-6
    assert abs(weights[1] - weights[2]).max() < 0.15 and abs(weights[1] - weights[2]).max() > 0
    AutoModelForCausalLM.from_pretrained(out / "search" / "model")
    card = (out / "README.md").read_text()
    assert "pivot-tides" in card and "base_model_relation: merge" in card
    # The checkpoint that is taken away says what its targets learned from, and how.
    own = (out / "search" / "model" / "README.md").read_text()
    front = yaml.safe_load(own.split("---\n")[1])
    assert "`zoo:pivot` (the model that learned" in own and {"merge", "knowledge-fusion"} <= set(front["tags"])
    values = {r["dataset"]["type"]: r["metrics"][0]["value"] for r in front["model-index"][0]["results"]}
    bits = models["merged"]["bits_per_byte"]
    assert values == pytest.approx({k: v for k, v in bits.items() if k != "mean"}, abs=1e-5)
    loss = "loss: 0.3 x text + 0.7 x ce; min_ce per sequence; alignment by bytes, vocabulary by statistics"
    for words in ("zoo:tides", "zoo:roads", "GPTNeoXForCausalLM", "path: text.jsonl", "search/recipe.yaml", loss):
        assert words in own, words
    assert str(tmp_path) not in own
    assert "score" in models["merged"] and models["merged"]["score"]["score"] > models["target"]["score"]["score"]
    again = here("fuse", file, out, "--workers", 0, "--json")
    assert again.result["models"] == models
    assert (out / "search" / "model" / "README.md").read_text() == own


@pytest.fixture(scope="module")
def small_texts(tmp_path_factory):
    """The fusion evaluator on a few texts."""
    from evomerge import presets

    file = tmp_path_factory.mktemp("evaluator") / "texts.yaml"
    splits = {
        "search": {"share": 0.4, "items": 8},
        "select": {"share": 0.2, "items": 8},
        "test": {"share": 0.4, "items": 8},
    }
    data = {
        "include_path": str(presets.folder("evaluators") / "zoo"),
        "tasks": ["tides_text", "roads_text"],
        "splits": splits,
    }
    file.write_text(yaml.safe_dump(data))
    return file


CHANGES = {
    "uld": {"training": {"loss": "uld"}},
    "alm": {"training": {"loss": "alm"}},
    "kl by token": {"training": {"loss": "kl"}, "fusion": {"per": "token"}},
    "published": {
        "fusion": {"function": "avg_ce", "per": "block", "compare": "tokens", "block_tokens": 500},
        "alignment": {"aligner": "dynamic", "order": "fusechat", "vocabulary": "statistics", "score": "published"},
        "training": {"renormalize": True, "clm_weight": 0.9},
    },
    "edit distance, no target": {
        "alignment": {"aligner": "dynamic", "vocabulary": "edit_distance"}, "fusion": {"include_target": False},
    },
    "text alone": {"training": {"clm_weight": 1.0}},
    "lora": {"training": {"lora": {"r": 4, "lora_alpha": 8}, "gradient_accumulation_steps": 2,
                          "per_device_train_batch_size": 8, "gradient_checkpointing": True}},
    "k beyond half of the vocabulary": {"teachers": {"top_k": 256}},
    "conversations": {"corpus": {"path": "zoo:exchanges", "held_out": 0.1, "documents": 60}},
}  # fmt: skip


# The others have quick tests of their own parts.
SLOW = ("k beyond half of the vocabulary", "edit distance, no target", "kl by token", "uld")


@pytest.mark.ci
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CHANGES])
def test_every_way_to_fuse_learns(name, here, tmp_path):
    done = here("fuse", fusion_file(tmp_path, **CHANGES[name]), tmp_path / "out", "--workers", 0, "--json")
    training = done.result["trainings"]["fused"]
    losses = [line["loss"] for line in training["history"]]
    assert losses[-1] < losses[0] and all(np.isfinite(losses))
    if name == "text alone":
        assert not training["taken"] and not (tmp_path / "out" / "teachers").exists()
    else:
        assert training["aligned"] > 0.1 * training["learned"]
    if name == "lora":
        from safetensors.torch import load_file

        own, base = (load_file(f / "model.safetensors") for f in (tmp_path / "out" / "model", zoo.path("pivot")))
        assert own.keys() == base.keys()  # merged: a plain checkpoint
        assert torch.equal(own["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
        assert not torch.equal(own["model.layers.0.mlp.up_proj.weight"], base["model.layers.0.mlp.up_proj.weight"])


@pytest.mark.ci
def test_it_stops_where_held_out_text_gets_no_better(here, tmp_path):
    """And takes the checkpoint that was best."""
    training = {
        "learning_rate": 2e-2,
        "max_steps": 60,
        "evaluations": 20,
        "early_stopping_patience": 2,
        "clm_weight": 1.0,
    }
    file = fusion_file(tmp_path, documents=6, training=training)
    done = here("fuse", file, tmp_path / "out", "--workers", 0, "--json")
    found = done.result["trainings"]["fused"]
    assert found["stopped"] == "patience" and len(found["history"]) < 20
    best = min(found["history"], key=lambda line: line["bits_per_byte"])
    assert found["step"] == best["step"] == found["history"][-3]["step"]
    assert done.result["models"]["fused"]["bits_per_byte"]["mean"] == pytest.approx(best["bits_per_byte"], abs=5e-3)


@pytest.mark.slow
def test_passes_are_shared_between_fusions(here, tmp_path):
    shared = {"teachers": {"folder": str(tmp_path / "passes")}}
    here("fuse", fusion_file(tmp_path / "a", **shared), tmp_path / "a" / "out", "--workers", 0)
    stamps = {f: f.stat().st_mtime_ns for f in (tmp_path / "passes").rglob("*.parquet")}
    assert len(stamps) == 3
    other = fusion_file(tmp_path / "b", fusion={"function": "avg_ce"}, **shared)
    done = here("fuse", other, tmp_path / "b" / "out", "--workers", 0)
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "passes").rglob("*.parquet")} == stamps
    assert "passes of the sources" not in done.stderr and not (tmp_path / "b" / "out" / "teachers").exists()
    for f in (tmp_path / "passes").iterdir():
        assert json.loads((f / MANIFEST).read_text())["shards"][0]["positions"] > 0


@pytest.mark.ci
def test_a_second_command_on_the_same_folder_is_told_so(here, tmp_path):
    file = fusion_file(tmp_path, training={"max_steps": 400})
    process = started(file, tmp_path / "out")
    try:
        deadline = time.monotonic() + 100
        while not (tmp_path / "out" / "fusion.json").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        done = here("fuse", file, tmp_path / "out", "--workers", 0, check=False)
        assert done.returncode == 2 and f"is running there (process {process.pid})" in done.stderr
    finally:
        process.kill()
        process.wait()
    assert os.path.exists(tmp_path / "out" / "corpus")
