"""Greedy likelihood: item by item what lm-eval's own generation gives, from fewer forward passes.

The oracle is lm-eval's generate_until on the same model and items.
"""

import json

import numpy as np
import pytest
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge import presets, zoo
from evomerge.errors import EvaluatorError
from evomerge.evaluation import load_evaluator, open_evaluator
from evomerge.merging.live import live_model
from evomerge.recipe import Path
from evomerge.routing import Router
from evomerge.sources import open_source

ZOO = presets.folder("evaluators") / "zoo"
SPLITS = {"search": {"share": 0.9}, "select": {"share": 0.05}, "test": {"share": 0.05}}


def both(folder, task, **keys):
    """The evaluator of a task that generates, and the one that reads greedy likelihoods."""
    made = []
    for greedy in (False, True):
        data = {"include_path": str(ZOO), "batch_size": 16} | keys
        data["tasks"] = [{"name": task, "greedy_likelihood": greedy}]
        file = folder / f"greedy_{greedy}.yaml"
        file.write_text(yaml.safe_dump(data))
        made.append(open_evaluator(load_evaluator(file)))
    return made


@pytest.fixture
def passes(monkeypatch):
    """Counts forward passes of any model of transformers' llama, and requests that lm-eval generates for."""
    found = {"forward": 0, "generated": 0}
    forward, generate = LlamaForCausalLM.forward, HFLM.generate_until

    def counted(*args, **kwargs):
        found["forward"] += 1
        return forward(*args, **kwargs)

    def generated(self, requests, *args, **kwargs):
        found["generated"] += len(requests)
        return generate(self, requests, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", counted)
    monkeypatch.setattr(HFLM, "generate_until", generated)
    return found


# --- the zoo ---


def blended(weights):
    """base + sum of weight * (expert - base) as a live model."""
    made = live_model(zoo.path("base"), dtype=torch.float32)
    start = {k: v.clone() for k, v in made.state_dict().items()}
    with torch.no_grad():
        for name, weight in weights.items():
            for key, value in live_model(zoo.path(name), dtype=torch.float32).state_dict().items():
                made.state_dict()[key].add_(weight * (value - start[key]))
    return made


@pytest.mark.ci
@pytest.mark.parametrize("num_fewshot", [None, 2])
def test_results_are_those_of_generation_on_the_zoo(tmp_path, tokenizer, num_fewshot):
    items = {"splits": {s: {"share": 0.3, "items": 200} for s in ("search", "select", "test")}}
    keys = {"batch_size": 256} if num_fewshot is None else {"num_fewshot": num_fewshot, **items}
    generating, reading = both(tmp_path, "kovesh_problems", **keys)
    values = []
    # The last one is broken: it writes what no answer looks like.
    for weights in ({}, {"maths": 1.0}, {"maths": 0.8, "kovesh": 0.6}, {"maths": 4.0, "sorting": -3.0}):
        model = blended(weights)
        expected = generating.evaluate(model, tokenizer, "search")
        found = reading.evaluate(model, tokenizer, "search")
        assert found.tasks[0].items == expected.tasks[0].items
        np.testing.assert_array_equal(found.tasks[0].results, expected.tasks[0].results)
        assert found.value == expected.value
        values.append(found.value)
    if num_fewshot is None:
        assert values[2] > values[1] > values[0] > values[3]  # what is equal everywhere would prove nothing


def test_one_pass_per_batch_and_only_on_the_search_split(tmp_path, maths, tokenizer, passes):
    splits = {s: {"share": 0.3, "items": 32} for s in ("search", "select", "test")}
    generating, reading = both(tmp_path, "kovesh_problems", splits=splits)
    generating.evaluate(maths, tokenizer, "search")
    assert passes == {"forward": 2 * 7, "generated": 32}  # two batches; each answer has up to 7 tokens
    passes.update(forward=0, generated=0)
    score = reading.evaluate(maths, tokenizer, "search").tasks[0]
    assert passes == {"forward": 2, "generated": 0}
    assert score.metric == "exact_match (greedy likelihood)"
    for split in ("select", "test"):
        task = reading.evaluate(maths, tokenizer, split).tasks[0]
        assert task.metric == "exact_match"
        np.testing.assert_array_equal(task.results, generating.evaluate(maths, tokenizer, split).tasks[0].results)


def test_paths_that_begin_alike_share_their_first_layers(tmp_path, tokenizer):
    """What generation cannot: its passes hold keys and values of their own."""
    splits = {s: {"share": 0.3, "items": 100} for s in ("search", "select", "test")}
    generating, reading = both(tmp_path, "kovesh_problems", splits=splits)
    sources = {name: open_source(name) for name in ("zoo:maths", "zoo:kovesh")}
    sharing = Router(sources, dtype=torch.float32, prefix_bytes=2**26)
    whole = Router(sources, dtype=torch.float32)
    for last, run in (("zoo:maths", 400), ("zoo:kovesh", 100)):
        path = Path.scaled([("zoo:maths", 0), ("zoo:kovesh", 1), ("zoo:maths", 2), (last, 3)])
        found = reading.evaluate(sharing.route(path), tokenizer, "search").tasks[0].results
        assert (sharing.counts.asked, sharing.counts.run) == (400, run)
        np.testing.assert_array_equal(
            found, generating.evaluate(whole.route(path), tokenizer, "search").tasks[0].results
        )
        assert whole.counts.run == whole.counts.asked > 400
        assert 0 < found.mean() < 1


@pytest.mark.ci
def test_another_model_with_another_tokenizer_is_read_with_its_own(tmp_path, maths, tokenizer, memorised):
    """A worker scores candidates with one tokenizer and sources with theirs."""
    model, its_own, _ = memorised
    generating, reading = both(tmp_path, "kovesh_problems")
    first = reading.evaluate(maths, tokenizer, "search").tasks[0].results
    for evaluator in (generating, reading):
        assert evaluator.evaluate(model, its_own, "search").value == 0
    np.testing.assert_array_equal(reading.evaluate(maths, tokenizer, "search").tasks[0].results, first)


def test_prompts_are_cut_to_what_each_path_takes(tmp_path, tokenizer):
    """The model that gives a path its embeddings says how long a prompt may be; it may be another for each path."""
    splits = {s: {"share": 0.3, "items": 60} for s in ("search", "select", "test")}
    generating, reading = both(tmp_path, "kovesh_problems", num_fewshot=1, splits=splits)
    model = live_model(zoo.path("maths"), dtype=torch.float32)
    values = []
    for length in (64, 24, 64):
        model.config.max_position_embeddings = length
        expected = generating.evaluate(model, tokenizer, "search").tasks[0].results
        np.testing.assert_array_equal(reading.evaluate(model, tokenizer, "search").tasks[0].results, expected)
        values.append(expected.mean())
    assert values[0] == values[2] != values[1]


# --- a tokenizer of pieces and bytes, stop strings and delimiters of all kinds ---

CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
JUNK = "x5 x\n"
# What the model was taught to write after the prompts, as pieces (an answer is two digits), and whether it is right
# where generation stops at a line break, at the end of the text, or after 6 tokens.
WAYS = [
    (lambda a: [a, "\n", JUNK], True),
    (lambda a: [a, "\n\n", JUNK], True),  # one token that is more than the stop string
    (lambda a: [a, "</s>", JUNK], True),
    (lambda a: [a[0], a[1], "\n", JUNK], True),  # the answer spelt with other tokens
    (lambda a: [a[::-1], "\n", JUNK], False),
    (lambda a: [a, " x", "\n", JUNK], False),
    (lambda a: ["</s>", a, "\n"], False),
    (lambda a: ["\n", a, "\n"], False),
    (lambda a: [a, *"xxxxxxxx"], False),  # never stops
    (lambda a: [a, "##", JUNK], False),  # stops for some tasks (below)
    (lambda a: [a, "#", "x", JUNK], False),
]
ITEMS = [{"prompt": f"k{i} =", "answer": str(21 + i), "way": i % len(WAYS)} for i in range(44)]
TASK = """
task: keys
custom_dataset: !function data.load
test_split: test
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
output_type: generate_until
target_delimiter: " "
generation_kwargs: {do_sample: false, max_gen_toks: 6, until: ["\\n"]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
DATA = """
import json
from pathlib import Path
import datasets

def load(**_):
    lines = Path(__file__).with_name("items.jsonl").read_text().splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}
"""


def bytes_and_pieces():
    """A byte-level tokenizer with pieces for two digits, an empty line, and a space before a letter."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(a, b) for a in "123456789" for b in "0123456789"] + [("Ċ", "Ċ"), ("Ġ", "x")]
    vocabulary = {t: i for i, t in enumerate(["<pad>", "</s>", *alphabet, *(a + b for a, b in merges)])}
    inner = Tokenizer(models.BPE(vocabulary, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="<pad>", chat_template=CHAT, model_max_length=64
    )


@pytest.fixture(scope="session")
def memorised():
    """A small llama that knows every item's continuation by heart, after plain and after chat prompts."""
    torch.manual_seed(0)
    tokenizer = bytes_and_pieces()
    rows = []
    for item in ITEMS:
        written = [i for piece in WAYS[item["way"]][0](item["answer"]) for i in tokenizer.encode(piece)]
        for prompt in (item["prompt"], f"[user]{item['prompt']}[assistant]"):
            rows.append((tokenizer.encode(prompt), written))
    width = max(len(p) + len(w) for p, w in rows)
    ids = torch.tensor([(p + w + [0] * width)[:width] for p, w in rows])
    labels = torch.tensor([([-100] * len(p) + w + [-100] * width)[:width] for p, w in rows])
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, eos_token_id=1, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(200):
        loss = model(ids, labels=labels).loss
        if loss < 0.01:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.01  # it knows them
    return model.eval().requires_grad_(False), tokenizer, rows


def keys_task(folder, **changes):
    (folder / "data.py").write_text(DATA)
    (folder / "items.jsonl").write_text("\n".join(json.dumps(i) for i in ITEMS))
    task = TASK
    for old, new in changes.values():
        assert old in task
        task = task.replace(old, new)
    (folder / "keys.yaml").write_text(task)
    return {"include_path": str(folder), "splits": SPLITS, "batch_size": 16}


@pytest.mark.parametrize(
    ("changes", "keys", "right", "generated"),
    [
        ({}, {}, {0, 1, 2, 3}, {3}),
        ({"delimiter": ('target_delimiter: " "', 'target_delimiter: ""')}, {}, {0, 1, 2, 3}, {3}),
        ({}, {"apply_chat_template": True}, {0, 1, 2, 3}, {3}),
        # Another string first, which takes two tokens; after it, the line break still stops.
        ({"until": ('["\\n"]', '["##", "\\n"]')}, {}, {0, 1, 2, 3, 9}, {3}),
        # The string of two tokens is not the first: where an answer may still end with it, it is generated.
        ({"until": ('["\\n"]', '["\\n", "##"]')}, {}, {0, 1, 2, 3, 9}, {3, 9, 10}),
        # No stop string: only the end of the text, or the limit.
        ({"until": ('["\\n"]', "[]")}, {}, {2}, {3}),
        ({"limit": ("max_gen_toks: 6", "max_gen_toks: 1")}, {}, {0, 1, 2, 5, 8, 9, 10}, set()),
        ({"target": ('"{{answer}}"', '"{{answer}}\\n"'), "until": ('["\\n"]', "[]")}, {}, set(), {3}),
        # Answers longer than what may be generated.
        ({"target": ('"{{answer}}"', '"{{answer}}xxxxxxxx"'), "until": ('["\\n"]', "[]")}, {}, set(), None),
        # A prompt that is cut on its left.
        ({}, {"max_length": 9}, None, None),
    ],
)  # fmt: skip
def test_results_are_those_of_generation_whatever_stops_it(
    tmp_path, memorised, passes, changes, keys, right, generated
):
    model, tokenizer, _ = memorised
    generating, reading = both(tmp_path, "keys", **keys_task(tmp_path, **changes), **keys)
    expected = generating.evaluate(model, tokenizer, "search").tasks[0]
    passes.update(forward=0, generated=0)
    found = reading.evaluate(model, tokenizer, "search").tasks[0]
    np.testing.assert_array_equal(found.results, expected.results)
    ways = [ITEMS[i.index]["way"] for i in reading._tasks[0].items["search"]]
    if right is not None:
        assert {w for w, r in zip(ways, found.results, strict=True) if r} == right
    if generated is not None:
        assert passes["generated"] == sum(w in generated for w in ways)


# --- what it is not for ---

DEFAULT = "generation_kwargs: {do_sample: false, max_gen_toks: 6"
METRIC = "{metric: exact_match, aggregation: mean, higher_is_better: true}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("output_type: generate_until", "output_type: loglikelihood"), "is loglikelihood; expected generate_until"),
        ((METRIC, METRIC.replace("exact_match", "bleu")), 'metric "bleu": expected exact_match'),
        ((METRIC, METRIC[:-1] + ", ignore_case: true}"), "with ignore_case takes other texts"),
        (("do_sample: false", "do_sample: true, temperature: 0.7"), "sample (do_sample: true, temperature: 0.7)"),
        (("do_sample: false", "temperature: 0.7"), "sample (temperature: 0.7); expected do_sample: false"),
        (("do_sample: false", "num_beams: 4"), "num_beams = 4; expected greedy decoding"),
        (("do_sample: false", "max_length: 20"), "set max_length; expected until"),
        (('doc_to_target: "{{answer}}"', "doc_to_target: \"['{{answer}}', '1']\""), "several right answers"),
        ((DEFAULT, "process_results: !function data.load\n" + DEFAULT), "by code of its own"),
        (
            (DEFAULT, "filter_list: [{name: clean, filter: [{function: remove_whitespace}, {function: take_first}]}]\n"
             + DEFAULT),
            'filter "clean" (remove_whitespace, take_first) changes what is compared',
        ),
    ],
)  # fmt: skip
def test_where_it_would_not_be_generations_figure_it_is_refused(tmp_path, change, words):
    with pytest.raises(EvaluatorError) as error:
        both(tmp_path, "keys", **keys_task(tmp_path, change=change))
    message = str(error.value)
    assert words.lower() in message.lower() and "greedy_True.yaml" in message and 'task "keys"' in message


@pytest.mark.parametrize(
    "change",
    [
        ("do_sample: false", "do_sample: false, temperature: 0.7, num_beams: 1"),
        (DEFAULT, "filter_list: [{name: first, filter: [{function: take_first}]}]\n" + DEFAULT),
    ],
)
def test_what_changes_nothing_is_let_through(tmp_path, memorised, change):
    model, tokenizer, _ = memorised
    scores = [
        e.evaluate(model, tokenizer, "search") for e in both(tmp_path, "keys", **keys_task(tmp_path, change=change))
    ]
    assert scores[0].value == scores[1].value > 0


def test_a_model_whose_own_settings_change_greedy_decoding_is_refused(tmp_path, maths, tokenizer):
    _, reading = both(tmp_path, "kovesh_problems")
    maths.generation_config.repetition_penalty = 1.05
    with pytest.raises(EvaluatorError, match=r"repetition_penalty = 1\.05: expected none"):
        reading.evaluate(maths, tokenizer, "search")


def test_a_limit_that_leaves_no_room_for_the_prompt_is_refused(tmp_path, maths, tokenizer):
    _, reading = both(tmp_path, "kovesh_problems", gen_kwargs={"max_gen_toks": 64})
    with pytest.raises(EvaluatorError, match="max_gen_toks = 64: expected 1 to 63"):
        reading.evaluate(maths, tokenizer, "search")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"tasks": [{"name": "kovesh_problems", "weight": 0, "greedy_likelihood": True}, "b"]}, "weight 0"),
        ({"tasks": [{"name": "a", "greedy_likelihood": "often"}]}, "greedy_likelihood"),
        ({"tasks": [{"name": "a", "greedy_likelyhood": True}]}, 'did you mean "greedy_likelihood"'),
        (
            {"kind": "python", "function": "s.py:f", "tasks": [{"name": "a", "greedy_likelihood": True}]},
            'belongs to kind "lm_eval"',
        ),
    ],
)
def test_bad_keys_are_one_clear_message(tmp_path, keys, words):
    file = tmp_path / "e.yaml"
    file.write_text(yaml.safe_dump(keys))
    with pytest.raises(EvaluatorError) as error:
        load_evaluator(file)
    assert words in str(error.value) and "e.yaml" in str(error.value)


def test_on_the_command_line_a_refusal_is_exit_code_2(tmp_path, here):
    keys = keys_task(tmp_path, change=("do_sample: false", "do_sample: true, temperature: 0.7"))
    file = tmp_path / "e.yaml"
    file.write_text(yaml.safe_dump(keys | {"tasks": [{"name": "keys", "greedy_likelihood": True}]}))
    done = here("check", file, check=False)
    assert done.returncode == 2 and "e.yaml" in done.stderr and "expected do_sample: false" in done.stderr


def test_the_preset_differs_from_the_quickstart_in_nothing_else():
    plain, greedy = (load_evaluator(name).config for name in ("quickstart", "quickstart_likelihood"))
    tasks = [t.model_copy(update={"greedy_likelihood": bool(t.weight)}) for t in plain.tasks]
    assert plain.model_copy(update={"tasks": tasks}) == greedy


def test_studies_tell_the_two_apart(tmp_path):
    prints = []
    for greedy in (False, True):
        file = tmp_path / f"{greedy}.yaml"
        file.write_text(yaml.safe_dump({"tasks": [{"name": "kovesh_problems", "greedy_likelihood": greedy}]}))
        prints.append(load_evaluator(file).fingerprint())
    plain = tmp_path / "plain.yaml"
    plain.write_text(yaml.safe_dump({"tasks": ["kovesh_problems"]}))
    # One that does not use it has the fingerprint that it had before there was such a key.
    assert prints[0] == load_evaluator(plain).fingerprint() and prints[0] != prints[1]
