"""`kind: command`: a program of one's own scores the saved model. Real processes throughout."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from evomerge.errors import CandidateError, EvaluatorError
from evomerge.evaluation import load_evaluator, open_evaluator
from evomerge.evaluation.process import environment
from evomerge.evaluation.room import CANDIDATE, MEMORY_DISK
from evomerge.sources import open_source
from evomerge.study.builder import Builder
from evomerge.study.job import Job

ITEMS = [{"prompt": f"strun kunt {i} nesh"} for i in range(20)]
START = """import json, os, sys, time
items = [json.loads(line) for line in open(sys.argv[2])]
ids = [i["evomerge_id"] for i in items]
"""
EQUAL = "print(json.dumps({'score': [0.25] * len(ids)}))"
PROGRAM = [sys.executable, "-I", "program.py", "{model}", "{items}"]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """made(lines, **keys): an evaluator whose program runs these lines; its temporary files lie in scratch/."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)

    def make(lines=EQUAL, **keys):
        (tmp_path / "program.py").write_text(START + lines)
        (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, ITEMS)))
        data = {"kind": "command", "command": PROGRAM, "items": "items.jsonl", "tasks": ["score"]} | keys
        data.setdefault("scratch", str(scratch))
        (tmp_path / "e.yaml").write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}))
        return open_evaluator(load_evaluator(tmp_path / "e.yaml"))

    yield make
    assert not list(scratch.iterdir()), "left behind"


def reason(evaluator, model, tokenizer, split="search", only=None):
    with pytest.raises(CandidateError) as raised:
        evaluator.evaluate(model, tokenizer, split, only)
    return str(raised.value)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("print('bad')", 'printed no JSON, but "bad"'),
        ("", "printed nothing"),
        ("print('[1, 2]')", "printed list [1, 2]; expected an object with score"),
        ("print('{}')", 'printed nothing for task "score"'),
        ("print(json.dumps({'scor': 1}))", 'for "scor", no task of it; did you mean "score"'),
        ("print(json.dumps({'score': [float('nan')] * len(ids)}))", 'nan for task "score", item 1 of'),
        ("print(json.dumps({'score': [float('inf')] * len(ids)}))", "inf for task"),
        ("print(json.dumps({'score': ['1.0'] * len(ids)}))", 'str 1.0 for task "score"; expected numbers'),
        ("print(json.dumps({'score': [1.0]}))", "1 results for"),
        ("print(json.dumps({'score': 1.0}))", "float 1.0 for"),
        ("print(json.dumps({'score': dict.fromkeys([*ids, 'x'], 1)}))", 'a score for "x", none of its'),
        ("print(json.dumps({'score': dict.fromkeys(ids[1:], 1)}))", "printed nothing for item"),
        ("print('[' * 100000)", "printed no JSON"),
        ("sys.exit(3)", "ended with exit status 3"),
        ("os.abort()", "was ended by signal 6"),
        ("raise ValueError('no such thing as ' + 'this')", "its stderr ends: .*ValueError: no such thing as this"),
        ("print('x' * (65 << 20))", "printed more than 67,108,864 bytes"),
    ],
)
def test_whatever_else_it_prints_is_a_reason(made, maths, tokenizer, lines, words):
    assert re.search(words if ".*" in words else re.escape(words), reason(made(lines), maths, tokenizer))


def test_results_by_id_come_in_any_order(made, maths, tokenizer):
    lines = "print(json.dumps({'score': {i: n for n, i in reversed(list(enumerate(ids)))}}))"
    task = made(lines).evaluate(maths, tokenizer, "search").tasks[0]
    assert task.results.tolist() == list(range(len(task.items)))


def test_a_part_of_the_items_is_all_that_the_program_sees(made, maths, tokenizer):
    evaluator = made("print(json.dumps({'score': dict.fromkeys(ids, len(ids))}))")
    task = evaluator.evaluate(maths, tokenizer, "search", {"score": (1, 3)}).tasks[0]
    whole = evaluator.items("search")["score"]
    assert task.items == (whole[1], whole[3]) and task.value == 2


def test_two_tasks_a_loss_among_them(made, maths, tokenizer):
    tasks = ["score", {"name": "loss", "higher_is_better": False}]
    score = made("print(json.dumps({'score': [1] * len(ids), 'loss': [3] * len(ids)}))", tasks=tasks).evaluate(
        maths, tokenizer, "search"
    )
    assert [(t.value, t.shown) for t in score.tasks] == [(1, 1), (-3, 3)]


def test_one_that_brings_its_own_items(made, maths, tokenizer):
    lines = "import json, sys\nprint(json.dumps({'score': {'search': 0.5}.get(sys.argv[2])}))"
    evaluator = made(items=None, command=[sys.executable, "-c", lines, "{model}", "{split}"])
    task = evaluator.evaluate(maths, tokenizer, "search").tasks[0]
    assert (task.value, task.items, len(task.results)) == (0.5, (), 0)
    assert "NoneType" in reason(evaluator, maths, tokenizer, "test")
    with pytest.raises(EvaluatorError, match="brings its own items"):
        evaluator.evaluate(maths, tokenizer, "search", {"score": (0,)})


def test_output_seed_split_and_braces_of_its_own(made, maths, tokenizer):
    lines = (
        "json.dump({'score': [int(sys.argv[4])] * len(ids)}, open(sys.argv[3], 'w'))\n"
        "assert sys.argv[5:] == ['select', '{\"a\": 1}', '{x}']\nprint('not JSON')"
    )
    command = [*PROGRAM, "{output}", "{seed}", "{split}", '{"a": 1}', "{{x}}"]
    assert made(lines, command=command, seed=7).evaluate(maths, tokenizer, "select").value == 7
    assert "wrote no {output}" in reason(made("print('{}')", command=command), maths, tokenizer)


def test_one_that_hangs_is_ended_with_all_that_it_started(made, maths, tokenizer, tmp_path):
    pids = tmp_path / "pids"
    lines = (
        "import subprocess\n"
        "other = subprocess.Popen([sys.executable, '-I', '-c', 'import time; time.sleep(1000)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{other.pid}}')\n"
        "print('working', file=sys.stderr, flush=True)\ntime.sleep(1000)"
    )
    began = time.monotonic()
    assert "took longer than its timeout of 2 s; its stderr ends: working" in reason(
        made(lines, timeout=2), maths, tokenizer
    )
    assert time.monotonic() - began < 20
    wait_for(lambda: not any(running(int(pid)) for pid in pids.read_text().split()))


def test_what_it_leaves_running_is_ended(made, maths, tokenizer, tmp_path):
    pid = tmp_path / "pid"
    lines = (
        "import subprocess\nother = subprocess.Popen([sys.executable, '-I', '-c', 'import time; time.sleep(1000)'])\n"
        f"open({str(pid)!r}, 'w').write(str(other.pid))\n"
    )
    assert made(lines + EQUAL).evaluate(maths, tokenizer, "search").value == 0.25
    wait_for(lambda: not running(int(pid.read_text())))


@pytest.mark.slow
def test_a_worker_that_is_killed_leaves_neither_processes_nor_folders(made, tmp_path):
    """The worker dies by SIGKILL while its command runs: the command ends, and what was saved for it is gone."""
    pid = tmp_path / "pid"
    made(f"open({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(1000)")
    script = (
        "from evomerge import zoo\nfrom evomerge.evaluation import load_evaluator, open_evaluator\n"
        "from evomerge.merging.live import live_model, load_tokenizer\n"
        f"open_evaluator(load_evaluator({str(tmp_path / 'e.yaml')!r}))"
        ".evaluate(live_model(zoo.path('maths')), load_tokenizer(zoo.path('maths')), 'search')"
    )
    worker = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: pid.is_file() and pid.read_text(), 120)
        assert list((tmp_path / "scratch").glob(f".{CANDIDATE}.*/model/model.safetensors"))
    finally:
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
    wait_for(lambda: not running(int(pid.read_text())))
    wait_for(lambda: not list((tmp_path / "scratch").iterdir()))


def test_secrets_are_not_handed_on(made, maths, tokenizer, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv("STORAGE", "postgresql://me:s3cret@host/db")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    lines = "assert not any('s3cret' in v for k, v in os.environ.items() if k != 'JUDGE_KEY'), dict(os.environ)\n"
    lines += "assert os.environ['TOKENIZERS_PARALLELISM'] == 'false' and os.environ['MODE'] == 'x'\n"
    made(lines + EQUAL, env={"MODE": "x"}).evaluate(maths, tokenizer, "search")
    # Those that it needs are named, and do not show in what is recorded.
    keyed = {"JUDGE_KEY": "$OPENAI_API_KEY"}
    made(f"assert os.environ['JUDGE_KEY'] == 's3cret'\n{lines}{EQUAL}", env={"MODE": "x"} | keyed).evaluate(
        maths, tokenizer, "search"
    )
    lines = "sys.exit('key ' + os.environ['JUDGE_KEY'] + ' at http://me:pw@host')"
    told = reason(made(lines, env=keyed), maths, tokenizer)
    assert "s3cret" not in told and "pw" not in told and "key *** at http://me:***@host" in told
    file = load_evaluator(Path(made(env=keyed)._file.file))
    assert "s3cret" not in json.dumps(file.fingerprint()) and file.fingerprint()["env"] == ["JUDGE_KEY"]


def test_a_password_among_a_commands_words_is_not_kept_with_the_study(tmp_path):
    words = ["judge", "{model}", "{items}", "http://me:s3cret@host"]
    file = {"kind": "command", "command": words, "items": "i.jsonl", "tasks": ["t"]}
    (tmp_path / "i.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(file))
    assert load_evaluator(tmp_path / "e.yaml").fingerprint()["command"] == [*words[:3], "http://me:***@host"]


def test_another_environments_python_is_not_given_this_ones():
    kept = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1"}
    assert environment({"A": "1"}, {"PYTHONPATH": "/here", "VIRTUAL_ENV": "/v", **kept}) == {**kept, "A": "1"}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"command": "python score.py {model}"}, r"command = .*expected a list of arguments \(no shell"),
        ({"command": None}, r'kind "command" needs command: \[program'),
        ({"command": ["python"]}, 'no argument has "{model}"'),
        ({"command": ["python", "{modle}"]}, 'unknown "{modle}"; did you mean "model"'),
        ({"command": ["python", "{model}", "{items}"], "items": None}, "needs items: FILE.jsonl"),
        ({"command": ["python", "{model}"]}, "no argument has it"),
        ({"command": ["no-such-program", "{model}", "{items}"]}, "no-such-program: no such program on PATH"),
        ({"command": ["./no/such", "{model}", "{items}"]}, r"\./no/such: no such program \("),
        ({"command": ["./items.jsonl", "{model}", "{items}"]}, r"is not executable \(chmod \+x\)"),
        ({"env": {"KEY": "$NO_SUCH_VARIABLE"}}, r"env\.KEY = \$NO_SUCH_VARIABLE: no such variable"),
        ({"scratch": "/no/such"}, "scratch = /no/such: no such folder"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "soon"}, "timeout"),
        ({"function": "a.py:b"}, '"function" belongs to kind "python"'),
        ({"kind": "lm_eval"}, "belongs? to"),
    ],
)  # fmt: skip
def test_mistakes_are_named_before_anything_is_run(made, keys, words):
    with pytest.raises(EvaluatorError, match=words):
        made(**keys)


def test_the_study_knows_the_files_that_it_runs(made, tmp_path):
    def fingerprint():
        return load_evaluator(tmp_path / "e.yaml").fingerprint()

    made()
    first = fingerprint()
    assert set(first["command_sha256"]) == {"program.py"}
    made(timeout=9, scratch=str(tmp_path))
    assert fingerprint() == first
    made(EQUAL + " # changed")
    assert fingerprint() != first


def test_a_program_by_its_path_from_the_evaluators_folder(made, maths, tokenizer, tmp_path, monkeypatch):
    made()
    script = tmp_path / "run.sh"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I program.py "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.chdir("/")
    evaluator = made(command=["./run.sh", "{model}", "{items}"])
    assert evaluator.evaluate(maths, tokenizer, "search").value == 0.25


def test_candidates_lie_on_the_memory_disk_where_there_is_room(made, maths, tokenizer):
    evaluator = made("assert '/dev/shm/' in sys.argv[1], sys.argv\n" + EQUAL, scratch=None)
    if not os.access(MEMORY_DISK, os.W_OK):
        pytest.skip("no /dev/shm here")
    before = set(MEMORY_DISK.glob(f".{CANDIDATE}.*"))
    assert evaluator.evaluate(maths, tokenizer, "search").value == 0.25
    assert set(MEMORY_DISK.glob(f".{CANDIDATE}.*")) <= before


TRANSFORMERS = """
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
found = {}
for item in items:
    inputs = tokenizer(item["prompt"], return_tensors="pt").input_ids
    found[item["evomerge_id"]] = float(-model(inputs, labels=inputs).loss)
json.dump({"score": found}, open(sys.argv[3], "w"))
"""
FUNCTION = """
def score(model, tokenizer, items):
    ids = [tokenizer(i["prompt"], return_tensors="pt").input_ids for i in items]
    return [float(-model(x, labels=x).loss) for x in ids]
"""


@pytest.mark.slow
def test_transformers_in_another_process_gives_what_a_function_gives_here(made, tmp_path):
    """The saved candidate is the one that was built: the same scores, of a source and of a merge."""
    from evomerge.recipe import InputModel, Recipe

    made(TRANSFORMERS, command=[*PROGRAM, "{output}"])
    (tmp_path / "score.py").write_text(FUNCTION)
    keys = {"function": "score.py:score", "items": "items.jsonl", "tasks": ["score"], "dtype": "bfloat16"}
    (tmp_path / "python.yaml").write_text(yaml.safe_dump({"kind": "python", **keys}))
    sources = {r: open_source(r) for r in ("zoo:maths", "zoo:kovesh")}
    models = [InputModel(model=r, parameters={"weight": 1.0}) for r in sources]
    jobs = [Job("search", Recipe(merge_method="linear", models=models)), Job("search", source="zoo:maths")]
    found = [
        Builder(sources, "zoo:maths", load_evaluator(tmp_path / name), "cpu").run(job).score.tasks[0].results.tolist()
        for name in ("e.yaml", "python.yaml")
        for job in jobs
    ]
    assert found[0] == pytest.approx(found[2], abs=1e-2) and found[1] == pytest.approx(found[3], abs=1e-2)
    assert found[0] != pytest.approx(found[1], abs=1e-3)


def running(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
