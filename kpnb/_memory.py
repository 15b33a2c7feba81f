"""Memory: what to do with what is freed, and when a batch does not fit."""

import ctypes
import logging
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

log = logging.getLogger(__name__)


@cache
def keep_freed() -> None:
    """Let this process keep up to 1 GiB that it freed, for what it asks for next.

    On the CPU every layer's output is a request of its own, and the C library of Linux gives a
    freed one back to the system only to get it anew, page by page: a third of the time of an
    entropy. ``MALLOC_*`` of the user's stay.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(-1, 2**30)  # M_TRIM_THRESHOLD: how much may lie unused
        mallopt(
            -3, 2**25
        )  # M_MMAP_THRESHOLD: larger blocks always go back; glibc takes no more than this


def fitting(
    attempt: Callable[[int], Any], rows: int, what: str, whole: str = ""
) -> tuple[Any, int]:
    """``attempt(rows)``, with half as many rows whenever memory runs out; and with how many it went
    well.

    A smaller batch must not change the result; ``whole`` says why it would, if it does. Each
    halving is logged. Raises ``MemoryError`` for ``what`` when a single row, or the whole batch, is
    too much.
    """
    keep_freed()
    while True:
        try:
            return attempt(rows), rows
        except RuntimeError as error:  # what the CPU's allocator raises, too
            if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(
                error
            ):
                raise
            if whole or rows == 1:
                raise MemoryError(
                    f"{what} does not fit into memory with {rows} rows at a time{whole}"
                ) from error
        rows //= 2  # outside of the handler: only now the failed attempt's tensors are gone
        log.warning("%s does not fit into memory: going on with %d rows at a time", what, rows)
