"""Cloud networks: search against brute force, invariance, gradients, layers where the table says,
clear errors.
"""

import math

import pytest
import torch
from torch import nn

from benchmarks.clouds import difference
from kpnb_book.networks import clouds
from kpnb_book.networks.clouds import (
    NETWORKS,
    DensityConv,
    EdgeConv,
    TNet,
    ball,
    build,
    farthest,
    layer_path,
    nearest,
    pick,
)

K = 4


def small(name, **options):
    return build(name, 5, **{"width": 0.0625, "k": K, "points": 48, "seed": 1} | options)


def cloud(n=48, b=2, seed=0):
    x = torch.randn(b, n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=-1).amax(1)[:, None, None]


# ---- sampling and neighbours


def test_farthest_points_against_brute_force():
    x = cloud(30)
    for points, found in zip(x, farthest(x, 12).tolist(), strict=True):
        centre = points.mean(0)
        expected = [max(range(30), key=lambda i: math.dist(points[i], centre))]
        while len(expected) < 12:
            expected.append(
                max(range(30), key=lambda i: min(math.dist(points[i], points[j]) for j in expected))
            )
        assert found == expected


def test_neighbours_against_brute_force():
    a, b = cloud(7, seed=1), cloud(20, seed=2)
    near, inside = nearest(a, b, 6), ball(a, b, 6, 0.5)
    for s in range(2):
        for i in range(7):
            order = sorted(range(20), key=lambda j: math.dist(a[s, i], b[s, j]))[:6]
            assert near[s, i].tolist() == order
            assert inside[s, i].tolist() == [
                j if math.dist(a[s, i], b[s, j]) <= 0.5 else order[0] for j in order
            ]
    assert (inside != near).any()
    distances = clouds.squared_distances(a, b)
    torch.testing.assert_close(distances, torch.cdist(a, b).square())
    assert torch.equal(pick(b, near)[1, 3, 2], b[1, near[1, 3, 2]])


def test_edge_convolution_is_equation_8():
    conv, x = EdgeConv(3, 4, 5).double().eval(), torch.randn(1, 9, 4, dtype=torch.float64)
    index = nearest(x, x, 3)[0]
    assert torch.equal(index[:, 0], torch.arange(9))
    expected = []
    for i in range(9):
        edges = [conv.theta(x[0, j] - x[0, i]) + conv.phi(x[0, i]) for j in index[i]]
        activations = [
            nn.functional.leaky_relu(e / math.sqrt(1 + conv.norm.eps), 0.2) for e in edges
        ]
        expected.append(torch.stack(activations).amax(0))
    torch.testing.assert_close(conv(x)[0], torch.stack(expected))


def test_point_convolution_is_the_weighted_sum():
    conv = DensityConv(3, 4, 0.3, 2, 5).double().eval()
    x, features = cloud(12), torch.randn(2, 12, 2, dtype=torch.float64)
    centre, out = conv(x, features)
    index = nearest(centre, x, 4)
    for m in range(3):
        near = index[0, m]
        away = [(x[0] - x[0, j]).square().sum(-1) for j in near]
        density = torch.stack([torch.exp(-squares / (2 * 0.3**2)).mean() for squares in away])
        scale = conv.density(((1 / density) / (1 / density).max())[:, None])
        local = x[0, near] - centre[0, m]
        values = conv.mlp(torch.cat([local, features[0, near]], -1))
        total = sum(
            torch.outer(values[i] * scale[i], conv.weight(local[i : i + 1])[0]) for i in range(4)
        )
        torch.testing.assert_close(out[0, m], conv.out(total.flatten()[None])[0])


# ---- the networks


@pytest.mark.parametrize("name", NETWORKS)
def test_order_of_points_does_not_matter(name):
    net, x = small(name).eval(), cloud()
    order = torch.randperm(48, generator=torch.Generator().manual_seed(5))
    for dtype, atol in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        net, y = net.to(dtype), x.to(dtype)
        torch.testing.assert_close(net(y[:, order]), net(y), atol=atol, rtol=0)
    assert (net(y) - net(2 * y)).abs().max() > 1e-4  # but the coordinates do


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_against_finite_differences(name):
    net, x = small(name).double().eval(), cloud(b=1)
    x.requires_grad_(True)
    weights = torch.randn(5, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(net(x) @ weights, x)
    for seed in range(3):
        direction = torch.randn(
            x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        step = 1e-7 * direction
        slope = ((net(x + step) - net(x - step)) @ weights).item() / 2e-7
        assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-4)
    used = (gradient[0] != 0).any(-1).sum()
    assert used > 5


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", ["pairs", "one place"])
def test_duplicate_points_give_no_nan(name, kind):
    half = cloud(24).float()
    x = torch.cat([half, half], 1) if kind == "pairs" else half[:, :1].expand(-1, 48, -1).clone()
    net = small(name)
    x.requires_grad_(True)
    logits = net(x)
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    assert all(value.isfinite().all() for value in net.state_dict().values())


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_are_where_the_table_says(name):
    net, seen = small(name, width=0.125).eval(), {}
    for layer in ("FC1", "FC2", "FC3"):
        module = net.get_submodule(layer_path(name, layer))
        assert isinstance(module, nn.Linear if layer == "FC3" else nn.ReLU)
        module.register_forward_hook(lambda m, i, out, key=layer: seen.update({key: out}))
    logits = net(cloud().float())
    assert {key: tuple(value.shape) for key, value in seen.items()} == {
        "FC1": (2, 64),
        "FC2": (2, 32),
        "FC3": (2, 5),
    }
    assert torch.equal(seen["FC3"], logits)
    assert seen["FC1"].min() >= 0
    assert seen["FC1"].max() > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_seed_decides_and_global_random_numbers_are_untouched(name):
    before = torch.get_rng_state()
    one, same, other = (small(name, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["head.0.weight"], other["head.0.weight"])


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_of_the_usual_formulation_give_the_same_outputs_and_gradients(name):
    assert (
        difference(name) < 1e-9
    )  # float64; it also raises unless the layers have the same shapes, one by one


def test_transforms_start_as_the_identity():
    net = build("pointnet", 3, width=0.25).eval()
    x = cloud().float()
    assert sum(isinstance(module, TNet) for module in net.modules()) == 2
    torch.testing.assert_close(net.encoder.align(x), torch.eye(3).expand(2, 3, 3))


def test_channels_are_the_papers_at_full_width():
    with torch.device("meta"):
        counts = {
            name: sum(p.numel() for p in build(name, 40).parameters())
            for name in ("pointnet", "dgcnn")
        }
    # reference implementations: 3.48 M with biases (PointNet, 40 classes), 1.8 M (DGCNN, 40
    # classes)
    assert counts["pointnet"] == pytest.approx(3.47e6, rel=0.01)
    assert counts["dgcnn"] == pytest.approx(1.81e6, rel=0.01)


@pytest.mark.parametrize(
    ("name", "x", "message"),
    [
        ("dgcnn", torch.zeros(2, K - 1, 3), f"clouds of 3 points .*DGCNN needs at least {K}"),
        ("pointnet2", torch.zeros(2, 23, 3), "clouds of 23 points .*PointNet2 needs at least 24"),
        ("pointconv", torch.zeros(2, 23, 3), "PointConv needs at least 24"),
        ("pointnet", torch.zeros(2, 0, 3), "clouds of 0 points .*PointNet needs at least 1"),
        ("pointnet", torch.zeros(2, 3, 48), r"\[B, N, 3\]; got \(2, 3, 48\)"),
        ("pointnet", torch.zeros(48, 3), r"\[B, N, 3\]; got \(48, 3\)"),
        (
            "dgcnn",
            torch.cat([torch.zeros(2, 48, 3), torch.full((1, 48, 3), torch.nan)]),
            "cloud 2 of the batch",
        ),
        (
            "pointconv",
            torch.full((1, 48, 3), torch.inf),
            "NaN or infinite coordinates in cloud 0 of the batch",
        ),
    ],
)
def test_bad_clouds_are_named(name, x, message):
    with pytest.raises(ValueError, match=message):
        small(name).eval()(x)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="unknown network 'pointnt'; did you mean 'pointnet'"):
        build("pointnt", 3)
    with pytest.raises(ValueError, match="unknown layer of dgcnn 'Conv'"):
        layer_path("dgcnn", "Conv")
    with pytest.raises(
        ValueError, match=r"points=48 leaves 24 after the first sampling, too few for 2 k = 26"
    ):
        small("pointnet2", k=13)
    with pytest.raises(ValueError, match="k=0"):
        small("dgcnn", k=0)
    with pytest.raises(ValueError, match="dropout=1"):
        small("dgcnn", dropout=1)
