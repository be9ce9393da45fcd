"""Prefix reuse: the same logits to the bit from fewer layer evaluations, within a bound on memory."""

from __future__ import annotations

import random
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.recipe import Path
from evomerge.routing import LayerCounts, Router
from tests.routing.conftest import LAYERS, Pair, pair_of

MEGABYTE = 1_000_000


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def walk(pair: Pair, number: int, seed: int = 0) -> list[Path]:
    """Paths that begin alike now and then: each differs from the first one by a hop or two and a scale."""
    rng = random.Random(seed)
    found = []
    for _ in range(number):
        hops = [(pair.a, i) for i in range(LAYERS)]
        scales = [1.0] * LAYERS
        hops[rng.randrange(LAYERS)] = (rng.choice([pair.a, pair.b]), rng.randrange(LAYERS))
        scales[rng.randrange(LAYERS)] = rng.choice([0.8, 1.0, 1.25])
        if rng.random() < 0.3:
            at = rng.randrange(LAYERS)
            hops.insert(at, hops[at])
            scales.insert(at, 1.0)
        found.append(Path.scaled(hops, scales, embeddings=rng.choice([pair.a, pair.a, pair.b]), head=pair.a))
    return found


def batches(count: int = 2) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(3, 130, (2 + i, 8 + i), generator=generator)} for i in range(count)]


def observed(router: Router) -> tuple[Counter[str], Callable[[], None]]:
    """Counts what each kind of layer is called for: attention modules are called where a layer really runs."""
    calls: Counter[str] = Counter()

    def watch() -> None:
        for copies in router._hops.values():
            for hop in copies:
                attention = next(m for n, m in hop.layer.named_modules() if n in ("self_attn", "attention", "attn"))
                if not hasattr(attention, "watched"):
                    attention.watched = attention.register_forward_hook(lambda *_: calls.update(["run"]))

    return calls, watch


@pytest.mark.parametrize("limit", [3_000, 20_000, MEGABYTE])
def test_logits_are_the_same_to_the_bit(any_pair: Pair, limit: int) -> None:
    reusing, plain = any_pair.router(prefix_bytes=limit), any_pair.router()
    asked = run = 0
    for path in walk(any_pair, 25):
        model, expected = reusing.route(path), plain.route(path)
        for batch in batches():
            assert torch.equal(model(**batch).logits, expected(**batch).logits)
            assert reusing._passes.kept.bytes <= limit
        sequences = sum(len(b["input_ids"]) for b in batches())
        assert plain.counts == LayerCounts(len(path.hops) * sequences, len(path.hops) * sequences)
        assert reusing.counts.asked == plain.counts.asked
        asked, run = asked + reusing.counts.asked, run + reusing.counts.run
    assert run < asked
    if limit == MEGABYTE:
        assert asked / run > 1.3


def test_hops_before_the_start_do_not_run(llama: Pair) -> None:
    router = llama.router(prefix_bytes=MEGABYTE)
    calls, watch = observed(router)
    a, b = llama.a, llama.b
    (batch,) = batches(1)
    sequences = len(batch["input_ids"])

    def run(hops: list[tuple[str, int]], scales: list[float] | None = None, **ends: Any) -> tuple[int, LayerCounts]:
        model = router.route(Path.scaled(hops, scales, **ends))
        watch()
        calls.clear()
        model(**batch)
        return calls["run"], router.counts

    first = [(a, 0), (a, 1), (a, 2), (a, 3)]
    assert run(first) == (4, LayerCounts(4 * sequences, 4 * sequences))
    # Another last hop, a longer path, a shorter one, the same again.
    assert run([*first[:3], (b, 3)]) == (1, LayerCounts(4 * sequences, sequences))
    assert run([*first, (b, 0), (b, 1)]) == (2, LayerCounts(6 * sequences, 2 * sequences))
    assert run(first[:2]) == (0, LayerCounts(2 * sequences, 0))
    assert run(first) == (0, LayerCounts(4 * sequences, 0))
    # Only the head differs.
    assert run(first, head=b) == (0, LayerCounts(4 * sequences, 0))
    # Embeddings differ, an early scale differs, a late one does, the first hop is another source's.
    assert run(first, embeddings=b)[0] == 4
    assert run(first, [0.9, 1, 1, 1])[0] == 4
    assert run(first, [1, 1, 0.9, 1])[0] == 2
    assert run([(b, 0), *first[1:]])[0] == 4


def test_what_goes_in_is_told_apart(llama: Pair) -> None:
    router, plain = llama.router(prefix_bytes=MEGABYTE), llama.router()
    path = llama.identity(llama.a)
    ids = batches(1)[0]["input_ids"]
    mask = torch.ones_like(ids)
    padded = mask.clone()
    padded[0, :3] = 0
    positions = torch.arange(ids.shape[1])[None].expand_as(ids)
    inputs: list[dict[str, Tensor]] = [
        {"input_ids": ids},
        {"input_ids": ids.flip(1)},
        {"input_ids": ids[:1]},
        {"input_ids": ids, "attention_mask": mask},
        {"input_ids": ids, "attention_mask": padded},
        {"input_ids": ids, "attention_mask": padded.bool()},
        {"input_ids": ids, "position_ids": positions},
        {"input_ids": ids, "position_ids": positions + 3},
        {"input_ids": ids, "attention_mask": padded, "position_ids": positions},
    ]
    for again in (False, True):
        for given in inputs:
            live, expected = router.route(path)(**given).logits, plain.route(path)(**given).logits
            assert torch.equal(live, expected)
            assert router.counts.run == (0 if again else router.counts.asked)
    # However it is written.
    assert torch.equal(router.route(path)(ids).logits, plain.route(path)(ids).logits)
    router.route(path)(ids, attention_mask=None, use_cache=False, return_dict=True, logits_to_keep=2)
    assert router.counts.run == 0


@pytest.mark.parametrize(
    "more",
    [
        {"use_cache": True},
        {"output_hidden_states": True},
        {"output_attentions": True},
        {"labels": torch.zeros((2, 8), dtype=torch.long)},
        {"something": 1},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_is_not_known_runs_plainly(llama: Pair, more: dict[str, Any]) -> None:
    router = llama.router(prefix_bytes=MEGABYTE)
    (batch,) = batches(1)
    router.route(llama.identity(llama.a))(**batch)
    kept = len(router._passes.kept)
    for _ in range(2):
        router.route(llama.identity(llama.a))(**batch, **more)
        assert router.counts.run == router.counts.asked > 0
    assert len(router._passes.kept) == kept


def test_gradients_and_embeddings_run_plainly(llama: Pair) -> None:
    router = llama.router(prefix_bytes=MEGABYTE)
    (batch,) = batches(1)
    path = llama.identity(llama.a)
    expected = router.route(path)(**batch).logits
    with torch.inference_mode(False), torch.enable_grad():
        ids = batches(1)[0]["input_ids"]
        model = router.route(path)
        logits = model(input_ids=ids).logits
        assert router.counts.run == router.counts.asked
        assert torch.equal(logits, expected)
        model(inputs_embeds=model.get_input_embeddings()(ids))
        assert router.counts.run == router.counts.asked
    with torch.inference_mode(False), torch.no_grad():
        # What was kept in inference mode serves outside of it.
        assert torch.equal(router.route(path)(input_ids=ids).logits, expected)
        assert router.counts.run == 0


def test_generation_does_not_reuse_but_may_follow(llama: Pair) -> None:
    router, plain = llama.router(prefix_bytes=MEGABYTE), llama.router()
    ids = batches(1)[0]["input_ids"]
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    for path in walk(llama, 4):
        model, expected = router.route(path), plain.route(path)
        model(ids)
        assert torch.equal(model.generate(ids, **options), expected.generate(ids, **options))
        assert torch.equal(model(ids).logits, expected(ids).logits)


def test_a_pass_that_fails_leaves_nothing_behind(llama: Pair) -> None:
    router = llama.router(prefix_bytes=MEGABYTE)
    (batch,) = batches(1)
    path = llama.identity(llama.a)
    model = router.route(path)
    broken = model.get_submodule("model.layers.2").register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**batch)
    broken.remove()
    assert torch.equal(model(**batch).logits, llama.router().route(path)(**batch).logits)
    # The base model by itself is none of the passes that are watched.
    inner = model.get_submodule("model")
    assert torch.equal(inner(**batch).last_hidden_state, inner(**batch).last_hidden_state)


def test_what_is_counted_does_not_grow_for_ever(llama: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.routing.passes._COUNTED", 40)
    router, plain = llama.router(prefix_bytes=MEGABYTE), llama.router()
    (batch,) = batches(1)
    for path in walk(llama, 60):
        router.route(path)
        assert len(router._passes._seen) <= 40 + len(path.hops)
        assert router._passes._seen[router._passes._prefixes[-1]] > 0, "the newest are worth keeping"
    assert torch.equal(router.route(path)(**batch).logits, plain.route(path)(**batch).logits)
    plain.route(path)
    assert not plain._passes._seen, "nothing is counted where nothing is kept"


def test_unloading_gives_the_memory_back(llama: Pair) -> None:
    """Evaluators hold on to the model, and a layer on a path to everything."""
    router = llama.router(prefix_bytes=MEGABYTE)
    (batch,) = batches(1)
    path = llama.paths()["swaps"]
    model = router.route(path)
    expected = model(**batch).logits
    weights = [weakref.ref(p) for resident in router._residents.values() for p in resident.live.parameters()]
    states = [weakref.ref(entry.state) for entry in router._passes.kept._entries.values()]
    assert len(weights) > 20 and len(states) == len(path.hops)
    router.unload()
    assert not any(ref() is not None for ref in (*weights, *states))
    again = router.route(path)
    assert again is not model and torch.equal(again(**batch).logits, expected)
    assert router.counts.run == router.counts.asked


@pytest.mark.parametrize("settings", [{"output_hidden_states": True}, {"use_cache": True}])
def test_settings_of_the_model_count_too(llama: Pair, settings: dict[str, bool]) -> None:
    router = llama.router(prefix_bytes=MEGABYTE)
    (batch,) = batches(1)
    model = router.route(llama.identity(llama.a))
    model(**batch)
    for key, value in settings.items():
        setattr(model.config, key, value)
    before = router.counts.run
    model(**batch)
    assert router.counts.run == 2 * before


@pytest.mark.parametrize("task", ["loglikelihood", "loglikelihood_rolling"])
def test_through_lm_eval(make: Callable[..., str], task: str) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from evomerge.merging.live import load_tokenizer

    pair = pair_of("llama", make)
    tokenizer = load_tokenizer(pair.sources[pair.a])
    words = [w for w in tokenizer.get_vocab() if w.isalpha()][:30]
    rng = random.Random(0)
    texts = [(" ".join(rng.choices(words, k=rng.randint(2, 9))), " " + rng.choice(words)) for _ in range(20)]
    arguments = [(a + b,) if task.endswith("rolling") else (a, b) for a, b in texts]
    requests = [Instance("loglikelihood", {}, arguments=a, idx=i) for i, a in enumerate(arguments)]

    def answers(router: Router) -> tuple[list[Any], int, int]:
        harness, found, asked, run = None, [], 0, 0
        for path in walk(pair, 8):
            model = router.route(path)
            if harness is None:
                harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
            found.append(getattr(harness, task)(requests, disable_tqdm=True))
            asked, run = asked + router.counts.asked, run + router.counts.run
        return found, asked, run

    with torch.inference_mode():
        plain, asked, run = answers(pair.router())
        assert asked == run
        reused, asked_again, fewer = answers(pair.router(prefix_bytes=20 * MEGABYTE))
    assert reused == plain
    assert asked_again == asked and fewer < run
