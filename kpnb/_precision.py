"""Double precision where the device has it."""

import torch
from torch import Tensor


def widest(values: Tensor) -> Tensor:
    """``values`` in float64, or in float32 on a device that has no float64 (Apple's MPS)."""
    try:
        return values.double()
    except torch.OutOfMemoryError:
        raise
    except (TypeError, RuntimeError):  # what is not implemented is the second
        return values.float()
