"""Memory that runs out while a candidate is built: it has failed, and the next one is built."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, pathlib, resource, sys
import psutil, yaml
from evomerge.evaluation import load_evaluator
from evomerge.recipe import InputModel, Recipe
from evomerge.sources import open_sources
from evomerge.study.builder import Builder
from evomerge.study.job import Job

folder = pathlib.Path(sys.argv[1])
(folder / "score.py").write_text("def score(m, t, s): return {s: float(m.get_input_embeddings().weight.sum())}")
(folder / "e.yaml").write_text(yaml.safe_dump({"kind": "python", "function": "score.py:score", "tasks": ["t"]}))
sources = open_sources(["zoo:maths", "zoo:kovesh", "zoo:sorting"])
builder = Builder(sources, "zoo:maths", load_evaluator(folder / "e.yaml"), "cpu")

def job(*names):
    models = [InputModel(model=f"zoo:{n}", parameters={"weight": 0.5}) for n in names]
    return Job("search", Recipe(merge_method="linear", models=models))

first = builder.run(job("maths"))  # the live model is there, and one source is mapped
size = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 19), resource.RLIM_INFINITY))
failed = builder.run(job("maths", "kovesh", "sorting"))
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
later = builder.run(job("maths", "kovesh", "sorting"))
fresh = Builder(sources, "zoo:maths", load_evaluator(folder / "e.yaml"), "cpu").run(job("maths", "kovesh", "sorting"))
print(json.dumps([first.score.value, failed.reason, failed.score is None, later.score.value, fresh.score.value]))
"""


@pytest.mark.slow
def test_a_candidate_that_there_is_no_memory_for(tmp_path):
    command = [sys.executable, "-c", SCRIPT, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-3000:]
    first, reason, failed, later, fresh = json.loads(done.stdout.splitlines()[-1])
    assert failed and reason.startswith("out of memory while it was built: ")
    assert later == fresh != first
