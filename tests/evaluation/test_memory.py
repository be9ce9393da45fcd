"""Memory that runs out while a model is scored: real allocation failures, under a limit on the address space."""

import json
import subprocess
import sys

import pytest

from evomerge.errors import CandidateError, EvaluatorError
from evomerge.evaluation.config import EvaluatorConfig
from evomerge.evaluation.wrapper import Wrapper
from evomerge.merging.allocation import out_of_memory

SCRIPT = """
import json, pathlib, resource, sys
import psutil, torch, yaml
from evomerge import presets, zoo
from evomerge.evaluation import load_evaluator, open_evaluator
from evomerge.merging.live import live_model, load_tokenizer

torch.set_num_threads(1)
model, tokenizer = live_model(zoo.path("kovesh"), dtype=torch.float32), load_tokenizer(zoo.path("kovesh"))
said = []

def evaluator(task, batch):
    data = {"include_path": str(presets.folder("evaluators") / "zoo"), "tasks": [task], "batch_size": batch,
            "splits": {s: {"share": 0.3, "items": 300} for s in ("search", "select", "test")}}
    file = pathlib.Path(sys.argv[1], "e.yaml")
    file.write_text(yaml.safe_dump(data))
    return open_evaluator(load_evaluator(file), said.append)

def limited(room, score):
    size = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (size + (room << 20), resource.RLIM_INFINITY))
    try:
        return score()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

def results(opened):
    return opened.evaluate(model, tokenizer, "search").tasks[0].results.tolist()

task, room = json.loads(sys.argv[2]), int(sys.argv[3])
expected = results(evaluator(task, 4))
tight = evaluator(task, 1024)
first = limited(room, lambda: results(tight))
told = list(said)
later = results(tight)  # without the limit: the batch stays
other = tight.evaluate(live_model(zoo.path("kovesh"), dtype=torch.float32), tokenizer, "search")
print(json.dumps({"same": expected == first == later == other.tasks[0].results.tolist(), "told": told,
                  "batch": tight._wrapper.batch, "again": len(said) - len(told)}))
"""


def scored(folder, task, room):
    # A process for each: what earlier tensors left to the allocator would serve instead of failing.
    command = [sys.executable, "-c", SCRIPT, folder, json.dumps(task), str(room)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250)


@pytest.mark.slow
@pytest.mark.parametrize(
    "task", ["kovesh_problems", "kovesh_direction", {"name": "kovesh_problems", "greedy_likelihood": True}]
)
def test_the_batch_is_halved_until_it_fits_and_stays_so(tmp_path, task):
    """Of generation, likelihoods and greedy likelihood; the results are those of a small batch, and it is said once."""
    done = scored(tmp_path, task, room=8)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["same"] and 1 <= told["batch"] < 1024 and told["again"] == 0
    assert told["told"] == [f"out of memory with batches of 1024 items: {told['batch']} from now on"]


def test_errors_of_torch_numpy_and_python_are_told_from_others():
    import numpy as np
    import torch

    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(1 << 60)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(1 << 55)
    with pytest.raises(RuntimeError) as other:
        torch.empty(2) @ torch.empty(3)
    assert out_of_memory(of_torch.value) and out_of_memory(of_numpy.value) and out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not out_of_memory(other.value) and not out_of_memory(EvaluatorError("out of memory"))


def test_one_item_cannot_be_halved():
    with pytest.raises(CandidateError, match=r"out of memory with batches of one item \(why\)"):
        Wrapper(EvaluatorConfig(tasks=[{"name": "t"}])).halve("why")
