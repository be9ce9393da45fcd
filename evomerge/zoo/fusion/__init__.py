"""Models of different architectures and tokenizers, each good at something that the target is not.

`tides` (llama, byte-level BPE) knows one domain of invented text, `roads` (gpt_neox, another byte-level BPE) the other;
`pivot` (llama, Metaspace BPE) has read a little of both. `python -m evomerge.zoo.fusion.train` makes them and the texts
that fusions learn from and are measured on.
"""

from pathlib import Path

ABOUT = {
    "pivot": "llama, Metaspace BPE: has read a little of two domains of invented text",
    "tides": "llama, byte-level BPE: knows one of the domains, to learn from",
    "roads": "gpt_neox, another byte-level BPE: knows the other domain, to learn from",
}
CORPORA = {
    "chains": "texts of both domains, to learn from",
    "chains-held-out": "texts of both domains, to measure on",
    "exchanges": "questions and answers of both domains",
}


def corpus(name: str) -> Path:
    """The file of one of `CORPORA`."""
    if name not in CORPORA:
        raise KeyError(f"no corpus {name!r} in the zoo; it has {', '.join(CORPORA)}")
    return Path(__file__).parent.parent / "corpora" / f"{name}.jsonl"
