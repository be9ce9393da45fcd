"""Spaces that the tests of this folder share."""

from __future__ import annotations

from typing import Any

import yaml

from evomerge.space import SpaceConfig, parse_space

SOURCES = ["zoo:maths", "zoo:kovesh"]
WEIGHT = {"low": -0.5, "high": 1.5, "init": 0.5}
DENSITY = {"low": 0.05, "high": 1.0}
GRANULARITIES: dict[str, dict[str, Any]] = {
    "whole": {},
    "whole, embeddings own": {"embeddings": "own"},
    "modules": {"modules": {"attention": "attn", "mlp": "mlp"}},
    "modules with a rest": {"modules": {"attention": "attn", "mlp": ["mlp", "*"], "norm": "norm"}},
    "groups": {"layer_groups": 3, "embeddings": "layers"},
    "groups, embeddings together": {"layer_groups": 2, "embeddings": "together"},
    "layers x modules": {"layers_per_group": 1, "modules": {"attention": ["attn", "attention."], "mlp": "*"}},
    "smooth": {"layers_per_group": 2, "smooth": True, "modules": {"attention": "attn"}},
    "smooth, bare": {"layer_groups": 4, "smooth": True, "embeddings": "layers"},
}
INNER = {"low": 0.3, "high": 0.7}  # leaves room for DELLA's epsilon
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weight": WEIGHT},
    "slerp": {"t": {"low": 0, "high": 1}},
    "nuslerp": {"weight": {**WEIGHT, "low": 0.0}, "nuslerp_flatten": False},
    "multislerp": {"weight": WEIGHT, "normalize_weights": False},
    "karcher": {"max_iter": {"low": 1, "high": 20}},
    "task_arithmetic": {"weight": WEIGHT, "lambda": {"low": 0.1, "high": 2, "log": True}},
    "ties": {"weight": WEIGHT, "density": DENSITY, "normalize": False},
    "dare_linear": {"weight": {**WEIGHT, "per": "source"}, "density": {**DENSITY, "per": ["layers"]}, "rescale": True},
    "dare_ties": {"weight": {**WEIGHT, "per": ["source", "modules"]}, "density": {**DENSITY, "per": "global"}},
    "della_linear": {"weight": WEIGHT, "density": INNER, "epsilon": {"low": 0.0, "high": 0.25, "per": "source"}},
    "della": {
        "weight": WEIGHT,
        "density": {**INNER, "per": "source"},
        "epsilon": 0.2,
        "lambda": {"low": 0.5, "high": 1.5},
    },
    "breadcrumbs": {"weight": WEIGHT, "density": DENSITY, "gamma": {"low": 0.001, "high": 0.2, "log": True}},
    "breadcrumbs_ties": {"weight": WEIGHT, "density": {**DENSITY, "per": "source"}, "gamma": 0.05, "rescale": True},
    "sce": {"select_topk": {"low": 0.05, "high": 1.0, "per": ["layers", "modules"]}},
    "model_stock": {"filter_wise": True},
    "nearswap": {"t": {"low": 0.0001, "high": 0.1, "log": True}},
    "ram": {"epsilon": {"low": 1e-6, "high": 1e-3, "log": True}},
    "ramplus_tl": {"r": {"low": 0.0, "high": 1.0}, "alpha": {"low": 0.0, "high": 0.5, "per": "layers"}},
    "arcee_fusion": {},
    "varm": {"unit": "layer"},
    "tsv": {"weight": WEIGHT, "share": {"low": 0.1, "high": 0.5}},
    "iso_c": {"weight": WEIGHT, "lambda": {"low": 0.5, "high": 2.0}},
    "passthrough": {"scale": {"low": 0.5, "high": 1.5}},
}
ONE_SOURCE = ("slerp", "nearswap", "arcee_fusion", "passthrough")


def make(**keys: Any) -> SpaceConfig:
    """A space from keys, as if written in a file."""
    return parse_space(yaml.safe_dump({"base_model": "zoo:base", "sources": SOURCES, **keys}), "space.yaml")


def of_method(method: str, granularity: str) -> SpaceConfig:
    """A space for one method of the table."""
    sources = SOURCES[:1] if method in ONE_SOURCE else SOURCES
    return make(
        method=method, sources=sources, granularity=GRANULARITIES[granularity], parameters=METHODS[method],
        dtype="float32", tokenizer_source="base",
    )  # fmt: skip


def gene() -> SpaceConfig:
    """Several methods as a gene, with parameters that not all of them take."""
    return make(
        method=["linear", "ties", "dare_linear"],
        granularity=GRANULARITIES["layers x modules"],
        parameters={"weight": WEIGHT, "density": {**DENSITY, "per": "source"}},
    )
