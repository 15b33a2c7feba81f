r"""The closed form: how strongly a layer's feature depends on each input unit.

:math:`s_i = \sum_{e \in \mathrm{unit}\,i} \|\partial f / \partial x_e\|^2`, a block of the
diagonal of :math:`J^\top J`. A vector-Jacobian product with a direction v of the feature gives the
energies of that direction, and those of orthonormal directions add up. The exact energies take
every coordinate of the feature; the sketch gets by with a few directions (``kpnb.sketch``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from kpnb._messages import plain_numbers, whole
from kpnb._precision import at_least_single
from kpnb.perturb import Perturbation
from kpnb.sketch import directions_to_take, largest, probes_beyond, rescaled, shrunk
from kpnb.units import Units


@dataclass(frozen=True)
class ClosedForm:
    """Settings of the closed form; the defaults cost 16 forwards and 14 backwards for a batch and a
    layer. ``draft()`` costs less and is less exact, ``careful()`` the other way round.

    rank        leading feature directions whose energy is exact, at most ``noise`` + 1: the one
                more is the feature itself. ``None`` takes every coordinate of the feature that
                noise moves at all: the exact Jacobian, with as many backwards
    probes      random orthonormal directions that estimate the rest
    noise       forwards under noise of size tau that find the leading directions (and the
                coordinates that move); layers measured in one call share them
    check       forwards at the resulting sigma for the linearity diagnostic, for each layer
    shrink      improve each unit's estimate of the rest with what all units have in common
                (``sketch.shrunk``); without it the estimate is unbiased and noisier

    Raises ``ValueError`` for numbers that are not whole, for more directions than ``noise`` + 1,
    and for fewer than two probes or one forward.
    """

    rank: int | None = 9
    probes: int = 5
    noise: int = 14
    check: int = 1
    shrink: bool = True

    def __post_init__(self) -> None:
        plain_numbers(self)
        whole(rank=self.rank, probes=self.probes, noise=self.noise, check=self.check)
        if self.rank is not None and not 0 <= self.rank <= self.noise + 1:
            raise ValueError(
                f"rank = {self.rank} directions are the feature itself and, of the others, one for "
                f"each forward under noise; noise = {self.noise}"
            )
        if self.rank is not None and self.probes < 2:
            raise ValueError(f"probes = {self.probes}: the error estimate needs at least two")
        if min(self.check, self.noise) < 1:
            raise ValueError(
                f"check = {self.check} and noise = {self.noise}: both need at least one forward"
            )

    @classmethod
    def draft(cls) -> Self:
        """To look at much, quickly: 3 forwards and 4 backwards. The cheapest whose knowledge points
        of images at FC1 and FC2 are at least as near the exact ones as those of the stochastic
        learner of 2020; of point clouds they are not (``benchmarks/frontier.py``).
        """
        return cls(rank=2, probes=2, noise=1)

    @classmethod
    def careful(cls) -> Self:
        """What the book measures images with, early in training too: 26 forwards and 32
        backwards.
        """
        return cls(rank=16, probes=16, noise=24)

    def spans(self, width: int) -> bool:
        """Whether rank and probes together are all of a feature with ``width`` coordinates."""
        return self.rank is not None and width <= self.rank + self.probes


@dataclass(frozen=True)
class UnitEnergy:
    """``energy [B, n]``: s of every unit; ``deviation [B, n]``: its standard error (0 where s is
    exact).

    Both are NaN for units that a sample does not have (``exists [B, n]`` is NaN, else 1).
    ``feature [B, d]`` is the unperturbed feature they belong to; ``rank`` is how many of its
    directions were taken exactly.
    """

    energy: Tensor
    deviation: Tensor
    feature: Tensor
    exists: Tensor
    rank: int

    @property
    def finite(self) -> Tensor:
        """Samples whose feature and energies are finite, bool ``[B]``. A NaN among the energies may
        also be a unit that the sample lacks.
        """
        known = self.energy.isfinite() | self.exists.isnan()
        return self.feature.isfinite().all(-1) & known.all(-1)


@dataclass(frozen=True)
class Jacobian:
    """J = df/dx of one layer at a batch ``x [B, ...]``, through the graph of its ``feature [B,
    ...]``.

    ``exists [B, n]`` is 1 for the ``units`` that a sample has and NaN for others.
    """

    feature: Tensor
    x: Tensor
    units: Units
    exists: Tensor

    @property
    def flat(self) -> Tensor:
        """The feature ``[B, d]``, without its graph."""
        return self.feature.detach().flatten(1)

    def energy(self, direction: Tensor) -> Tensor:
        """Energies ``[B, n]`` of a feature ``direction [B, d]``: squares of J^T v, summed over each
        unit's elements.
        """
        vector = direction.reshape(self.feature.shape).to(self.feature.dtype)
        try:
            (product,) = torch.autograd.grad(
                self.feature, self.x, vector, retain_graph=True, allow_unused=True
            )
        except RuntimeError as error:
            if "use_reentrant" not in str(error):
                raise
            raise ValueError(
                "the model uses reentrant checkpointing, through which no single derivative can be "
                "taken: turn checkpointing off, or build it with use_reentrant=False"
            ) from error
        if product is None:
            raise ValueError(
                "the feature has no derivative by the input: a function on the way, such as one of "
                "quantised numbers, does not have any"
            )
        # squares of half precision would overflow, or vanish
        return self.units.gather(at_least_single(product).square()) * self.exists


def _coordinates(jacobian: Jacobian, changes: Tensor | None) -> Iterator[Tensor]:
    """One-hot vectors ``[B, d]`` that run, for each sample, through the coordinates that ``changes
    [m, B, d]`` move; through all when there are no changes.
    """
    flat = jacobian.flat
    if changes is None:
        yield from (
            torch.eye(flat.shape[1], device=flat.device, dtype=flat.dtype)
            .expand(len(flat), -1, -1)
            .unbind(1)
        )
        return
    # samples move different coordinates; each has its own first, so that one pass serves them all
    moved = (changes != 0).any(0)
    order = moved.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    for j in range(int(moved.sum(-1).max())):
        chosen = order[:, j : j + 1]
        hot = moved.gather(1, chosen).to(flat.dtype)  # 0 where a sample has no j-th one
        yield torch.zeros_like(flat).scatter(1, chosen, hot)


def exact_energies(jacobian: Jacobian, changes: Tensor | None = None) -> UnitEnergy:
    """Unit energies from the full Jacobian, row by row: one backward pass for each coordinate.

    changes   ``[m, B, d]`` of the feature under noise: coordinates that none moves (dead ReLUs)
              have no derivative and are left out. None: every coordinate is taken
    """
    total = torch.zeros_like(jacobian.exists)
    rank = 0
    for row in _coordinates(jacobian, changes):
        total = total + jacobian.energy(row)
        rank += 1
    total = total * jacobian.exists  # NaN also when no coordinate was taken
    return UnitEnergy(total, torch.zeros_like(total), jacobian.flat, jacobian.exists, rank)


def sketched_energies(
    jacobian: Jacobian, changes: Tensor, solver: ClosedForm, gaussian: Tensor
) -> UnitEnergy:
    """Unit energies from ``rank`` leading directions of the feature and random probes of the rest.

    changes   ``[m, B, d]`` of the feature under noise
    gaussian  ``[d, probes]`` random numbers, the same for every sample

    The energy of a unit is the trace of its block of J^T J, so this is Hutch++ (Meyer, Musco, Musco
    and Woodruff 2021, algorithm 1) for all blocks at once, with the range finder of Halko,
    Martinsson and Tropp (2011, algorithm 4.1) for its line 2. It is exact when directions and
    probes together span the feature.
    """
    rank = solver.rank or 0
    leading = directions_to_take(at_least_single(jacobian.flat), changes, rank)  # Q of Hutch++
    directions, times = probes_beyond(leading, changes, gaussian)
    energies = torch.stack([jacobian.energy(v) for v in directions.unbind(-1)])
    size = largest(energies, (0, 2))  # [1, B, 1], of each sample; errors have its square
    energies = energies / size
    exact = energies[:rank].sum(0)
    probed = energies[rank:]
    # Hutch++, line 3: the trace inside the range is exact, outside of it the probes' is scaled up
    rest, variance = rescaled(probed, times)
    if solver.shrink:
        rest, variance = shrunk(rest, variance, energies)
    energy, deviation = size[0] * (exact + rest), size[0] * variance.sqrt()
    return UnitEnergy(energy, deviation, jacobian.flat, jacobian.exists, rank)


def feature_changes(
    perturbation: Perturbation, features: dict[str, Tensor], count: int
) -> dict[str, Tensor]:
    """How ``count`` draws of noise of size tau change the ``features [B, d]`` of layers, ``[count,
    B, d]``; all layers share the passes.
    """
    if not features:
        return {}
    noise = perturbation.tau * perturbation.normal(count, stream=0)
    with torch.no_grad():
        parts = list(perturbation.features([*features], noise))
    changes = {
        name: torch.cat([part[name] for part in parts]) - feature
        for name, feature in features.items()
    }
    # a feature that overflows is reported elsewhere, by sample; here it must not spoil the others
    # nor is there a factorisation of half precision
    return {name: at_least_single(one).nan_to_num_(0, 0, 0) for name, one in changes.items()}


def jacobians(perturbation: Perturbation, layers: Sequence[str]) -> dict[str, Jacobian]:
    """The Jacobian of every layer, from one forward pass with a graph.

    Raises ``ValueError`` for a feature without derivative by the input.
    """
    x = perturbation.x.detach().requires_grad_(True)
    exists = torch.where(perturbation.exists(), x.new_ones(()), torch.nan)
    with torch.enable_grad():
        seen = perturbation.inputs.with_x(x.clone())  # spares x from an in-place first layer
        features = perturbation.network.features(seen, len(x), layers)
    for name, feature in features.items():
        if not feature.requires_grad:
            raise ValueError(f"the feature of layer {name!r} has no derivative by the input")
    return {name: Jacobian(f, x, perturbation.units, exists) for name, f in features.items()}


def unit_energies(
    perturbation: Perturbation, layers: Sequence[str], solver: ClosedForm
) -> dict[str, UnitEnergy]:
    """Unit energies of every layer for one batch; the layers share all forward passes."""
    found = jacobians(perturbation, layers)
    wide = {n: j.flat for n, j in found.items() if not solver.spans(j.flat.shape[1])}
    changes = feature_changes(perturbation, wide, solver.noise)
    return {
        name: _energies(found[name], changes.get(name), solver, perturbation) for name in layers
    }


def _energies(
    jacobian: Jacobian, changes: Tensor | None, solver: ClosedForm, perturbation: Perturbation
) -> UnitEnergy:
    if solver.rank is None or changes is None:
        return exact_energies(jacobian, changes)
    gaussian = perturbation.probes(changes.shape[-1], solver.probes, changes.dtype)
    return sketched_energies(jacobian, changes, solver, gaussian)
