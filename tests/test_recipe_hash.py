"""Hashes of recipes of every kind, as the first versions made them: studies, caches and model cards refer to them."""

from __future__ import annotations

import pytest

from evomerge.recipe import parse_chain

CONTENTS = {"org/base": "0" * 64, "org/a@v1": "1" * 64, "./b": "2" * 64, "stats/a": "3" * 64}
KINDS = {
    "numbers: whole, real, as text, true and false": """
merge_method: ties
base_model: org/base
models:
- {model: org/a@v1, parameters: {weight: 1, density: 1e-3}}
- {model: ./b, parameters: {weight: -0.0, density: 0.30000000000000004}}
- {model: zoo:c, parameters: {weight: 123456789012345678, density: 1.0e-7}}
parameters: {normalize: true, rescale: 0, lambda: 1.0e+22, int8_mask: true}
dtype: float16
out_dtype: bfloat16
tokenizer_source: union
chat_template: "ä {{ messages }}"
""",
    "gradients and filters": """
merge_method: dare_ties
base_model: org/base
models:
- {model: org/a@v1, parameters: {weight: [0, 0.3, 1], density: {filter: mlp, value: [1, 0.5]}}}
- model: ./b
  parameters:
    weight: [{filter: self_attn, value: [0, 0.5, 1]}, {filter: "*", value: 1}, {value: 0.5}]
    density: [{filter: null, value: 0.25}]
evomerge: {seed: 7, provenance: {study: s, trial: null}, sources: {zoo:x: aa, ./b: bb}}
tokenizer: {source: zoo:x}
""",
    "slices": """
merge_method: slerp
slices:
- sources: [{model: org/base, layer_range: [0, 4]}, {model: ./b, layer_range: [0, 4]}]
  base_model: org/base
  residual_weight: 1
  parameters: {t: [{filter: mlp, value: 0.3}, {value: 1}]}
- sources: [{model: org/base, layer_range: [4, 6]}, {model: ./b, layer_range: [4, 6], parameters: {}}]
base_model: org/base
parameters: {t: 0.5, normalize: true}
dtype: bfloat16
""",
    "a path": """
merge_method: passthrough
slices:
- sources: [{model: ./b, layer_range: [0, 0]}]
- sources: [{model: org/a@v1, layer_range: [0, 24]}]
- sources:
  - model: ./b
    layer_range: [8, 32]
    parameters: {scale: [{filter: o_proj, value: 0.7}, {filter: down_proj, value: 0.7}, {value: 1.0}]}
""",
    "models whose names are words of the schema": """
merge_method: linear
models: [{model: union, parameters: {weight: 1}}, {model: base, parameters: {weight: 2}}]
base_model: parameters
tokenizer_source: base
""",
    "modules, one of them with a name of the schema": """
merge_method: linear
modules:
  parameters:
    models: [{model: org/a@v1, parameters: {weight: 1}}, {model: ./b, parameters: {weight: [1, 2]}}]
    parameters: {normalize: false}
  text:
    slices:
    - sources: [{model: ./b, layer_range: [0, 2]}, {model: org/base, layer_range: [2, 4]}]
      parameters: {weight: [{filter: mlp, value: 3}, {value: 4}]}
  modules:
    models: [{model: org/base}]
    parameters: {weight: 1}
""",
    "tokens": """
merge_method: linear
models: [{model: org/a@v1}, {model: ./b}]
parameters: {weight: 0.5}
tokenizer:
  source: org/a@v1
  pad_to_multiple_of: 8
  tokens:
    parameters: {source: ./b, force: true}
    source: {source: {kind: model_token, model: ./b, token: x}}
    z: {source: {kind: zero}}
    a: {source: {kind: model_token, model: org/a@v1, token_id: 5}}
""",
    "statistics": """
merge_method: fisher
models: [{model: org/a@v1, parameters: {weight: 1}}, {model: ./b}]
evomerge: {seed: 4, statistics: {org/a@v1: stats/a, ./b: stats/b}, sources: {stats/b: cc, ./b: dd}}
""",
    "a word": """
merge_method: varm
base_model: org/base
models: [{model: org/a@v1}, {model: ./b}]
parameters: {unit: model}
""",
    "long forms and an adapter": """
merge_method: task_arithmetic
base_model: {model: {path: org/base, revision: main}}
models:
- {model: {model: {path: org/a, revision: v1}, lora: x/y}, parameters: {weight: 0.5}}
- {model: "./b", parameters: {weight: 0.5}}
""",
    "a chain": """
name: first
merge_method: linear
models: [{model: org/a@v1}, {model: ./b}]
parameters: {weight: 1}
---
merge_method: della
base_model: first
models: [{model: org/base}, {model: ./b}]
parameters: {weight: 1, density: 0.5}
evomerge: {seed: 3}
""",
}
# With the content of some of the models known, and without: written by the version of 2026-11-29, before recipes were
# hashed in another way.
HASHES: dict[str, tuple[str, str]] = {
    "numbers: whole, real, as text, true and false": (
        "9ee136767c0dbb11c0fe52efd106458adad62d3ed045ec4e4489b24366cc0758",
        "e5b7f541a7ebf3700d341bc32fc9c7a873e9353476059eab60d9cdb6d7937050",
    ),
    "gradients and filters": (
        "1b62e4997316ff7069583c73bab1de525467190e147b1d61cb87e375812cd271",
        "8ecf1a8ebad46697521d54b6604563a2bdb6419d782376c5b482469b8f292ebb",
    ),
    "slices": (
        "2cfc22e125d556882687c01100d7f1311c185057f1b234076ad912cb78d6b978",
        "99b36967675654a7847f0c70a74c366f3c41a673b1fdfaa5d1babd6a48fc8f24",
    ),
    "a path": (
        "abc35c44a24808740b76b01982a2864ac121fb0997b4a789b778583d56373fd1",
        "6e766f1a5b5e6ccf7811fd310a81d1e5a766ca802efb1bdf0b08a021f43fc294",
    ),
    "models whose names are words of the schema": (
        "43ee9f54ce51323a0a4579c74b83bb0a8cb0d908cd9c6351d69d28c7b8b4d4e7",
        "43ee9f54ce51323a0a4579c74b83bb0a8cb0d908cd9c6351d69d28c7b8b4d4e7",
    ),
    "modules, one of them with a name of the schema": (
        "840b8ea74dcbb3f4262dea493a9793f1c0cc2510534e16a57df18b65138c7ded",
        "dfac9f9c3cb84a4d277fdba8ae9304d0d137ef1fd3996de2eb366a56e36955f2",
    ),
    "tokens": (
        "feee04cc60f245c6c4a2b7f24fbf00e11b16910b66d05bb10baa6bf9039b3cb0",
        "b7079ed77ab1a917ddc693f5a8ab34b870467d2bd6f5aa65088c7de827cbb967",
    ),
    "statistics": (
        "5bd041b6e3fbc62549129b91a2c2f71781421ac425150e96214a1722e050dfcf",
        "aa6ed7d10768418aec08721bf73e839d10b624cf73827d5aa385b6148cbcdfca",
    ),
    "a word": (
        "9fc97982a60e3714fde6640f725ad4b5de8efbf6a47047252ce7c0df82c48e40",
        "85b1df41b45047591926e0f1384c4f501cf1339a762e0c006f84a5eca560be11",
    ),
    "long forms and an adapter": (
        "1631a589a2bb2d4c41f5fcc95c26fce21885ef98fbf729d89d12d6e0d50085df",
        "be63bbfedd994049abaafac39bd73de4090eda9287ac457cfa9c07449d9655b3",
    ),
    "a chain": (
        "7443d03abcd57631d2b2d9a7cd3784f8f6bad57a965a6959af71c6fd1a3b0966",
        "8d87747c7d270acb512ed41daf8ae472a24ed8e6298c79f6604f1803fc010868",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_hash_stays(kind: str) -> None:
    chain = parse_chain(KINDS[kind])
    assert (chain.hash(CONTENTS), chain.hash()) == HASHES[kind]
