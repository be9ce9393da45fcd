"""How much of what a model is given is padding, for search items scored whole and in the blocks of a race.

    python benchmarks/padding.py

The real harness runs a task that generates and one of choices; every batch that it hands to a model of the zoo is
counted, token by token. Beside it the same rows in the same batches without an order by length, which is what sorting
saves. The zoo's own prompts all have 7 or 10 tokens; these here have log-normal lengths.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from evomerge.evaluation import load_evaluator, open_evaluator
from evomerge.evaluation.draw import Draw
from evomerge.merging.live import live_model, load_tokenizer
from evomerge.sources import fetch, open_source
from evomerge.study.contest import Rules


class Counted:
    """Lengths of the rows of each batch that lm-eval makes."""

    def __init__(self, lm: Any) -> None:
        self.batches: list[list[int]] = []
        generate, call = lm._model_generate, lm._model_call

        def generated(context: Any, *args: Any, attention_mask: Any = None, **options: Any) -> Any:
            self.batches.append(attention_mask.sum(-1).tolist())
            return generate(context, *args, attention_mask=attention_mask, **options)

        def called(inputs: Any, *args: Any, **options: Any) -> Any:
            # Rows are padded with 0 on the right.
            places = torch.arange(1, inputs.shape[1] + 1, device=inputs.device)
            self.batches.append(((inputs != 0) * places).amax(-1).tolist())
            return call(inputs, *args, **options)

        lm._model_generate, lm._model_call = generated, called

    def padding(self) -> float:
        """The share of padded tokens."""
        return padding(self.batches)

    def unsorted(self, seed: int = 0) -> float:
        """The same, had the rows come in any order."""
        rows = np.random.default_rng(seed).permutation([row for batch in self.batches for row in batch]).tolist()
        sizes = np.cumsum([len(batch) for batch in self.batches])[:-1]
        return padding(part.tolist() for part in np.split(np.array(rows), sizes))


def padding(batches: Iterable[list[int]]) -> float:
    """Padded tokens by all tokens."""
    given = [(sum(rows), len(rows) * max(rows)) for rows in batches if rows]
    return 1 - sum(real for real, _ in given) / sum(whole for _, whole in given)


TASKS: dict[str, dict[str, Any]] = {
    "written": {"output_type": "generate_until", "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4}},
    "chosen": {"output_type": "multiple_choice"},
}


def evaluator_of(folder: Path, texts: Sequence[str], choices: Sequence[str], batch: int) -> Any:
    """One with a task that generates and one of choices, over the same prompts."""
    (folder / "data.jsonl").write_text("".join(json.dumps({"text": t, "target": choices[0]}) + "\n" for t in texts))
    for name, kind in TASKS.items():
        task = kind | ({"doc_to_choice": list(choices)} if name == "chosen" else {})
        data = {
            "task": name, "dataset_path": "json", "test_split": "test",
            "dataset_kwargs": {"data_files": {"test": str(folder / "data.jsonl")}},
            "doc_to_text": "{{text}}", "doc_to_target": "{{target}}", **task,
            "metric_list": [{"metric": "acc" if name == "chosen" else "exact_match"}],
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(data))
    file = folder / "evaluator.yaml"
    splits = {"search": {"share": 0.8}, "select": {"share": 0.1}, "test": {"share": 0.1}}
    asked = {"kind": "lm_eval", "include_path": ".", "tasks": [{"name": n} for n in TASKS], "splits": splits,
             "batch_size": batch}  # fmt: skip
    file.write_text(yaml.safe_dump(asked))
    return open_evaluator(load_evaluator(str(file)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 16], help="their sizes (default: 64 16)")
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--model", default="zoo:kovesh")
    args = parser.parse_args()
    source = open_source(args.model)
    fetch([source])
    model = live_model(source, dtype=torch.float32, device="cpu")
    tokenizer = load_tokenizer(source)
    random = np.random.default_rng(0)
    # As lengths of real prompts are: a few are many times as long as most.
    lengths = np.clip(random.lognormal(2.5, 0.6, args.items), 3, 60).astype(int)
    # Words that are one token each, of which none is padding.
    known = sorted(w for w in tokenizer.get_vocab() if w.isalpha() and len(tokenizer(w).input_ids) == 1)
    words = [w for w in known if tokenizer(w).input_ids[0] not in (0, tokenizer.unk_token_id)]
    texts = [" ".join(random.choice(words, size=n).tolist()) for n in lengths]
    result = []
    for size in args.batches:
        with tempfile.TemporaryDirectory(prefix="evomerge-padding-") as folder:
            evaluator = evaluator_of(Path(folder), texts, words[:2], size)
            items = evaluator.items("search")
            draw = Draw.of(items, dict.fromkeys(items, 1.0), 0)
            blocks = [draw.places(a, b) for a, b in pairwise([0, *Rules.over(draw.weights).ends])]
            for what, parts in (("whole", [None]), ("in blocks", blocks)):
                evaluator._wrapper._harness = None  # a new one, which nobody counts yet
                counted = Counted(evaluator._wrapper.of(model, tokenizer))
                for places in parts:
                    evaluator.evaluate(model, tokenizer, "search", places)
                assert all(len(rows) <= size for rows in counted.batches)
                share, without = counted.padding(), counted.unsorted()
                print(
                    f"batches of {size:3}, {what:9} ({len(parts)} calls, {len(counted.batches)} batches): padding "
                    f"{share:.1%}, without an order {without:.1%}", flush=True,
                )  # fmt: skip
                result.append({"batch": size, "calls": len(parts), "padding": share, "without": without})
    print(json.dumps(result))


if __name__ == "__main__":
    main()
