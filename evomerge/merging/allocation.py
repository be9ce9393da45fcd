"""Memory that ran out: how the errors of torch, NumPy and Python about it are known, and how memory is given back."""

from __future__ import annotations

import errno
import gc
import sys

# What torch says in errors that have no kind of their own, beside those that accelerate knows.
_WORDS = ("can't allocate memory", "std::bad_alloc", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory, a GPU's or the machine's."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if not isinstance(error, RuntimeError):
        return False
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    words = str(error)
    known = isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
    return known or any(w in words for w in _WORDS)


def release() -> None:
    """Give back the memory of models and tensors that nobody holds any more."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
