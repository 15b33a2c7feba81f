r"""The closed form: how strongly a layer's feature depends on each input unit.

:math:`s_i = \sum_{e \in \mathrm{unit}\,i} \|\partial f / \partial x_e\|^2`, a block of the diagonal of
:math:`J^\top J`. Feature changes under small noise have a low rank, so the energy of a few leading feature
directions is computed exactly (one vector-Jacobian product each) and the rest is estimated with random orthonormal
probes of what those directions leave out: the range finder of Halko, Martinsson and Tropp (2011) with the deflation
of Meyer, Musco, Musco and Woodruff (Hutch++, 2021). It is exact when directions and probes together span the feature.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kpnb.layers import capture
from kpnb.perturb import Perturbation, generator
from kpnb.units import Units, existing


@dataclass(frozen=True)
class ClosedForm:
    """Settings of the closed form; the defaults cost 16 forwards and 14 backwards for a batch and a layer.

    rank        leading feature directions whose energy is exact; ``None`` takes every coordinate of the feature that
                noise moves at all: the exact Jacobian, with as many backwards
    probes      random orthonormal directions that estimate the rest
    noise       forwards under noise of size tau that find the leading directions (and the coordinates that move)
    check       forwards at the resulting sigma for the linearity diagnostic (each layer has its own; layers share
                the other forwards)
    shrink      improve each unit's estimate of the rest with what all units have in common (see ``_shrunk``);
                without it the estimate is unbiased and noisier
    """

    rank: int | None = 9
    probes: int = 5
    noise: int = 14
    check: int = 1
    shrink: bool = True

    def __post_init__(self) -> None:
        if self.rank is not None and not 0 <= self.rank <= self.noise:
            raise ValueError(f"rank = {self.rank} directions need as many forwards under noise; noise = {self.noise}")
        if self.rank is not None and self.probes < 2:
            raise ValueError(f"probes = {self.probes}: the error estimate needs at least two")
        if min(self.check, self.noise) < 1:
            raise ValueError(f"check = {self.check} and noise = {self.noise}: both need at least one forward")


@dataclass(frozen=True)
class UnitEnergy:
    """``energy [B, n]``: s of every unit; ``deviation [B, n]``: its standard error (0 where s is exact).

    Both are NaN for units that do not exist. ``feature [B, d]`` is the unperturbed feature they belong to.
    """

    energy: Tensor
    deviation: Tensor
    feature: Tensor


def _directions(changes: Tensor, rank: int, probes: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal directions ``[rank + probes, B, d]`` for feature ``changes [m, B, d]``, and the scale of the rest.

    The first ``rank`` lead the changes, the others are random in their complement. Coordinates that no noise moved
    (dead ReLUs) have no derivative, so probes keep out of them; the scale ``[B]`` is how many times the probed part
    of the complement goes into all of it.
    """
    samples = changes.movedim(0, 1)
    moved = samples.abs().amax(1) > 0
    gram = (samples @ samples.mT).double()
    leading = torch.linalg.eigh(gram).eigenvectors[..., gram.shape[-1] - rank :].to(samples.dtype)
    basis = samples.mT @ leading
    basis = basis / basis.norm(dim=1, keepdim=True).clamp_min(torch.finfo(basis.dtype).tiny)
    columns = torch.linalg.qr(torch.cat([basis, moved[..., None] * probes], -1)).Q
    rest = (moved.sum(-1) - rank).clamp_min(0)
    return columns.movedim(-1, 0), (rest / rest.clamp(1, probes.shape[-1])).to(columns.dtype)


def _coordinates(changes: Tensor) -> Iterator[Tensor]:
    """One-hot vectors ``[B, d]`` that run, for each sample, through the coordinates that ``changes [m, B, d]`` move."""
    moved = (changes != 0).any(0)
    order = moved.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    for j in range(int(moved.sum(-1).max())):
        chosen = order[:, j : j + 1]
        yield torch.zeros_like(changes[0]).scatter(1, chosen, moved.gather(1, chosen).to(changes.dtype))


def _vjp_energies(feature: Tensor, x: Tensor, vectors: Iterable[Tensor], units: Units) -> Iterator[Tensor]:
    """Energies ``[B, n]`` of the vector-Jacobian product of each of the ``vectors [B, d]`` (0 for no unit)."""
    exists = existing(units, x)
    for vector in vectors:
        flat = vector.reshape(feature.shape).to(feature.dtype)
        (gradient,) = torch.autograd.grad(feature, x, flat, retain_graph=True)
        yield units.gather(gradient.square()) * exists


def _exact(feature: Tensor, x: Tensor, vectors: Iterable[Tensor], units: Units) -> UnitEnergy:
    """Unit energies of one layer from every coordinate that matters: the full Jacobian, row by row."""
    nothing = torch.zeros(len(x), units.count(x), dtype=x.dtype, device=x.device)
    total = sum(_vjp_energies(feature, x, vectors, units), nothing)
    return UnitEnergy(total, torch.zeros_like(total), feature.detach().flatten(1))


def _shrunk(rest: Tensor, variance: Tensor, energies: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """The probes' estimate ``rest [B, n]`` of what they left out, moved towards a smoother one; and its variance.

    The total of ``rest`` is well known, its split among units is not. A second opinion on the split: let every
    direction probed vote with its own ``energies [k, B, n]``, normalised so that all votes weigh the same. Both are
    mixed by the James-Stein rule, according to how far they differ (relative to the second) beyond the noise.
    Each sample has ``n [B, 1]`` units; the others are 0 everywhere.
    """
    votes = (energies / energies.sum(-1, keepdim=True).clamp_min(torch.finfo(energies.dtype).tiny)).sum(0)
    other = votes * rest.sum(-1, keepdim=True) / votes.sum(-1, keepdim=True).clamp_min(torch.finfo(votes.dtype).tiny)
    square = other.square().clamp_min(torch.finfo(other.dtype).tiny)
    apart = ((rest - other).square() / square).sum(-1, keepdim=True) / n
    noise = (variance / square).sum(-1, keepdim=True) / n
    # the mean over n units knows the distance to a part in sqrt(n / 2), so the second opinion is never taken as exact
    bias = torch.maximum(apart - noise, apart * (2 / n) ** 0.5)
    weight = noise / (noise + bias).clamp_min(torch.finfo(noise.dtype).tiny)
    # the rule promises the variance times (1 - weight); its weight is an estimate too, so half of that is credited
    return rest + weight * (other - rest), square * noise * (1 - weight / 2)


def _estimated(
    feature: Tensor, x: Tensor, changes: Tensor, solver: ClosedForm, probes: Tensor, units: Units
) -> UnitEnergy:
    """Unit energies of one layer from its leading directions and random probes ``[d, r]`` of the rest."""
    rank, r = solver.rank or 0, solver.probes
    vectors, scale = _directions(changes, rank, probes)
    energies = torch.stack([*_vjp_energies(feature, x, vectors, units)])
    scale = scale[:, None].to(energies.dtype)
    known, probed = energies[:rank].sum(0), energies[rank:]
    rest = scale * probed.sum(0)
    # the probes are a sample, without replacement, of r out of scale * r directions
    variance = probed.var(0) * r * scale.square() * (1 - 1 / scale.clamp_min(1))
    if solver.shrink:
        rest, variance = _shrunk(rest, variance, energies, existing(units, x).sum(-1, keepdim=True, dtype=rest.dtype))
    return UnitEnergy(known + rest, variance.sqrt(), feature.detach().flatten(1))


def unit_energies(
    perturbation: Perturbation, x: Tensor, layers: Sequence[str], solver: ClosedForm
) -> dict[str, UnitEnergy]:
    """Unit energies of every layer for one batch ``x [B, ...]``; the layers share the forward passes."""
    model, units = perturbation.model, perturbation.units
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        features = capture(model, x.clone(), layers)  # the clone spares x from an in-place first layer
    flat = {name: f.detach().flatten(1) for name, f in features.items()}
    enough = solver.noise if solver.rank is None else solver.rank + solver.probes
    searched = [name for name in layers if flat[name].shape[1] > enough]
    parts = []
    if searched:
        noise = perturbation.tau * perturbation.normal(solver.noise, x, stream=0)
        with torch.no_grad():
            parts = list(perturbation.features(x, searched, noise))
    found = {}
    for name in layers:
        width = flat[name].shape[1]
        if name not in searched:
            identity = torch.eye(width, dtype=x.dtype, device=x.device)
            found[name] = _exact(features[name], x, identity[:, None].expand(-1, len(x), -1), units)
            continue
        changes = _factorable(torch.cat([part[name] for part in parts]) - flat[name])
        if solver.rank is None:
            found[name] = _exact(features[name], x, _coordinates(changes), units)
            continue
        gen = generator(perturbation.seed + 1, x.device)
        probes = torch.randn(width, solver.probes, generator=gen, device=x.device, dtype=changes.dtype)
        found[name] = _estimated(features[name], x, changes, solver, probes, units)
    none = {"mask": ~existing(units, x), "value": torch.nan}
    filled = {k: (v.energy.masked_fill(**none), v.deviation.masked_fill(**none)) for k, v in found.items()}
    return {k: replace(found[k], energy=energy, deviation=deviation) for k, (energy, deviation) in filled.items()}


def _factorable(values: Tensor) -> Tensor:
    """Half precision in float32: there is no factorisation for it."""
    return values.float() if values.dtype.itemsize < 4 else values
