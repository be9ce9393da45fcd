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
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weight": WEIGHT},
    "slerp": {"t": {"low": 0, "high": 1}},
    "task_arithmetic": {"weight": WEIGHT, "lambda": {"low": 0.1, "high": 2, "log": True}},
    "ties": {"weight": WEIGHT, "density": DENSITY, "normalize": False},
    "dare_linear": {"weight": {**WEIGHT, "per": "source"}, "density": {**DENSITY, "per": ["layers"]}, "rescale": True},
    "dare_ties": {"weight": {**WEIGHT, "per": ["source", "modules"]}, "density": {**DENSITY, "per": "global"}},
    "passthrough": {"scale": {"low": 0.5, "high": 1.5}},
}
ONE_SOURCE = ("slerp", "passthrough")


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
