"""Small networks that the tests share."""

import torch
from torch import Tensor, nn

from kpnb.features import Network
from kpnb.inputs import Inputs
from kpnb.perturb import Perturbation
from kpnb.units import Units


class Linear(nn.Module):
    """f(x) = A x + c on flattened inputs, as the layer ``f``; a linear prediction follows."""

    def __init__(self, inputs: int, width: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.f = nn.Linear(inputs, width)
            self.g = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.g(self.f(x.flatten(1)))


def small_net(
    width: int = 24, seed: int = 0, inplace: bool = True, norm: bool = False
) -> nn.Sequential:
    """Two convolutions, two linear layers, (in-place) ReLUs between, for images of 3 x 12 x 12."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6) if norm else nn.Identity(),
            nn.ReLU(inplace),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(inplace),
            nn.Flatten(),
            nn.Linear(288, width),
            nn.ReLU(inplace),
            nn.Dropout(0.5),
            nn.Linear(width, 5),
        )


def images(
    count: int = 4, size: int = 12, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Random images ``[count, 3, size, size]``."""
    return torch.randn(
        count, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype
    )


def perturbed(model: nn.Module, x: Tensor, units: Units, **options: object) -> Perturbation:
    """The inputs ``x`` of a network under noise."""
    return Perturbation(Network(model), Inputs(x), units, **options)


def jacobian_energies(model: nn.Sequential, depth: int, x: Tensor, grid: int) -> Tensor:
    """Unit energies ``[B, grid^2]`` by ``torch.func``, without any code of kpnb, for the first
    ``depth`` layers.
    """
    model = model.eval()

    def feature(one: Tensor) -> Tensor:
        return model[:depth](one[None])[0].flatten()

    rows = torch.stack([torch.func.jacrev(feature)(one) for one in x])  # [B, d, C, H, W]
    elements = rows.square().sum((1, 2))
    size = x.shape[-1]
    out = torch.zeros(len(x), grid * grid, dtype=x.dtype)
    for row in range(size):
        for column in range(size):
            out[:, (row * grid // size) * grid + column * grid // size] += elements[:, row, column]
    return out
