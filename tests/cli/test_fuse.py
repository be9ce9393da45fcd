"""`evomerge fuse`: what is refused, before any time is spent and before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from evomerge import zoo
from evomerge.zoo.fusion.models import initialised, llama, save
from tests.pipeline.fusions import fusion_file


@pytest.fixture
def refused(command: Callable, tmp_path: Path) -> Callable:
    """refused(changes): the error of a fusion that differs from the usual one; nothing was written."""

    def run(**changes: object) -> str:
        file = fusion_file(tmp_path / "in", **changes)
        done = command("fuse", file, tmp_path / "out", "--workers", 0)
        assert not (tmp_path / "out").exists()
        return done.error

    return run


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trget": "zoo:pivot"}, 'unknown key "trget"; did you mean "target"?'),
        ({"target": None}, 'key "target" is missing'),
        ({"target": "zoo:pivt"}, 'target: model "zoo:pivt": no such model in the zoo; did you mean "pivot"?'),
        ({"sources": ["zoo:tides", "zoo:rods"]}, 'sources: model "zoo:rods": no such model in the zoo'),
        ({"sources": []}, "expected at least 1"),
        ({"sources": ["zoo:tides", "zoo:tides"]}, "is given twice"),
        ({"corpus": {"path": "missing.jsonl"}}, "corpus missing.jsonl: no such file or folder"),
        ({"corpus": {"path": "zoo:chain"}}, 'no such corpus in the zoo; did you mean "chains"?'),
        ({"corpus": {"held_out": 1.5}}, "expected a share between 0 and 1"),
        ({"corpus": {"held_out": "missing.jsonl"}}, "corpus missing.jsonl: no such file or folder"),
        ({"corpus": {"max_length": 5000}}, "corpus.max_length = 5,000: more than the positions of target (1,024)"),
        ({"teachers": {"top_k": 0}}, "teachers.top_k = 0: expected"),
        ({"teachers": {"topk": 5}}, 'unknown key "teachers.topk"; did you mean "top_k"?'),
        ({"alignment": {"aligner": "byte"}}, "alignment.aligner = 'byte': expected 'bytes' or 'dynamic'"),
        ({"alignment": {"vocabulary": "stats"}}, "expected 'exact', 'edit_distance' or 'statistics'"),
        ({"fusion": {"function": "mince"}}, "fusion.function = 'mince': expected 'min_ce' or 'avg_ce'"),
        ({"fusion": {"per": "document"}}, "expected 'token', 'sequence' or 'block'"),
        ({"training": {"loss": "mse"}}, "training.loss = 'mse': expected 'ce', 'kl', 'alm' or 'uld'"),
        ({"training": {"clm_weight": 1.5}}, "training.clm_weight = 1.5"),
        ({"training": {"learning_rate": 0}}, "training.learning_rate = 0"),
        ({"training": {"learningrate": 1e-4}}, 'did you mean "learning_rate"?'),
        ({"training": {"lr_scheduler_type": "cosin"}}, 'training.lr_scheduler_type = "cosin": did you mean "cosine"?'),
        ({"training": {"arguments": {"optimm": "x"}}}, 'TrainingArguments has none; did you mean "optim"?'),
        ({"training": {"arguments": {"output_dir": "x"}}}, "arguments.output_dir: is decided by evomerge"),
        ({"training": {"arguments": {"learning_rate": 1}}}, "is a key of training itself; set training.learning_rate"),
        ({"training": {"loss": "alm"}, "fusion": {"function": "avg_ce"}}, "learns from one source at a time"),
        ({"training": {"arguments": {"optim": "adamx"}}}, "training: adamx is not a valid OptimizerNames"),
        ({"training": {"arguments": {"dataloader_num_workers": "x"}}}, "arguments.dataloader_num_workers = 'x': input"),
        ({"training": {"lora": {"target_modules": ["q_prj"]}}}, 'no module "q_prj" in the target; did you mean "q_pro'),
        ({"training": {"lora": {"target_modules": "("}}}, "is no regular expression"),
        ({"training": {"loss": "alm"}, "alignment": {"aligner": "dynamic"}},
         'alignment.aligner = "dynamic": training.loss = "alm" compares likelihoods of the same bytes, and what this '
         "one matches need not be the same; expected aligner: bytes"),
        ({"corpus": {"split": "tset"}}, 'fusion.yaml: corpus.split = "tset": '),
        ({"alignment": {"order": "fusechat"}}, "alignment.order is for aligner: dynamic; leave it out"),
        ({"alignment": {"vocabulary": "exact", "score": "published"}}, "alignment.score is for vocabulary: statistics"),
        ({"alignment": {"vocabulary": "exact"}, "training": {"loss": "uld"}}, "vocabulary is for loss: ce or kl"),
        ({"kind": "parameter"}, 'kind = "parameter": is a search space, not a fusion: evomerge search'),
        ({"training": {"num_train_epochs": 2}}, "training.max_steps and training.num_train_epochs: give one of them"),
        ({"training": {"early_stopping_patience": 3}}, "= 3 never stops anything: there are 3 evaluations"),
        ({"fusion": {"block_tokens": 5}}, "fusion.block_tokens is for per: block"),
        ({"training": {"alm_temperature": 5}}, "training.alm_temperature is for loss: alm"),
        ({"training": {"loss": "alm", "renormalize": True}}, "training.renormalize is for loss: ce or kl"),
        ({"sources": [{"model": "zoo:tides", "name": "target"}]}, '"target" is what results call something else'),
        ({"sources": [{"model": "zoo:tides", "name": "fused"}]}, '"fused" is what results call something else'),
        ({"sources": ["zoo:tides", {"model": "zoo:roads", "name": "pivot-tides"}], "fusion": {"mode": "pairwise"}},
         '"pivot-tides" is what a result is called; give the source another name'),
        ({"evaluator": "fuson"}, 'fusion.yaml: evaluator: evaluator "fuson": neither a file nor a preset; did you'),
        ({"then": "search"}, "then: search needs several targets to merge: set fusion: {mode: pairwise}"),
        ({"then": "search", "fusion": {"mode": "pairwise"}}, "then: search needs an evaluator"),
        ({"then": "search", "fusion": {"mode": "pairwise"}, "sources": ["zoo:tides"]}, "needs at least 2 sources"),
        ({"preferences": {"score": "x"}, "training": None}, "expected file.py:function"),
        ({"preferences": {"score": "x.py:score"}}, '"training" is for learning from distributions'),
        ({"preferences": {"score": "x.py:score"}, "training": None}, "preferences.score = x.py:score: no such file"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_message(refused: Callable, changes: dict, words: str) -> None:
    assert words in refused(**changes)


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        ("alignment", {"aligner": "bytes", "vocabulary": "exact"}),
        ("fusion", {"function": "avg_ce", "per": "token", "compare": "tokens", "include_target": False}),
        ("teachers", {"top_k": 3}),
        ("training", {"loss": "kl", "renormalize": True}),
    ],
)
def test_what_the_text_alone_has_no_use_for(refused: Callable, section: str, keys: dict) -> None:
    """Each key that is written, whatever its value; not one that is left out."""
    weight = {"training": {"clm_weight": 1.0}}
    changes = weight | {section: weight.get(section, {}) | keys}
    listed = ", ".join(f"{section}.{key}" for key in sorted(keys))
    assert refused(**changes).endswith(
        f"training.clm_weight = 1: nothing is learned from the sources; leave out {listed}"
    )


def test_the_text_alone(command: Callable, tmp_path: Path) -> None:
    """Keys that mean something still, and nothing said of passes that are not made."""
    teachers = {"folder": "passes", "shard_tokens": 500, "batch_tokens": 4096, "dtype": "float32"}
    file = fusion_file(tmp_path, training={"clm_weight": 1.0}, teachers=teachers, fusion={"mode": "pairwise"})
    text = command("check", file).out
    assert "loss: the text alone; nothing is learned from the sources" in text and "passes over" not in text
    tokens = command("check", file, "--json").json["tokens"]
    for own, names in ((True, ("target", "tides", "roads")), (False, ("tides", "roads"))):
        file = fusion_file(tmp_path, fusion={"include_target": own})
        assert f"passes over {sum(tokens[n] for n in names):,} tokens" in command("check", file).out


def test_a_split_of_what_has_none(refused: Callable, command: Callable, tmp_path: Path) -> None:
    """Of one saved data set; a folder beside it whose split is meant makes it right."""
    rows = datasets.Dataset.from_list([{"text": f"lonnel rimo {i}"} for i in range(10)])
    rows.save_to_disk(tmp_path / "in" / "one")
    datasets.DatasetDict({"test": rows, "other": rows}).save_to_disk(tmp_path / "in" / "several")
    told = refused(corpus={"path": "one", "split": "train"})
    assert f'corpus.split = "train": {tmp_path}/in/one is one data set without splits, all of which is read' in told
    told = refused(corpus={"split": "train"})
    assert f"{tmp_path}/in/text.jsonl is a file, all of which is read; expected a folder with several splits" in told
    told = command("check", fusion_file(tmp_path / "in", corpus={"path": "several", "split": "tset"})).error
    assert "corpus.split = 'tset': did you mean \"test\"" in told
    for corpus in ({"path": "several", "split": "other"}, {"held_out": "several", "split": "test"}):
        assert command("check", fusion_file(tmp_path / "in", corpus=corpus)).code == 0


SEARCH = {"fusion": {"mode": "pairwise"}, "evaluator": "fusion"}


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"space": "fusd"}, 'then.search.space: "fusd" is neither a file nor a preset space; did you mean "fused"?'),
        ({"space": "dataflow"}, 'is of kind "dataflow", expected a parameter space'),
        ({"budget": "soon"}, "then.search.budget"),
        ({"sampler": "cmaes"}, "then.search.sampler"),
        ({"evaluator": "fuson"}, 'fusion.yaml: then.search.evaluator: evaluator "fuson": neither a file nor a preset;'),
        ({"restart": "ipop"}, 'unknown key "then.search.restart"; did you mean "restarts"?'),
        ({"restarts": "bipo"}, "then.search.restarts = 'bipo': expected 'none', 'ipop' or 'bipop'"),
        ({"restarts": "ipop", "sampler": "tpe"}, 'then.search.restarts: optimizer "tpe" has no restarts'),
        ({"objectives": ["tides"]}, 'then.search: objectives: tides: not of this evaluator and space; did you mean '),
        ({"objectives": ["score", "score"]}, "fusion.yaml: then.search.objectives): objectives named twice: score"),
        ({"objectives": ["score", "tides_text"], "sampler": "cma"}, 'then.search.sampler: optimizer "cma" has one obj'),
        ({"objectives": ["score", "tides_text"], "fidelity": "race"}, "then.search.fidelity = race: the search has ot"),
        ({"sampler": "m2n2", "fidelity": "race"}, "then.search.fidelity = race: sampler m2n2 needs the result of"),
        ({"objectives": ["tides_text"], "sampler": "map-elites"}, "in 2 to 4 tasks that count, the evaluator has 1"),
        ({"warm_start": "nowhere"}, "then.search.warm_start = nowhere: no folder with a study.db, expected the output"),
        ({"fidelity": "rase"}, "then.search.fidelity = 'rase': expected 'auto', 'full' or 'race'"),
        ({"estimates": "none"}, "then.search.estimates = 'none': expected 'auto' or 'plain'"),
    ],
)
def test_a_wrong_search_is_found_before_anything_is_trained(refused: Callable, search: dict, words: str) -> None:
    assert words in refused(then={"search": search}, **SEARCH)


def test_a_study_that_a_search_cannot_begin_from(refused: Callable, tmp_path: Path) -> None:
    """Of another space, empty, or a fusion's folder in place of its search's."""
    from evomerge.study.store import Store

    (tmp_path / "in" / "other" / "search").mkdir(parents=True)
    for name in ("others", "other/search"):
        (tmp_path / "in" / name).mkdir(exist_ok=True)
        store = Store(f"sqlite:///{tmp_path / 'in' / name}/study.db", create=True)
        store.create("s", (), {"space": {"sources": ["a", "b"]}})

    def told(folder: str) -> str:
        return refused(then={"search": {"warm_start": folder}}, **SEARCH)

    assert 'then.search.warm_start = others: study "s" searched another space: sources is' in told("others")
    assert f'did you mean "{tmp_path / "in" / "others"}"?' in told("otherss")
    assert f'did you mean "{tmp_path / "in" / "other" / "search"}"?' in told("other")


@pytest.mark.parametrize(
    "search",
    [{"sampler": "map-elites"}, {"sampler": "m2n2"}, {"restarts": "none"}, {"objectives": ["score", "roads_text"]}],
)
def test_a_search_that_goes_with_the_evaluator(command: Callable, tmp_path: Path, search: dict) -> None:
    assert command("check", fusion_file(tmp_path, then={"search": search}, **SEARCH)).code == 0


@pytest.mark.ci
def test_an_unknown_task_is_found_before_anything_is_trained(refused: Callable, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    evaluator = {"tasks": ["tides_txt"], "include_path": str(tmp_path)}
    (tmp_path / "in" / "mine.yaml").write_text(yaml.safe_dump(evaluator))
    assert 'unknown task "tides_txt"' in refused(evaluator="mine.yaml")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "text.jsonl:41: is not JSON"),
        ("[]", 'text.jsonl:41: expected an object with "text" or "messages", got []'),
        ('{"txt": "a"}', 'text.jsonl:41: expected a string under "text"'),
        ('{"messages": [{"role": "user", "content": "a"}]}', "no message of the assistant"),
        ('{"text": "a", "domain": "\\ud800"}', "text.jsonl:41: half of a surrogate pair"),
        (
            '{"text": "a", "domain": "mean"}',
            'text.jsonl:41: domain = "mean" is what figures over all domains are called',
        ),
    ],
)
def test_a_corpus_in_the_wrong_format(command: Callable, tmp_path: Path, line: str, words: str) -> None:
    file = fusion_file(tmp_path / "in")
    with (tmp_path / "in" / "text.jsonl").open("a") as stream:
        stream.write(line + "\n")
    assert words in command("check", file).error
    assert words in command("fuse", file, tmp_path / "out", "--workers", 0).error
    assert not [f for f in (tmp_path / "out").rglob("*") if f.suffix == ".parquet"]


def test_a_model_without_a_tokenizer(command: Callable, tmp_path: Path) -> None:
    shutil.copytree(zoo.path("tides"), tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bare" / name).unlink()
    file = fusion_file(tmp_path / "in", sources=[str(tmp_path / "bare"), "zoo:roads"])
    assert "bare: its tokenizer cannot be loaded" in command("fuse", file, tmp_path / "out").error


def test_folders_that_are_somebody_elses(command: Callable, tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "study.db").write_bytes(b"")
    file = fusion_file(tmp_path / "in")
    assert "holds a search; give another folder" in command("fuse", file, tmp_path / "search").error
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    assert "holds README.md already" in command("fuse", file, tmp_path / "mine").error
    shutil.copytree(zoo.path("tides"), tmp_path / "holds" / "tides")
    file = fusion_file(tmp_path / "in", sources=[str(tmp_path / "holds" / "tides"), "zoo:roads"])
    assert "holds the model" in command("fuse", file, tmp_path / "holds").error
    assert "evomerge fuse --help" in command("fuse", file).error


def test_check_says_what_it_would_take(command: Callable, tmp_path: Path) -> None:
    file = fusion_file(tmp_path, fusion={"mode": "pairwise"})
    data = command("check", file, "--json").json
    assert data["kind"] == "fusion" and data["mode"] == "pairwise"
    assert data["results"] == ["pivot-tides", "pivot-roads"]
    assert data["documents"] == 40 and set(data["tokens"]) == {"target", "tides", "roads"}
    text = command("check", file).out
    for words in ("2 targets, one for each source", "of caches", "of memory for a training", "alignment by bytes"):
        assert words in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fusion.yaml", "held.jsonl", "text.jsonl"]


def test_check_says_what_is_left_out(command: Callable, tmp_path: Path) -> None:
    file = fusion_file(tmp_path)
    with (tmp_path / "text.jsonl").open("a") as stream:
        stream.write('{"text": " "}\n' + json.dumps({"text": "lomen \u9f8d"}) + "\n")
    text = command("check", file).out
    assert "1 of 42 documents left out: empty (first:" in text


def test_check_says_which_tokenizers_change_the_text(command: Callable, tmp_path: Path) -> None:
    """One that writes capitals small, and whose `unk` is its `eos`, which has nothing to do with what it can write."""
    words = {w: i for i, w in enumerate(["</s>", "lomen", "rimo", "lonnel"])}
    backend = Tokenizer(models.WordLevel(words, "lomen"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="</s>", bos_token="</s>", eos_token="</s>")
    tokenizer.pad_token = "</s>"
    save(initialised(llama(tokenizer, 32, 1), torch.Generator().manual_seed(0)), tokenizer, tmp_path / "small")
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in ("Rimo", "rimo", "lonnel")))
    corpus = {"path": "mine.jsonl", "held_out": 0.3}
    file = fusion_file(tmp_path, sources=["zoo:tides", str(tmp_path / "small")], corpus=corpus)
    done = command("check", file, "--json").json
    assert done["lossy"] == {"small": 1} and not done["unwritable"]
    text = command("check", file).out
    assert f"small: its tokenizer does not give 1 documents back as they are (first: {tmp_path}/mine.jsonl:1)" in text


def test_init_writes_a_fusion_that_is_in_order(command: Callable, tmp_path: Path) -> None:
    done = command("init", tmp_path / "new", "--fusion", "--json").json
    assert [Path(f).name for f in done["files"]] == ["fusion.yaml"]
    assert command("check", tmp_path / "new" / "fusion.yaml").code == 0
    assert "there already" in command("init", tmp_path / "new", "--fusion").error
    assert "cannot both be given" in command("init", tmp_path / "x", "--fusion", "--space", "linear").error


def test_the_zoo_has_texts(command: Callable, tmp_path: Path) -> None:
    assert [t["name"] for t in command("zoo", "--json").json["texts"]] == list(zoo.fusion.CORPORA)
    assert command("zoo", "copy", "chains", tmp_path / "mine.jsonl").code == 0
    assert (tmp_path / "mine.jsonl").read_bytes() == zoo.fusion.corpus("chains").read_bytes()


def test_a_folder_that_no_fusion_wrote_is_left_alone(command: Callable, tmp_path: Path) -> None:
    file = fusion_file(tmp_path / "in")
    (tmp_path / "out" / "corpus").mkdir(parents=True)
    (tmp_path / "out" / "corpus" / "held_out.parquet").write_text("mine")
    told = command("fuse", file, tmp_path / "out", "--workers", 0).error
    assert "holds corpus already, and no fusion wrote them; give another folder" in told
    assert (tmp_path / "out" / "corpus" / "held_out.parquet").read_text() == "mine"
    told = command("fuse", file, file, "--workers", 0).error
    assert f"{file}: is a file, expected a folder to write to" in told


def test_what_is_held_out_is_not_learned(command: Callable, tmp_path: Path) -> None:
    file = fusion_file(tmp_path / "in", corpus={"path": "text.jsonl", "held_out": "text.jsonl"})
    told = command("check", file).error
    assert "leaves no document to learn from" in told and "40 of 40 documents left out: held out too" in told
    held = (tmp_path / "in" / "held.jsonl").read_text().splitlines(keepends=True)
    with (tmp_path / "in" / "text.jsonl").open("a") as stream:
        stream.writelines(held[:3])
    fusion_file(tmp_path / "other")
    data = yaml.safe_load(file.read_text()) | {"corpus": {"path": "text.jsonl", "held_out": "held.jsonl"}}
    file.write_text(yaml.safe_dump(data))
    assert "3 of 43 documents left out: held out too" in command("check", file).out


def test_one_source_needs_no_list(command: Callable, tmp_path: Path) -> None:
    assert command("check", fusion_file(tmp_path, sources="zoo:tides")).code == 0
