"""An evaluator of one's own: the loglikelihood of each item's answer. Items have a `prompt` and an `answer`."""

import torch

BATCH = 128


def score(model, tokenizer, items):
    """Sum of the log-probabilities of the answer's tokens, in nats, one number per item."""
    found = []
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        whole = tokenizer([f"{i['prompt']} {i['answer']}" for i in batch], return_tensors="pt", padding=True)
        asked = [len(tokenizer(i["prompt"]).input_ids) for i in batch]
        said = [len(tokenizer(f"{i['prompt']} {i['answer']}").input_ids) for i in batch]
        # Padded on the left: a text ends where its row does.
        ids = whole.input_ids
        logits = model(input_ids=ids, attention_mask=whole.attention_mask).logits.log_softmax(-1)
        chosen = logits[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        found += [float(row[-(n - m) :].sum()) for row, n, m in zip(chosen, said, asked, strict=True)]
    return torch.tensor(found)
