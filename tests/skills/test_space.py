"""`kind: skills`: a library's skills as a space of merges."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from evomerge.errors import SpaceError
from evomerge.library import Library, LibraryError
from evomerge.merging.engine import Engine
from evomerge.merging.planner import Planner
from evomerge.pipeline.models import open_space
from evomerge.skills import add
from evomerge.skills.static import one_adapter
from evomerge.sources import open_sources
from evomerge.space import SpaceConfig, load_space
from tests.skills.conftest import make_base, make_lora


def written(folder: Path, **keys: object) -> Path:
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump({"kind": "skills", **keys}))
    return file


def test_a_weight_for_each_skill(shared: Library, tmp_path: Path) -> None:
    config = load_space(written(tmp_path, library=str(shared.folder)))
    assert isinstance(config, SpaceConfig) and config.name == "mine" and config.kind == "parameter"
    assert config.base_model == shared.base and [s.name for s in config.sources] == ["two", "four", "eight"]
    _, space = open_space(config, None)
    found = {p.name: (p.low, p.high, p.init) for p in space.parameters}  # type: ignore[union-attr]
    assert found == {f"weight.{n}": (-1.5, 1.5, 0.0) for n in ("two", "four", "eight")}
    recipe = space.decode({"weight.two": 0.5, "weight.four": -1.5, "weight.eight": 0.0})
    assert recipe.merge_method == "task_arithmetic" and recipe.parameters == {"normalize": False}
    names = [start.name for start in space.starts()]
    assert names[:4] == ["source two", "source four", "source eight", "uniform"]


def test_a_weight_for_each_layer_group_and_skill(shared: Library, tmp_path: Path) -> None:
    file = written(
        tmp_path, library=str(shared.folder), skills=["eight", "two"], granularity={"layer_groups": 3},
        weight={"low": 0, "high": 2, "init": 0.5},
    )  # fmt: skip
    _, space = open_space(load_space(file), None)  # type: ignore[arg-type]
    layers = [f"layer_{i}" for i in range(3)]
    # No skill changes embeddings or the head, which get no weight.
    assert [p.name for p in space.parameters] == [f"weight.{s}.{layer}" for s in ("eight", "two") for layer in layers]
    assert all(p.init == 0.5 for p in space.parameters)


def test_a_library_beside_the_file(shared: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = written(shared.folder.parent, library="shared")
    monkeypatch.chdir(tmp_path)
    sources, _ = open_space(load_space(file), file.parent)  # type: ignore[arg-type]
    assert len(sources) == 4
    assert {s.adapter.path.resolve() for s in sources.values() if s.adapter} == {
        (shared.folder / n).resolve() for n in shared.names
    }


def test_what_is_wrong_is_told(shared: Library, tmp_path: Path) -> None:
    def refused(words: str, **keys: object) -> None:
        with pytest.raises(SpaceError, match=words):
            load_space(written(tmp_path, **keys))

    refused(
        r'mine.yaml:3: skills: .*has no skill "tow"; did you mean "two"', library=str(shared.folder), skills=["tow"]
    )
    refused("mine.yaml:2: library: .*no such skill library; did you mean", library=f"{shared.folder}x")
    refused('key "library" is missing', skills=["two"])
    refused('unknown key "libary"; did you mean "library"', libary="x")
    refused("skills: expected at least 1|skills = .*: expected at least 1", library=str(shared.folder), skills=[])
    refused("low = 2 must be below high = 1", library=str(shared.folder), weight={"low": 2, "high": 1})
    with pytest.raises(SpaceError, match='did you mean "skills"'):
        load_space({"kind": "skill", "library": "x"})


def moved_apart(shared: Library, folder: Path) -> Path:
    """A base and a library beside each other, and a space's file."""
    shutil.copytree(shared.base, folder / "base")
    shutil.copytree(shared.folder, folder / "library")
    return written(folder, library="library")


def test_adapters_are_held_against_their_hashes(shared: Library, tmp_path: Path) -> None:
    file = moved_apart(shared, tmp_path / "a")
    config = load_space(file)
    assert isinstance(config, SpaceConfig)
    open_space(config, file.parent)
    weights = tmp_path / "a" / "library" / "four" / "adapter_model.safetensors"
    save_file({n: t + 1 for n, t in load_file(weights).items()}, weights)
    with pytest.raises(LibraryError, match="four: has changed since it was added"):
        open_space(load_space(file), file.parent)  # type: ignore[arg-type]
    # In what a search makes of its space: one of its sources alone, its models at other places.
    places = {r: r for r in config.references()}
    with pytest.raises(LibraryError, match="four: has changed since it was added"):
        open_space(config.placed(places).only("four"), file.parent)
    open_space(config.only("two"), file.parent)


def test_the_base_is_held_against_its_hash(shared: Library, tmp_path: Path) -> None:
    file = moved_apart(shared, tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "base")
    make_base(tmp_path / "a" / "base", seed=5)
    with pytest.raises(LibraryError, match="is not the model that the library was made on"):
        open_space(load_space(file), file.parent)  # type: ignore[arg-type]


def test_the_base_is_the_library_s_and_not_one_of_its_name(
    shared: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = moved_apart(shared, tmp_path / "a")
    make_base(tmp_path / "b" / "base", seed=5)
    monkeypatch.chdir(tmp_path / "b")
    for given in (file, Path(os.path.relpath(file))):
        config = load_space(given)
        assert isinstance(config, SpaceConfig) and config.base_model is not None
        sources, _ = open_space(config, given.parent)
        assert sources[config.base_model].path.resolve() == (tmp_path / "a" / "base").resolve()


def test_a_library_in_the_user_s_folder(shared: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(shared.folder.parent))
    config = load_space(written(tmp_path, library="~/shared"))
    assert isinstance(config, SpaceConfig) and config.library is not None
    assert config.library.folder == shared.folder


@pytest.mark.filterwarnings("ignore")
def test_a_head_has_the_weight_of_the_last_layers(base: Path, tmp_path: Path) -> None:
    lora = make_lora(base, tmp_path / "lora", target_modules=["lm_head", "q_proj"])
    add(tmp_path / "library", "head", lora)
    file = written(tmp_path, library="library", granularity={"layer_groups": 3})
    sources, space = open_space(load_space(file), tmp_path)  # type: ignore[arg-type]
    assert len(space.parameters) == 3
    plain = load_file(base / "model.safetensors")
    for values, changed in (((0.0, 0.0, 1.0), {2, None}), ((1.0, 1.0, 0.0), {0, 1})):
        recipe = space.decode({f"weight.head.layer_{i}": w for i, w in enumerate(values)})
        sources = open_sources(recipe.references())
        merged = Engine(sources, threads=1).tensors(recipe)
        other = {n for n, t in merged if not torch.equal(t, plain[n])}
        assert {int(n.split(".")[2]) if "layers" in n else None for n in other} == changed
        ranks = one_adapter(Planner(sources).plan(recipe)).ranks
        assert ("lm_head" in ranks) == (None in changed) and len(ranks) == len(changed)
