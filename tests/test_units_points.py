"""Points as units: one sigma for three coordinates, and units that a max pool never lets
through.
"""

import math

import pytest
import torch

from kpnb.energy import ClosedForm
from kpnb.entropy import entropy
from kpnb.objectives import HALF_LOG_2PIE, Aligned, Converged
from kpnb.units import Points
from kpnb_book.networks.clouds import build, layer_path


def test_spread_and_gather_are_adjoint():
    x, values = torch.randn(2, 5, 3), torch.randn(2, 5)
    units = Points()
    assert units.count(x) == 5
    laid = units.spread(values, x)
    assert laid.shape == (2, 5, 1)
    expected = torch.tensor([[sum(x[b, i].tolist()) for i in range(5)] for b in range(2)])
    torch.testing.assert_close(units.gather(x), expected)
    torch.testing.assert_close((laid * x).sum(), (values * units.gather(x)).sum())


@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 2), (2, 0, 3), (1, 3, 8, 8)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[B, N, 3\]"):
        Points().count(torch.zeros(shape))


def test_coordinates_before_points_are_named():
    with pytest.raises(ValueError, match=r"\(2, 3, 9\): x\.transpose\(1, 2\) puts .* last"):
        Points().count(torch.zeros(2, 3, 9))


@pytest.mark.parametrize("objective", [Aligned(), Converged(0.01)])
def test_points_that_never_win_have_no_energy_and_finite_entropy(objective):
    torch.manual_seed(0)
    net = build("pointnet", 4, width=0.05, seed=3).double().eval()
    x = torch.randn(2, 200, 3, dtype=torch.float64) / 3
    moved = x.clone().requires_grad_(True)
    head = net.head[:3](net.encoder(moved))
    energy = torch.zeros(2, 200, dtype=torch.float64)
    for j in range(head.shape[1]):  # the Jacobian, row by row
        (row,) = torch.autograd.grad(head[:, j].sum(), moved, retain_graph=True)
        energy += row.square().sum(-1)
    idle = energy == 0
    assert 0.2 < idle.double().mean() < 1
    found = entropy(
        net,
        x,
        layer_path("pointnet", "FC1"),
        units=Points(),
        solver=ClosedForm(None),
        objective=objective,
    )
    assert found.entropy.isfinite().all()
    for sample, none in zip(
        found.entropy, idle, strict=True
    ):  # all idle points alike, above all others
        torch.testing.assert_close(sample[none], sample.max().expand(int(none.sum())))
    if isinstance(objective, Aligned):
        torch.testing.assert_close(
            found.entropy.mean(-1), torch.full((2,), -2.8, dtype=torch.float64)
        )
        assert (found.entropy[idle] < HALF_LOG_2PIE).all()  # well below sigma = 1
    else:
        torch.testing.assert_close(
            found.entropy[idle], torch.full_like(found.entropy[idle], HALF_LOG_2PIE)
        )
        assert math.isclose(found.sigma[idle].max().item(), 1, rel_tol=1e-9)
