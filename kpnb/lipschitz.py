"""The Lipschitz constant kappa of section 3.1: how far the prediction can move while the feature stays put."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kpnb.entropy import check_input
from kpnb.layers import capture, explaining, module_at
from kpnb.perturb import Perturbation
from kpnb.units import ImageGrid, Units


@dataclass(frozen=True)
class Lipschitz:
    """Diagnostic of ||y' - y|| <= kappa ||f(x') - f(x)|| for N samples.

    kappa       ``[N]``: largest spectral norm of the prediction's derivative with respect to the feature, over x and
                the perturbed samples within tau
    tau         ``[N]``: the largest feature distance among them
    observed    ``[N]``: the largest ||y' - y|| / ||f(x') - f(x)|| among them, which kappa should bound
    """

    kappa: Tensor
    tau: Tensor
    observed: Tensor


def _prediction(model: nn.Module, x: Tensor, layer: str) -> tuple[Tensor, Tensor, Tensor]:
    """Feature ``[B, d]``, prediction ``[B, c]`` and the prediction's derivative by the feature ``[B, c, d]``."""
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_(True))
        return leaves[-1].clone()  # what follows may work in place

    handle = module_at(model, layer).register_forward_hook(cut)
    try:
        with torch.enable_grad():
            y = model(x).flatten(1)
    finally:
        handle.remove()
    (feature,) = leaves
    rows = [torch.autograd.grad(y[:, c].sum(), feature, retain_graph=True)[0].flatten(1) for c in range(y.shape[1])]
    return feature.detach().flatten(1), y.detach(), torch.stack(rows, 1)


def lipschitz(
    model: nn.Module,
    x: Tensor,
    layer: str,
    sigma: Tensor,
    *,
    units: Units | None = None,
    samples: int = 8,
    tau: float = float("inf"),
    max_batch: int = 64,
    seed: int = 0,
) -> Lipschitz:
    """Kappa around ``x [N, ...]`` for the feature of ``layer``, sampled with the perturbation ``sigma [N, n]``.

    ``samples`` inputs are drawn from N(x, diag sigma^2), the manifold of section 3.1; those whose feature is
    farther than ``tau`` from f(x) are left out. One backward pass for each class and sample.
    Raises as ``entropy`` does.
    """
    check_input(model, x)
    units = units or ImageGrid()
    module_at(model, layer)
    results = []
    with explaining(model, x.device):
        for rows, scales in zip(x.split(max_batch), sigma.to(x.dtype).split(max_batch), strict=True):
            capture(model, rows[:1], [layer])  # says so when the pass never reaches the layer
            noise = Perturbation(model, units, max_batch=max_batch, seed=seed).normal(samples, rows, stream=3)
            feature, y, slope = _prediction(model, rows, layer)
            kappa = torch.linalg.matrix_norm(slope, 2)
            furthest, observed = torch.zeros_like(kappa), torch.zeros_like(kappa)
            for delta in noise:
                near_feature, near_y, near_slope = _prediction(model, rows + units.spread(scales, rows) * delta, layer)
                distance = (near_feature - feature).norm(dim=1)
                inside = (distance <= tau) & (distance > 0)
                kappa = torch.where(inside, torch.maximum(kappa, torch.linalg.matrix_norm(near_slope, 2)), kappa)
                furthest = torch.where(inside, torch.maximum(furthest, distance), furthest)
                ratio = (near_y - y).norm(dim=1) / distance
                observed = torch.where(inside, torch.maximum(observed, ratio), observed)
            results.append((kappa, furthest, observed))
    return Lipschitz(*(torch.cat(column) for column in zip(*results, strict=True)))
