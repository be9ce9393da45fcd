"""Skills on the two-marker task: static weights, a gate by the prompt, and mixing outputs instead of parameters.

    python benchmarks/skills.py [--seeds 0 1 2] [--work runs/skills] [--out FILE.json] [--rates]

For each seed a base and two adapters are trained (skills_task.py), put into a library, and composed:

routing: X asks for +1, Y for reverse. oracle: the right adapter for each marker. static: the best of searches by exact
match (`kind: skills`: a weight for each skill; for each layer and skill), and of all of a 7 x 7 grid. gate: 256
examples, 300 steps. shuffled: the same, from the same first weights and in the same order, trained and tested on the
contexts of other prompts. outputs: the same gate over logits instead of parameters.

composed: Z asks for reverse after +1, of which there are 32 examples. Parameters: W_0 + a B_1 A_1 + b B_2 A_2.
Outputs: logits_0 + a (logits_1 - logits_0) + b (logits_2 - logits_0). Each by the same grid, by the same gate, and by
CMA-ES with 400 candidates over about as many weights: 12 of layers and modules, 10 of tokens of the answer. And an
adapter trained on the 32 examples alone.

Exact match of greedy answers on 256 held-out prompts; of composed also the share of right tokens. One thread, two to
five minutes for each seed; a seed that is done by this very code is not measured again.

--rates: the gate at several learning rates instead, on other held-out prompts than those of the tables: what GATE's was
chosen by.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cma
import peft
import skills_task as task
import torch
import transformers
import yaml
from by_seed import kept, parser_of, tell
from skills_outputs import Outputs
from skills_score import NEW_TOKENS, decoded, share
from torch import Tensor

import evomerge.skills
from evomerge.library import Library
from evomerge.pipeline import Options, search
from evomerge.skills import GatedModel, add, read_library
from evomerge.skills.examples import Example, tokenized
from evomerge.skills.gate import Gate
from evomerge.skills.training import GateTraining, fit, pooled_prompts, train_gate
from evomerge.study.budget import Budget
from evomerge.study.workers import Cluster

BASE_STEPS, ADAPTER_STEPS = 600, 600
EXAMPLES, FEW, TEST = 256, 32, 256
SEARCHED = 400
BUDGET, FINE_BUDGET = 60, 400
# Layers that say where to look, and those that say what to write.
MODULES = {"query_key": ["q_proj", "k_proj"], "value_output": ["v_proj", "o_proj"], "mlp": "*"}
GRID = [x / 2 for x in range(-3, 4)]
GATE = GateTraining(steps=300, learning_rate=1e-2, batch_size=16)
RATES = (1e-3, 3e-3, 1e-2, 2e-2)
VALIDATION_SEED = 300


def trained(seed: int, work: Path) -> Library:
    """The library of a seed, made where it is missing; the base and the adapters lie beside it."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "base" / "model.safetensors").is_file():
        task.train_base(work / "base", seed, BASE_STEPS)
    library = None
    for name, rule in task.RULES.items():
        if not (work / name / "adapter_model.safetensors").is_file():
            task.train_adapter(work / "base", work / name, rule, seed, ADAPTER_STEPS)
        if not (work / "library" / name).is_dir():
            library = add(work / "library", name, work / name, description=f"{rule.__doc__}")
    return library or read_library(work / "library")


def examples(found: Sequence[task.Item]) -> list[Example]:
    """Items as a gate learns from them."""
    return [Example(i.prompt, f" {i.answer}", i.prompt) for i in found]


class Bench:
    """One seed's models, and what is measured of them."""

    def __init__(self, library: Library, work: Path, seed: int) -> None:
        self.library, self.work, self.seed = library, work, seed
        self.base = library.folder.parent / "base"
        self.routing = task.items(("X", "Y"), TEST, seed, held_out=True)
        self.composed = task.items(("Z",), TEST, seed, held_out=True)
        self.learned = task.items(("X", "Y"), EXAMPLES, seed + 100, held_out=False)
        self.few = task.items(("Z",), FEW, seed + 100, held_out=False)

    @property
    def training(self) -> GateTraining:
        """How this seed's gates are trained."""
        return replace(GATE, seed=self.seed)

    def gate(self, name: str, found: Sequence[task.Item], **options: Any) -> GatedModel:
        """A trained gate, as the command trains and writes it.

        Args:
            **options: Of its training, others than all gates have.
        """
        out = self.work / name
        training = replace(self.training, **options)
        train_gate(self.library, self.library.names, examples(found), out, training, overwrite=out.exists())
        return GatedModel.from_pretrained(out)

    def score(
        self, model: GatedModel, found: Sequence[task.Item], weights: Tensor | None = None
    ) -> tuple[float, float]:
        """Exact match and share of right tokens.

        Args:
            weights: Instead of the gate's; [1 or items, groups, skills].
        """
        inputs = model.tokenizer([i.prompt for i in found], return_tensors="pt", padding=True)
        ids = inputs["input_ids"]
        if weights is not None and len(weights) == 1:
            weights = weights.expand(len(found), -1, -1)
        out = model.generate(ids, inputs["attention_mask"], weights=weights, max_new_tokens=NEW_TOKENS, do_sample=False)
        return scored(decoded(model.tokenizer, out[:, ids.shape[1] :]), found)

    def searched(self, name: str, granularity: Mapping[str, Any], few: bool = False) -> Found:
        """The project's own search of static weights.

        Args:
            few: Of the composed task, by the share of right tokens of its few examples; else of the routing task, by
                exact match.
        """
        folder = self.work / f"search-{name}"
        folder.mkdir(exist_ok=True)
        rows = self.few if few else task.items(("X", "Y"), SEARCHED, self.seed + 200, held_out=False)
        lines = [json.dumps({"prompt": i.prompt, "answer": i.answer}) for i in rows]
        (folder / "items.jsonl").write_text("\n".join(lines) + "\n")
        score = Path(__file__).resolve().with_name("skills_score.py")
        shares = (0.8, 0.1, 0.1) if few else (0.5, 0.3, 0.2)
        evaluator = {
            "kind": "python", "function": f"{score}:{'tokens' if few else 'exact'}", "items": "items.jsonl",
            "tasks": ["two_markers"],
            "splits": {n: {"share": x} for n, x in zip(("search", "select", "test"), shares, strict=True)},
        }  # fmt: skip
        space = {"kind": "skills", "library": str(self.library.folder.resolve()), "granularity": dict(granularity)}
        for file, data in (("space", space), ("evaluator", evaluator)):
            (folder / f"{file}.yaml").write_text(yaml.safe_dump(data))
        asked = Options(
            budget=Budget(candidates=FINE_BUDGET if few else BUDGET), space=folder / "space.yaml",
            evaluator=folder / "evaluator.yaml", out=folder / "run", study=f"skills-{name}", seed=self.seed,
            cluster=Cluster(workers=0), fidelity="full",
        )  # fmt: skip
        return Found({k: float(v) for k, v in search(asked).best.params.items()}, folder / "run" / "model")

    def generated(self, model: Any, found: Sequence[task.Item]) -> tuple[float, float]:
        """Exact match and share of right tokens of a plain model."""
        inputs = task.tokenizer()([i.prompt for i in found], return_tensors="pt")
        ids = inputs["input_ids"]
        out = model.generate(
            input_ids=ids, attention_mask=inputs["attention_mask"], max_new_tokens=NEW_TOKENS, do_sample=False
        )
        return scored(decoded(task.tokenizer(), out[:, ids.shape[1] :]), found)


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        params: The winner's.
        model: Folder of its checkpoint.
    """

    params: Mapping[str, float]
    model: Path


def scored(answers: Sequence[str], found: Sequence[task.Item]) -> tuple[float, float]:
    """Exact match and share of right tokens."""
    pairs = [(a.split(), i.answer.split()) for a, i in zip(answers, found, strict=True)]
    return statistics.mean(float(a == b) for a, b in pairs), statistics.mean(share(a, b) for a, b in pairs)


def best_of_grid(score: Callable[[Tensor], tuple[float, float]]) -> Tensor:
    """The weights of the grid that do best: exact match, of equals the share of right tokens. [1, 1, 2]."""
    grid = [torch.tensor([[[a, b]]]) for a in GRID for b in GRID]
    return max(grid, key=score)


def by_token(outputs: Outputs, bench: Bench) -> Tensor:
    """Weights of outputs for each token of the answer, [1, tokens, 2]: as many numbers to choose as parameters have,
    by the same kind of search, metric and budget."""
    tokens = task.LENGTH + 1
    options = {"bounds": [-1.5, 1.5], "seed": bench.seed + 1, "verbose": -9, "maxfevals": FINE_BUDGET}
    strategy = cma.CMAEvolutionStrategy([0.5] * (2 * tokens), 0.375, options)
    best: tuple[float, Tensor] = (-1.0, torch.zeros(1, tokens, 2))
    while not strategy.stop():
        asked = strategy.ask()
        weights = [torch.tensor(x, dtype=torch.float32).view(1, tokens, 2) for x in asked]
        values = [scored(outputs.answers(bench.few, w), bench.few)[1] for w in weights]
        strategy.tell(asked, [-v for v in values])
        best = max([best, *zip(values, weights, strict=True)], key=lambda found: found[0])
    return best[1]


def routing(bench: Bench) -> dict[str, float]:
    """The first table: exact match on the held-out prompts of X and Y."""
    gate = bench.gate("gate", bench.learned)
    names = list(gate.skills)
    one_hot = torch.eye(2)
    right = {"X": names.index("plus-one"), "Y": names.index("reverse")}
    oracle = torch.stack([one_hot[right[i.marker]] for i in bench.routing]).unsqueeze(1)
    found: dict[str, float] = {"oracle": bench.score(gate, bench.routing, oracle)[0]}
    for name, number in (("plus-one alone", names.index("plus-one")), ("reverse alone", names.index("reverse"))):
        found[name] = bench.score(gate, bench.routing, one_hot[number].view(1, 1, 2))[0]
    grid = best_of_grid(lambda w: bench.score(gate, bench.learned, w))
    found["static, grid"] = bench.score(gate, bench.routing, grid)[0]
    params = bench.searched("skill", {}).params
    weights = torch.tensor([[[params[f"weight.{n}"] for n in names]]])
    found["static, search"] = bench.score(gate, bench.routing, weights)[0]
    params = bench.searched("layer", {"layer_groups": 2}).params
    layers = torch.tensor([[[params[f"weight.{n}.layer_{i}"] for n in names] for i in range(2)]])
    layered = bench.gate("gate-per-layer", bench.learned, per_layer=True)
    found["static, search per layer"] = bench.score(layered, bench.routing, layers)[0]
    found["gate"] = bench.score(gate, bench.routing)[0]
    found["gate per layer"] = bench.score(layered, bench.routing)[0]
    found["shuffled contexts"] = shuffled(bench)
    outputs = Outputs(gate)
    outputs.train(bench.learned, bench.seed, bench.training)
    found["outputs, gate"] = scored(outputs.answers(bench.routing), bench.routing)[0]
    return found


def shuffled(bench: Bench) -> float:
    """The same gate, which reads other prompts' contexts, in training and in testing."""
    model = GatedModel.from_pretrained(bench.work / "gate")
    first = Gate(model.gate.inner.in_features, 2, width=GATE.width, generator=torch.Generator().manual_seed(bench.seed))
    model.gate.load_state_dict(first.state_dict())
    generator = torch.Generator().manual_seed(bench.seed)
    learned = [t for t in tokenized(examples(bench.learned), model.tokenizer, 1024) if t is not None]
    pooled = pooled_prompts(model, learned)
    fit(model, learned, bench.training, pooled[torch.randperm(len(pooled), generator=generator)])
    tested = [t for t in tokenized(examples(bench.routing), model.tokenizer, 1024) if t is not None]
    other = pooled_prompts(model, tested)[torch.randperm(len(tested), generator=generator)]
    with torch.no_grad():
        return bench.score(model, bench.routing, model.gate(other))[0]


def composed(bench: Bench) -> dict[str, dict[str, float]]:
    """The second table: reverse after +1, from 32 examples."""
    gate = bench.gate("gate-composed", bench.few)
    outputs = Outputs(gate)
    found: dict[str, tuple[float, float]] = {}
    ones = torch.ones(1, 1, 2)
    found["parameters, both weights 1"] = bench.score(gate, bench.composed, ones)
    best = best_of_grid(lambda w: bench.score(gate, bench.few, w))
    found["parameters, grid"] = bench.score(gate, bench.composed, best)
    found["parameters, gate"] = bench.score(gate, bench.composed)
    layered = bench.gate("gate-composed-per-layer", bench.few, per_layer=True)
    found["parameters, gate per layer"] = bench.score(layered, bench.composed)
    merged = bench.searched("composed", {"layer_groups": 2, "modules": MODULES}, few=True).model
    static = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    found["parameters, search per layer and module"] = bench.generated(static, bench.composed)
    found["outputs, both weights 1"] = scored(outputs.answers(bench.composed, ones), bench.composed)
    best_outputs = best_of_grid(lambda w: scored(outputs.answers(bench.few, w), bench.few))
    found["outputs, grid"] = scored(outputs.answers(bench.composed, best_outputs), bench.composed)
    each = by_token(outputs, bench)
    found["outputs, search per token"] = scored(outputs.answers(bench.composed, each), bench.composed)
    outputs.train(bench.few, bench.seed, bench.training)
    found["outputs, gate"] = scored(outputs.answers(bench.composed), bench.composed)
    alone = bench.work / "few-shot"
    if not alone.is_dir():
        task.train_few(bench.base, alone, bench.few, bench.seed, GATE.steps)
    live = transformers.AutoModelForCausalLM.from_pretrained(bench.base, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(live, alone).merge_and_unload().eval()
    found[f"an adapter trained on the {FEW} alone"] = bench.generated(adapted, bench.composed)
    return {name: {"exact": exact, "tokens": tokens} for name, (exact, tokens) in found.items()}


def measure(seed: int, models: Path, work: Path) -> dict[str, Any]:
    """Everything of one seed."""
    began = time.monotonic()
    bench = Bench(trained(seed, models), work, seed)
    found = {"routing": routing(bench), "composed": composed(bench)}
    return {**found, "held": held(found["routing"]), "seconds": round(time.monotonic() - began, 1)}


def validated(seed: int, models: Path, work: Path) -> dict[str, float]:
    """Exact match of the gate by its learning rate, on held-out prompts that are in no table."""
    bench = Bench(trained(seed, models), work, seed)
    tested = {i.prompt for i in bench.routing}
    drawn = task.items(("X", "Y"), 2 * TEST, seed + VALIDATION_SEED, held_out=True)
    others = [i for i in drawn if i.prompt not in tested][:TEST]
    return {
        f"{rate:g}": bench.score(bench.gate("rate", bench.learned, learning_rate=rate), others)[0] for rate in RATES
    }


def held(found: Mapping[str, float]) -> dict[str, bool]:
    """What was to be shown."""
    static = max(v for name, v in found.items() if name.startswith("static") or name.endswith("alone"))
    return {
        "oracle >= .95": found["oracle"] >= 0.95,
        "gate >= best static + .25": found["gate"] >= static + 0.25,
        "shuffled contexts <= best static": found["shuffled contexts"] <= static,
    }


def tables(results: Mapping[str, Any]) -> list[str]:
    """Both tables as Markdown."""
    seeds = list(results)
    head = [f" | {' | '.join(f'seed {s}' for s in seeds)} |", "|---|" + "---|" * len(seeds)]
    lines = ["Two markers, exact match:", "", f"| {head[0]}", head[1]]
    for name in results[seeds[0]]["routing"]:
        lines.append(f"| {name} | " + " | ".join(f"{results[s]['routing'][name]:.3f}" for s in seeds) + " |")
    lines += ["", "Reverse after +1, exact match (share of right tokens):", "", f"| {head[0]}", head[1]]
    for name in results[seeds[0]]["composed"]:
        cells = [results[s]["composed"][name] for s in seeds]
        lines.append(f"| {name} | " + " | ".join(f"{c['exact']:.3f} ({c['tokens']:.3f})" for c in cells) + " |")
    return lines


def key(files: Sequence[Path], *settings: object) -> str:
    """What code and settings something was made by, in 12 letters."""
    digest = hashlib.sha256(repr(settings).encode())
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def places(seed: int, work: Path) -> tuple[Path, Path]:
    """Where a seed's models lie, and where what is measured of them: by this very code."""
    here, room = Path(__file__).resolve().parent, Path(evomerge.skills.__file__).parent
    models = key([here / "skills_task.py"], BASE_STEPS, ADAPTER_STEPS)
    code = key([*here.glob("skills*.py"), *room.glob("*.py")])
    found = work / str(seed) / f"models-{models}", work / str(seed) / f"figures-{models}-{code}"
    for folder in found:
        folder.mkdir(parents=True, exist_ok=True)
    return found


def figures(seed: int, work: Path) -> dict[str, Any]:
    """Everything of one seed, measured where it is not there yet."""
    models, folder = places(seed, work)
    return kept(folder, lambda: measure(seed, models, folder))


def main() -> None:
    """Measure every seed; print the tables on stderr and everything as JSON on stdout, or into a file."""
    parser = parser_of(__doc__, "runs/skills", "models and searches")
    parser.add_argument("--rates", action="store_true", help="compare learning rates, by validation prompts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    if args.rates:
        results = {str(seed): validated(seed, *places(seed, args.work)) for seed in args.seeds}
    else:
        results = {str(seed): figures(seed, args.work) for seed in args.seeds}
    tell(results, () if args.rates else tables(results), args.out)


if __name__ == "__main__":
    main()
