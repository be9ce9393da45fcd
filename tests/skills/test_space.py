"""`kind: skills`: a library's skills as a space of merges."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from evomerge.errors import SpaceError
from evomerge.library import Library
from evomerge.pipeline.models import open_space
from evomerge.space import SpaceConfig, load_space


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
    refused("low = 2 must be below high = 1", library=str(shared.folder), weight={"low": 2, "high": 1})
    with pytest.raises(SpaceError, match='did you mean "skills"'):
        load_space({"kind": "skill", "library": "x"})
