"""Numbers of other precision: double where the device has it, single at least."""

import torch
from torch import Tensor

from kpnb._memory import out_of_memory


def widest(values: Tensor) -> Tensor:
    """``values`` in float64, or in float32 on a device that has no float64 (Apple's MPS)."""
    try:
        return values.double()
    except (TypeError, RuntimeError) as error:  # what is not implemented is the second
        if isinstance(error, RuntimeError) and out_of_memory(error):
            raise
        return values.float()


def at_least_single(values: Tensor) -> Tensor:
    """``values`` in float32 where they have fewer digits: sums of their squares overflow."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
