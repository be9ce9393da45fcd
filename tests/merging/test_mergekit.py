"""mergekit itself as an oracle, in process: recipe file to checkpoint, every method and parameter that it has.

Where a method draws at random, mergekit is handed our masks. What differs on purpose is in docs/methods.md.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from evomerge.merging.draws import BITS, draws, stream_key
from evomerge.merging.engine import Engine
from evomerge.merging.mapped import TYPES
from evomerge.methods import IGNORED_PARAMETERS, METHODS
from evomerge.recipe import load_recipe, parse_recipe
from evomerge.sources import open_sources

Family = tuple[str, str, str]
pytest.importorskip("mergekit")

TWO = """
models:
- {model: <A>, parameters: {weight: [0.3, 0.9], density: 0.6}}
- {model: <B>, parameters: {weight: [{filter: mlp, value: -0.4}, {value: 0.7}], density: [0.2, 0.8]}}
"""
WEIGHTS = TWO.replace(", density: 0.6", "").replace(", density: [0.2, 0.8]", "")
PLAIN = "\nmodels: [{model: <A>}, {model: <B>}]"
ONE = "\nmodels: [{model: <A>}]"
# Densities that leave room for DELLA's epsilon.
INNER = TWO.replace("[0.2, 0.8]", "[0.3, 0.7]")
BASE = "\nbase_model: <BASE>"


def of(method: str, *parts: str, **parameters: Any) -> str:
    """A recipe: the method, its shared parameters, and the rest."""
    shared = f"\nparameters: {yaml.safe_dump(parameters, default_flow_style=True)}" if parameters else ""
    return f"merge_method: {method}" + shared + "".join(parts)


RECIPES = {
    "linear": of("linear", WEIGHTS),
    "linear without normalising": of("linear", WEIGHTS, normalize=False),
    "linear with a base": of("linear", BASE, ONE, weight=2),
    "slerp": of("slerp", BASE, ONE, "\nparameters: {t: [{filter: self_attn, value: [0.1, 0.9]}, {value: 0.4}]}"),
    "nuslerp": of("nuslerp", WEIGHTS),
    "nuslerp of task vectors": of("nuslerp", BASE, WEIGHTS),
    "nuslerp by rows": of("nuslerp", WEIGHTS, nuslerp_flatten=False),
    "nuslerp by columns of task vectors": of("nuslerp", BASE, WEIGHTS, nuslerp_flatten=False, nuslerp_row_wise=True),
    "nuslerp of weights that cancel": of("nuslerp", BASE, "\nmodels:\n- {model: <A>, parameters: {weight: 1}}"
                                         "\n- {model: <B>, parameters: {weight: -1}}"),
    "multislerp": of("multislerp", WEIGHTS),
    "multislerp of task vectors": of("multislerp", BASE, WEIGHTS, normalize_weights=False),
    "multislerp with its eps": of("multislerp", WEIGHTS, eps=1e-8),
    "multislerp of one": of("multislerp", BASE, ONE, weight=0.3, normalize_weights=False),
    "karcher": of("karcher", PLAIN),
    "karcher with a base": of("karcher", BASE, PLAIN),
    "karcher of few steps": of("karcher", BASE, PLAIN, max_iter=1, tol=1e-3),
    "task_arithmetic": of("task_arithmetic", BASE, WEIGHTS),
    "task_arithmetic with what it ignores": of("task_arithmetic", BASE, TWO, rescale=True, int8_mask=True),
    "task_arithmetic with lambda": of("task_arithmetic", BASE, WEIGHTS, normalize=True, **{"lambda": 0.7}),
    "ties": of("ties", BASE, TWO),
    "ties without normalising": of("ties", BASE, TWO, normalize=False, **{"lambda": 1.3}),
    "ties rescaled": of("ties", BASE, TWO, rescale=True),
    "ties with few": of("ties", BASE, PLAIN, density=0.001, weight=1),
    "ties with nothing": of("ties", BASE, PLAIN, density=0.0, weight=1),
    "dare_linear at density 1": of("dare_linear", BASE, WEIGHTS),
    "dare_ties at density 1": of("dare_ties", BASE, WEIGHTS, normalize=True, **{"lambda": 0.7}),
    "della_linear at density 1": of("della_linear", BASE, WEIGHTS),
    "della at density 1": of("della", BASE, WEIGHTS, normalize=False, **{"lambda": 0.7}),
    "breadcrumbs": of("breadcrumbs", BASE, TWO),
    "breadcrumbs with gamma": of("breadcrumbs", BASE, TWO, gamma=0.2, normalize=True, rescale=True, **{"lambda": 0.7}),
    "breadcrumbs where gamma gives way": of("breadcrumbs", BASE, TWO, gamma=0.9),
    "breadcrumbs at gamma 0": of("breadcrumbs", BASE, TWO, gamma=0.0),
    "breadcrumbs_ties": of("breadcrumbs_ties", BASE, TWO, gamma=[0.05, 0.3]),
    "breadcrumbs_ties rescaled": of("breadcrumbs_ties", BASE, TWO, rescale=True, normalize=True, **{"lambda": 0.7}),
    "sce": of("sce", BASE, PLAIN),
    "sce with few": of("sce", BASE, PLAIN, select_topk=0.13),
    "sce with nothing": of("sce", BASE, PLAIN, select_topk=0.0),
    "model_stock": of("model_stock", BASE, PLAIN),
    "model_stock by filters": of("model_stock", BASE, PLAIN, filter_wise=True),
    "nearswap": of("nearswap", BASE, ONE, t=0.03),
    "ram": of("ram", BASE, PLAIN),
    "ram with epsilon": of("ram", BASE, PLAIN, epsilon=0.05),
    "ramplus_tl": of("ramplus_tl", BASE, PLAIN, epsilon=0.05, r=0.7, alpha=0.4),
    "arcee_fusion": of("arcee_fusion", BASE, ONE),
    "slices": """
merge_method: ties
base_model: <BASE>
slices:
- sources:
  - {model: <BASE>, layer_range: [0, 2]}
  - {model: <A>, layer_range: [1, 3], parameters: {weight: [0.2, 0.6]}}
  parameters: {density: 0.5}
- sources:
  - {model: <B>, layer_range: [0, 3]}
  - {model: <BASE>, layer_range: [0, 3]}
  parameters: {weight: [{filter: norm, value: 0.1}, {value: 0.5}]}
parameters: {density: 0.9}
""",
    "passthrough": """
merge_method: passthrough
slices:
- {sources: [{model: <A>, layer_range: [0, 2]}]}
- {sources: [{model: <B>, layer_range: [1, 3], parameters: {scale: [{filter: o_proj, value: 0.5}, {value: 1.0}]}}]}
""",
}  # fmt: skip
RANDOM = {
    "dare_linear": of("dare_linear", BASE, TWO, rescale=False),
    "dare_linear normalised": of("dare_linear", BASE, TWO, rescale=False, normalize=True, **{"lambda": 0.7}),
    "dare_ties": of("dare_ties", BASE, TWO, rescale=False),
    "dare_ties normalised": of("dare_ties", BASE, TWO, rescale=False, normalize=True, **{"lambda": 0.7}),
    "della_linear": of("della_linear", BASE, INNER, rescale=False),
    "della_linear with epsilon": of(
        "della_linear", BASE, INNER, rescale=False, epsilon=0.25, normalize=True, **{"lambda": 0.7}
    ),
    "della": of("della", BASE, INNER, rescale=False),
    "della with epsilon": of("della", BASE, INNER, rescale=False, epsilon=[0.05, 0.25], normalize=False),
}
# What comes after the layers takes a gradient's first value in mergekit, its last here (test_plan.py).
AFTER = ("model.norm.weight", "lm_head.weight")


def both(text: str, family: Family, out: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors that we and that mergekit make of a recipe file, as the checkpoints hold them."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    for short, folder in zip(("<BASE>", "<A>", "<B>"), family, strict=True):
        text = text.replace(short, folder)
    file = out / "recipe.yaml"
    file.write_text(text)
    run_merge(
        MergeConfiguration.model_validate(yaml.safe_load(file.read_text())),
        str(out / "theirs"),
        MergeOptions(quiet=True, write_model_card=False, copy_tokenizer=False),
    )
    recipe = load_recipe(file)
    Engine(open_sources(recipe.references())).write(recipe, out / "ours")
    ours, theirs = (
        {name: t for part in (out / who).glob("*.safetensors") for name, t in load_file(part).items()}
        for who in ("ours", "theirs")
    )
    assert ours.keys() == theirs.keys()
    return ours, theirs


def compare(text: str, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    skipped = AFTER if "[0." in text and "slices" not in text else ()
    for name, values in ours.items():
        if name not in skipped:
            torch.testing.assert_close(values, theirs[name], rtol=1e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", RECIPES)
def test_equals_mergekit(name: str, exact_family: Family, tmp_path: Path) -> None:
    ours, theirs = both(RECIPES[name], exact_family, tmp_path)
    if name == "slices":
        # mergekit gives what comes after the layers the first value of a gradient; the last slice here has none.
        assert len({n.split(".")[2] for n in ours if "layers" in n}) == 5
    compare(RECIPES[name], ours, theirs)


MIXED = {
    "linear": of("linear", WEIGHTS),
    "a source of no weight": of("ties", BASE, "\nmodels: [{model: <A>}, {model: <B>}]", weight=0),
    "task_arithmetic": of("task_arithmetic", BASE, WEIGHTS),
    "nothing but the base": of("task_arithmetic", "\nbase_model: <A>", ONE, weight=1),
    "slices": "merge_method: passthrough\nslices:\n- {sources: [{model: <A>, layer_range: [0, 2]}]}\n"
    "- {sources: [{model: <B>, layer_range: [1, 3]}]}",
}


@pytest.mark.parametrize("types", [("F16", "BF16", "BF16"), ("BF16", "BF16", "F32"), ("F32", "F16", "BF16")])
@pytest.mark.parametrize("name", MIXED)
def test_models_of_different_types(
    name: str, types: tuple[str, str, str], exact_family: Family, tmp_path: Path
) -> None:
    """Without `dtype`, a tensor gets the type that holds all of its inputs'."""
    stored: list[str] = []
    for number, (folder, dtype) in enumerate(zip(exact_family, types, strict=True)):
        other = tmp_path / f"{number}"
        shutil.copytree(folder, other)
        for file in other.glob("*.safetensors"):
            tensors = {n: t.to(TYPES[dtype]) for n, t in load_file(file).items()}
            save_file(tensors, file, {"format": "pt"})
        stored.append(str(other))
    ours, theirs = both(MIXED[name], (stored[0], stored[1], stored[2]), tmp_path)
    assert {n: t.dtype for n, t in ours.items()} == {n: t.dtype for n, t in theirs.items()}
    said = json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"]
    assert getattr(torch, said) in {t.dtype for t in ours.values()}
    if name != "slices":
        assert {t.dtype for t in ours.values()} == {getattr(torch, said)}


@pytest.mark.parametrize("name", RANDOM)
def test_equals_mergekit_with_our_masks(
    name: str, exact_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = hand_over_masks(monkeypatch, exact_family)
    ours, theirs = both(RANDOM[name], exact_family, tmp_path)
    assert len(drawn) == 2 * len(ours), "a mask for each tensor of both sources"
    compare(RANDOM[name], ours, theirs)


def hand_over_masks(monkeypatch: pytest.MonkeyPatch, family: Family) -> list[str]:
    """Make mergekit draw our random numbers; returns where the names of the tensors that it does so for are put."""
    from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge as Theirs

    contents = {folder: source.content_hash() for folder, source in open_sources(list(family)).items()}
    plain: Callable[..., torch.Tensor] = Theirs.merge_group
    waiting: list[tuple[str, str]] = []
    drawn: list[str] = []

    def merge_group(self: Theirs, group: Any, /, **parameters: Any) -> torch.Tensor:
        waiting[:] = [(str(entry.id), group.metadata.name) for entry in group.non_base]
        return plain(self, group, **parameters)

    def bernoulli(probability: torch.Tensor) -> torch.Tensor:
        model, tensor = waiting.pop(0)
        numbers = draws(stream_key(0, contents[model], tensor), probability.numel()).reshape(probability.shape)
        drawn.append(tensor)
        return (numbers.double() < probability.double() * (1 << BITS)).to(probability.dtype)

    monkeypatch.setattr(Theirs, "merge_group", merge_group)
    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    return drawn


def test_every_method_and_parameter_of_mergekit_is_tried() -> None:
    from mergekit.merge_methods.registry import registered_methods

    tried = {name: parse_recipe(text) for name, text in {**RECIPES, **RANDOM}.items()}
    for theirs in registered_methods():
        mine = [r for r in tried.values() if r.merge_method == theirs.spec.name]
        assert mine, f"{theirs.spec.name} is not tried"
        text = " ".join(t for n, t in {**RECIPES, **RANDOM}.items() if tried[n] in mine)
        method = METHODS[theirs.spec.name]
        for parameter in theirs.spec.parameters:
            name = parameter.name
            if name in (*IGNORED_PARAMETERS, *method.ignored):
                continue
            ours = method.parameter(name)
            assert ours is not None, f"{theirs.spec.name} has no {name}"
            assert f"{name}:" in text, f"{theirs.spec.name}: {name} is not tried"
            if not parameter.required and parameter.default is not None:
                assert ours.default == parameter.default, f"{theirs.spec.name}.{name} has another default"


def test_rescaling_differs_as_the_papers_have_it(
    exact_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # mergekit scales what is kept to the sum of magnitudes that there was, DARE divides by the probability: on average
    # the same, and so here nearly so.
    hand_over_masks(monkeypatch, exact_family)
    ours, theirs = both(of("dare_linear", BASE, TWO), exact_family, tmp_path)
    base = load_file(Path(exact_family[0]) / "model.safetensors")
    name = "model.embed_tokens.weight"
    mine, other = ours[name] - base[name], theirs[name] - base[name]
    assert not torch.allclose(mine, other, rtol=1e-4)
    torch.testing.assert_close(mine, other, rtol=0.1, atol=1e-3)
