"""The network under noise: what both solvers share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kpnb.features import capture
from kpnb.objectives import SIGMA_0
from kpnb.units import Tokens, Units


def generator(seed: int, device: torch.device) -> torch.Generator:
    """A random generator of our own on ``device``, so that the caller's stays where it was."""
    return torch.Generator(device).manual_seed(seed)


@dataclass(frozen=True)
class Perturbation:
    """A network, the units of its input, the input's scale, the rows allowed in one forward pass,
    and a seed.

    Noise is the same for every sample of a batch and depends on the seed only: a sample's result
    does not depend on its company, and two networks are compared under the same noise. Where
    samples differ in length, it is drawn for one position after another, so that padding at the end
    changes nothing.
    """

    model: nn.Module
    units: Units
    scale: float = 1.0
    max_batch: int = 32
    seed: int = 0

    @property
    def tau(self) -> float:
        """Size of the noise behind delta_f^2, and the sigma that every descent starts from (input
        units).
        """
        return SIGMA_0 * self.scale

    def inside(self, x: Tensor) -> Tensor:
        """1 at the elements of ``x [B, ...]`` that belong to a unit and 0 at others, broadcastable
        to ``x``.
        """
        return self.units.spread(x.new_ones(len(x), self.units.count(x)), x)

    def exists(self, x: Tensor) -> Tensor:
        """Which units each sample of ``x [B, ...]`` has, ``[B, n]``: those with an element."""
        return self.units.gather(self.inside(x).expand_as(x)) > 0

    def normal(self, count: int, x: Tensor, stream: int) -> Tensor:
        """Standard normal noise ``[count, 1, ...]`` for samples shaped like those of ``x [B,
        ...]``.
        """
        how = {
            "generator": generator(self.seed + stream, x.device),
            "device": x.device,
            "dtype": x.dtype,
        }
        if not isinstance(self.units, Tokens):
            return torch.randn(count, 1, *x.shape[1:], **how)
        return torch.stack(
            [torch.randn(count, 1, *x.shape[2:], **how) for _ in range(x.shape[1])], 2
        )

    def features(
        self, x: Tensor, layers: Sequence[str], noise: Tensor
    ) -> Iterator[dict[str, Tensor]]:
        """Flat features ``[m', B, d]`` of ``x [B, ...]`` plus ``noise [m, B or 1, ...]``, in parts
        along m.

        A part fills at most ``max_batch`` rows of a forward pass (or one perturbation of a larger
        batch). What belongs to no unit gets no noise.
        """
        blank = torch.zeros_like(
            x
        )  # in the memory format of x: to mix formats costs several times as much
        inside = blank + self.inside(x)
        for part in noise.split(max(1, self.max_batch // len(x))):
            rows = torch.addcmul(x, blank[: part.shape[1]] + part, inside)
            features = capture(self.model, rows.flatten(0, 1), layers)
            yield {name: f.reshape(*rows.shape[:2], -1) for name, f in features.items()}
