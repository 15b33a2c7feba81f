r"""The closed form: how strongly a layer's feature depends on each input unit.

:math:`s_i = \sum_{e \in \mathrm{unit}\,i} \|\partial f / \partial x_e\|^2`, a block of the diagonal
of :math:`J^\top J`. Feature changes under small noise have a low rank, so the energy of a few
leading feature directions is computed exactly (one vector-Jacobian product each) and the rest is
estimated with random orthonormal probes of what those directions leave out: the range finder of
Halko, Martinsson and Tropp (2011) with the deflation of Meyer, Musco, Musco and Woodruff (Hutch++,
2021). It is exact when directions and probes together span the feature.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from kpnb.features import capture, leads_through
from kpnb.perturb import Perturbation, generator
from kpnb.units import Units


@dataclass(frozen=True)
class ClosedForm:
    """Settings of the closed form; the defaults cost 16 forwards and 14 backwards for a batch and a
    layer.

    rank        leading feature directions whose energy is exact; ``None`` takes every coordinate of
                the feature that noise moves at all: the exact Jacobian, with as many backwards;
                ``"auto"`` takes one more at a time, for each sample until the mean over its units
                of the standard error of H (nats) is at most ``tolerance``
    probes      random orthonormal directions that estimate the rest
    noise       forwards under noise of size tau that find the leading directions (and the
                coordinates that move); ``"auto"`` makes as many more whenever it has used up the
                directions they gave
    check       forwards at the resulting sigma for the linearity diagnostic (each layer has its
                own; layers share the other forwards)
    shrink      improve each unit's estimate of the rest with what all units have in common (see
                ``_shrunk``); without it the estimate is unbiased and noisier
    own         for several layers in one call. Where the input acts on an upper layer only by way
                of a lower one, every product that was taken for the upper layer is one for the
                lower layer as well. That then adds at most so many leading directions of its own,
                and its probes. None: as if there were one call for each layer
    """

    rank: int | Literal["auto"] | None = 9
    probes: int = 5
    noise: int = 14
    check: int = 1
    shrink: bool = True
    tolerance: float = 0.005
    own: int | None = 2

    def __post_init__(self) -> None:
        if isinstance(self.rank, str) and (self.rank != "auto" or not self.tolerance > 0):
            raise ValueError(
                f"rank = {self.rank!r} must be a number, None or 'auto', tolerance = {self.tolerance} > 0"
            )
        if isinstance(self.rank, int) and not 0 <= self.rank <= self.noise:
            raise ValueError(
                f"rank = {self.rank} directions need as many forwards under noise; noise = {self.noise}"
            )
        if self.own is not None and self.own < 0:
            raise ValueError(f"own = {self.own}: choose 0 or more directions, or None")
        if self.rank is not None and self.probes < 2:
            raise ValueError(f"probes = {self.probes}: the error estimate needs at least two")
        if min(self.check, self.noise) < 1:
            raise ValueError(
                f"check = {self.check} and noise = {self.noise}: both need at least one forward"
            )


@dataclass(frozen=True)
class UnitEnergy:
    """``energy [B, n]``: s of every unit; ``deviation [B, n]``: its standard error (0 where s is
    exact).

    Both are NaN for units that a sample does not have. ``feature [B, d]`` is the unperturbed
    feature they belong to; ``rank`` is how many of its directions were taken exactly, ``[B]`` where
    that differs between samples.
    """

    energy: Tensor
    deviation: Tensor
    feature: Tensor
    rank: int | Tensor


Error = Callable[[UnitEnergy], Tensor]
"""From energies to the error ``[B]`` that ``ClosedForm.tolerance`` is about."""


@dataclass(frozen=True)
class _Layer:
    """A layer's ``feature [B, ...]`` of the input ``x``, and what layers above it ``found``.

    ``exists [B, n]`` is 1 for the ``units`` that a sample has and NaN for others.
    ``below`` are the layers through which everything goes that acts on this one. For each product
    that is taken here they find a direction ``[B, d]`` of their own whose product it is.
    """

    feature: Tensor
    x: Tensor
    units: Units
    exists: Tensor
    below: list["_Layer"] = field(default_factory=list)
    found: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def flat(self) -> Tensor:
        return self.feature.detach().flatten(1)

    def products(self, vector: Tensor) -> tuple[Tensor, ...]:
        """The vector-Jacobian product, shaped like ``x``, of ``vector [B, d]``, then its directions
        for those below.
        """
        shaped = vector.reshape(self.feature.shape).to(self.feature.dtype)
        inputs = [self.x, *(layer.feature for layer in self.below)]
        return torch.autograd.grad(self.feature, inputs, shaped, retain_graph=True)

    def energy(self, square: Tensor) -> Tensor:
        """Energies ``[B, n]`` from the ``square`` of a product."""
        return self.units.gather(square) * self.exists

    def energies(self, vectors: Iterable[Tensor]) -> Iterator[Tensor]:
        """Energies ``[B, n]`` of the product of each of the ``vectors [B, d]``."""
        for vector in vectors:
            product, *passed = self.products(vector)
            for layer, direction in zip(self.below, passed, strict=True):
                layer.found.append((direction.flatten(1), product))
            yield self.energy(product.square())


def _directions(changes: Tensor, rank: int, probes: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal directions ``[rank + probes, B, d]`` for feature ``changes [m, B, d]``, and the
    scale of the rest.

    The first ``rank`` lead the changes, the others are random in their complement; all are
    orthogonal to those ``known [B, d, k]``, orthonormal or 0. Coordinates that no noise moved (dead
    ReLUs) have no derivative, so probes keep out of them; the scale ``[B]`` is how many times the
    probed part of the complement goes into all of it.
    """
    samples = changes.movedim(0, 1)
    moved = samples.abs().amax(1) > 0
    samples = samples - samples @ known @ known.mT
    gram = (samples @ samples.mT).double()
    leading = torch.linalg.eigh(gram).eigenvectors[..., gram.shape[-1] - rank :].to(samples.dtype)
    basis = samples.mT @ leading
    basis = basis / basis.norm(dim=1, keepdim=True).clamp_min(torch.finfo(basis.dtype).tiny)
    random = moved[..., None] * probes
    columns = torch.linalg.qr(torch.cat([basis, random - known @ (known.mT @ random)], -1)).Q
    columns = columns - known @ (
        known.mT @ columns
    )  # matters only where fewer dimensions are left than columns
    rest = (moved.sum(-1) - rank - _count(known)).clamp_min(0)
    return columns.movedim(-1, 0), (rest / rest.clamp(1, probes.shape[-1])).to(columns.dtype)


def _count(known: Tensor) -> Tensor:
    """How many directions ``known [B, d, k]``, orthonormal or 0, has, ``[B]``."""
    return known.square().sum((1, 2)).round().long()


def _known(layer: _Layer, changes: Tensor) -> tuple[Tensor, Tensor]:
    """Directions ``[B, d, k]``, orthonormal or 0, that span those ``found``, and their energy ``[B,
    n]`` together.

    Products combine as their directions do. Coordinates without ``changes`` have no derivative and
    are left out, and so are directions that are nothing but rounding.
    """
    directions, products = zip(*layer.found, strict=True)
    basis = torch.stack(directions, -1).to(changes.dtype) * (changes != 0).any(0)[..., None]
    size = basis.norm(dim=1, keepdim=True)
    size = size.where(size > 1e-4 * size.amax(-1, keepdim=True), torch.inf)
    values, mixing = torch.linalg.eigh((basis / size).mT.double() @ (basis / size).double())
    mixing = (mixing * (values.clamp_min(1e-4).rsqrt() * (values > 1e-4))[:, None]).to(
        basis.dtype
    ) / size.mT
    totals = []
    for row, mix in enumerate(
        mixing.mT.to(products[0].dtype)
    ):  # of one sample at a time the products fit into a cache
        part = torch.cat([product[row : row + 1] for product in products])
        flat = part.as_strided(
            (len(part), part[0].numel()), (part[0].numel(), 1)
        )  # in whatever order memory has them
        totals.append((mix @ flat).square_().sum(0).as_strided(part[:1].shape, part.stride()))
    return basis @ mixing, layer.energy(torch.cat(totals))


def _coordinates(changes: Tensor) -> Iterator[Tensor]:
    """One-hot vectors ``[B, d]`` that run, for each sample, through the coordinates that ``changes
    [m, B, d]`` move.
    """
    moved = (changes != 0).any(0)
    order = moved.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    for j in range(int(moved.sum(-1).max())):
        chosen = order[:, j : j + 1]
        yield torch.zeros_like(changes[0]).scatter(
            1, chosen, moved.gather(1, chosen).to(changes.dtype)
        )


def _exact(layer: _Layer, vectors: Iterable[Tensor]) -> UnitEnergy:
    """Unit energies of one layer from every coordinate that matters: the full Jacobian, row by
    row.
    """
    total, rank = 0 * layer.exists, 0
    for energy in layer.energies(vectors):
        total, rank = total + energy, rank + 1
    return UnitEnergy(total, torch.zeros_like(total), layer.flat, rank)


def _votes(energies: Tensor) -> Tensor:
    """The ``energies [..., B, n]`` over their sum."""
    return energies / energies.nansum(-1, keepdim=True).clamp_min(torch.finfo(energies.dtype).tiny)


def _shrunk(rest: Tensor, variance: Tensor, votes: Tensor) -> tuple[Tensor, Tensor]:
    """The probes' estimate ``rest [B, n]`` of what they left out, moved towards a smoother one; and
    its variance.

    The total of ``rest`` is well known, its split among units is not. A second opinion on the
    split: let every direction probed vote with its own energies, normalised so that all votes weigh
    the same; ``votes [B, n]`` is their sum. Both are mixed by the James-Stein rule, according to
    how far they differ (relative to the second) beyond the noise. Units that a sample does not have
    are NaN and do not count.
    """
    total = votes.nansum(-1, keepdim=True).clamp_min(torch.finfo(votes.dtype).tiny)
    other = votes * rest.nansum(-1, keepdim=True) / total
    square = other.square().clamp_min(torch.finfo(other.dtype).tiny)
    apart = ((rest - other).square() / square).nanmean(-1, keepdim=True)
    noise = (variance / square).nanmean(-1, keepdim=True)
    # the mean over n units knows the distance to a part in sqrt(n / 2), so the second opinion is
    # never taken as exact
    bias = torch.maximum(apart - noise, apart * (2 / (~rest.isnan()).sum(-1, keepdim=True)).sqrt())
    weight = noise / (noise + bias).clamp_min(torch.finfo(noise.dtype).tiny)
    # the rule promises the variance times (1 - weight); its weight is an estimate too, so half of
    # that is credited
    return rest + weight * (other - rest), square * noise * (1 - weight / 2)


def _combined(
    layer: _Layer,
    exact: Tensor,
    probed: Tensor,
    scale: Tensor,
    votes: Tensor,
    solver: ClosedForm,
    rank: int | Tensor,
) -> UnitEnergy:
    """Unit energies from the ``exact [B, n]`` ones of ``rank`` directions, and ``probed [r, B, n]``
    others.

    The probed directions go ``scale [B]`` times into all that the exact ones leave out; ``votes``
    is for ``_shrunk``.
    """
    scale, r = scale[:, None].to(probed.dtype), len(probed)
    rest = scale * probed.sum(0)
    # the probes are a sample, without replacement, of r out of scale * r directions
    variance = (
        (probed - probed.mean(0)).square().sum(0)
        * r
        / (r - 1)
        * scale.square()
        * (1 - 1 / scale.clamp_min(1))
    )
    if solver.shrink:
        rest, variance = _shrunk(rest, variance, votes)
    return UnitEnergy(exact + rest, variance.sqrt(), layer.flat, rank)


def _estimated(layer: _Layer, changes: Tensor, solver: ClosedForm, probes: Tensor) -> UnitEnergy:
    """Unit energies of one layer from known and leading directions, and random probes ``[d, r]`` of
    the rest.
    """
    rank, known = int(solver.rank or 0), changes.new_zeros(*changes.shape[1:], 0)
    exact: Tensor | int = 0
    votes: Tensor | int = 0
    if layer.found:
        rank, (known, exact) = min(rank, solver.own or 0), _known(layer, changes)
        votes = _count(known)[:, None] * _votes(
            exact
        )  # together, because each depends on how the span was found
    vectors, scale = _directions(changes, rank, probes, known)
    energies = torch.stack([*layer.energies(vectors)])
    exact, votes = exact + energies[:rank].sum(0), votes + _votes(energies).sum(0)
    return _combined(layer, exact, energies[rank:], scale, votes, solver, rank + _count(known))


def _leading(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Orthonormal directions ``[B, d]`` that lead the changes ``[m, B, d]`` of one block after the
    other.
    """
    known: list[Tensor] = []
    for changes in blocks:
        samples = changes.movedim(0, -1)
        for direction in known:
            samples = samples - direction[..., None] * (direction[:, None] @ samples)
        directions = torch.linalg.svd(samples, full_matrices=False).U.unbind(-1)
        known += directions
        yield from directions


def _adaptive(
    layer: _Layer, blocks: Iterator[Tensor], solver: ClosedForm, probes: Tensor, error: Error
) -> UnitEnergy:
    """Like ``_estimated``, with one leading direction more until each sample's ``error`` is within
    the tolerance.

    A product with the Jacobian is linear: what a new direction takes out of the probes, its product
    takes out of theirs. So there are as many backwards as if the rank had been known.
    """
    first, x = next(blocks), layer.x
    moved = (first != 0).any(0)
    directions = _leading(block * moved for block in itertools.chain([first], blocks))
    vectors = torch.linalg.qr(moved[..., None] * probes).Q
    products = torch.stack(
        [layer.products(vector)[0].flatten(1) for vector in vectors.unbind(-1)], -1
    )
    exact = layer.exists.new_empty(0, *layer.exists.shape)
    kept: list[UnitEnergy] = []
    rank, unsure = torch.zeros_like(moved[:, 0], dtype=torch.int64), torch.ones_like(moved[:, 0])
    while True:
        upper = torch.linalg.qr(vectors).R.to(products.dtype)
        orthonormal = torch.linalg.solve_triangular(upper, products, upper=True, left=False)
        probed = torch.stack(
            [layer.energy(p.reshape(x.shape).square()) for p in orthonormal.unbind(-1)]
        )
        rest = (moved.sum(-1) - len(exact)).clamp_min(0)
        scale, votes = (
            rest / rest.clamp(1, probes.shape[-1]),
            _votes(torch.cat([exact, probed])).sum(0),
        )
        kept.append(_combined(layer, exact.sum(0), probed, scale, votes, solver, len(exact)))
        unsure = unsure & (
            error(kept[-1]) > solver.tolerance
        )  # not where it is NaN: nothing moves there
        if not unsure.any():
            break
        rank += unsure
        direction = next(directions)
        (product,) = layer.products(direction)
        exact = torch.cat([exact, layer.energy(product.square())[None]])
        overlap = direction[:, None] @ vectors
        vectors = vectors - direction[..., None] * overlap
        products = products - product.flatten(1)[..., None] * overlap.to(products.dtype)
    mine = rank, torch.arange(len(x), device=x.device)
    energy, deviation = (
        torch.stack([getattr(e, part) for e in kept])[mine] for part in ("energy", "deviation")
    )
    return UnitEnergy(energy, deviation, kept[-1].feature, rank)


def _changes(
    perturbation: Perturbation, x: Tensor, flat: Mapping[str, Tensor], count: int, stream: int
) -> dict[str, Tensor]:
    """How ``count`` draws of noise of size tau change the features ``flat [B, d]`` of layers,
    ``[count, B, d]``.
    """
    noise = perturbation.tau * perturbation.normal(count, x, stream)
    with torch.no_grad():
        parts = list(perturbation.features(x, [*flat], noise))
    return {
        name: _factorable(torch.cat([part[name] for part in parts]) - flat[name]) for name in flat
    }


def unit_energies(
    perturbation: Perturbation,
    x: Tensor,
    layers: Sequence[str],
    solver: ClosedForm,
    error: Error | None = None,
) -> dict[str, UnitEnergy]:
    """Unit energies of every layer for one batch ``x [B, ...]``; the layers share passes, see
    ``ClosedForm``.

    ``rank="auto"`` needs ``error``.
    """
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        seen = x.clone()  # spares x from an in-place first layer
        features = capture(perturbation.model, seen, layers)
    flat = {name: f.detach().flatten(1) for name, f in features.items()}
    enough = (
        solver.noise
        if solver.rank is None
        else solver.probes + (solver.rank if solver.rank != "auto" else 0)
    )
    searched = {name: feature for name, feature in flat.items() if feature.shape[1] > enough}
    changes = _changes(perturbation, x, searched, solver.noise, stream=0) if searched else {}
    exists = torch.where(perturbation.exists(x), x.new_ones(()), torch.nan)
    stack = {
        name: _Layer(feature, x, perturbation.units, exists) for name, feature in features.items()
    }
    if solver.own is not None and isinstance(solver.rank, int):
        for layer, other in itertools.permutations(stack, 2):
            if other in searched and leads_through(features[layer], features[other], x):
                stack[layer].below.append(stack[other])
    found = {}
    for name, layer in sorted(
        stack.items(), key=lambda item: -len(item[1].below)
    ):  # the topmost first
        if solver.rank is None or name not in changes:
            known, ones = name in changes, torch.ones_like(flat[name])
            vectors = _coordinates(changes[name]) if known else torch.diag_embed(ones).unbind(1)
            found[name] = _exact(layer, vectors)
            continue
        gen = generator(perturbation.seed + 1, x.device)
        shape, dtype = (flat[name].shape[1], solver.probes), changes[name].dtype
        probes = torch.randn(shape, generator=gen, device=x.device, dtype=dtype)
        if solver.rank == "auto":
            draw = partial(_changes, perturbation, x, {name: flat[name]}, solver.noise)
            blocks = (draw(1000 * i)[name] if i else changes[name] for i in itertools.count())
            found[name] = _adaptive(layer, blocks, solver, probes, error)
        else:
            found[name] = _estimated(layer, changes[name], solver, probes)
    return {name: found[name] for name in layers}


def _factorable(values: Tensor) -> Tensor:
    """Half precision in float32: there is no factorisation for it."""
    return values.float() if values.dtype.itemsize < 4 else values
