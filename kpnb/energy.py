r"""The closed form: how strongly a layer's feature depends on each input unit.

:math:`s_i = \sum_{e \in \mathrm{unit}\,i} \|\partial f / \partial x_e\|^2`, a block of the diagonal of
:math:`J^\top J`. Feature changes under small noise have a low rank, so the energy of a few leading feature
directions is computed exactly (one vector-Jacobian product each) and the rest is estimated with random orthonormal
probes of what those directions leave out: the range finder of Halko, Martinsson and Tropp (2011) with the deflation
of Meyer, Musco, Musco and Woodruff (Hutch++, 2021). The estimate has no bias and is exact when directions and probes
together span the feature.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from kpnb.layers import capture
from kpnb.perturb import Perturbation, generator
from kpnb.units import Units


@dataclass(frozen=True)
class ClosedForm:
    """Settings of the closed form.

    ``noise`` forwards find the ``rank`` leading feature directions, ``probes`` random ones estimate the rest:
    ``noise + check + 1`` forwards and ``rank + probes`` backwards for each batch and layer. ``check`` forwards with
    the resulting sigma give the linearity diagnostic. ``rank=None`` takes every feature coordinate: the exact
    Jacobian, as many backwards as the feature is wide.
    """

    rank: int | None = 8
    probes: int = 8
    noise: int = 12
    check: int = 3

    def __post_init__(self) -> None:
        if self.rank is not None and not 0 <= self.rank <= self.noise:
            raise ValueError(
                f"rank = {self.rank} directions need at least as many noise forwards (noise = {self.noise})"
            )
        if self.rank is not None and self.probes < 2:
            raise ValueError(f"probes = {self.probes}: the error estimate needs at least two")
        if self.check < 1:
            raise ValueError(f"check = {self.check}: the linearity diagnostic needs at least one forward")


@dataclass(frozen=True)
class UnitEnergy:
    """``energy [B, n]``: s of every unit; ``deviation [B, n]``: its standard error (0 where s is exact).

    ``feature [B, d]`` is the unperturbed feature they belong to.
    """

    energy: Tensor
    deviation: Tensor
    feature: Tensor


def _directions(changes: Tensor, rank: int, probes: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal directions ``[B, d, rank + probes]`` for feature ``changes [m, B, d]``, and the scale of the rest.

    The first ``rank`` columns lead the changes, the others are random in their complement. Coordinates that no
    noise moved (dead ReLUs) have no derivative, so probes keep out of them; the scale ``[B]`` is how many times
    the probed part of the complement is smaller than all of it.
    """
    samples = changes.movedim(0, 1)
    moved = samples.abs().amax(1) > 0
    gram = (samples @ samples.mT).double()
    leading = torch.linalg.eigh(gram).eigenvectors[..., gram.shape[-1] - rank :].to(samples.dtype)
    basis = samples.mT @ leading
    basis = basis / basis.norm(dim=1, keepdim=True).clamp_min(torch.finfo(basis.dtype).tiny)
    columns = torch.linalg.qr(torch.cat([basis, moved[..., None] * probes], -1)).Q
    rest = (moved.sum(-1) - rank).clamp_min(0)
    return columns, (rest / rest.clamp(1, probes.shape[-1])).to(columns.dtype)


def _vjp_energies(feature: Tensor, x: Tensor, columns: Tensor, units: Units, keep: bool) -> Iterator[Tensor]:
    """Energies ``[B, n]`` of the vector-Jacobian product of each of the ``columns [B, d, k]``."""
    last = columns.shape[-1] - 1
    for j in range(columns.shape[-1]):
        vector = columns[..., j].reshape(feature.shape).to(feature.dtype)
        (gradient,) = torch.autograd.grad(feature, x, vector, retain_graph=keep or j < last)
        yield units.gather(gradient.square())


def _total(energies: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Sum and sum of squares of a stream of energies ``[B, n]``."""
    first = next(energies)
    total, squares = first.clone(), first.square()
    for energy in energies:
        total += energy
        squares += energy.square()
    return total, squares


def _exact(feature: Tensor, x: Tensor, units: Units, keep: bool) -> UnitEnergy:
    """Unit energies of one layer from every coordinate of its feature: the full Jacobian, row by row."""
    identity = torch.eye(feature[0].numel(), dtype=feature.dtype, device=x.device)
    energy, _ = _total(_vjp_energies(feature, x, identity.expand(len(x), -1, -1), units, keep))
    return UnitEnergy(energy, torch.zeros_like(energy), feature.detach().flatten(1))


def _estimated(
    feature: Tensor, x: Tensor, changes: Tensor, solver: ClosedForm, probes: Tensor, units: Units, keep: bool
) -> UnitEnergy:
    """Unit energies of one layer from its leading directions and random probes ``[d, r]`` of the rest."""
    rank, r = solver.rank or 0, solver.probes
    columns, scale = _directions(changes, rank, probes)
    energies = _vjp_energies(feature, x, columns, units, keep)
    known = _total(islice(energies, rank))[0] if rank else torch.zeros((), device=x.device)
    total, squares = _total(energies)
    # the probes are a sample, without replacement, of r out of scale * r directions
    variance = (squares - total.square() / r).clamp_min(0) / (r - 1)
    variance = variance * (scale.square() * r * (1 - 1 / scale.clamp_min(1)))[:, None]
    return UnitEnergy(known + scale[:, None] * total, variance.sqrt(), feature.detach().flatten(1))


def unit_energies(
    perturbation: Perturbation, x: Tensor, layers: Sequence[str], solver: ClosedForm
) -> dict[str, UnitEnergy]:
    """Unit energies of every layer for one batch ``x [B, ...]``; the layers share the forward passes."""
    model, units = perturbation.model, perturbation.units
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        features = capture(model, x.clone(), layers)  # the clone spares x from an in-place first layer
    flat = {name: f.detach().flatten(1) for name, f in features.items()}
    searched = [n for n in layers if solver.rank is not None and flat[n].shape[1] > solver.rank + solver.probes]
    parts = []
    if searched:
        noise = perturbation.tau * perturbation.normal(solver.noise, x, stream=0)
        with torch.no_grad():
            parts = list(perturbation.features(x, searched, noise))
    found = {}
    for name in layers:
        keep = name != layers[-1]
        if name not in searched:
            found[name] = _exact(features[name], x, units, keep)
            continue
        changes = _factorable(torch.cat([part[name] for part in parts]) - flat[name])
        shape, gen = (changes.shape[-1], solver.probes), generator(perturbation.seed + 1, x.device)
        probes = torch.randn(shape, generator=gen, device=x.device, dtype=changes.dtype)
        found[name] = _estimated(features[name], x, changes, solver, probes, units, keep)
    return found


def _factorable(values: Tensor) -> Tensor:
    """Half precision in float32: there is no factorisation for it."""
    return values.float() if values.dtype.itemsize < 4 else values
