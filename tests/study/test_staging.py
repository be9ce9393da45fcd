"""Files of sources and evaluators on a machine that has them not: found, fetched or received once, and compared.

The machine on which they lie is this one; what the other one sees of them is taken away by moving them.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import peft
import pytest
import torch
import transformers
import yaml
from huggingface_hub import constants

from evomerge import presets, zoo
from evomerge.errors import EvaluatorError, EvoMergeError, SourceChangedError, SourceError
from evomerge.evaluation import EvaluatorFile, load_evaluator, open_evaluator
from evomerge.merging.engine import Engine
from evomerge.recipe import Recipe
from evomerge.sources import Source, open_sources
from evomerge.study.staging import Folder, listed, manifest, placed, stage
from tests.hub_server import Hub

PIECE = 100_000
CACHE = os.environ["EVOMERGE_CACHE"]  # of this run of tests


class Elsewhere:
    """Another machine's files: they lie in `away`, and are handed out in pieces."""

    def __init__(self, folders: tuple[Folder, ...], moved: dict[Path, Path]) -> None:
        self.folders, self.moved, self.asked = folders, moved, []

    def __call__(self, folder: int, file: int) -> Iterator[bytes]:
        listed_ = self.folders[folder].listed
        self.asked.append(self.folders[folder].files[file].name)
        content = (self.moved[listed_.home] / self.folders[folder].files[file].name).read_bytes()
        for start in range(0, len(content), PIECE):
            yield content[start : start + PIECE]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two of the zoo's models as folders of the user's, with what must not travel beside them."""
    for name in ("base", "maths"):
        shutil.copytree(zoo.path(name), tmp_path / "models" / name)
        (tmp_path / "models" / name / "pytorch_model.bin").write_bytes(b"a pickle")
        (tmp_path / "models" / name / "notes.txt").write_text("secret")
        (tmp_path / "models" / name / "modeling.py").write_text("import os")
    return tmp_path / "models"


@pytest.fixture
def evaluator(tmp_path: Path) -> EvaluatorFile:
    folder = tmp_path / "evaluator"
    (folder / ".git").mkdir(parents=True)
    (folder / "score.py").write_text("def score(model, tokenizer, items):\n    return [float(i['x']) for i in items]\n")
    (folder / "items.jsonl").write_text("".join(f'{{"x": {i}}}\n' for i in range(40)))
    data = {"kind": "python", "function": "score.py:score", "items": "items.jsonl", "tasks": ["x"]}
    (folder / "own.yaml").write_text(yaml.safe_dump(data))
    return load_evaluator(folder / "own.yaml")


@pytest.fixture
def away(
    models: Path, evaluator: EvaluatorFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Source], EvaluatorFile, Elsewhere]:
    """Opened and hashed, then moved to where their paths do not lead; and a cache of the other machine's own."""
    sources = open_sources([str(models / "base"), str(models / "maths")])
    folders = manifest(listed(sources, evaluator), sources)
    moved = {}
    for top in (models, tmp_path / "evaluator"):
        shutil.move(top, tmp_path / "away" / top.name)
    for folder in folders:
        moved[folder.listed.home] = tmp_path / "away" / folder.listed.home.relative_to(tmp_path)
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "other"))
    return sources, evaluator, Elsewhere(folders, moved)


def test_what_is_received_is_what_was_there_and_works(away, monkeypatch) -> None:
    sources, evaluator, elsewhere = away
    hashes = {r: s.content_hash() for r, s in sources.items()}
    places = stage(elsewhere.folders, elsewhere, "machine 2")
    monkeypatch.setenv("EVOMERGE_CACHE", CACHE)  # where compiled kernels lie
    there, theirs = placed([f.listed for f in elsewhere.folders], places, sources, evaluator)
    for reference, source in there.items():
        assert source.path.is_dir() and "staged" in source.path.parts
        fresh = open_sources([str(source.path)])[str(source.path)]
        assert fresh.content_hash() == hashes[reference] == source.content_hash()
    base, maths = there
    recipe = Recipe.model_validate({"merge_method": "linear", "dtype": "float32", "models": [
        {"model": base, "parameters": {"weight": 0.3}}, {"model": maths, "parameters": {"weight": 0.7}}]})  # fmt: skip
    expected = dict(Engine(open_sources(["zoo:base", "zoo:maths"])).tensors(
        recipe.with_references({base: "zoo:base", maths: "zoo:maths"})))  # fmt: skip
    assert all(torch.equal(x, expected[n]) for n, x in Engine(there).tensors(recipe))
    assert open_evaluator(theirs).items("search") and theirs.fingerprint() == evaluator_again(elsewhere).fingerprint()


def evaluator_again(elsewhere: Elsewhere) -> EvaluatorFile:
    folder = next(f.listed.home for f in elsewhere.folders if f.listed.key == "function")
    return load_evaluator(elsewhere.moved[folder] / "own.yaml")


def test_only_weights_configuration_and_tokenizer_of_a_model_travel(away) -> None:
    _, _, elsewhere = away
    stage(elsewhere.folders, elsewhere, "machine 2")
    assert set(elsewhere.asked) == {
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "score.py", "items.jsonl",
    }  # fmt: skip


def test_the_second_worker_of_a_machine_receives_nothing(away) -> None:
    _, _, elsewhere = away
    places = stage(elsewhere.folders, elsewhere, "machine 2")
    elsewhere.asked.clear()
    assert stage(elsewhere.folders, elsewhere, "machine 2") == places
    assert elsewhere.asked == []


def test_workers_that_start_together_receive_once(away, tmp_path: Path) -> None:
    _, _, elsewhere = away
    context = multiprocessing.get_context("fork")
    asked = context.Queue()

    def work() -> None:
        stage(elsewhere.folders, elsewhere, "machine 2")
        asked.put(elsewhere.asked)

    workers = [context.Process(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    counts = sorted(len(asked.get(timeout=100)) for _ in workers)
    assert [w.join() or w.exitcode for w in workers] == [0] * 4
    assert sum(counts) == sum(len(f.files) for f in elsewhere.folders)


def test_a_file_that_is_damaged_on_the_way_is_named_with_both_hashes(away, tmp_path: Path) -> None:
    _, _, elsewhere = away
    folder = elsewhere.folders[0]
    file = elsewhere.moved[folder.listed.home] / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        stage(elsewhere.folders, elsewhere, "machine 2")
    expected = next(f.sha256 for f in folder.files if f.name == "model.safetensors")
    message = str(caught.value)
    assert str(folder.listed.home / "model.safetensors") in message and "machine 2" in message
    assert hashlib.sha256(content).hexdigest() in message and f"expected {expected}" in message
    # Nothing is left that a later worker could take for the model.
    assert [p for p in (tmp_path / "other" / "staged").iterdir() if p.is_dir()] == []


def test_what_a_killed_worker_left_or_somebody_damaged_is_received_again(away, tmp_path: Path) -> None:
    _, _, elsewhere = away
    places = stage(elsewhere.folders, elsewhere, "machine 2")
    (places[0] / "config.json").chmod(0o644)
    (places[0] / "config.json").write_text("{}")
    left = places[1].with_suffix(".part")
    shutil.move(places[1], left)
    elsewhere.asked.clear()
    assert stage(elsewhere.folders, elsewhere, "machine 2") == places
    assert sorted(elsewhere.asked) == sorted(f.name for folder in elsewhere.folders[:2] for f in folder.files)
    assert not left.exists()


def test_a_path_that_all_machines_share_is_used_as_it_is(models: Path, evaluator: EvaluatorFile) -> None:
    sources = open_sources([str(models / "base")])
    folders = manifest(listed(sources, evaluator), sources)
    elsewhere = Elsewhere(folders, {})
    assert stage(folders, elsewhere, "machine 2") == [f.listed.home for f in folders]
    assert elsewhere.asked == []


def test_another_model_at_the_same_path_is_not_taken_for_it(away, models: Path) -> None:
    _, _, elsewhere = away
    shutil.copytree(zoo.path("kovesh"), models / "base")
    places = stage(elsewhere.folders, elsewhere, "machine 2")
    assert "staged" in places[0].parts and "model.safetensors" in elsewhere.asked


def test_the_zoo_is_found_wherever_it_is_installed(evaluator: EvaluatorFile, tmp_path: Path) -> None:
    shutil.copytree(zoo.path("base"), tmp_path / "installed" / "base")
    sources = open_sources(["zoo:base"])
    (found, *rest) = manifest(listed(sources, evaluator), sources)
    other = replace(found, listed=replace(found.listed, path=tmp_path / "gone", home=tmp_path / "gone"))
    assert stage((other, *rest), Elsewhere((other, *rest), {}), "machine 2")[0] == zoo.path("base")


def test_a_source_that_changed_before_anybody_asked(models: Path, evaluator: EvaluatorFile) -> None:
    sources = open_sources([str(models / "base")])
    sources[str(models / "base")].content_hash()
    shutil.copy(models / "maths" / "model.safetensors", models / "base" / "model.safetensors")
    with pytest.raises(SourceChangedError, match=r"base/model.safetensors: has changed while it was in use"):
        manifest(listed(sources, evaluator), sources)


def test_code_of_a_model_is_not_sent(models: Path, evaluator: EvaluatorFile, tmp_path: Path) -> None:
    config = evaluator.config.model_copy(update={"trust_remote_code": True})
    trusting = EvaluatorFile(config, evaluator.name, evaluator.folder, evaluator.file)
    sources = open_sources([str(models / "base")])
    folders = manifest(listed(sources, trusting), sources)
    assert stage(folders, Elsewhere(folders, {}), "machine 2")[0] == models / "base"
    shutil.move(models, tmp_path / "away")
    with pytest.raises(EvoMergeError, match=r"machine 2: model .* own code \(modeling.py\), which is not sent"):
        stage(folders, Elsewhere(folders, {}), "machine 2")


def test_no_room_is_told_before_anything_is_received(away) -> None:
    _, _, elsewhere = away
    huge = replace(elsewhere.folders[0], files=(replace(elsewhere.folders[0].files[0], bytes=10**18),))
    with pytest.raises(EvoMergeError, match=r"machine 2: model .* 1000000000.0 GB below .*set EVOMERGE_CACHE"):
        stage((huge,), elsewhere, "machine 2")
    assert elsewhere.asked == []


def test_include_path_travels_with_its_data_and_not_with_everything(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    shutil.copytree(presets.folder("evaluators") / "zoo", tasks)
    (tasks / ".git").mkdir()
    (tasks / ".git" / "config").write_text("secret")
    (tasks / "weights.safetensors").write_bytes(b"0" * 1000)
    (tmp_path / "own.yaml").write_text("include_path: tasks\ntasks: [kovesh_problems]\n")
    evaluator = load_evaluator(tmp_path / "own.yaml")
    (folder,) = listed({}, evaluator)
    assert {"data.py", "kovesh_problems.yaml", "kovesh_problems.jsonl"} <= set(folder.names)
    assert not {n for n in folder.names if n.startswith(".git") or n.endswith(".safetensors")}


def test_an_include_path_that_holds_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tasks").mkdir()
    with (tmp_path / "tasks" / "large.jsonl").open("wb") as f:
        f.truncate(5 << 30)  # takes no room on the disk
    (tmp_path / "own.yaml").write_text("include_path: tasks\ntasks: [kovesh_problems]\n")
    with pytest.raises(EvaluatorError, match=r"include_path = tasks: holds 5.4 GB"):
        listed({}, load_evaluator(tmp_path / "own.yaml"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the zoo's base, the only one that the client knows, and a cache of this machine's."""
    shutil.copytree(zoo.path("base"), tmp_path / "hub" / "org" / "base")
    served = Hub(tmp_path / "hub")
    template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()
    yield served
    huggingface_hub.close_session()
    served.close()


def test_a_model_of_the_hub_comes_from_there_by_its_revision(
    hub: Hub, evaluator: EvaluatorFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = open_sources(["org/base"])
    folders = manifest(listed(sources, evaluator), sources)
    commit = hub.commit("org/base")
    shutil.move(tmp_path / "here", tmp_path / "away")
    moved = {f.listed.home: tmp_path / "away" / f.listed.home.relative_to(tmp_path / "here") for f in folders[:1]}
    elsewhere = Elsewhere(folders, moved)
    places = stage(folders, elsewhere, "machine 2")
    assert places[0] == folders[0].listed.home and places[0].name == commit
    assert elsewhere.asked == []
    # Where the hub cannot be asked, it is received from the other machine.
    shutil.rmtree(tmp_path / "here")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "other"))
    assert "staged" in stage(folders, elsewhere, "machine 2")[0].parts
    assert "model.safetensors" in elsewhere.asked


def test_an_adapter_travels_with_its_model(evaluator: EvaluatorFile, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(zoo.path("base"), tmp_path / "model")
    live = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    adapted = peft.get_peft_model(live, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "lora")
    reference = f"{tmp_path / 'model'}+{tmp_path / 'lora'}"
    sources = open_sources([reference])
    folders = manifest(listed(sources, evaluator), sources)
    recipe = Recipe.model_validate({"merge_method": "linear", "dtype": "float32", "models": [
        {"model": reference, "parameters": {"weight": 1.0}}]})  # fmt: skip
    expected = {n: x.clone() for n, x in Engine(sources).tensors(recipe)}
    moved = {f.listed.home: tmp_path / "away" / f.listed.home.name for f in folders}
    for folder in ("model", "lora"):
        shutil.move(tmp_path / folder, tmp_path / "away" / folder)
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "other"))
    elsewhere = Elsewhere(folders, moved)
    there, _ = placed([f.listed for f in folders], stage(folders, elsewhere, "machine 2"), sources, evaluator)
    monkeypatch.setenv("EVOMERGE_CACHE", CACHE)
    assert {"adapter_model.safetensors", "adapter_config.json"} <= set(elsewhere.asked)
    assert all(torch.equal(x, expected[n]) for n, x in Engine(there).tensors(recipe))
