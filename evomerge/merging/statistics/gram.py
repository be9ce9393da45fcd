"""Gram matrices of the inputs of linear layers (RegMean: Jin et al., arXiv 2212.09849)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def input_grams(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Mean of x x^T over the inputs x that a linear layer sees, one for each token.

    Only texts of one length share a batch: nothing is padded, so that no padding is counted.

    Returns:
        By the name of the layer's weight, float32, on its device: [in, in] for nn.Linear, [1, in, in] for Conv1D,
        whose weight is stored as [in, out].
    """
    from transformers.pytorch_utils import Conv1D

    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def hook(name: str, size: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].detach().reshape(-1, size).float()
            if name not in totals:
                totals[name] = torch.zeros(size, size, device=x.device)
                counts[name] = 0
            totals[name].addmm_(x.t(), x)
            counts[name] += len(x)

        return add

    handles = []
    across = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            handles.append(module.register_forward_pre_hook(hook(f"{name}.weight", module.in_features)))
        elif isinstance(module, Conv1D):
            handles.append(module.register_forward_pre_hook(hook(f"{name}.weight", module.weight.shape[0])))
            across.add(f"{name}.weight")
    try:
        for batch in _batches(texts, batch_size):
            model(input_ids=torch.tensor(batch, device=model.device), use_cache=False)
            if progress:
                progress(sum(map(len, batch)))
    finally:
        for handle in handles:
            handle.remove()
    means = {name: total.div_(counts[name]) for name, total in totals.items()}
    return {name: x.unsqueeze(0) if name in across else x for name, x in means.items()}


def _batches(texts: Sequence[Sequence[int]], size: int) -> Iterator[list[list[int]]]:
    """Texts of one length, at most `size` together; the longest first, so that memory runs out at once or never."""
    ordered = sorted(texts, key=lambda t: (-len(t), list(t)))
    batch: list[list[int]] = []
    for text in ordered:
        if batch and (len(batch) == size or len(text) != len(batch[0])):
            yield batch
            batch = []
        batch.append(list(text))
    if batch:
        yield batch
