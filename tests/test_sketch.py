"""The sketch of the energies, step by step: directions, probes of what they leave out, the mix."""

import pytest
import torch

from kpnb.energy import ClosedForm
from kpnb.entropy import entropy
from kpnb.sketch import (
    directions_to_take,
    gram_schmidt,
    probes_beyond,
    rescaled,
    shrunk,
    top_directions,
)
from kpnb.units import ImageGrid
from tests.models import Linear, images, small_net

GRID = ImageGrid(4)


def _changes(m: int = 12, batch: int = 3, width: int = 30) -> torch.Tensor:
    """Feature changes ``[m, B, d]`` of which some coordinates never move."""
    generator = torch.Generator().manual_seed(0)
    changes = torch.randn(m, batch, width, generator=generator, dtype=torch.float64)
    changes[..., 20:] *= 0.01
    changes[:, 1, :4] = 0
    return changes


def test_directions_are_the_leading_singular_vectors():
    """Against a singular value decomposition: the same subspace, whatever the signs."""
    changes = _changes()
    found = top_directions(changes, 5)
    for sample, q in enumerate(found):
        wanted = torch.linalg.svd(changes[:, sample].T, full_matrices=False).U[:, :5]
        assert torch.allclose(q.T @ q, torch.eye(5, dtype=q.dtype), atol=1e-9)
        assert torch.allclose(q @ q.T, wanted @ wanted.T, atol=1e-9)


def test_probes_are_orthonormal_and_keep_out_of_what_never_moves():
    changes = _changes()
    gaussian = torch.randn(30, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leading = top_directions(changes, 5)
    directions, times = probes_beyond(leading, changes, gaussian)
    eye = torch.eye(9, dtype=torch.float64)
    assert torch.allclose(directions.mT @ directions, eye.expand(3, 9, 9), atol=1e-9)
    same = (directions[..., :5].mT @ leading).abs()
    assert torch.allclose(same, eye[:5, :5].expand(3, 5, 5), atol=1e-9)
    assert directions[1, :4].abs().max() < 1e-12
    assert times.tolist() == pytest.approx([(30 - 5) / 4, (26 - 5) / 4, (30 - 5) / 4])


@pytest.mark.parametrize(("dtype", "exact"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_gram_schmidt_finds_the_directions_of_qr(dtype, exact):
    """Nearly parallel columns among them, which one turn alone would not make orthogonal."""
    columns = torch.randn(3, 40, 9, generator=torch.Generator().manual_seed(0), dtype=dtype)
    columns[..., 4] = columns[..., 1] + 0.01 * columns[..., 4]
    found, wanted = gram_schmidt(columns), torch.linalg.qr(columns).Q
    assert (found.mT @ found - torch.eye(9, dtype=dtype)).abs().max() < exact
    same = (found * wanted).sum(1)  # of either sign
    assert (same.abs() - 1).abs().max() < exact


def test_what_has_no_direction_of_its_own_becomes_nothing():
    """A column of zeros, a repeated one, and more columns than dimensions; the others stay."""
    columns = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0))
    columns[:, 3:, :5] = 0
    columns[..., 1] = 0
    columns[..., 2] = 3 * columns[..., 0]
    found = gram_schmidt(columns)
    assert found.norm(dim=1).round(decimals=5).tolist() == [[1, 0, 0, 1, 1, 1, 1, 1, 0]] * 2
    projected = found @ found.mT  # all dimensions are there once
    assert torch.allclose(projected, torch.eye(6).expand(2, 6, 6), atol=1e-5)


def test_rescaled_energy_and_its_variance_over_all_choices_of_probes():
    """Every choice of two of six directions: mean and variance of the estimates."""
    energies = torch.rand(6, 1, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    choices = torch.combinations(torch.arange(6), 2)
    times = torch.tensor([6 / 2], dtype=torch.float64)
    found, predicted = zip(*(rescaled(energies[c], times) for c in choices), strict=True)
    found, predicted = torch.stack(found), torch.stack(predicted)
    assert torch.allclose(found.mean(0), energies.sum(0))
    assert torch.allclose(predicted.mean(0), found.var(0, correction=0))


def test_shrinking_keeps_the_total_and_leaves_exact_estimates_alone():
    energies = torch.rand(8, 2, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rest = energies[4:].sum(0)
    mixed, variance = shrunk(rest, torch.full_like(rest, 0.1), energies)
    assert torch.allclose(mixed.sum(-1), rest.sum(-1))
    assert (variance > 0).all()
    same, none = shrunk(rest, torch.zeros_like(rest), energies)
    assert torch.equal(same, rest)
    assert not none.any()


def test_a_network_of_low_rank_is_exact():
    """f = U V x with five directions: rank 5 and the probes find nothing else."""
    model, generator = Linear(432, 40).double(), torch.Generator().manual_seed(0)
    ends = [
        torch.linalg.qr(torch.randn(n, 5, generator=generator, dtype=torch.float64)).Q
        for n in (40, 432)
    ]
    model.f.weight.data = ends[0] @ ends[1].T
    found = entropy(model, images(3), "f", units=GRID, solver=ClosedForm(rank=5, noise=9))
    exact = entropy(model, images(3), "f", units=GRID, solver=ClosedForm(rank=None))
    assert torch.allclose(found.entropy, exact.entropy, atol=1e-9)
    assert found.rank.tolist() == [5, 5, 5]
    assert exact.rank.tolist() == [40, 40, 40]


def test_one_direction_more_than_noise_is_the_feature_itself():
    """Of two directions, one draw of noise finds a mixture; with the feature, which is linear in
    the input, both are known.
    """
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    ends = torch.linalg.qr(draw).Q, torch.randn(432, 2, generator=generator, dtype=torch.float64)
    model = Linear(432, 40).double()
    model.f.weight.data = ends[0] @ ends[1].T
    model.f.bias.data.zero_()
    x = images(3, seed=5)  # other numbers than the noise, which has seed 0
    exact = entropy(model, x, "f", units=GRID, solver=ClosedForm(rank=None))
    errors = []
    for rank in (1, 2):
        solver = ClosedForm(rank=rank, probes=2, noise=1, shrink=False)
        found = entropy(model, x, "f", units=GRID, solver=solver)
        errors.append((found.entropy - exact.entropy).abs().max())
    assert errors[0] > 0.01
    assert errors[1] < 1e-9
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        feature = 1000 * torch.randn(3, 30, generator=generator).to(dtype)
        changes = _changes(m=1).float()
        leading = directions_to_take(feature.float(), changes, 2)
        along = (feature.float() * (changes[0] != 0)).double()
        along = along / along.norm(dim=1, keepdim=True)
        assert torch.allclose(leading[..., 0].double(), along, atol=1e-6)
        assert torch.equal(leading[..., 1:], top_directions(changes, 1))


def test_a_feature_of_zeros_or_without_end_spoils_nothing():
    """Directions and probes stay orthonormal, and finite."""
    feature = torch.ones(3, 30, dtype=torch.float64)
    feature[0], feature[2, 7] = 0, torch.inf
    gaussian = torch.randn(30, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leading = directions_to_take(feature, _changes(m=2), 3)
    directions = probes_beyond(leading, _changes(m=2), gaussian)[0]
    eye = torch.eye(7, dtype=torch.float64).expand(3, 7, 7)
    assert torch.allclose(directions.mT @ directions, eye, atol=1e-9)


def test_error_is_honest_over_images_and_layers():
    """Most units lie within twice their standard error of the exact entropy; the page prints the
    share.
    """
    inside, apart = [], []
    for seed in range(3):
        model, x = small_net(width=60, seed=seed).double(), images(16, seed=seed)
        exact = entropy(model, x, ["5", "8"], units=GRID, solver=ClosedForm(rank=None))
        sketch = entropy(model, x, ["5", "8"], units=GRID, solver=ClosedForm(12, 6), seed=seed)
        for layer, found in sketch.items():
            gap = (found.entropy - exact[layer].entropy).abs()
            inside.append((gap <= 2 * found.error).double().mean())
            apart.append(gap.square().mean().sqrt() / found.error.square().mean().sqrt())
    assert 0.9 < torch.stack(inside).mean() <= 1
    assert 2 / 3 < torch.stack(apart).mean() < 3 / 2


@pytest.mark.parametrize("solver", [ClosedForm(), ClosedForm(rank=None)])
def test_a_feature_that_does_not_move_has_no_entropy(solver):
    model = small_net(width=60).double()
    model[7].bias.data -= 1e6
    found = entropy(model, images(2), "8", units=GRID, solver=solver, dead="nan")
    assert found.entropy.isnan().all()
