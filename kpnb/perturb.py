"""A network's inputs under noise: what both solvers share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from kpnb.features import Network
from kpnb.inputs import Inputs
from kpnb.objectives import SIGMA_0
from kpnb.units import Units, units_of

POSITIONS = 16  # of a sequence, whose noise is drawn together
LINEARITY = 0x6C696E65
LIPSCHITZ = 0x6B617070
"""Streams of noise far from the seeds that people choose: weights or data that were drawn with the
seed of a stream are that very noise, and a network does not move along its own weights as it does
along others.
"""


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator of our own on ``device``, so that the caller's stays where it was."""
    return torch.Generator(device).manual_seed(seed)


@dataclass(frozen=True)
class Perturbation:
    """A batch of a network's inputs, their units and scale, the rows allowed in one forward pass,
    and a seed.

    Noise of ``normal`` is the same for every sample of a batch and depends on the seed only,
    whatever the device: a sample's result does not depend on its company, and two networks are
    compared under the same noise. What was ``drawn`` serves all batches.
    """

    network: Network
    inputs: Inputs
    units: Units
    scale: float = 1.0
    max_batch: int = 32
    seed: int = 0
    drawn: dict[tuple, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def x(self) -> Tensor:
        """What is perturbed, ``[B, ...]``."""
        return self.inputs.x

    @property
    def tau(self) -> float:
        """Size of the noise behind delta_f^2, and the sigma that every descent starts from (input
        units).
        """
        return SIGMA_0 * self.scale

    @property
    def coarsest(self) -> torch.dtype:
        """The type of least precision that the network computes in, by whose rounding a feature
        moves, whatever its own type.
        """
        parameters = self.network.model.parameters()
        types = {parameter.dtype for parameter in parameters if parameter.is_floating_point()}
        return max({*types, self.x.dtype}, key=lambda dtype: torch.finfo(dtype).eps)

    def rows(self, which: slice) -> "Perturbation":
        """The samples ``which``; as many of them fill a pass as there are at most."""
        part = self.inputs.rows(which)
        return replace(self, inputs=part, units=units_of(self.units, which, self.x))

    @cached_property
    def inside(self) -> Tensor:
        """1 at the elements of ``x`` that belong to a unit and 0 at others, shaped like it."""
        x = self.x
        ones = x.new_ones(len(x), self.units.count(x))
        # in x's memory format: to mix formats costs several times more
        return torch.zeros_like(x) + self.units.spread(ones, x)

    def exists(self) -> Tensor:
        """Which units each sample has, ``[B, n]``: those with an element."""
        return self.units.gather(self.inside) > 0

    def normal(self, count: int, stream: int) -> Tensor:
        """Standard normal noise ``[count, 1, ...]`` for samples shaped like those of ``x``.

        For sequences ``[B, T, E]`` some positions are drawn after the others, so that padding at
        the end changes nothing of the noise before it. (A feature of a vector for each position
        still has the padded ones as a part.) Drawn on the CPU: generators of cards draw other
        numbers.
        """
        x = self.x
        key = (self.seed, count, stream, x.shape[1:], x.dtype, x.device)
        if key not in self.drawn:
            self.drawn[key] = self._draw(count, stream).to(x.device)
        return self.drawn[key]

    def probes(self, width: int, count: int, dtype: torch.dtype) -> Tensor:
        """Standard normal ``[width, count]`` for features of that width: the same for every sample,
        network, epoch and device, so that no comparison mixes two draws.
        """
        key = ("probes", self.seed, width, count, dtype, self.x.device)
        if key not in self.drawn:
            how = {"generator": generator(self.seed + 1), "dtype": dtype, "device": "cpu"}
            self.drawn[key] = torch.randn(width, count, **how).to(self.x.device)
        return self.drawn[key]

    def _draw(self, count: int, stream: int) -> Tensor:
        x = self.x
        how = {"generator": generator(self.seed + stream), "dtype": x.dtype, "device": "cpu"}
        if x.dim() != 3:
            return torch.randn(count, 1, *x.shape[1:], **how)
        blocks = range(0, x.shape[1], POSITIONS)
        parts = [torch.randn(count, 1, POSITIONS, x.shape[2], **how) for _ in blocks]
        return torch.cat(parts, 2)[:, :, : x.shape[1]]

    def features(self, layers: Sequence[str], noise: Tensor) -> Iterator[dict[str, Tensor]]:
        """Flat features ``[m', B, d]`` under ``noise [m, B or 1, ...]``, in parts along m.

        A part fills at most ``max_batch`` rows of a forward pass (or one perturbation of a larger
        batch). What belongs to no unit gets no noise.
        """
        x = self.x
        blank = torch.zeros_like(x[: noise.shape[1]])  # takes the noise to x's memory format
        for part in noise.split(max(1, self.max_batch // len(x))):
            rows = torch.addcmul(x, blank + part, self.inside).flatten(0, 1)
            features = self.network.features(self.inputs.with_x(rows), len(rows), layers)
            yield {name: f.reshape(len(part), len(x), -1) for name, f in features.items()}
