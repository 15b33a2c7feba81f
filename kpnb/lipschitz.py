"""The Lipschitz constant kappa of section 3.1: how far the prediction can move while the feature
stays put.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from kpnb._messages import named_samples, positive, whole
from kpnb._outputs import key_of, picked, replaced
from kpnb._precision import at_least_single
from kpnb._tensors import as_numbers, described
from kpnb._untouched import explaining
from kpnb.features import (
    Forward,
    Key,
    Network,
    call,
    check_reached,
    for_layer,
    layer_at,
    unnamed_run,
)
from kpnb.inputs import read_inputs
from kpnb.perturb import LIPSCHITZ, Perturbation
from kpnb.trial import place, try_layers
from kpnb.units import Units, on_device, read_units


@dataclass(frozen=True)
class Lipschitz:
    """Diagnostic of ||y' - y|| <= kappa ||f(x') - f(x)|| for N samples.

    kappa       ``[N]``: largest spectral norm of the prediction's derivative with respect to the
                feature, over x and the perturbed samples within tau, prediction units by feature
                units
    tau         ``[N]``: the largest feature distance among them, feature units
    observed    ``[N]``: the largest ||y' - y|| / ||f(x') - f(x)|| among them, which kappa should
                bound; the units of kappa
    """

    kappa: Tensor
    tau: Tensor
    observed: Tensor


def _prediction(perturbation: Perturbation, x: Tensor, layer: str) -> tuple[Tensor, Tensor, Tensor]:
    """Feature ``[B, d]``, prediction ``[B, c]`` and the norm ``[B]`` of the prediction's derivative
    by the feature.
    """
    network = perturbation.network
    module, run = layer_at(network.model, layer)
    select = for_layer(network.select, layer)
    leaves: list[Tensor] = []
    runs = 0

    def cut(_module: Module, _args: object, output: Any) -> Any:
        nonlocal runs
        runs += 1
        if runs - 1 != (run or 0):
            return None
        leaves.append(picked(output, layer, select).detach().requires_grad_(True))
        # what follows may work in place
        return replaced(output, key_of(output, layer, select), leaves[0].clone())

    with module.register_forward_hook(cut), torch.enable_grad():
        output = network.forward(network.model, perturbation.inputs.with_x(x.clone()))
        y = picked(output, "", for_layer(network.select, ""))
        y = network.samples_first(y, "", len(x)).flatten(1)
    check_reached({} if leaves else {layer: runs})
    if several := unnamed_run(network.model, layer, runs):
        raise ValueError(several)
    feature = leaves[0]
    flat = network.samples_first(feature, layer, len(x)).flatten(1)
    _check_finite(flat, y, layer)
    parts = (_row(y[:, c], feature, layer) for c in range(y.shape[1]))
    rows = [network.samples_first(part, layer, len(x)).flatten(1) for part in parts]
    norm = torch.linalg.matrix_norm(at_least_single(torch.stack(rows, 1)), 2)
    return flat.detach(), y.detach(), norm


def _check_finite(feature: Tensor, y: Tensor, layer: str) -> None:
    """``ValueError`` that names the samples whose ``feature [B, ...]`` or prediction ``y [B, C]``
    is not finite.
    """
    for name, value in ((layer, feature), ("", y)):
        if (bad := ~value.flatten(1).isfinite().all(1)).any():
            raise ValueError(
                f"{named_samples(bad)} of a batch: {place(name)} is not finite (NaN or infinite)"
            )


def _row(y: Tensor, feature: Tensor, layer: str) -> Tensor:
    """The derivative of one coordinate ``y [B]`` of the prediction by the feature, of its shape."""
    row = None
    if y.requires_grad:
        (row,) = torch.autograd.grad(y.sum(), feature, retain_graph=True, allow_unused=True)
    if row is None:
        raise ValueError(
            f"the prediction has no derivative by the feature of layer {layer!r}: it does not "
            "depend on it, or what lies between runs under torch.no_grad() or detaches it"
        )
    return row


def _of_batch(
    perturbation: Perturbation, layer: str, sigma: Tensor, noise: Tensor, tau: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Kappa, tau and observed, ``[B]`` each, for one batch."""
    x = perturbation.x
    feature, y, kappa = _prediction(perturbation, x, layer)
    spread = perturbation.units.spread(sigma, x)
    near = [_prediction(perturbation, x + spread * delta, layer) for delta in noise]
    features, ys, kappas = (torch.stack(part) for part in zip(*near, strict=True))
    distance = (features - feature).norm(dim=-1)
    ratio = (ys - y).norm(dim=-1) / distance
    inside = (distance <= tau) & (distance > 0)
    largest, far, observed = (v.where(inside, 0).amax(0) for v in (kappas, distance, ratio))
    return kappa.maximum(largest), far, observed


def lipschitz(
    model: Module,
    x: Any,
    layer: str,
    sigma: Any,
    units: Units | None = None,
    samples: int = 8,
    tau: float = inf,
    *,
    perturb: str | None = None,
    shared: str | Sequence[str] | None = None,
    forward: Forward = call,
    select: Key | Mapping[str, Key] | None = None,
    batch_dim: int | Mapping[str, int] = 0,
    check: bool = True,
) -> Lipschitz:
    """Kappa around ``x [N, ...]`` for the feature of ``layer``, sampled with the perturbation
    ``sigma [N, n]``.

    ``samples`` inputs are drawn from N(x, diag sigma^2), the manifold of section 3.1; those whose
    feature is farther than ``tau`` from f(x) are left out. One backward pass for each class and
    sample. ``units``, ``perturb``, ``shared``, ``forward``, ``select`` and ``batch_dim`` are those
    of ``entropy``, of the layer; by layer, ``select={"": "logits"}`` says which part of the
    model's own output is the prediction. ``check`` looks at both. Raises as ``entropy`` does,
    and ``ValueError`` for a prediction without a derivative by the feature.
    """
    layer_at(model, layer)
    whole(samples=samples)
    positive(samples=samples, tau=tau)
    network = Network(model, forward, _of_layer(select, layer), _of_layer(batch_dim, layer))
    with torch.inference_mode(False):
        inputs = read_inputs(model, x, perturb, shared)
        units = read_units(units)
        sigma = _sigma(sigma, inputs.x, units)
        perturbation = Perturbation(network, inputs, on_device(units, inputs.x.device))
        with explaining(model, inputs.x.device):
            problems = try_layers(perturbation, list(dict.fromkeys([layer, ""]))) if check else {}
            if problems:
                raise ValueError("; ".join(problems.values()))
            noise = perturbation.normal(samples, LIPSCHITZ)
            results = []
            for start in range(0, len(inputs), perturbation.max_batch):
                rows = slice(start, start + perturbation.max_batch)
                batch = perturbation.rows(rows)
                results.append(_of_batch(batch, layer, sigma[rows], noise, tau))
    return Lipschitz(*(torch.cat(column) for column in zip(*results, strict=True)))


def _of_layer(option: Any, layer: str) -> Mapping[str, Any]:
    """An option by layer; one without a name is that of the feature, not of the prediction."""
    return option if isinstance(option, Mapping) else {layer: option}


def _sigma(sigma: Any, x: Tensor, units: Units) -> Tensor:
    """``sigma [N, n]`` in the type of ``x``, 0 for units that do not exist; ``ValueError`` unless
    it fits.
    """
    shape = (len(x), units.count(x))
    values = as_numbers(sigma, "sigma")
    if values.shape != shape or (values < 0).any():
        raise ValueError(
            f"sigma is {list(shape)}, samples by units, and not negative; got {described(values)}"
        )
    return values.to(x.device).nan_to_num().to(x.dtype)
