"""A scoring function to start from: greedy answers, compared with the right ones.

evomerge calls `score` with every candidate, a live transformers model in eval mode on its device. It returns one
result per item, in order; higher is better (or say `higher_is_better: false` in evaluator.yaml). Results per item,
not their mean: the search compares candidates item by item.
"""

import torch


def score(model, tokenizer, items):
    """1.0 for each item whose generated answer is exactly right, else 0.0."""
    tokenizer.padding_side = "left"
    results = []
    for start in range(0, len(items), 64):
        batch = items[start : start + 64]
        inputs = tokenizer([item["prompt"] for item in batch], return_tensors="pt", padding=True)
        inputs = {k: inputs[k].to(model.device) for k in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        answers = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        results += [float(a.strip() == i["answer"].strip()) for a, i in zip(answers, batch, strict=True)]
    return results
