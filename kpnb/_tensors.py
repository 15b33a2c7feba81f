"""What people have, as tensors: one place that reads arrays and lists, with one error."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(value: Any, what: str) -> Tensor:
    """``value`` as a tensor without a graph: tensors as they are, NumPy arrays, what turns into one
    (data frames) and nested lists of numbers as a copy.

    Raises ``TypeError``, which calls it ``what``, for anything else.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise TypeError(f"{what} is a sparse tensor: pass it with to_dense()")
        return value.clone() if value.is_inference() else value.detach()
    if isinstance(value, str | bytes | Mapping):
        raise TypeError(_refused(value, what))
    try:
        array = np.array(value)  # a copy: PyTorch takes neither read-only nor mirrored memory
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=False))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(_refused(value, what)) from error


def _refused(value: Any, what: str) -> str:
    hint = ""
    if isinstance(value, Mapping):
        hint = f": pass one entry of {', '.join(map(repr, list(value)[:8]))}"
    elif hasattr(value, "entropy"):
        hint = ": pass its .entropy or .sigma"
    return f"{what} must come as a tensor or an array of numbers; got {type(value).__name__}{hint}"


def taken_to(value: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """A NumPy array (or what turns into one) as a tensor on the ``device``, floating-point numbers
    in ``dtype``; anything else, tensors too, as it is.
    """
    if isinstance(value, Tensor | np.generic) or not hasattr(value, "__array__"):
        return value
    made = as_tensor(value, "the input")
    return made.to(device, dtype if made.is_floating_point() else None)


def moved(x: Tensor, device: torch.device | str) -> Tensor:
    """``x`` on the ``device``; to a CUDA card from pinned memory, so that nobody waits for it."""
    if torch.device(device).type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def as_numbers(value: Any, what: str) -> Tensor:
    """``value`` as a floating-point tensor: ``TypeError`` as ``as_tensor``, also for complex."""
    numbers = as_tensor(value, what)
    if numbers.is_complex():
        raise TypeError(f"{what} holds real numbers; got {numbers.dtype}")
    return numbers if numbers.is_floating_point() else numbers.to(torch.get_default_dtype())


def described(value: Tensor) -> str:
    """Type and shape of a tensor, for messages."""
    return f"{value.dtype} {tuple(value.shape)}"
