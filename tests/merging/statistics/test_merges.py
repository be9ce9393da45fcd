"""Merges with collected statistics: fisher and regmean against float64 NumPy, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from evomerge import zoo
from evomerge.errors import InputError, RecipeError, SourceError
from evomerge.merging.engine import Engine
from evomerge.merging.planner import Planner
from evomerge.merging.statistics import open_statistics
from evomerge.recipe import Recipe, parse_recipe
from evomerge.sources import open_source, open_sources


def recipe(kind: str, folders: dict[str, Path], **extra: Any) -> Recipe:
    data = {
        "merge_method": {"fisher": "fisher", "gram": "regmean"}[kind],
        "models": [{"model": f"zoo:{n}", "parameters": {"weight": w}} for n, w in (("maths", 0.7), ("kovesh", 1.3))],
        "dtype": "float32",
        "evomerge": {"statistics": {f"zoo:{n}": str(f) for n, f in folders.items()}, **extra},
    }
    return parse_recipe(json.dumps(data))


def weights_of(name: str) -> dict[str, Any]:
    return {n: t.double().numpy() for n, t in load_file(zoo.path(name) / "model.safetensors").items()}


def statistics_of(folder: Path) -> dict[str, Any]:
    return {n: t.double().numpy() for n, t in load_file(folder / "statistics.safetensors").items()}


def test_a_fisher_merge_of_real_models(collected: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    folders = {n: collected[n, "fisher"] for n in ("maths", "kovesh")}
    r = recipe("fisher", folders)
    engine = Engine(open_sources(r.references()), threads=2)
    engine.write(r, tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    a, b = weights_of("maths"), weights_of("kovesh")
    fa, fb = (statistics_of(folders[n]) for n in ("maths", "kovesh"))
    weighted = 0
    for name in a:
        total = 0.7 * fa[name] + 1.3 * fb[name]
        with np.errstate(invalid="ignore"):
            expected = (0.7 * fa[name] * a[name] + 1.3 * fb[name] * b[name]) / total
        expected = np.where(total > 0, expected, (0.7 * a[name] + 1.3 * b[name]) / 2)
        weighted += int((total > 0).sum())
        np.testing.assert_allclose(merged[name].double().numpy(), expected, rtol=1e-6, atol=1e-9, err_msg=name)
    assert weighted > 100_000
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.isfinite(model(input_ids=torch.tensor([[5, 9, 2, 11, 4]])).logits).all()
    written = parse_recipe((tmp_path / "out" / "recipe.yaml").read_text())
    assert written.evomerge.statistics == r.evomerge.statistics
    assert set(written.evomerge.sources) == {"zoo:maths", "zoo:kovesh", *map(str, folders.values())}
    Engine(engine.sources).write(written, tmp_path / "again")
    again = tmp_path / "again" / "model.safetensors"
    assert again.read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()


def test_a_regmean_merge_of_real_models(collected: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    folders = {n: collected[n, "gram"] for n in ("maths", "kovesh")}
    r = recipe("gram", folders)
    Engine(open_sources(r.references()), threads=1).write(r, tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    a, b = weights_of("maths"), weights_of("kovesh")
    ga, gb = (statistics_of(folders[n]) for n in ("maths", "kovesh"))
    for name in a:
        if name not in ga:
            expected = (0.7 * a[name] + 1.3 * b[name]) / 2
        else:
            g, h = (0.9 * x + 0.1 * np.diag(np.diag(x)) for x in (ga[name], gb[name]))
            expected = (0.7 * a[name] @ g + 1.3 * b[name] @ h) @ np.linalg.inv(0.7 * g + 1.3 * h)
        np.testing.assert_allclose(
            merged[name].double().numpy(), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max(), err_msg=name
        )
    assert len(ga) == 28
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_the_recipes_meaning_covers_the_statistics(collected: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    folders = {n: collected[n, "fisher"] for n in ("maths", "kovesh")}
    r = recipe("fisher", folders)
    contents = {str(f): open_statistics(f).content_hash() for f in folders.values()}
    moved = {n: Path(shutil.copytree(f, tmp_path / n)) for n, f in folders.items()}
    there = recipe("fisher", moved)
    known = {str(f): open_statistics(f).content_hash() for f in moved.values()}
    assert list(known.values()) == list(contents.values())
    assert r.hash(contents) == there.hash(known) != r.hash(), "by content, not by place"
    swapped = recipe("fisher", {"maths": folders["kovesh"], "kovesh": folders["maths"]})
    assert swapped.hash(contents) != r.hash(contents)


def test_relative_folders_are_looked_for_beside_the_recipe(collected: dict[tuple[str, str], Path]) -> None:
    folders = {n: Path(collected[n, "fisher"].name) for n in ("maths", "kovesh")}
    r = recipe("fisher", folders)
    sources = open_sources(r.references())
    root = collected["maths", "fisher"].parent
    assert Planner(sources, root).plan(r).statistics["zoo:maths"].folder == root / folders["maths"]
    with pytest.raises(RecipeError, match="no such folder"):
        Planner(sources).plan(r)


def refused(r: Recipe) -> str:
    with pytest.raises((RecipeError, SourceError)) as e:
        Planner(open_sources(r.references())).plan(r)
    assert e.value.exit_code == 2
    return str(e.value)


def test_what_is_refused(collected: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    maths, kovesh = (collected[n, "fisher"] for n in ("maths", "kovesh"))
    lacking = refused(recipe("fisher", {"maths": maths}))
    assert "evomerge statistics 'zoo:kovesh' TEXT --kind fisher --out FOLDER" in lacking
    assert len(refused(recipe("fisher", {})).splitlines()) == 2
    nowhere = recipe("fisher", {"maths": Path("x" * 300), "kovesh": Path("~nobody-of-that-name/x")})
    assert refused(nowhere).count("no such folder") == 2
    assert 'is not a model of this recipe; did you mean "zoo:maths"?' in refused(
        recipe("fisher", {"maths": maths, "kovesh": kovesh, "math": maths})
    )
    assert "are those of another model" in refused(recipe("fisher", {"maths": kovesh, "kovesh": kovesh}))
    assert 'are of kind "gram", the method needs "fisher"' in refused(
        recipe("fisher", {"maths": collected["maths", "gram"], "kovesh": kovesh})
    )
    changed = recipe("fisher", {"maths": maths, "kovesh": kovesh}, sources={str(maths): "0" * 64})
    assert "their content is not what the recipe was made with" in refused(changed)
    copied = Path(shutil.copytree(maths, tmp_path / "copy"))
    broken = recipe("fisher", {"maths": copied, "kovesh": kovesh})
    manifest = json.loads((copied / "statistics.json").read_text())
    for change, words in (
        ("{", "not JSON"),
        ("[]", 'expected a JSON object with "kind"'),
        (json.dumps(manifest | {"version": 2}), "has version 2, expected 1"),
        (json.dumps(manifest | {"kind": "hessian"}), 'expected a JSON object with "kind"'),
    ):
        (copied / "statistics.json").write_text(change)
        assert words in refused(broken)
    (copied / "statistics.json").write_text(json.dumps(manifest))
    save_file({"model.norm.weight": torch.zeros(3)}, copied / "statistics.safetensors")
    assert 'are damaged: tensor "model.norm.weight" is F32 [3]' in refused(broken)
    (copied / "statistics.safetensors").write_bytes(b"short")
    assert "interrupted download" in refused(broken)


def test_values_that_no_statistics_have(collected: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    for kind, values in (
        ("fisher", (-1e-9, torch.nan, torch.inf)),
        ("gram", (-1e-9, torch.nan, torch.inf, -torch.inf)),
    ):
        for i, value in enumerate(values):
            copied = Path(shutil.copytree(collected["maths", kind], tmp_path / f"{kind} {i}"))
            tensors = load_file(copied / "statistics.safetensors")
            tensors[name][3, 3] = value
            save_file(tensors, copied / "statistics.safetensors")
            r = recipe(kind, {"maths": copied, "kovesh": collected["kovesh", kind]})
            with pytest.raises(SourceError, match="NaN, infinite or negative") as e:
                Engine(open_sources(r.references())).write(r, tmp_path / "out")
            assert str(copied) in str(e.value) and name in str(e.value)
            assert not (tmp_path / "out").exists()


def test_rows_in_another_order_have_no_fisher_information(
    collected: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    """Two models of one size whose tokens have other ids: a row's information would be that of another token."""
    other = Path(shutil.copytree(zoo.path("kovesh"), tmp_path / "other"))
    data = json.loads((other / "tokenizer.json").read_text())
    ids = data["model"]["vocab"]
    fixed = {t["content"] for t in data["added_tokens"]}
    first, second = [t for t in ids if t not in fixed][10:12]
    ids[first], ids[second] = ids[second], ids[first]
    (other / "tokenizer.json").write_text(json.dumps(data))
    folder = Path(shutil.copytree(collected["kovesh", "fisher"], tmp_path / "statistics"))
    manifest = json.loads((folder / "statistics.json").read_text())
    (folder / "statistics.json").write_text(json.dumps(manifest | {"model": open_source(str(other)).content_hash()}))
    text = json.dumps({
        "merge_method": "fisher", "tokenizer_source": "union", "dtype": "float32",
        "models": [{"model": m, "parameters": {"weight": 1}} for m in ("zoo:maths", str(other))],
        "evomerge": {"statistics": {"zoo:maths": str(collected["maths", "fisher"]), str(other): str(folder)}},
    })  # fmt: skip
    r = parse_recipe(text)
    Engine(open_sources(r.references())).write(r, tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"]
    a, b = (weights_of(n)["model.embed_tokens.weight"] for n in ("maths", "kovesh"))
    order = list(range(len(a)))
    mine = json.loads((zoo.path("maths") / "tokenizer.json").read_text())["model"]["vocab"]
    order[mine[first]], order[mine[second]] = ids[first], ids[second]
    np.testing.assert_allclose(merged.double().numpy(), (a + b[order]) / 2, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("inside", [True, False])
def test_statistics_are_never_overwritten(inside: bool, collected: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(zoo.path("base"), out)
    folder = Path(shutil.copytree(collected["maths", "fisher"], out / "statistics"))
    r = recipe("fisher", {"maths": folder, "kovesh": collected["kovesh", "fisher"]})
    with pytest.raises(InputError, match="the statistics"):
        Engine(open_sources(r.references())).write(r, out if inside else folder / "out", overwrite=True)
    assert (folder / "statistics.safetensors").is_file()
