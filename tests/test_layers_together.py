"""Several layers in one call: the same numbers as each alone, from shared forward passes."""

import pytest
import torch
from torch import Tensor, nn

import kpnb.energy
from kpnb.energy import ClosedForm, unit_energies
from kpnb.entropy import entropy
from kpnb.units import ImageGrid
from tests.models import images, jacobian_energies, perturbed, small_net

GRID = ImageGrid(4)


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


def test_layers_that_directions_and_probes_span_are_exact():
    """Twelve, six and three coordinates: four leading directions and eight probes."""
    model, x, solver = narrowing(), images(), ClosedForm(rank=4, probes=8, noise=6)
    found = unit_energies(perturbed(model, x, GRID), ["1", "3", "5"], solver)
    for name, depth in (("1", 2), ("3", 4), ("5", 6)):
        assert torch.allclose(found[name].energy, jacobian_energies(model, depth, x, 4), rtol=1e-6)


@pytest.mark.parametrize("layers", [["8", "10"], ["10", "8"]])
def test_a_layer_takes_as_many_backwards_as_it_has_directions(layers, monkeypatch):
    model, x, calls = small_net().double().eval(), images(), []
    product = kpnb.energy.Jacobian.energy
    monkeypatch.setattr(
        kpnb.energy.Jacobian, "energy", lambda *args: calls.append(1) or product(*args)
    )
    found = unit_energies(perturbed(model, x, GRID), layers, ClosedForm())
    logits = 5  # fewer than 9 + 5, so they are exact
    assert len(calls) == logits + 9 + 5
    assert list(found) == layers


@pytest.mark.parametrize(
    ("model", "layers"), [(Bypass(), ["lower", "sum"]), (small_net(), ["5", "8"])]
)
def test_together_and_alone_are_the_same(model, layers):
    model, x = model.double(), images()
    together = entropy(model, x, layers, units=GRID)
    for name in layers:
        alone = entropy(model, x, name, units=GRID)
        assert torch.equal(together[name].entropy, alone.entropy)


def test_tuples_and_changes_in_place():
    model, x = Pair().double(), images()
    found = entropy(model, x, ["block", "head"], units=GRID)
    for name in found:
        exact = entropy(model, x, name, units=GRID, solver=ClosedForm(rank=None)).entropy
        assert (found[name].entropy - exact).abs().mean() < 3 * found[name].error.mean() + 1e-9
