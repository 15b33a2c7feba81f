"""The Lipschitz constant kappa of section 3.1: how far the prediction can move while the feature
stays put.
"""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor
from torch.nn import Module

from kpnb.entropy import check_input
from kpnb.features import capture, explaining, module_at
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


def _prediction(model: Module, x: Tensor, layer: str) -> tuple[Tensor, Tensor, Tensor]:
    """Feature ``[B, d]``, prediction ``[B, c]`` and the norm ``[B]`` of the prediction's derivative
    by the feature.
    """
    leaves: list[Tensor] = []

    def cut(_module: Module, _args: object, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_(True))
        return leaves[-1].clone()  # what follows may work in place

    with module_at(model, layer).register_forward_hook(cut), torch.enable_grad():
        y = model(x).flatten(1)
    (feature,) = leaves
    rows = [
        torch.autograd.grad(y[:, c].sum(), feature, retain_graph=True)[0].flatten(1)
        for c in range(y.shape[1])
    ]
    return (
        feature.detach().flatten(1),
        y.detach(),
        torch.linalg.matrix_norm(torch.stack(rows, 1), 2),
    )


def lipschitz(
    model: Module,
    x: Tensor,
    layer: str,
    sigma: Tensor,
    units: Units | None = None,
    samples: int = 8,
    tau: float = inf,
) -> Lipschitz:
    """Kappa around ``x [N, ...]`` for the feature of ``layer``, sampled with the perturbation
    ``sigma [N, n]``.

    ``samples`` inputs are drawn from N(x, diag sigma^2), the manifold of section 3.1; those whose
    feature is farther than ``tau`` from f(x) are left out. One backward pass for each class and
    sample. Raises as ``entropy`` does.
    """
    check_input(model, x)
    perturbation, results = Perturbation(model, units or ImageGrid()), []
    with explaining(model, x.device):
        capture(model, x[:1], [layer])  # says so when the pass never reaches the layer
        noise = perturbation.normal(samples, x, stream=3)
        for rows, scales in zip(
            *(part.split(perturbation.max_batch) for part in (x, sigma.to(x.dtype))), strict=True
        ):
            feature, y, kappa = _prediction(model, rows, layer)
            spread = perturbation.units.spread(scales, rows)
            near = [_prediction(model, rows + spread * delta, layer) for delta in noise]
            near_feature, near_y, near_kappa = (
                torch.stack(part) for part in zip(*near, strict=True)
            )
            distance = (near_feature - feature).norm(dim=-1)
            inside = (distance <= tau) & (distance > 0)
            ratio = (near_y - y).norm(dim=-1) / distance
            largest = [values.where(inside, 0).amax(0) for values in (near_kappa, distance, ratio)]
            results.append((kappa.maximum(largest[0]), *largest[1:]))
    return Lipschitz(*(torch.cat(column) for column in zip(*results, strict=True)))
