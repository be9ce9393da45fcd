"""Adding and removing skills: whole or not at all, and nothing else changes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from evomerge.errors import EvoMergeError, InputError, SourceError
from evomerge.library import INDEX, Library, LibraryError, read_library
from evomerge.merging.engine import Engine
from evomerge.skills import add, remove
from evomerge.skills.opened import open_library
from evomerge.skills.static import recipe_of
from evomerge.sources import open_source, open_sources
from tests.skills.conftest import make_base, make_lora


def files(folder: Path) -> dict[str, bytes]:
    """What a folder holds, but for the lock of who changes it."""
    found = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def test_what_the_index_says(base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    place = base.parent / f"new-{tmp_path.name}"
    library = add(place, "two", adapters["two"], description=" sums ", tags=["maths", "short"])
    library = add(place, "four", adapters["four"])
    assert library.names == ("two", "four")
    two, four = library.index.skills.values()
    assert (two.rank, two.alpha, two.rslora, two.modules) == (2, 7.0, False, ("q_proj", "v_proj"))
    assert (two.description, two.tags) == ("sums", ("maths", "short"))
    assert (four.rank, four.alpha, four.rslora, four.modules) == (4, 13.0, True, ("down_proj", "q_proj"))
    assert library.index.base.sha256 == open_source(str(base)).content_hash()
    assert library.index.base.model == "../base"
    assert Path(library.base).resolve() == base.resolve()
    assert {p.name for p in place.iterdir()} - {".lock"} == {INDEX, "two", "four"}
    for name in library.names:
        for file in ("adapter_model.safetensors", "adapter_config.json"):
            assert (place / name / file).read_bytes() == (adapters[name] / file).read_bytes()
    assert {p.name for p in (place / "two").iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    assert open_library(library).skills.keys() == {"two", "four"}


def test_base_and_library_may_be_moved_together(base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "a" / "base")
    add(tmp_path / "a" / "library", "two", adapters["two"], base=str(tmp_path / "a" / "base"))
    (tmp_path / "a").rename(tmp_path / "b")
    library = read_library(tmp_path / "b" / "library")
    assert open_library(library).base.path.resolve() == (tmp_path / "b" / "base").resolve()


def test_removing_a_skill_gives_back_the_earlier_outputs(library: Library, base: Path, tmp_path: Path) -> None:
    def merged(found: Library) -> dict[str, torch.Tensor]:
        recipe = recipe_of(found, {"two": 0.7, "four": -0.4, "eight": 1.1})
        return dict(Engine(open_sources(recipe.references()), threads=1).tensors(recipe))

    before, outputs = files(library.folder), merged(library)
    other = make_lora(base, tmp_path / "other", 11, r=3, target_modules="all-linear")
    with_it = add(library.folder, "other", other)
    assert with_it.names == ("two", "four", "eight", "other")
    left = remove(library.folder, "other")
    assert files(library.folder) == before
    again = merged(left)
    assert again.keys() == outputs.keys()
    for name, tensor in outputs.items():
        assert torch.equal(again[name], tensor), name
    # And of one that was there: what is left is composed as it was without it.
    fewer = recipe_of(remove(library.folder, "eight"), {"two": 0.7, "four": -0.4})
    rebuilt = dict(Engine(open_sources(fewer.references()), threads=1).tensors(fewer))
    alone = recipe_of(left, {"two": 0.7, "four": -0.4, "eight": 0.0})
    assert not (library.folder / "eight").exists() and read_library(library.folder).names == ("two", "four")
    shutil.copytree(library.folder.parent / "shared" / "eight", library.folder / "eight")
    for name, tensor in Engine(open_sources(alone.references()), threads=1).tensors(alone):
        assert torch.equal(rebuilt[name], tensor), name


def test_a_base_of_other_shapes_names_the_tensor(library: Library, tmp_path: Path) -> None:
    other = make_base(tmp_path / "wide", hidden_size=32, intermediate_size=40)
    lora = make_lora(other, tmp_path / "lora")
    shutil.rmtree(other)  # then only the shapes can tell
    before = files(library.folder)
    with pytest.raises(SourceError, match="does not fit") as found:
        add(library.folder, "wide", lora)
    words = str(found.value)
    assert 'q_proj.weight" has shape [16, 16], lora_A [4, 32]' in words and str(tmp_path / "wide") in words
    assert files(library.folder) == before


def test_a_base_of_the_same_shapes_and_other_content(library: Library, tmp_path: Path) -> None:
    other = make_base(tmp_path / "sibling", seed=5)
    lora = make_lora(other, tmp_path / "lora")
    with pytest.raises(LibraryError, match="expected an adapter on the same base") as found:
        add(library.folder, "sibling", lora)
    assert f'was trained on "{other}"' in str(found.value)
    with pytest.raises(LibraryError, match="expected an adapter on the same base"):
        add(library.folder, "sibling", lora, base=str(other))
    # Who knows better says so.
    assert "sibling" in add(library.folder, "sibling", lora, base=library.base).names


def test_a_base_that_is_not_here_is_told(library: Library, adapters: dict[str, Path], tmp_path: Path) -> None:
    lora = Path(shutil.copytree(adapters["two"], tmp_path / "lora"))
    config = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/nowhere/model"}))
    said: list[str] = []
    add(library.folder, "again", lora, say=said.append)
    assert len(said) == 1 and '"/nowhere/model", which is not here' in said[0]
    (lora / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    add(library.folder, "third", lora, say=said.append)
    assert len(said) == 2 and "names no base that it was trained on: only names and shapes were compared" in said[1]
    add(library.folder, "fourth", lora, base=library.base, say=said.append)
    assert len(said) == 2, "who gives --base knows it"


def test_names_on_the_hub_are_compared(library: Library, adapters: dict[str, Path], tmp_path: Path) -> None:
    """Of a base of the hub's: another name is another model, until somebody says that it is the same."""
    from dataclasses import replace

    from evomerge.skills.shelf import _check_base

    model = replace(open_source(library.base), reference="org/llama@main", local=False)
    index = library.index.model_copy(update={"base": library.index.base.model_copy(update={"model": "org/llama@main"})})
    there = Library(library.folder, index)
    assert there.base == "org/llama@main"
    said: list[str] = []
    _check_base(there, model, None, "org/llama", "lora", said.append)
    assert len(said) == 1 and "is not here: only names and shapes were compared" in said[0]
    with pytest.raises(LibraryError, match="where that is the same model, say so: --base org/llama@main"):
        _check_base(there, model, None, "org/other", "lora", said.append)
    _check_base(there, model, "org/llama@main", "org/other", "lora", said.append)
    from evomerge.skills.shelf import written_base

    assert written_base(model, library.folder) == "org/llama@main"


def test_a_new_library_needs_a_base(adapters: dict[str, Path], tmp_path: Path) -> None:
    lora = Path(shutil.copytree(adapters["two"], tmp_path / "lora"))
    config = json.loads((lora / "adapter_config.json").read_text())
    for named, words in ((None, "give --base MODEL"), ("/nowhere/model", "no such folder")):
        (lora / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": named}))
        with pytest.raises(InputError, match=words):
            add(tmp_path / "new", "two", lora)
        assert not (tmp_path / "new").exists()
    with pytest.raises(SourceError, match="no such folder") as found:
        add(tmp_path / "new", "two", lora, base="/nowhere/other")
    assert "give --base" not in str(found.value)


def test_names(library: Library, adapters: dict[str, Path]) -> None:
    with pytest.raises(LibraryError, match='has a skill "two" already; choose another name'):
        add(library.folder, "two", adapters["two"])
    for name in ("a+b", "../out", "", ".hidden", "a/b", "x" * 65):
        with pytest.raises(LibraryError, match="expected a name of letters, digits"):
            add(library.folder, name, adapters["two"])
    for name in ("base", "uniform", "best"):
        with pytest.raises(LibraryError, match="is what a search calls something else"):
            add(library.folder, name, adapters["two"])
    with pytest.raises(LibraryError, match="is the name of the library's index"):
        add(library.folder, "skills.yaml", adapters["two"])
    with pytest.raises(LibraryError, match="an empty tag"):
        add(library.folder, "new", adapters["two"], tags=["a", " "])
    with pytest.raises(SourceError, match="model reference"):
        add(library.folder, "new", "org/lora@")
    with pytest.raises(LibraryError, match='has no skill "tow"; did you mean "two"'):
        remove(library.folder, "tow")
    with pytest.raises(LibraryError, match=r'no such skill library; did you mean ".*copy"'):
        read_library(library.folder.parent / "cpoy")
    with pytest.raises(LibraryError, match=r"config\.json: is a file; expected the folder of a skill library"):
        read_library(Path(library.base) / "config.json")
    with pytest.raises(LibraryError, match=r"has no skills\.yaml; expected the folder of a skill library"):
        read_library(library.base)
    with pytest.raises(LibraryError, match="holds no skill yet"):
        Library(library.folder, library.index.model_copy(update={"skills": {}})).chosen()


def test_pickles_are_refused(library: Library, adapters: dict[str, Path], tmp_path: Path) -> None:
    lora = Path(shutil.copytree(adapters["two"], tmp_path / "lora"))
    torch.save(load_file(lora / "adapter_model.safetensors"), lora / "adapter_model.bin")
    (lora / "adapter_model.safetensors").unlink()
    before = files(library.folder)
    with pytest.raises(SourceError, match=r"only adapter_model\.bin, a pickle file"):
        add(library.folder, "pickle", lora)
    assert files(library.folder) == before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"modules_to_save": ["lm_head"]}, 'brings "lm_head.weight" whole'),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "changes the embedding"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, r'brings "model.layers.0.self_attn.q_proj.bias" whole'),
    ],
)
def test_what_is_no_low_rank_change_of_linear_layers(
    library: Library, base: Path, tmp_path: Path, config: dict[str, object], words: str
) -> None:
    if "bias" in config:  # which needs a base that has some
        biased = make_base(tmp_path / "biased", attention_bias=True)
        with pytest.raises(SourceError, match=words):
            add(tmp_path / "library", "more", make_lora(biased, tmp_path / "lora", **config))
        return
    with pytest.raises(SourceError, match=words):
        add(library.folder, "more", make_lora(base, tmp_path / "lora", **config))


def test_an_index_cannot_lead_out_of_its_folder(library: Library) -> None:
    text = (library.folder / INDEX).read_text()
    data = yaml.safe_load(text)
    for name in ("../shared", "/etc", "a+b"):
        data["skills"] = {name: yaml.safe_load(text)["skills"]["two"]}
        (library.folder / INDEX).write_text(yaml.safe_dump(data))
        with pytest.raises(LibraryError, match="expected a name of letters"):
            read_library(library.folder)


def test_what_changed_since_is_refused(library: Library) -> None:
    weights = library.place("two") / "adapter_model.safetensors"
    tensors = {k: v + 1 for k, v in load_file(weights).items()}
    save_file(tensors, weights)
    with pytest.raises(LibraryError, match="has changed since it was added"):
        open_library(library)
    shutil.rmtree(library.place("two"))
    with pytest.raises(LibraryError, match="is gone, and the index has"):
        open_library(library)
    assert open_library(library, ["four"]).skills.keys() == {"four"}
    # The index still has it, so that it can be taken out.
    assert remove(library.folder, "two").names == ("four", "eight")


@pytest.mark.parametrize("call", ["rename", "replace"])
def test_an_add_that_is_cut_off_leaves_the_library_as_it_was(
    library: Library, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = files(library.folder)

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, call, cut)
        add(library.folder, "again", adapters["two"])
    found = read_library(library.folder)
    assert found.names == library.names and (library.folder / INDEX).read_bytes() == before[INDEX]
    # The same command then works, over what was left.
    assert add(library.folder, "again", adapters["two"]).names[-1] == "again"
    assert not [p for p in library.folder.iterdir() if p.name.endswith(".part")]


def test_other_folders_are_not_taken_for_libraries(adapters: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(LibraryError, match=r"is not empty and has no skills\.yaml"):
        add(tmp_path / "notes", "two", adapters["two"])
    with pytest.raises(LibraryError, match="is a file, expected the folder"):
        add(tmp_path / "notes" / "a.txt", "two", adapters["two"])
    with pytest.raises(LibraryError, match="rename the folder"):
        add(tmp_path / "a+b", "two", adapters["two"])
    assert os.listdir(tmp_path / "notes") == ["a.txt"]


def test_two_at_once(library: Library, adapters: dict[str, Path]) -> None:
    import fcntl

    with (library.folder / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EvoMergeError, match="is changing the library; try again"):
            add(library.folder, "again", adapters["two"])
    assert read_library(library.folder).names == library.names


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_with_nan_is_refused(
    library: Library, adapters: dict[str, Path], tmp_path: Path, value: float
) -> None:
    lora = Path(shutil.copytree(adapters["two"], tmp_path / "lora"))
    tensors = load_file(lora / "adapter_model.safetensors")
    name = next(n for n in tensors if "lora_B" in n)
    tensors[name][1, 1] = value
    save_file(tensors, lora / "adapter_model.safetensors")
    before = files(library.folder)
    with pytest.raises(SourceError, match=r'lora_B of ".*" holds NaN or infinity; expected finite numbers'):
        add(library.folder, "broken", lora)
    assert files(library.folder) == before


def test_a_library_behind_a_link(base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "here" / "base")
    add(tmp_path / "here" / "library", "two", adapters["two"], base=str(tmp_path / "here" / "base"))
    (tmp_path / "elsewhere" / "deeper").mkdir(parents=True)
    link = tmp_path / "elsewhere" / "deeper" / "library"
    link.symlink_to(tmp_path / "here" / "library")
    library = read_library(link)
    assert Path(library.base) == tmp_path / "here" / "base"
    assert open_library(library).skills.keys() == {"two"}
    assert add(link, "four", adapters["four"]).names == ("two", "four")


def test_a_base_where_references_cannot_lead(base: Path, tmp_path: Path) -> None:
    odd = Path(shutil.copytree(base, tmp_path / "a+b"))
    lora = make_lora(odd, tmp_path / "lora")
    with pytest.raises(LibraryError, match=r'a\+b: "\+" and "@" stand for adapters'):
        add(tmp_path / "library", "two", lora)
    assert not (tmp_path / "library").exists()


def test_a_base_that_has_moved(base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    old = Path(shutil.copytree(base, tmp_path / "old"))
    add(tmp_path / "library", "two", adapters["two"], base=str(old))
    new = old.rename(tmp_path / "new")
    library = read_library(tmp_path / "library")
    with pytest.raises(
        SourceError, match=r"no such folder.*where it lies elsewhere now, say so: --base MODEL, or base"
    ):
        open_library(library)
    assert open_library(read_library(library.folder, str(new))).base.path == new
    other = make_base(tmp_path / "other", seed=5)
    with pytest.raises(LibraryError, match="is not the model that the library was made on"):
        open_library(read_library(library.folder, str(other)))
    with pytest.raises(SourceError, match="no such folder"):
        add(library.folder, "four", adapters["four"])
    with pytest.raises(LibraryError, match="is not the model that the library was made on"):
        add(library.folder, "four", adapters["four"], base=str(other))
    # Who adds says where it is now, and the index has it from then on.
    assert add(library.folder, "four", adapters["four"], base=str(new)).index.base.model == "../new"
    assert open_library(read_library(library.folder)).base.path.resolve() == new


def test_a_base_with_an_adapter_on_it(base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="has an adapter on it; expected a plain model"):
        add(tmp_path / "library", "two", adapters["two"], base=f"{base}+{adapters['four']}")


def test_first_skills_of_folders_that_are_there(base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / ".lock").write_text("process 1")
    (tmp_path / "link").symlink_to(tmp_path / "led")
    (tmp_path / "led").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "made")
    for name in ("empty", "locked", "link", "dangling"):
        assert add(tmp_path / name, "two", adapters["two"]).names == ("two",)
        assert open_library(read_library(tmp_path / name)).skills.keys() == {"two"}
    assert (tmp_path / "link").is_symlink() and (tmp_path / "made" / INDEX).is_file()
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_two_first_skills_at_once(
    base: Path, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One makes the library, the other, which saw none, finds it and adds to it."""
    import evomerge.skills.shelf as shelf

    place, real = tmp_path / "library", shelf._check_base

    def meanwhile(*args: object) -> None:
        monkeypatch.setattr(shelf, "_check_base", real)
        add(place, "four", adapters["four"])
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(shelf, "_check_base", meanwhile)
    assert add(place, "two", adapters["two"]).names == ("four", "two")
    assert open_library(read_library(place)).skills.keys() == {"two", "four"}

    import fcntl

    with (tmp_path / ".new.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EvoMergeError, match="is changing the library; try again"):
            add(tmp_path / "new", "two", adapters["two"])
    # Two that begin on different bases do not end in one library.
    other = make_base(tmp_path / "other", seed=5)
    lora = make_lora(other, tmp_path / "lora")

    def another(*args: object) -> None:
        monkeypatch.setattr(shelf, "_check_base", real)
        add(tmp_path / "third", "other", lora)
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(shelf, "_check_base", another)
    with pytest.raises(LibraryError, match="is not the model that the library was made on"):
        add(tmp_path / "third", "two", adapters["two"])
    assert read_library(tmp_path / "third").names == ("other",)


def test_a_skill_s_folder_that_is_a_link(library: Library, adapters: dict[str, Path], tmp_path: Path) -> None:
    shutil.move(library.place("two"), tmp_path / "two")
    library.place("two").symlink_to(tmp_path / "two")
    assert remove(library.folder, "two").names == ("four", "eight")
    assert not library.place("two").is_symlink() and (tmp_path / "two" / "adapter_config.json").is_file()
    assert "two" in add(library.folder, "two", adapters["two"]).names


def test_what_lies_there_unnamed_is_not_taken_away(library: Library, adapters: dict[str, Path]) -> None:
    (library.folder / "notes").mkdir()
    (library.folder / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(LibraryError, match="is there, and the index does not have it"):
        add(library.folder, "notes", adapters["two"])
    assert (library.folder / "notes" / "mine.txt").read_text() == "mine"


def test_an_adapter_that_changes_while_it_is_copied(
    library: Library, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lora = Path(shutil.copytree(adapters["two"], tmp_path / "lora"))
    real = shutil.copyfile

    def changed(source: Path, target: Path) -> object:
        found = real(source, target)
        if target.name.endswith(".safetensors"):
            save_file({n: t + 1 for n, t in load_file(target).items()}, target)
        return found

    monkeypatch.setattr(shutil, "copyfile", changed)
    with pytest.raises(EvoMergeError, match="changed while it was copied; try again"):
        add(library.folder, "again", lora)
    assert read_library(library.folder).names == library.names


def test_a_folder_that_cannot_be_written(
    library: Library, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(LibraryError, match=r"cannot be written \(No space left on device\)"):
        add(library.folder, "again", adapters["two"])


def test_a_skill_that_has_become_a_model(library: Library) -> None:
    shutil.rmtree(library.place("two"))
    shutil.copytree(library.base, library.place("two"))
    with pytest.raises(SourceError, match="is a model, not an adapter"):
        open_library(library, ["two"])
