"""VaRM by layers and by the whole model, from recipe to tensors, against NumPy; and what such a merge reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from evomerge.errors import CandidateError, RecipeError
from evomerge.merging.engine import Engine
from evomerge.merging.live import live_model
from evomerge.recipe import Recipe, parse_recipe
from evomerge.sources import open_sources

Family = tuple[str, str, str]


def varm(family: Family, parameters: str) -> Recipe:
    base, a, b = family
    return parse_recipe(
        f"merge_method: varm\nbase_model: {base}\nparameters: {parameters}\nmodels: [{{model: {a}}}, {{model: {b}}}]"
    )


def unit_of(name: str, unit: str) -> str:
    if unit == "model":
        return "all"
    return name.split(".")[2] if unit == "layer" and ".layers." in name else name


def oracle(family: Family, units: dict[str, str]) -> dict[str, np.ndarray]:
    """Each tensor with weights from the mean squares over its unit, in float64."""
    base, *sources = ({n: t.double().numpy() for n, t in load_file(f"{f}/model.safetensors").items()} for f in family)
    out = {}
    for name in base:
        mine = [n for n in base if unit_of(n, units[name]) == unit_of(name, units[name])]
        moved = [np.concatenate([(s[n] - base[n]).ravel() for n in mine]) for s in sources]
        v = [np.mean(m**2) for m in moved]
        out[name] = sum(x * s[name] for x, s in zip(v, sources, strict=True)) / sum(v)
    return out


def close(got: dict[str, torch.Tensor], expected: dict[str, np.ndarray]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        np.testing.assert_allclose(tensor.double().numpy(), expected[name], rtol=2e-6, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def uneven(exact_family: Family, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A family of which one source moved more in some layers, so that the units tell."""
    import shutil

    from safetensors.torch import save_file

    base, a, b = exact_family
    folder = Path(shutil.copytree(b, tmp_path_factory.mktemp("uneven") / "b"))
    start, tensors = load_file(f"{base}/model.safetensors"), load_file(f"{b}/model.safetensors")
    for name in tensors:
        if "layers.1" in name or "embed" in name:
            tensors[name] = start[name] + 3 * (tensors[name] - start[name])
        if "layers.2.mlp" in name:
            tensors[name] = start[name].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return base, a, str(folder)


@pytest.mark.parametrize("unit", ["model", "layer", "matrix"])
@pytest.mark.parametrize("threads", [1, 3])
def test_units(unit: str, threads: int, uneven: Family) -> None:
    recipe = varm(uneven, f"{{unit: {unit}}}")
    got = dict(Engine(open_sources(list(uneven)), threads=threads).tensors(recipe))
    close(got, oracle(uneven, dict.fromkeys(got, unit)))


def test_units_differ_between_tensors(uneven: Family) -> None:
    recipe = varm(uneven, "{unit: [{filter: mlp, value: layer}, {filter: embed, value: matrix}, {value: model}]}")
    got = dict(Engine(open_sources(list(uneven))).tensors(recipe))
    close(got, oracle(uneven, {n: "layer" if "mlp" in n else "matrix" if "embed" in n else "model" for n in got}))


def test_a_gradient_of_words_goes_by_steps(uneven: Family) -> None:
    recipe = varm(uneven, "{unit: [layer, layer, matrix]}")
    got = dict(Engine(open_sources(list(uneven))).tensors(recipe))
    last = ("layers.2", "model.norm", "lm_head")
    close(got, oracle(uneven, {n: "matrix" if any(part in n for part in last) else "layer" for n in got}))


def test_slices_count_a_source_where_it_is_merged(uneven: Family) -> None:
    base, a, b = uneven
    recipe = parse_recipe(f"""
merge_method: varm
base_model: {base}
parameters: {{unit: model}}
slices:
- sources: [{{model: {a}, layer_range: [0, 2]}}, {{model: {b}, layer_range: [0, 2]}}]
- sources: [{{model: {a}, layer_range: [1, 2]}}]
""")
    got = dict(Engine(open_sources(list(uneven))).tensors(recipe))
    w0, wa, wb = ({n: t.double().numpy() for n, t in load_file(f"{f}/model.safetensors").items()} for f in uneven)

    def mean(w: dict[str, np.ndarray], names: list[str]) -> float:
        return float(np.mean(np.concatenate([(w[n] - w0[n]).ravel() for n in names]) ** 2))

    head = ["model.norm.weight", "lm_head.weight"]
    both = [n for n in w0 if "layers.0" in n or "layers.1" in n or "embed" in n]
    va, vb = mean(wa, [*both, *(n for n in w0 if "layers.1" in n), *head]), mean(wb, both)
    for name in both:
        expected = (va * wa[name] + vb * wb[name]) / (va + vb)
        np.testing.assert_allclose(got[name].double().numpy(), expected, rtol=2e-6, atol=1e-6)
    for name in head:
        np.testing.assert_allclose(got[name].double().numpy(), wa[name], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("unit", ["model", "layer"])
def test_live_and_exported_are_the_same_and_threads_change_nothing(unit: str, family: Family, tmp_path: Path) -> None:
    recipe = varm(family, f"{{unit: {unit}}}")
    engine = Engine(open_sources(list(family)), threads=3)
    engine.write(recipe, tmp_path / "out")
    live = live_model(family[0], torch.float32)
    engine.build_into(recipe, live)
    exported = load_file(tmp_path / "out" / "model.safetensors")
    one = dict(Engine(open_sources(list(family)), threads=1).tensors(recipe))
    for name, tensor in exported.items():
        assert torch.equal(tensor, one[name])
        assert torch.equal(live.state_dict()[name], tensor.float())


def test_nan_in_a_layer_is_refused(uneven: Family, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import save_file

    base, a, b = uneven
    folder = Path(shutil.copytree(a, tmp_path / "a"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.input_layernorm.weight"][0] = float("inf")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    broken = (base, str(folder), b)
    with pytest.raises(CandidateError, match=r'layers.2.input_layernorm.weight" of ".*a" has them already'):
        dict(Engine(open_sources(list(broken))).tensors(varm(broken, "{unit: layer}")))


def test_the_choice_is_checked(family: Family) -> None:
    with pytest.raises(RecipeError, match=r'did you mean "layer"\? Valid: model, layer, matrix, element'):
        varm(family, "{unit: layers}")
