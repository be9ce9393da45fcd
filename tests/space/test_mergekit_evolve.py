"""A mergekit-evolve configuration: its genome against mergekit's own, its options as an evaluator's, what is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from evomerge.evaluation.config import Splits
from evomerge.merging.engine import Engine
from evomerge.recipe import Recipe, parse_recipe
from evomerge.recipe.consistency import unlike_mergekit
from evomerge.sources import open_sources
from evomerge.space import SpaceConfig, load_space, parse_space
from evomerge.space.mergekit_evolve import SHARES, Migrated
from tests.merging.conftest import exact_family, make  # noqa: F401

LAYERS = 3  # of the family's models
# What gets the last value of a gradient here, and the first there (docs/methods.md).
AFTER = ("model.norm.weight", "lm_head.weight")
GENOMES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "base_model": None},
    "linear by layers": {"merge_method": "linear", "base_model": None, "layer_granularity": 1},
    "not normalised": {"merge_method": "linear", "base_model": None, "normalize": False},
    "task arithmetic": {"merge_method": "task_arithmetic", "layer_granularity": 3},
    "negative weights": {"merge_method": "task_arithmetic", "allow_negative_weights": True, "layer_granularity": 1},
    "filters": {"merge_method": "task_arithmetic", "filters": ["self_attn", "mlp"], "layer_granularity": 1},
    "smooth": {"merge_method": "task_arithmetic", "smooth": True, "layer_granularity": 1},
    "smooth with filters": {
        "merge_method": "ties", "smooth": True, "layer_granularity": 1, "filters": ["mlp"],
    },
    "ties": {"merge_method": "ties", "layer_granularity": 1},
    "ties with filters": {"merge_method": "ties", "filters": ["self_attn"]},
    "slerp": {"merge_method": "slerp", "base_model": None, "layer_granularity": 1},
}  # fmt: skip


def file_of(genome: dict[str, Any], family: tuple[str, str, str]) -> dict[str, Any]:
    base, *models = family
    made = {"models": models, "base_model": base, **genome}
    return {"genome": {k: v for k, v in made.items() if v is not None}, "tasks": ["gsm8k_train"]}


Tensors = dict[str, torch.Tensor]


def theirs(file: dict[str, Any], genotype: torch.Tensor, out: Path) -> tuple[str, Tensors, Tensors]:
    """What mergekit-evolve makes of a genotype: its recipe, what mergekit builds of it, and the same in float32."""
    from mergekit.evo.config import EvolMergeConfiguration
    from mergekit.evo.genome import ModelGenome
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    genome = ModelGenome(EvolMergeConfiguration.model_validate(file).genome)
    config = genome.genotype_merge_config(genotype)
    options = MergeOptions(quiet=True, write_model_card=False, copy_tokenizer=False)
    run_merge(config, str(out / "own"), options)
    run_merge(config.model_copy(update={"dtype": "float32"}), str(out / "float32"), options)
    return config.to_yaml(), read(out / "own"), read(out / "float32")


def read(folder: Path) -> Tensors:
    return {n: t for part in folder.glob("*.safetensors") for n, t in load_file(part).items()}


@pytest.mark.parametrize("name", GENOMES)
def test_a_candidate_is_mergekit_evolves(
    name: str, exact_family: tuple[str, str, str], tmp_path: Path  # noqa: F811
) -> None:
    """The same numbers as a genotype there and as parameters here: the same weights; and its recipe is one of ours."""
    pytest.importorskip("mergekit")
    file = file_of(GENOMES[name], exact_family)
    (tmp_path / "evolve.yaml").write_text(yaml.safe_dump(file))
    config = load_space(tmp_path / "evolve.yaml")
    assert isinstance(config, SpaceConfig)
    space = config.bind(LAYERS)
    genome = file["genome"]
    groups = LAYERS // genome["layer_granularity"] if genome.get("layer_granularity") else 1
    sets = len(genome.get("filters", ())) + 1
    count = 2 if genome["merge_method"] == "ties" else 1
    drawn = torch.Generator().manual_seed(len(name))
    genotype = torch.rand(groups, 2, sets, count, generator=drawn, dtype=torch.float64) * 0.8 + 0.15
    if genome.get("allow_negative_weights"):
        genotype[0, 0] *= -1
    recipe, wanted, exact = theirs(file, genotype, tmp_path / "theirs")
    sources = open_sources(list(dict.fromkeys(exact_family)))

    def ours(made: Recipe, out: Path) -> Tensors:
        Engine({r: sources[r] for r in made.references()}).write(made, out)
        return read(out)

    # The recipe that mergekit-evolve left behind gives the weights that it gave.
    old = parse_recipe(recipe)
    assert old.modules is not None  # so mergekit leaves it beside the model
    unlike = AFTER if genome.get("smooth") else ()
    assert bool(list(unlike_mergekit(old))) == bool(unlike)  # and says so
    compare(ours(old.model_copy(update={"dtype": "float32"}), tmp_path / "float32"), exact, unlike)
    built = ours(old, tmp_path / "old")
    compare_rounded(built, wanted, exact, unlike)

    # It is a point of the space, which gives these weights as well.
    params = space.encode(old)
    again = ours(space.decode(params), tmp_path / "again")
    if genome["merge_method"] == "slerp":  # from the other end
        compare_rounded(again, wanted, exact, ())
        return
    assert all(torch.equal(again[n], built[n]) for n in built) and again.keys() == built.keys()
    numbers = genotype.flatten().tolist()
    assert all(min(abs(v - n) for n in numbers) < 1e-9 for v in params.values())


def compare(found: Tensors, wanted: Tensors, without: tuple[str, ...]) -> None:
    assert found.keys() == wanted.keys()
    for name, values in found.items():
        if name in without:
            assert not torch.equal(values, wanted[name])
            continue
        torch.testing.assert_close(values, wanted[name], rtol=1e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


def compare_rounded(found: Tensors, wanted: Tensors, exact: Tensors, without: tuple[str, ...]) -> None:
    """In bfloat16 mergekit rounds after every step, we once: no further from the exact weights than it is."""
    for name, values in found.items():
        if name in without:
            continue
        assert values.dtype == wanted[name].dtype == torch.bfloat16
        off, theirs_off = ((t[name].float() - exact[name]).abs() for t in (found, wanted))
        assert off.mean() <= theirs_off.mean() + 1e-9
        assert (off <= exact[name].abs() * 2**-8 + 2e-6).all(), name  # half a unit in the last place


def migrated(text: str) -> Migrated:
    config = parse_space(text, "evolve.yaml")
    assert isinstance(config, SpaceConfig) and config.migrated is not None
    return config.migrated


GENOME = "genome: {models: [org/a, org/b], base_model: org/base, merge_method: ties}\n"


def test_its_options_are_an_evaluators() -> None:
    found = migrated(
        GENOME + "tasks:\n- gsm8k_train\n- {name: wikitext, metric: 'word_perplexity,none', weight: -0.5}\n"
        "limit: 100\nnum_fewshot: 5\nshuffle: true\nrandom_init: true\nfewshot_as_multiturn: false\n"
    )
    assert found.evaluator == {
        "tasks": [
            {"name": "gsm8k_train", "metric": "acc,none", "weight": 1.0},
            {"name": "wikitext", "metric": "word_perplexity,none", "weight": 0.5, "higher_is_better": False},
        ],
        "num_fewshot": 5,
        "apply_chat_template": True,
        "fewshot_as_multiturn": False,
        "splits": {"search": {"share": 0.3, "limit": 100}},
    }
    assert not found.asked
    for words in (
        "weights are searched from 0 to 2, from 0.5 on", "density is searched from 0.01 to 1", "search 30%, select 20%",
        "weighted mean", "limit: 100 items", "shuffle", "random_init", "better when lower: wikitext",
    ):  # fmt: skip
        assert sum(words in line for line in (*found.changes, *found.scored)) == 1, words


def test_shares_are_an_evaluators_own() -> None:
    assert {n: Splits().of(n).share for n in SHARES} == SHARES  # type: ignore[arg-type]


def test_what_is_written_is_asked_for_and_what_is_not_is_a_default() -> None:
    assert migrated(GENOME + "tasks: [a]\napply_chat_template: true").asked
    off = migrated(GENOME + "tasks: [a]\napply_chat_template: false")
    assert not off.asked and "apply_chat_template" not in off.evaluator and "fewshot_as_multiturn" not in off.evaluator
    assert migrated(GENOME).evaluator == {}


@pytest.mark.parametrize(
    ("genome", "words"),
    [
        ("{models: [a, b], merge_method: slerp}", 'slerp: t goes from "a" (0) to "b" (1)'),
        ("{models: [a, b, base], base_model: base, merge_method: ties}", '"base" is the base'),
        ("{models: [a, b], base_model: c, merge_method: dare_ties}", "random masks"),
        ("{models: [a, b, a], base_model: c, merge_method: ties}", "named more than once: a; each is one source"),
        ("{models: [a, b], merge_method: linear, filters: [attn, mlp, attn.q]}", "leaves no tensor for attn.q"),
        ("{models: [a], base_model: c, merge_method: ties, smooth: true, layer_granularity: 1}", "smooth: final norm"),
        ("{models: [a, b], merge_method: linear, allow_negative_weights: true}", "from -2 to 2"),
    ],
)
def test_what_is_done_in_another_way_is_told(genome: str, words: str) -> None:
    assert [line for line in migrated(f"genome: {genome}\ntasks: [x]").changes if words in line]


def test_a_task_twice_is_refused() -> None:
    from evomerge.errors import SpaceError

    with pytest.raises(SpaceError, match=r'"arc" is named 2 times \(acc,none, acc_norm,none\).*keep one'):
        migrated(GENOME + "tasks: [arc, {name: arc, metric: 'acc_norm,none'}]")


def test_models_as_mergekit_writes_them_out() -> None:
    text = (
        "genome: {models: [{model: {path: org/a, revision: v1}}, {model: org/b, lora: {path: org/c}}], "
        "merge_method: linear}\ntasks: [x]"
    )
    config = parse_space(text)
    assert [s.model for s in config.sources] == ["org/a@v1", "org/b+org/c"]


def test_a_model_twice_and_a_dead_filter_are_one_place_each() -> None:
    text = "genome: {models: [a, b, a], base_model: c, merge_method: ties, filters: [attn, attn.q]}\ntasks: [x]"
    config = parse_space(text)
    assert isinstance(config, SpaceConfig)
    assert [s.name for s in config.sources] == ["a", "b"] and list(config.granularity.modules) == ["attn"]


def test_what_lm_eval_has_as_better_when_lower_is_told() -> None:
    text = GENOME + "tasks: [{name: wikitext, metric: 'word_perplexity,none'}, {name: b, weight: -1}]"
    assert [line for line in migrated(text).scored if "searched for less of it: wikitext" in line]


def test_metrics_that_are_better_when_lower_are_lm_evals() -> None:
    from lm_eval.api import metrics, registry

    from evomerge.space.mergekit_evolve import LOWER

    assert metrics  # which registers them
    assert set(LOWER) == {name for name, higher in registry.HIGHER_IS_BETTER_REGISTRY.items() if not higher}
