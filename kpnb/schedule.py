"""How long and how fast a network is trained, and by which optimiser."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from kpnb._messages import not_negative, plain_numbers, positive, required, whole


@dataclass(frozen=True)
class Schedule:
    """SGD with momentum. The paper's ``batch_size`` is 64; its release has momentum 0.9,
    ``weight_decay`` 1e-4 and 150 epochs. ``seed`` is that of the order of the samples and of noise
    in the network.

    ``cosine``: the rate falls from ``lr`` to 0 along half a cosine over ``epochs``; otherwise it is
    constant. ``adamw``: AdamW instead of SGD, for transformers; ``momentum`` is its first beta.
    ``bf16``: networks run under bfloat16 autocast while they are trained, and between epochs the
    optimiser's state is rounded to it; weights and losses stay as they are.
    """

    epochs: int = 20
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch_size: int = 64
    seed: int = 0
    cosine: bool = False
    adamw: bool = False
    bf16: bool = False

    def __post_init__(self) -> None:
        plain_numbers(self)
        required(epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, seed=self.seed)
        whole(epochs=self.epochs, batch_size=self.batch_size, seed=self.seed)
        positive(batch_size=self.batch_size)
        not_negative(
            epochs=self.epochs, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        if not self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must be below 1, else steps never fade")

    def rate(self, epoch: int) -> float:
        """Learning rate of ``epoch`` 1, 2, ..."""
        if not self.cosine:
            return self.lr
        return self.lr * (1 + math.cos(math.pi * (epoch - 1) / self.epochs)) / 2

    @property
    def config(self) -> dict[str, Any]:
        """What an epoch depends on: without ``epochs`` if the rate does not, so that a longer run
        extends a shorter.
        """
        values = asdict(self)
        if not self.cosine:
            del values["epochs"]
        return values


def optimiser_for(parameters: Sequence[nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    """SGD or AdamW over ``parameters``."""
    groups = [{"params": parameters}]  # a group, because SGD refuses an empty list
    if schedule.adamw:
        betas = (schedule.momentum, 0.999)
        return torch.optim.AdamW(
            groups, schedule.lr, betas=betas, weight_decay=schedule.weight_decay, fused=True
        )
    return torch.optim.SGD(
        groups, schedule.lr, momentum=schedule.momentum, weight_decay=schedule.weight_decay
    )
