"""The Lipschitz constant kappa of section 3.1: how far the prediction can move while the feature
stays put.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from kpnb.features import (
    Forward,
    Key,
    Network,
    call,
    explaining,
    for_layer,
    key_of,
    layer_at,
    picked,
    replaced,
)
from kpnb.inputs import read_inputs
from kpnb.perturb import Perturbation
from kpnb.units import ImageGrid, Units


@dataclass(frozen=True)
class Lipschitz:
    """Diagnostic of ||y' - y|| <= kappa ||f(x') - f(x)|| for N samples.

    kappa       ``[N]``: largest spectral norm of the prediction's derivative with respect to the
                feature, over x and the perturbed samples within tau
    tau         ``[N]``: the largest feature distance among them
    observed    ``[N]``: the largest ||y' - y|| / ||f(x') - f(x)|| among them, which kappa should
                bound
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
    select, dim = for_layer(network.select, layer), for_layer(network.batch_dim, layer) or 0
    leaves: list[Tensor] = []
    seen = [0]

    def cut(_module: Module, _args: object, output: Any) -> Any:
        seen[0] += 1
        if seen[0] - 1 != (run or 0):
            return None
        leaves.append(picked(output, layer, select).detach().requires_grad_(True))
        # what follows may work in place
        return replaced(output, key_of(output, layer, select), leaves[0].clone())

    with module.register_forward_hook(cut), torch.enable_grad():
        output = network.forward(network.model, perturbation.inputs.with_x(x.clone()))
        y = picked(output, "", for_layer(network.select, "") if layer else None).flatten(1)
    feature = leaves[0]
    rows = [
        torch.autograd.grad(y[:, c].sum(), feature, retain_graph=True)[0].movedim(dim, 0).flatten(1)
        for c in range(y.shape[1])
    ]
    norm = torch.linalg.matrix_norm(torch.stack(rows, 1), 2)
    return feature.detach().movedim(dim, 0).flatten(1), y.detach(), norm


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
    sigma: Tensor,
    units: Units | None = None,
    samples: int = 8,
    tau: float = inf,
    *,
    perturb: str | None = None,
    forward: Forward = call,
    select: Key | Mapping[str, Key] | None = None,
    batch_dim: int | Mapping[str, int] = 0,
) -> Lipschitz:
    """Kappa around ``x [N, ...]`` for the feature of ``layer``, sampled with the perturbation
    ``sigma [N, n]``.

    ``samples`` inputs are drawn from N(x, diag sigma^2), the manifold of section 3.1; those whose
    feature is farther than ``tau`` from f(x) are left out. One backward pass for each class and
    sample. The other arguments are those of ``entropy``; ``select={"": "logits"}`` says which part
    of the model's own output is the prediction. Raises as ``entropy`` does.
    """
    network = Network(model, forward, select, batch_dim)
    layer_at(model, layer)
    with torch.inference_mode(False):
        inputs = read_inputs(model, x, perturb)
        perturbation = Perturbation(network, inputs, units or ImageGrid())
        sigma = sigma.nan_to_num().to(inputs.x.dtype)  # what does not exist is not perturbed
        with explaining(model, inputs.x.device):
            first = inputs.rows(slice(0, 1))
            network.features(
                first.with_x(first.x.clone()), 1, [layer]
            )  # says so when it is never reached
            noise = perturbation.normal(samples, stream=3)
            results = []
            for start in range(0, len(inputs), perturbation.max_batch):
                rows = slice(start, start + perturbation.max_batch)
                batch = perturbation.rows(rows)
                results.append(_of_batch(batch, layer, sigma[rows], noise, tau))
    return Lipschitz(*(torch.cat(column) for column in zip(*results, strict=True)))
