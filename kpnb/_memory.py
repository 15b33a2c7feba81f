"""What to do when a batch does not fit into memory."""

import logging
from collections.abc import Callable
from typing import Any

import torch

log = logging.getLogger(__name__)


# How those say it that have no class of their own: the CPU's allocator, the driver, libraries that
# take memory past PyTorch's allocator, and convolutions none of whose ways fits.
SAID = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",
)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether ``error`` says that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in SAID)


def fitting(
    attempt: Callable[[int], Any], rows: int, what: str, whole: str = ""
) -> tuple[Any, int]:
    """``attempt(rows)``, with half as many rows whenever memory runs out; and with how many it went
    well.

    A smaller batch must not change the result; ``whole`` says why it would, if it does. Each
    halving is logged. Raises ``MemoryError`` for ``what`` when a single row, or the whole batch, is
    too much.
    """
    while True:
        try:
            return attempt(rows), rows
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if whole or rows == 1:
                raise MemoryError(
                    f"{what} does not fit into memory with {rows} rows at a time{whole}"
                ) from error
        rows //= 2  # outside of the handler: only now the failed attempt's tensors are gone
        log.warning("%s does not fit into memory: going on with %d rows at a time", what, rows)
