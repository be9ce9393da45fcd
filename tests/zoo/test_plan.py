"""Which parameters each model learns with."""

from __future__ import annotations

import torch

from evomerge.zoo.model import build_model
from evomerge.zoo.plan import COURSES, Part, Plan


def learned(name: str, plan: Plan) -> set[str]:
    model = build_model(plan.width, plan.layers, torch.Generator().manual_seed(0))
    return {n for n, _ in model.named_parameters() if plan.part(name).holds(n, plan.layers)}


def test_layer_local_experts_share_no_parameter() -> None:
    plan = Plan(width=32)
    lower, upper, every = (learned(name, plan) for name in ("kovesh_lower", "maths_upper", "kovesh"))
    assert every - lower - upper == {"model.norm.weight"}
    assert not lower & upper
    assert {n for n in lower if "layers" not in n} == {"model.embed_tokens.weight"}
    assert {n.split(".")[2] for n in lower if "layers" in n} == {"0", "1"}
    assert {n.split(".")[2] for n in upper} == {"2", "3"}


def test_only_they_freeze_anything() -> None:
    assert [name for name, course in COURSES.items() if course.part is not Part.ALL] == ["kovesh_lower", "maths_upper"]


def test_layer_local_experts_have_the_lessons_of_the_whole_ones() -> None:
    assert COURSES["kovesh_lower"].lessons == COURSES["kovesh"].lessons
    assert COURSES["maths_upper"].lessons == COURSES["maths"].lessons


def test_a_models_place_is_its_seed() -> None:
    """Reordering the table would train other checkpoints from the same seed."""
    trained = ["maths", "kovesh", "sorting", "ceiling", "ceiling_target", "kovesh_lower", "maths_upper"]
    assert list(COURSES)[: len(trained)] == trained


def test_a_ceiling_sees_as_much_as_the_fine_tunes_together() -> None:
    plan = Plan()
    assert plan.schedule("ceiling").steps == plan.schedule("maths").steps + plan.schedule("kovesh").steps
    assert plan.schedule("ceiling").rate == plan.schedule("maths").rate
