"""Eq. 1-4: how much of each input unit's information a layer discards, as one call."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from kpnb._memory import fitting
from kpnb.energy import ClosedForm, UnitEnergy, unit_energies
from kpnb.features import explaining, module_at
from kpnb.objectives import Aligned, Objective, entropy_of, relative_energy
from kpnb.perturb import Perturbation
from kpnb.sampling import Stochastic, learn_sigma
from kpnb.units import ImageGrid, Units


@dataclass(frozen=True)
class Entropy:
    """Information discarding of one layer for N samples of n units.

    entropy     ``[N, n]`` nats: H_i of Eq. 2; the larger, the more of unit i's information is
                discarded
    sigma       ``[N, n]`` input units: the perturbation that the feature allows
    delta_f2    ``[N]`` squared feature units: the feature's variance under noise of size tau
    linearity   ``[N]``: squared feature change at sigma, measured over predicted: 1 where the
                linear model behind the closed form holds (NaN from the stochastic learner, which
                has no prediction)
    error       ``[N, n]`` nats: standard error of H_i due to the random probes, 0 where it is exact
                (NaN from the stochastic learner: repeat it with another seed instead)
    rank        ``[N]``: feature directions whose energy is exact (NaN from the stochastic learner)
    settings    everything that produced the result, ready for JSON

    Units that a sample does not have (special and padding tokens) are NaN everywhere.
    """

    entropy: Tensor
    sigma: Tensor
    delta_f2: Tensor
    linearity: Tensor
    error: Tensor
    rank: Tensor
    settings: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """The result's tensors by name, for storing."""
        return {name: getattr(self, name) for name in TENSORS}


TENSORS = ("entropy", "sigma", "delta_f2", "linearity", "error", "rank")


def check_input(model: nn.Module, x: Tensor) -> None:
    """``ValueError`` for an input on another device than the model, not floating, not finite, or
    constant.
    """
    device = next((p.device for p in model.parameters()), x.device)
    if device != x.device:
        raise ValueError(f"the model is on {device}, the input on {x.device}; move one of them")
    if not x.is_floating_point() or x.dim() < 2 or not len(x):
        raise ValueError(
            f"the input is a non-empty floating-point batch [B, ...]; got {x.dtype} {tuple(x.shape)}"
        )
    flat = x.flatten(1)
    for what, bad in (
        ("NaN or infinite values", ~flat.isfinite().all(1)),
        (
            "the same value everywhere, so no information that could be discarded",
            (flat == flat[:, :1]).all(1),
        ),
    ):
        if bad.any():
            raise ValueError(f"{_samples(bad)} of the batch: {what}")


def _samples(bad: Tensor) -> str:
    where = bad.nonzero().flatten().tolist()
    return f"sample{'s' * (len(where) > 1)} {', '.join(map(str, where[:10]))}{', ...' * (len(where) > 10)}"


def solve(found: UnitEnergy, objective: Objective, tau: float) -> tuple[Tensor, Tensor]:
    """Sigma ``[B, n]`` for given unit energies, and the standard error of its logarithm (both
    float64).
    """
    with torch.enable_grad():
        q = relative_energy(found.energy.detach()).requires_grad_(True)
        sigma = tau * objective.variance(q).sqrt()
        (slope,) = torch.autograd.grad(sigma.log().sum(), q)
    deviation = found.deviation.double() / found.energy.double().nanmean(-1, keepdim=True)
    return sigma.detach(), (slope * deviation).abs()


def _mean_error(found: UnitEnergy, objective: Objective, tau: float) -> Tensor:
    """Mean over each sample's units of the standard error of H, ``[B]`` nats: what ``tolerance``
    bounds.
    """
    return solve(found, objective, tau)[1].nanmean(-1)


def _closed_form(
    perturbation: Perturbation,
    x: Tensor,
    layers: Sequence[str],
    solver: ClosedForm,
    objective: Objective,
) -> dict[str, dict[str, Tensor]]:
    """The fields of ``Entropy`` for one batch, by layer."""
    results = {}
    delta = perturbation.normal(solver.check, x, stream=2)
    error_of = partial(_mean_error, objective=objective, tau=perturbation.tau)
    for name, found in unit_energies(perturbation, x, layers, solver, error_of).items():
        sigma, error = solve(found, objective, perturbation.tau)
        energy = found.energy.double()
        with torch.no_grad():
            still = sigma.nan_to_num().to(
                x.dtype
            )  # a sample without any energy is NaN; networks may refuse NaN
            noise = perturbation.units.spread(still, x) * delta
            parts = perturbation.features(x, [name], noise)
            change = sum(
                (part[name] - found.feature).double().square().sum(-1).sum(0) for part in parts
            )
        results[name] = {
            "entropy": entropy_of(sigma),
            "sigma": sigma,
            "delta_f2": perturbation.tau**2 * energy.nansum(-1),
            "linearity": change / solver.check / (energy * sigma.square()).nansum(-1),
            "error": error,
            "rank": torch.as_tensor(found.rank, device=x.device).expand(len(x)),
        }
    return results


def _stochastic(
    perturbation: Perturbation,
    x: Tensor,
    layers: Sequence[str],
    solver: Stochastic,
    objective: Objective,
) -> dict[str, dict[str, Tensor]]:
    """The fields of ``Entropy`` for one batch, by layer."""
    results = {}
    for name in layers:
        learned = learn_sigma(perturbation, x, name, solver, objective)
        results[name] = {
            "entropy": entropy_of(learned.sigma),
            "sigma": learned.sigma,
            "delta_f2": learned.delta_f2,
            "linearity": torch.full_like(learned.delta_f2, torch.nan),
            "error": torch.full_like(learned.sigma, torch.nan),
            "rank": torch.full_like(learned.delta_f2, torch.nan),
        }
    return results


def _check_solved(fields: dict[str, Tensor], layer: str, objective: Objective) -> None:
    """``ValueError`` that names samples whose feature does not move, or whose mean entropy is out
    of reach.
    """
    still = ~(fields["delta_f2"] > 0)
    if still.any():
        raise ValueError(
            f"{_samples(still)}: the feature of layer {layer!r} does not move under noise (delta_f^2 = 0), so every "
            "unit is discarded completely; choose another layer, or pass dead='nan' to go on with NaN there"
        )
    unreached = fields["entropy"].isnan().all(-1)
    if unreached.any():
        raise ValueError(
            f"{_samples(unreached)}: at layer {layer!r} the mean entropy never gets as high as {objective}"
        )


def _measured(
    perturbation: Perturbation,
    x: Tensor,
    names: Sequence[str],
    solver: ClosedForm | Stochastic,
    objective: Objective,
) -> dict[str, dict[str, Tensor]]:
    """The fields of ``Entropy`` for all samples, ``max_batch`` of them at a time or as many as
    memory takes.
    """
    run = _closed_form if isinstance(solver, ClosedForm) else _stochastic
    parts, rest, rows = [], x, perturbation.max_batch

    def attempt(rows: int) -> dict[str, dict[str, Tensor]]:
        return run(replace(perturbation, max_batch=rows), rest[:rows], names, solver, objective)

    precision = torch.promote_types(x.dtype, torch.float32)
    with explaining(perturbation.model, x.device):
        while len(rest):
            part, rows = fitting(attempt, rows, "the entropy of a batch")
            parts, rest = [*parts, part], rest[rows:]
    return {
        name: {
            key: torch.cat([part[name][key].detach().to(precision) for part in parts])
            for key in TENSORS
        }
        for name in names
    }


@overload
def entropy(model: nn.Module, x: Tensor, layers: str, **options: Any) -> Entropy: ...
@overload
def entropy(
    model: nn.Module, x: Tensor, layers: Sequence[str], **options: Any
) -> dict[str, Entropy]: ...
def entropy(
    model: nn.Module,
    x: Tensor,
    layers: str | Sequence[str],
    *,
    units: Units | None = None,
    solver: ClosedForm | Stochastic | None = None,
    objective: Objective | None = None,
    scale: float = 1.0,
    max_batch: int = 32,
    seed: int = 0,
    dead: Literal["raise", "nan"] = "raise",
) -> Entropy | dict[str, Entropy]:
    """Information discarding H_i of every input unit at one layer or several (Eq. 1-4).

    model       any module that maps ``x`` to its prediction; it is evaluated in ``eval()`` mode and
                left untouched
    x           ``[N, ...]`` floating point, on the model's device
    layers      dotted module name(s); several layers share passes (``ClosedForm.own``)
    units       what a unit is; default the paper's 16 x 16 ``ImageGrid``
    solver      ``ClosedForm()`` (default) or ``Stochastic()``, Eq. 4 as printed
    objective   ``Aligned(-2.8)`` (default) or ``Converged(alpha)``
    scale       the input's scale: sigma_0 = tau = 0.01 x scale, and ``Aligned``'s mean refers to
                sigma / scale (1 for images normalised to unit variance)
    max_batch   rows of the largest forward pass, which bounds the memory; halved, and said so, when
                that runs out
    seed        of the noise and probes; the same for all networks and epochs that are to be
                compared
    dead        what to do with samples whose feature does not move: raise, or give them NaN

    Raises ``LookupError`` for an unknown layer, ``RuntimeError`` for one that the pass never
    reaches, ``ValueError`` for inputs or settings that make no sense, always naming the culprit,
    ``MemoryError`` when not even one row fits.
    """
    names = [layers] if isinstance(layers, str) else list(dict.fromkeys(layers))
    units, solver, objective = units or ImageGrid(), solver or ClosedForm(), objective or Aligned()
    if not names or max_batch < 1 or scale <= 0:
        raise ValueError(
            f"layers = {layers!r}, max_batch = {max_batch} and scale = {scale} must not be empty or zero"
        )
    for name in names:
        module_at(model, name)
    check_input(model, x)
    units.count(x)
    fields = _measured(
        Perturbation(model, units, scale, max_batch, seed), x, names, solver, objective
    )
    how = {
        "units": repr(units),
        "solver": repr(solver),
        "objective": repr(objective),
        "scale": scale,
        "seed": seed,
    }
    if dead == "raise":
        for name in names:
            _check_solved(fields[name], name, objective)
    results = {
        name: Entropy(**fields[name], settings={"layer": name, **how, "dtype": str(x.dtype)})
        for name in names
    }
    return results[layers] if isinstance(layers, str) else results
