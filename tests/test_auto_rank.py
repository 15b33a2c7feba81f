"""``rank="auto"``: the rank that the tolerance asks for, no more passes than that takes, and an
honest error.
"""

from dataclasses import replace

import pytest
import torch

import kpnb.energy
from kpnb.energy import ClosedForm
from kpnb.entropy import entropy
from kpnb.units import ImageGrid
from tests.models import Linear, images, small_net

GRID = ImageGrid(4)
AUTO = ClosedForm(rank="auto", tolerance=0.02)


def test_low_rank_network_takes_exactly_its_rank():
    """f = U V x with five directions of similar size: four are not enough, and a sixth would be
    nothing.
    """
    model, gen = Linear(432, 40).double(), torch.Generator().manual_seed(0)
    ends = [
        torch.linalg.qr(torch.randn(n, 5, generator=gen, dtype=torch.float64)).Q for n in (40, 432)
    ]
    model.f.weight.data = ends[0] @ ends[1].T
    found = entropy(model, images(3), "f", units=GRID, solver=replace(AUTO, tolerance=1e-6))
    exact = entropy(model, images(3), "f", units=GRID, solver=ClosedForm(rank=None))
    assert found.rank.tolist() == [5, 5, 5]
    assert torch.allclose(found.entropy, exact.entropy, atol=1e-9)
    assert exact.rank.tolist() == [40, 40, 40]


def test_stops_at_the_first_rank_that_meets_the_tolerance():
    """The same numbers as with that rank given, and a rank less leaves a larger error: for each
    sample its own.
    """
    model, x = small_net(width=60).double(), images(6)
    found = entropy(model, x, "8", units=GRID, solver=AUTO)
    assert (found.error.mean(-1) <= 0.02).all()
    assert len(set(found.rank.tolist())) > 1
    for i, rank in enumerate(found.rank.int().tolist()):
        fixed = entropy(model, x[i : i + 1], "8", units=GRID, solver=ClosedForm(rank=rank))
        less = entropy(model, x[i : i + 1], "8", units=GRID, solver=ClosedForm(rank=rank - 1))
        assert torch.allclose(found.entropy[i], fixed.entropy[0], atol=1e-8)
        assert torch.allclose(found.error[i], fixed.error[0], atol=1e-8)
        assert less.error.mean() > 0.02


def test_costs_no_more_backwards_than_the_rank_and_the_probes(monkeypatch):
    calls, products = [], kpnb.energy._Layer.products
    monkeypatch.setattr(
        kpnb.energy._Layer, "products", lambda *args: calls.append(1) or products(*args)
    )
    found = entropy(small_net(width=60).double(), images(6), "8", units=GRID, solver=AUTO)
    assert len(calls) == found.rank.max() + AUTO.probes


def test_goes_on_beyond_the_first_forwards_until_it_is_exact():
    """Twelve directions from six forwards at a time; in the end directions and probes span the
    feature.
    """
    model, x = small_net(width=60).double(), images(2)
    solver = ClosedForm(rank="auto", noise=6, tolerance=1e-9)
    found = entropy(model, x, "8", units=GRID, solver=solver)
    exact = entropy(model, x, "8", units=GRID, solver=ClosedForm(rank=None))
    assert (found.rank > 12).all()
    assert torch.allclose(found.entropy, exact.entropy, atol=1e-6)


def test_error_is_honest_over_images_and_layers():
    """Most units lie within twice their standard error of the exact entropy; the page prints the
    share.
    """
    inside, apart = [], []
    for seed in range(3):
        model, x = small_net(width=60, seed=seed).double(), images(16, seed=seed)
        exact = entropy(model, x, ["5", "8"], units=GRID, solver=ClosedForm(rank=None))
        for layer, found in entropy(
            model, x, ["5", "8"], units=GRID, solver=AUTO, seed=seed
        ).items():
            gap = (found.entropy - exact[layer].entropy).abs()
            inside.append((gap <= 2 * found.error).double().mean())
            apart.append(gap.square().mean().sqrt() / found.error.square().mean().sqrt())
    assert 0.9 < torch.stack(inside).mean() <= 1
    assert 2 / 3 < torch.stack(apart).mean() < 3 / 2


def test_a_feature_that_does_not_move_ends_the_search():
    model = small_net(width=60).double()
    model[7].bias.data -= 1e6
    found = entropy(model, images(2), "8", units=GRID, solver=AUTO, dead="nan")
    assert found.entropy.isnan().all()


@pytest.mark.parametrize("options", [{"rank": "all"}, {"rank": "auto", "tolerance": 0}])
def test_wrong_settings_are_named(options):
    with pytest.raises(ValueError, match=r"'(all|auto)' .*tolerance"):
        ClosedForm(**options)
