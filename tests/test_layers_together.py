"""Several layers in one call: what is found for an upper layer serves a lower one, and only where
that is right.
"""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from kpnb.energy import ClosedForm, unit_energies
from kpnb.entropy import entropy
from kpnb.features import capture, leads_through
from kpnb.perturb import Perturbation
from kpnb.units import ImageGrid
from tests.models import images, jacobian_energies, small_net

GRID = ImageGrid(4)
APART = ClosedForm(own=None)


class Bypass(nn.Module):
    """The upper layer sees the input as well, besides the lower layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lower, self.upper, self.around = (
            nn.Linear(432, 40),
            nn.Linear(40, 30),
            nn.Linear(432, 30),
        )
        self.sum = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return self.sum(self.upper(self.lower(flat).tanh()) + self.around(flat))


class Pair(nn.Module):
    """A block that returns a tuple, changed in place by what follows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block, self.head = nn.GRU(12, 20, batch_first=True), nn.Linear(20, 15)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.block(x.flatten(1, 2))
        return self.head(states.relu_()[:, -1])


def narrowing() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(432, 12), nn.Tanh(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 3)
    )
    return net.double()


def test_what_leads_through_what():
    x = images().requires_grad_(True)
    found = capture(small_net().double(), x, ["0", "5", "8"])
    assert leads_through(found["8"], found["5"], x)
    assert leads_through(found["8"], found["0"], x)
    assert leads_through(found["5"], found["0"], x)
    assert not leads_through(found["0"], found["5"], x)
    found = capture(Bypass().double(), x, ["lower", "upper", "sum"])
    assert leads_through(found["upper"], found["lower"], x)
    assert not leads_through(found["sum"], found["lower"], x)
    assert not leads_through(found["sum"], found["upper"], x)
    found = capture(Pair().double(), x, ["block", "head"])
    assert leads_through(found["head"], found["block"], x)


def test_a_layer_is_exact_when_those_above_and_its_own_directions_span_it():
    """Twelve dimensions: six from the layers above, whose nine directions depend on each other,
    two, four probes.
    """
    model, x, solver = narrowing(), images(), ClosedForm(rank=4, probes=4, noise=6, own=2)
    found = unit_energies(Perturbation(model, GRID), x, ["1", "3", "5"], solver)
    for name, depth in (("1", 2), ("3", 4), ("5", 6)):
        assert torch.allclose(found[name].energy, jacobian_energies(model, depth, x, 4), rtol=1e-6)
    assert (found["1"].rank == 6 + 2).all()
    assert found["1"].deviation.max() < 1e-6 * found["1"].energy.max()


@pytest.mark.parametrize("layers", [["8", "10"], ["10", "8"]])
def test_the_upper_layer_is_measured_first_and_saves_passes(layers):
    model, x, calls = small_net().double(), images(), []
    real = torch.autograd.grad
    upper = capture(model, x, ["10"])["10"].shape[1]
    assert upper <= 9 + 5  # so it is exact
    with patch("torch.autograd.grad", lambda *a, **k: calls.append(1) or real(*a, **k)):
        found = unit_energies(Perturbation(model, GRID), x, layers, ClosedForm())
        assert len(calls) == upper + 2 + 5
        assert list(found) == layers
        calls.clear()
        unit_energies(Perturbation(model, GRID), x, layers, APART)
        assert len(calls) == upper + 9 + 5


def test_no_bias_and_an_honest_error_with_directions_from_above():
    """Mean over seeds within four standard errors of the truth; predicted and actual spread agree
    within a third.
    """
    model, x = small_net(width=60).double().eval(), images(3)
    exact = unit_energies(Perturbation(model, GRID), x, ["8"], ClosedForm(rank=None))["8"].energy
    solver = ClosedForm(rank=4, probes=4, noise=6, shrink=False)
    found = [
        unit_energies(Perturbation(model, GRID, seed=10 * s), x, ["8", "10"], solver)["8"]
        for s in range(80)
    ]
    energy = torch.stack([f.energy for f in found])
    bias = (energy.mean(0) - exact) / (energy.std(0) / 80**0.5)
    assert bias.abs().max() < 4.5
    assert bias.square().mean() < 2
    predicted = torch.stack([f.deviation for f in found]).square().mean().sqrt()
    assert 2 / 3 < predicted / energy.std(0).square().mean().sqrt() < 3 / 2


@pytest.mark.parametrize(
    ("model", "layers"), [(Bypass(), ["lower", "sum"]), (small_net(), ["5", "8"])]
)
def test_each_layer_for_itself(model, layers):
    """Where the input has another way to the upper layer, and where ``own`` is None."""
    model, x = model.double(), images()
    solver = ClosedForm() if isinstance(model, Bypass) else APART
    together = entropy(model, x, layers, units=GRID, solver=solver)
    for name in layers:
        alone = entropy(model, x, name, units=GRID)
        assert torch.equal(together[name].entropy, alone.entropy)


def test_tuples_and_changes_in_place():
    model, x = Pair().double(), images()
    found = entropy(model, x, ["block", "head"], units=GRID)
    for name in found:
        exact = entropy(model, x, name, units=GRID, solver=ClosedForm(rank=None)).entropy
        assert (found[name].entropy - exact).abs().mean() < 3 * found[name].error.mean() + 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_without_effect_are_not_taken_for_any(dtype):
    """Of the upper layer's 40 coordinates 33 never move, so most of what it hands down is
    rounding.
    """
    model, x = small_net(width=40).to(dtype), images(4, dtype=dtype)
    with torch.no_grad():
        model[7].bias[7:] = -100
    found = unit_energies(Perturbation(model, GRID), x, ["5", "8"], ClosedForm(rank=6, probes=8))[
        "5"
    ]
    alone = unit_energies(Perturbation(model, GRID), x, ["5"], ClosedForm(rank=None))["5"].energy
    assert (found.rank <= 7 + 2).all()
    assert (found.energy / alone).log().abs().mean() < 0.2


def test_own_is_checked():
    with pytest.raises(ValueError, match="own = -1"):
        ClosedForm(own=-1)
