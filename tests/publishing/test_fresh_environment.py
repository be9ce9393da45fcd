"""What is exported loads with plain transformers where there is no evomerge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from evomerge.merging.engine import Engine
from evomerge.recipe import load_recipe
from evomerge.sources import open_sources
from tests.hub_server import Hub

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("publishing")]
PROMPT = "drevin kunt 5 nesh , 4 rindesh . djor ?"
SCRIPT = """
import importlib.util, json, sys
assert importlib.util.find_spec("evomerge") is None, "evomerge is here"
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer(sys.argv[2], return_tensors="pt").input_ids
with torch.no_grad():
    logits = model(ids).logits.float()
answer = model.generate(ids, max_new_tokens=5, do_sample=False)
left = [sorted(map(str, info[k])) for k in ("missing_keys", "unexpected_keys", "mismatched_keys")]
print(json.dumps({
    "logits": logits[0].tolist(), "tokens": answer[0].tolist(), "text": tokenizer.decode(answer[0]),
    "layers": model.config.num_hidden_layers, "left": left,
}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment: the libraries of this one by path, so that no network is needed, and no evomerge."""
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # .pth files inside a folder that a .pth names are not read: an editable evomerge over there stays unseen.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv" / "bin" / "python"


def loaded(python: Path, model: Path, folder: Path) -> dict:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [str(python), "-c", SCRIPT, str(model), PROMPT]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def merged(made: Path) -> tuple[torch.Tensor, int]:
    """Logits of what the engine makes of the recipe in memory, in the weights' own type, and the number of layers."""
    recipe = load_recipe(made / "recipe.yaml")
    tensors = dict(Engine(open_sources(recipe.references())).tensors(recipe))
    config = AutoConfig.from_pretrained(made)
    model = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    left = model.load_state_dict(tensors, strict=False)
    assert not left.unexpected_keys and set(left.missing_keys) <= {"lm_head.weight"}
    model.tie_weights()
    ids = AutoTokenizer.from_pretrained(made)(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        return model.eval()(ids).logits[0].float(), config.num_hidden_layers


def test_a_merge_of_weights(study: Path, served: Hub, here, python: Path, tmp_path: Path) -> None:
    here("export", study, tmp_path / "made")
    found = loaded(python, tmp_path / "made", tmp_path)
    expected, layers = merged(tmp_path / "made")
    torch.testing.assert_close(torch.tensor(found["logits"]), expected, rtol=0, atol=1e-5)
    assert found["left"] == [[], [], []] and found["layers"] == layers == 4
    assert len(found["tokens"]) > len(expected) and found["text"].startswith("drevin")


def test_a_path_over_layers(study: Path, served: Hub, here, python: Path, tmp_path: Path) -> None:
    """A deeper checkpoint of the same architecture, its scales folded in: no code of its own is needed."""
    out = tmp_path / "out"
    here("search", "dataflow", "--evaluator", study.parent / "e.yaml", "--budget", 6, "--study", "p", "--out", out,
         "--workers", 0, "--fidelity", "full")  # fmt: skip
    depths = {}
    for trial in range(6):
        done = here("export", out, tmp_path / f"made{trial}", "--trial", trial, "--json").result
        assert (tmp_path / f"made{trial}" / "path.png").stat().st_size > 1000 and "](path.png)" in (
            tmp_path / f"made{trial}" / "README.md"
        ).read_text()
        config = json.loads((tmp_path / f"made{trial}" / "config.json").read_text())
        depths[trial] = config["num_hidden_layers"]
        assert done["path"] in (tmp_path / f"made{trial}" / "README.md").read_text()
    deepest = max(depths, key=lambda n: depths[n])
    found = loaded(python, tmp_path / f"made{deepest}", tmp_path)
    expected, layers = merged(tmp_path / f"made{deepest}")
    assert found["left"] == [[], [], []] and found["layers"] == layers == depths[deepest]
    torch.testing.assert_close(torch.tensor(found["logits"]), expected, rtol=0, atol=1e-5)
