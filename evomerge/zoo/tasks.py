"""Write the zoo's lm-eval tasks: `python -m evomerge.zoo.tasks --out evaluators/zoo`.

The items are those of `curriculum.held_out`, so the data beside the YAML files can always be made
again. The YAML finds its data through a function beside it, because lm-eval would look for a
relative path in the working directory of whoever calls it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from evomerge.zoo.curriculum import Task, held_out, tasks
from evomerge.zoo.fusion.domains import NAMES as DOMAINS
from evomerge.zoo.fusion.texts import items
from evomerge.zoo.languages import EOS

_HEAD = """\
# {about}
task: {name}
tag: zoo
custom_dataset: !function data.load
dataset_kwargs:
  file: {name}.jsonl
test_split: test
doc_to_text: "{{{{prompt}}}}"
"""
_GENERATED = """\
output_type: generate_until
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  do_sample: false
  max_gen_toks: {tokens}
  until: ["{eos}"]
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
_CHOICE = """\
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
_TEXT = """\
# {about}
task: {name}
tag: zoo_text
custom_dataset: !function data.load
dataset_kwargs:
  file: {name}.jsonl
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
process_results: !function data.bits_per_byte
metric_list:
  - metric: bits_per_byte_of_document
    aggregation: mean
    higher_is_better: false
metadata:
  version: 1.0
"""
_DATA = '''\
"""Reads the data file that lies beside the task, whatever the working directory is; and scores of texts."""

import json
import math
from pathlib import Path

import datasets


def load(file: str, **_: object) -> dict[str, datasets.Dataset]:
    """The items of one JSON-lines file as lm-eval's test split."""
    lines = Path(__file__).with_name(file).read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}


def bits_per_byte(doc: dict[str, str], results: list[float]) -> dict[str, float]:
    """How many bits a model takes for each byte of a document."""
    (likelihood,) = results
    return {"bits_per_byte_of_document": -likelihood / len(doc["text"].encode()) / math.log(2)}
'''


def _yaml(task: Task) -> str:
    head = _HEAD.format(about=task.about, name=task.name)
    if not task.generated:
        return head + _CHOICE
    longest = max(len(item.answer.split()) for item in held_out()[task.name])
    return head + _GENERATED.format(tokens=longest + 1, eos=EOS)


def write(out: Path) -> None:
    """Write every task's YAML and data, and the function that reads the data."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "data.py").write_text(_DATA)
    for task in tasks():
        (out / f"{task.name}.yaml").write_text(_yaml(task))
        with (out / f"{task.name}.jsonl").open("w") as stream:
            for index, item in enumerate(held_out()[task.name]):
                row: dict[str, object] = {"prompt": item.prompt, "answer": item.answer}
                if not task.generated:
                    # The item's number says where the right choice stands: nothing to learn.
                    label = index % (len(item.wrong) + 1)
                    choices = list(item.wrong)
                    choices.insert(label, item.answer)
                    row = {"prompt": item.prompt, "choices": choices, "label": label}
                stream.write(json.dumps(row) + "\n")


def write_texts(out: Path, seed: int = 0) -> None:
    """Write the tasks of the fusion zoo: bits per byte of texts of each domain."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "data.py").write_text(_DATA)
    for name in DOMAINS:
        task = f"{name}_text"
        about = f"Bits per byte of the domain that `zoo:{name}` knows; lower is better."
        (out / f"{task}.yaml").write_text(_TEXT.format(name=task, about=about))
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in items(name, seed)]
        (out / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the zoo's lm-eval tasks.")
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    write(out)
    write_texts(out)


if __name__ == "__main__":
    main()
