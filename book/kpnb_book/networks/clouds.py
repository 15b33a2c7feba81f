"""PointNet, PointNet++, DGCNN and PointConv for the classification of point clouds (section 4.1).

Each takes clouds [B, N, 3] and is the classification network of its paper: Qi et al. 2017a
(PointNet), Qi et al. 2017b (PointNet++, one scale), Wang et al. 2019 (DGCNN) and Wu et al. 2019
(PointConv). At ``width=1`` the channels are the papers'. All end in one classifier, whose layers
FC1 and FC2 (after their activation) and FC3 (the logits) the paper studies:

====  =====================================================  ========================
FC1   first fully connected layer, after its activation      [B, 512 * width]
FC2   second fully connected layer, after its activation     [B, 256 * width]
FC3   the logits as they are                                 [B, num_classes]
====  =====================================================  ========================

Two things are not as in the papers: all four share this classifier, with ReLU and one rate of
dropout behind FC1 and FC2, where each has its own; and DGCNN's embedding has ReLU for its
LeakyReLU(0.2).

The order of the points does not matter to any of them. Which points are sampled or are neighbours
is constant for the gradient, which reaches every point used through its coordinates.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kpnb._messages import not_negative, one_of, positive
from kpnb_book.networks.images import initialise

LAYERS = {"FC1": "head.2", "FC2": "head.6", "FC3": "head.8"}  # the same in all four


# ---- sampling and neighbour search


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """[B, M, N] between points ``a`` [B, M, C] and ``b`` [B, N, C].

    Rounding may leave them slightly below 0.
    """
    partly = torch.baddbmm(b.square().sum(-1)[:, None], a, b.mT, alpha=-2)  # |b|^2 - 2 a b
    return partly + a.square().sum(-1)[..., None]


@torch.no_grad()
def nearest(a: Tensor, b: Tensor, k: int) -> Tensor:
    """The k points of ``b`` [B, N, C] nearest to each of ``a`` [B, M, C].

    Indices [B, M, k] into b, nearest first.
    """
    return squared_distances(a, b).topk(k, largest=False).indices


@torch.no_grad()
def ball(a: Tensor, b: Tensor, k: int, radius: float) -> Tensor:
    """As ``nearest``, with the nearest point in the place of those further away than ``radius``.

    The paper's code takes the first k in the ball; the nearest k are the same where the ball holds
    no more, and do not depend on the order of the points.
    """
    distances, index = squared_distances(a, b).topk(k, largest=False)
    return torch.where(distances <= radius**2, index, index[..., :1])


@torch.no_grad()
def farthest(x: Tensor, count: int) -> Tensor:
    """Farthest-point sampling: indices ``[B, count]`` into ``x [B, N, 3]``.

    It starts at the point farthest from the centroid, so that the order of the points does not
    matter.
    """
    x = x.mT.contiguous()
    chosen = torch.empty(len(x), count, dtype=torch.int64, device=x.device)
    chosen[:, 0] = (x - x.mean(-1, keepdim=True)).square().sum(1).argmax(-1)
    left = torch.full_like(x[:, 0], torch.inf)
    for i in range(1, count):
        last = x.gather(2, chosen[:, i - 1, None, None].expand(-1, 3, 1))
        left = torch.minimum(left, (x - last).square().sum(1))
        chosen[:, i] = left.argmax(-1)
    return chosen


def pick(x: Tensor, index: Tensor) -> Tensor:
    """``x [B, N, C]`` at the points ``index [B, ...]``: ``[B, ..., C]``."""
    offset = torch.arange(len(x), device=x.device).view(-1, *[1] * (index.dim() - 1)) * x.shape[1]
    rows = x.reshape(-1, x.shape[-1]).index_select(0, (index + offset).flatten())
    return rows.view(*index.shape, x.shape[-1])


# ---- the blocks


class Norm(nn.BatchNorm1d):
    """Batch normalisation of ``[..., C]`` over all but the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).view(x.shape)


def mlp(*sizes: int) -> nn.Sequential:
    """Point-wise layers ``[..., C]``: linear, normalised, ReLU."""
    layers = [(nn.Linear(i, o, bias=False), Norm(o), nn.ReLU()) for i, o in pairwise(sizes)]
    return nn.Sequential(*[part for layer in layers for part in layer])


class TNet(nn.Module):
    """Joint alignment network of PointNet (Qi et al. 2017a, section 4.2).

    A matrix [B, d, d] for clouds [B, N, d], at first the identity. The paper's penalty for feature
    transforms that are not orthogonal is part of its loss, not of the network.
    """

    def __init__(self, d: int, *sizes: int) -> None:
        super().__init__()
        self.points, self.whole = mlp(d, *sizes[:3]), mlp(*sizes[2:])
        self.matrix = nn.Linear(sizes[-1], d * d)

    def forward(self, x: Tensor) -> Tensor:
        d = x.shape[-1]
        matrix = self.matrix(self.whole(self.points(x).amax(1)))
        return matrix.unflatten(-1, (d, d)) + torch.eye(d, dtype=x.dtype, device=x.device)


class SetAbstraction(nn.Module):
    """Sampling, grouping and a small PointNet for each group (Qi et al. 2017b, sections 3.2, 3.3).

    Maps points ``[B, N, 3]`` and their features ``[B, N, C]`` (or None) to ``count`` of the points
    and their features; without ``count`` all points are one group.
    """

    def __init__(self, count: int | None, k: int, radius: float, *sizes: int) -> None:
        super().__init__()
        self.count, self.k, self.radius = count, k, radius
        self.mlp = mlp(3 + sizes[0], *sizes[1:])

    def group(self, x: Tensor, centre: Tensor) -> Tensor:
        return ball(centre, x, self.k, self.radius)

    def forward(self, x: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.count is None:
            centre = x.new_zeros(len(x), 1, 3)
            index = torch.arange(x.shape[1], device=x.device).expand(len(x), 1, -1)
        else:
            centre = pick(x, farthest(x, self.count))
            index = self.group(x, centre)
        local = pick(x, index) - centre[:, :, None]
        joined = local if features is None else torch.cat([local, pick(features, index)], -1)
        return centre, self.reduce(x, index, local, self.mlp(joined))

    def reduce(self, x: Tensor, index: Tensor, local: Tensor, features: Tensor) -> Tensor:
        """Features ``[B, M, C]`` of the groups from those of their points, ``[B, M, k, C]``."""
        return features.amax(2)


class DensityConv(SetAbstraction):
    """PointConv (Wu et al. 2019, sections 3.1 and 3.2).

    It is the form of their theorem 1, which needs less memory. The k nearest points of a centre are
    a sample of the continuous function under the convolution. Each is weighted with a function of
    its place (``weight``) and of the inverse density there (``density``, a kernel estimate whose
    bandwidth is ``radius``).
    """

    def __init__(self, count: int | None, k: int, radius: float, *sizes: int) -> None:
        super().__init__(count, k, radius, *sizes)
        self.weight, self.density = mlp(3, 8, 8, 16), mlp(1, 16, 8, 1)
        self.density[-1] = nn.Sigmoid()
        self.out = mlp(16 * sizes[-1], sizes[-1])

    def group(self, x: Tensor, centre: Tensor) -> Tensor:
        return nearest(centre, x, self.k)

    def reduce(self, x: Tensor, index: Tensor, local: Tensor, features: Tensor) -> Tensor:
        # A point is its own neighbour, so no density is zero, not even that of an outlier;
        # duplicates just add up.
        kernel = torch.exp(squared_distances(x, x) / (-2 * self.radius**2))
        scale = pick(1 / kernel.mean(-1, keepdim=True), index)
        features = features * self.density(scale / scale.amax(2, keepdim=True))
        return self.out((features.mT @ self.weight(local)).flatten(-2))


class EdgeConv(nn.Module):
    """EdgeConv on the graph of the k nearest points in feature space.

    Wang et al. 2019, sections 3.1 and 3.2. The maximum over the edges of a point of h(theta (x_j -
    x_i) + phi x_i), the paper's equation 8. A point is its own first neighbour. theta is linear, so
    it is applied to the points before they are paired, k times cheaper.
    """

    def __init__(self, k: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.k = k
        self.theta, self.phi = (nn.Linear(inputs, outputs, bias=False) for _ in range(2))
        self.norm = Norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.theta(x)
        edges = pick(theta, nearest(x, x, self.k)) + (self.phi(x) - theta)[:, :, None]
        return F.leaky_relu(self.norm(edges), 0.2).amax(2)


# ---- the networks


class PointNet(nn.Module):
    """Feature ``[B, C]`` of clouds ``[B, N, 3]`` (Qi et al. 2017a, section 4.2 and figure 2).

    Points and their first features are aligned, all points go through the same layers, the maximum
    over them is kept.
    """

    def __init__(self, c: dict[int, int], k: int, points: int) -> None:
        super().__init__()
        sizes = (c[64], c[128], c[1024], c[512], c[256])
        self.align = TNet(3, *sizes)
        self.align_features = TNet(c[64], *sizes)
        self.low = mlp(3, c[64], c[64])
        self.high = mlp(c[64], c[64], c[128], c[1024])
        self.smallest = 1
        self.width = c[1024]

    def forward(self, x: Tensor) -> Tensor:
        x = self.low(x @ self.align(x))
        return self.high(x @ self.align_features(x)).amax(1)


class PointNet2(nn.Module):
    """Feature [B, C] of clouds [B, N, 3] by three set abstractions.

    Qi et al. 2017b, appendix B.1, with single-scale grouping (SSG).
    """

    block: type[SetAbstraction] = SetAbstraction
    radii: tuple[float, float, float] = (0.2, 0.4, 1.0)

    def __init__(self, c: dict[int, int], k: int, points: int) -> None:
        super().__init__()
        half = points // 2
        eighth = points // 8
        if eighth < 1 or half < 2 * k:
            found = f"points={points} leaves {half} after the first sampling"
            raise ValueError(f"{found}, too few for 2 k = {2 * k}")
        first = self.block(half, k, self.radii[0], 0, c[64], c[64], c[128])
        second = self.block(eighth, 2 * k, self.radii[1], c[128], c[128], c[128], c[256])
        whole = self.block(None, 0, self.radii[2], c[256], c[256], c[512], c[1024])
        self.levels = nn.ModuleList([first, second, whole])
        self.smallest = max(half, k)
        self.width = c[1024]

    def forward(self, x: Tensor) -> Tensor:
        features = None
        for level in self.levels:
            x, features = level(x, features)
        return features[:, 0]


class PointConv(PointNet2):
    """PointNet++'s three levels with density-weighted convolutions (Wu et al. 2019, section 4.1).

    Numbers that the paper does not give are those of its authors' code.
    """

    block = DensityConv
    radii = (0.1, 0.2, 0.4)


class DGCNN(nn.Module):
    """Feature [B, C] of clouds [B, N, 3] by four edge convolutions (Wang et al. 2019, section 4.1).

    All four outputs are joined and embedded; the maximum and the mean over the points are kept.
    """

    def __init__(self, c: dict[int, int], k: int, points: int) -> None:
        super().__init__()
        sizes = [3, c[64], c[64], c[128], c[256]]
        self.edges = nn.ModuleList(EdgeConv(k, i, o) for i, o in pairwise(sizes))
        self.embed = mlp(sum(sizes[1:]), c[1024])
        self.smallest = k
        self.width = 2 * c[1024]

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for edge in self.edges:
            x = edge(x)
            outputs.append(x)
        points = self.embed(torch.cat(outputs, -1))
        return torch.cat([points.amax(1), points.mean(1)], -1)


class Classifier(nn.Module):
    """The feature of the whole cloud, then FC1, FC2 and FC3."""

    def __init__(
        self, encoder: nn.Module, c: dict[int, int], num_classes: int, dropout: float
    ) -> None:
        super().__init__()
        self.encoder = encoder
        sizes = pairwise((encoder.width, c[512], c[256]))
        hidden = [part for i, o in sizes for part in (*mlp(i, o), nn.Dropout(dropout))]
        self.head = nn.Sequential(*hidden, nn.Linear(c[256], num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes].

        Raises ``ValueError`` for a wrong shape, too few points, or coordinates that are not finite.
        """
        if x.dim() != 3 or x.shape[2] != 3:
            raise ValueError(f"a batch of clouds has the shape [B, N, 3]; got {tuple(x.shape)}")
        if x.shape[1] < self.encoder.smallest:
            least = f"{type(self.encoder).__name__} needs at least {self.encoder.smallest}"
            found = f"clouds of {x.shape[1]} points are too small"
            raise ValueError(f"{found}: as built, {least}, or a smaller k or points")
        finite = x.isfinite().flatten(1).all(1)
        if not finite.all():
            bad = (~finite).nonzero().flatten()[:10].tolist()
            clouds = ", ".join(map(str, bad))
            raise ValueError(f"NaN or infinite coordinates in cloud {clouds} of the batch")
        return self.head(self.encoder(x))


# name to the network and the papers' number of neighbours
NETWORKS: dict[str, tuple[type[nn.Module], int]] = {
    "pointnet": (PointNet, 0),
    "pointnet2": (PointNet2, 32),
    "dgcnn": (DGCNN, 20),
    "pointconv": (PointConv, 32),
}
TITLES = {
    "pointnet": "PointNet",
    "pointnet2": "PointNet++",
    "dgcnn": "DGCNN",
    "pointconv": "PointConv",
}


def layer_path(name: str, layer: str) -> str:
    """Dotted module name of ``layer`` ("FC1", "FC2" or "FC3") in the network ``name``.

    Raises ``ValueError`` that names the nearest options when the network or the layer is unknown.
    """
    one_of("network", name, NETWORKS)
    one_of(f"layer of {name}", layer, LAYERS)
    return LAYERS[layer]


def build(
    name: str,
    num_classes: int,
    *,
    width: float = 1.0,
    k: int | None = None,
    points: int = 1024,
    dropout: float = 0.3,
    seed: int = 0,
) -> nn.Module:
    """The network ``name`` for clouds [B, N, 3] in the unit sphere, on the CPU, in training mode.

    name    "pointnet", "pointnet2" (PointNet++), "dgcnn" or "pointconv"
    width   factor on the channels of every layer
    k       neighbours of a point, by default as in the papers: 20 for DGCNN, 32 for PointNet++ and
            PointConv, whose second level takes 2 k; PointNet has none
    points  PointNet++ and PointConv sample half as many, then an eighth as many (papers: 512 and
            128 of 1024); a cloud may have another number of points, but not fewer than half of this
    seed    of the initial weights; global random number generators are neither read nor advanced

    Initial weights are those of ``networks.images.build``: He's, and FC3 small; a T-Net starts as
    the identity. Raises ``ValueError`` for an unknown name or sizes that make no sense.
    """
    layer_path(name, "FC3")  # says so if there is no such network
    network, neighbours = NETWORKS[name]
    k = neighbours if k is None else k
    positive(num_classes=num_classes, width=width, points=points)
    if neighbours:
        positive(k=k)
    else:
        not_negative(k=k)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout} must lie in [0, 1)")
    channels = {c: max(1, round(c * width)) for c in (64, 128, 256, 512, 1024)}
    with torch.device("meta"):  # no random number is drawn
        net = Classifier(network(channels, k, points), channels, num_classes, dropout)
    net.to_empty(device="cpu")
    initialise(net, net.head[-1], seed)
    for module in net.modules():
        if isinstance(module, TNet):
            nn.init.zeros_(module.matrix.weight)
    return net
