"""Training throughput of the four cloud networks beside the usual formulation of the same networks,
as ratios.

One step is a forward pass, a backward pass and a step of SGD. The reference is written as the
public PyTorch ports of the four papers are: channels first, point-wise layers as convolutions with
kernels of size 1 and biases, edges joined before the convolution, indexing with a batch index,
farthest-point sampling with masks, a ball query that sorts all indices. It has the same channels, k
and samples, and with the same weights the same outputs and gradients, which is checked first. Where
ports take a random first sample, it takes ours. PyTorch Geometric is not compared: its sampling and
neighbour search need a compiled extension, of which the package index has no wheel for this version
of torch.

Steps of both alternate and the medians are compared; machines are noisy, ratios less so.
"""

import statistics
import time
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kpnb_book.networks import clouds

# ------------------------------------------------------------------ the usual form, [B, C, ...]


def conv(dim: int, *sizes: int) -> nn.Sequential:
    """Shared layers on ``[B, C, N]`` (dim 1), on ``[B, C, k, M]`` (dim 2), or of whole clouds ``[B,
    C]`` (dim 0).
    """
    kind, norm = (
        (nn.Linear, nn.BatchNorm1d),
        (nn.Conv1d, nn.BatchNorm1d),
        (nn.Conv2d, nn.BatchNorm2d),
    )[dim]
    kernel = (1,) * (dim > 0)
    layers = [(kind(i, o, *kernel), norm(o), nn.ReLU()) for i, o in pairwise(sizes)]
    return nn.Sequential(*[part for layer in layers for part in layer])


def squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances ``[B, M, N]`` of ``a [B, M, C]`` and ``b [B, N, C]``."""
    out = -2 * torch.matmul(a, b.permute(0, 2, 1))
    out += torch.sum(a**2, -1).unsqueeze(2)
    out += torch.sum(b**2, -1).unsqueeze(1)
    return out


def gather(x: Tensor, index: Tensor) -> Tensor:
    """``x [B, N, C]`` at ``index [B, ...]``."""
    batch = torch.arange(x.shape[0]).view(-1, *[1] * (index.dim() - 1)).expand_as(index)
    return x[batch, index, :]


def sample(x: Tensor, count: int) -> Tensor:
    """Farthest-point sampling of ``x [B, N, 3]``: indices ``[B, count]``."""
    batch = torch.arange(x.shape[0])
    chosen = torch.zeros(x.shape[0], count, dtype=torch.long)
    least = torch.full(x.shape[:2], 1e10, dtype=x.dtype)
    last = torch.sum((x - x.mean(1, keepdim=True)) ** 2, -1).max(-1)[1]
    for i in range(count):
        chosen[:, i] = last
        distance = torch.sum((x - x[batch, last, :].unsqueeze(1)) ** 2, -1)
        closer = distance < least
        least[closer] = distance[closer]
        last = least.max(-1)[1]
    return chosen


def within(centre: Tensor, x: Tensor, k: int, radius: float) -> Tensor:
    """Ball query ``[B, M, k]``: the first k indices inside, the first of them again where there are
    fewer.
    """
    index = torch.arange(x.shape[1]).repeat(x.shape[0], centre.shape[1], 1)
    index[squares(centre, x) > radius**2] = x.shape[1]
    index = index.sort(-1)[0][:, :, :k]
    first = index[:, :, :1].repeat(1, 1, k)
    outside = index == x.shape[1]
    index[outside] = first[outside]
    return index


class Alignment(nn.Module):
    def __init__(self, d: int, *sizes: int) -> None:
        super().__init__()
        self.points, self.whole = conv(1, d, *sizes[:3]), conv(0, *sizes[2:])
        self.matrix = nn.Linear(sizes[-1], d * d)

    def forward(self, x: Tensor) -> Tensor:
        out = self.matrix(self.whole(torch.max(self.points(x), 2)[0]))
        identity = torch.eye(x.shape[1], dtype=x.dtype).flatten().repeat(x.shape[0], 1)
        return (out + identity).view(-1, x.shape[1], x.shape[1])


class PointNet(nn.Module):
    def __init__(self, c: dict[int, int], k: int, points: int) -> None:
        super().__init__()
        self.align, self.align_features = (
            Alignment(d, c[64], c[128], c[1024], c[512], c[256]) for d in (3, c[64])
        )
        self.low, self.high = conv(1, 3, c[64], c[64]), conv(1, c[64], c[64], c[128], c[1024])
        self.width = c[1024]

    def forward(self, x: Tensor) -> Tensor:
        x = torch.bmm(x.transpose(2, 1), self.align(x)).transpose(2, 1)
        x = self.low(x)
        x = torch.bmm(x.transpose(2, 1), self.align_features(x)).transpose(2, 1)
        return torch.max(self.high(x), 2)[0]


class Abstraction(nn.Module):
    """A level of PointNet++; its ``group`` and ``reduce`` are all that PointConv changes."""

    def __init__(self, count: int | None, k: int, radius: float, *sizes: int) -> None:
        super().__init__()
        self.count, self.k, self.radius = count, k, radius
        self.mlp = conv(2, 3 + sizes[0], *sizes[1:])

    def group(self, x: Tensor, centre: Tensor) -> Tensor:
        return within(centre, x, self.k, self.radius)

    def forward(self, x: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """``x [B, 3, N]`` and ``features [B, C, N]`` to those of ``count`` points."""
        x = x.permute(0, 2, 1)
        features = None if features is None else features.permute(0, 2, 1)
        if self.count is None:
            index, centre = None, torch.zeros(x.shape[0], 1, 3, dtype=x.dtype)
            local, grouped = x.unsqueeze(1), features.unsqueeze(1)
        else:
            centre = gather(x, sample(x, self.count))
            index = self.group(x, centre)
            local = gather(x, index) - centre.unsqueeze(2)
            grouped = None if features is None else gather(features, index)
        joined = local if grouped is None else torch.cat([local, grouped], -1)
        out = self.mlp(joined.permute(0, 3, 2, 1))
        return centre.permute(0, 2, 1), self.reduce(x, index, local.permute(0, 3, 2, 1), out)

    def reduce(self, x: Tensor, index: Tensor | None, local: Tensor, features: Tensor) -> Tensor:
        return torch.max(features, 2)[0]


class DensityAbstraction(Abstraction):
    def __init__(self, count: int | None, k: int, radius: float, *sizes: int) -> None:
        super().__init__(count, k, radius, *sizes)
        self.weight, self.density = conv(2, 3, 8, 8, 16), conv(2, 1, 16, 8, 1)
        self.density[-1] = nn.Sigmoid()
        self.out = nn.Sequential(
            nn.Linear(16 * sizes[-1], sizes[-1]), nn.BatchNorm1d(sizes[-1]), nn.ReLU()
        )

    def group(self, x: Tensor, centre: Tensor) -> Tensor:
        return torch.topk(squares(centre, x), self.k, dim=-1, largest=False, sorted=False)[1]

    def reduce(self, x: Tensor, index: Tensor | None, local: Tensor, features: Tensor) -> Tensor:
        kernel = torch.exp(-squares(x, x) / (2.0 * self.radius**2)) / (2.5 * self.radius)
        inverse = (1.0 / kernel.mean(-1)).unsqueeze(-1)
        grouped = inverse.unsqueeze(1) if index is None else gather(inverse, index)
        scale = grouped / grouped.max(dim=2, keepdim=True)[0]
        features = features * self.density(scale.permute(0, 3, 2, 1))
        product = torch.matmul(features.permute(0, 3, 1, 2), self.weight(local).permute(0, 3, 2, 1))
        linear, norm, relu = self.out
        return relu(norm(linear(product.reshape(*product.shape[:2], -1)).permute(0, 2, 1)))


class PointNet2(nn.Module):
    block: type[Abstraction] = Abstraction
    radii: tuple[float, float, float] = (0.2, 0.4, 1.0)

    def __init__(self, c: dict[int, int], k: int, points: int) -> None:
        super().__init__()
        first = self.block(points // 2, k, self.radii[0], 0, c[64], c[64], c[128])
        second = self.block(points // 8, 2 * k, self.radii[1], c[128], c[128], c[128], c[256])
        whole = self.block(None, 0, self.radii[2], c[256], c[256], c[512], c[1024])
        self.levels, self.width = nn.ModuleList([first, second, whole]), c[1024]

    def forward(self, x: Tensor) -> Tensor:
        features = None
        for level in self.levels:
            x, features = level(x, features)
        return features.view(x.shape[0], -1)


class PointConv(PointNet2):
    block = DensityAbstraction
    radii = (0.1, 0.2, 0.4)


class Edge(nn.Module):
    def __init__(self, k: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.k = k
        self.conv = nn.Conv2d(2 * inputs, outputs, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, C, N]`` to ``[B, outputs, N]``."""
        total = torch.sum(x**2, 1, keepdim=True)
        closeness = -total - -2 * torch.matmul(x.transpose(2, 1), x) - total.transpose(2, 1)
        index = closeness.topk(self.k, -1)[1]
        flat = (index + torch.arange(x.shape[0]).view(-1, 1, 1) * x.shape[2]).view(-1)
        rows = x.transpose(2, 1).contiguous()
        near = rows.view(-1, x.shape[1])[flat, :].view(*index.shape, x.shape[1])
        own = rows.unsqueeze(2).repeat(1, 1, self.k, 1)
        edges = torch.cat([near - own, own], 3).permute(0, 3, 1, 2).contiguous()
        return F.leaky_relu(self.norm(self.conv(edges)), 0.2).max(-1)[0]


class DGCNN(nn.Module):
    def __init__(self, c: dict[int, int], k: int, points: int) -> None:
        super().__init__()
        sizes = [3, c[64], c[64], c[128], c[256]]
        self.edges = nn.ModuleList(Edge(k, i, o) for i, o in pairwise(sizes))
        self.embed, self.width = conv(1, sum(sizes[1:]), c[1024]), 2 * c[1024]

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for edge in self.edges:
            x = edge(x)
            outputs.append(x)
        x = self.embed(torch.cat(outputs, 1))
        whole = [F.adaptive_max_pool1d(x, 1), F.adaptive_avg_pool1d(x, 1)]
        return torch.cat([pooled.view(x.shape[0], -1) for pooled in whole], 1)


CLASSES = 12
REFERENCES = {"pointnet": PointNet, "pointnet2": PointNet2, "dgcnn": DGCNN, "pointconv": PointConv}


class Reference(nn.Module):
    """The network ``name`` for clouds ``[B, N, 3]`` with the weights of ``ours``, layer by layer.

    It has as many parameters, but for the biases before a normalisation, which are zero here and
    which ours lacks.
    """

    def __init__(self, name: str, ours: nn.Module, width: float, k: int, points: int) -> None:
        super().__init__()
        c = {c: max(1, round(c * width)) for c in (64, 128, 256, 512, 1024)}
        self.encoder = REFERENCES[name](c, k, points)
        self.head = nn.Sequential(
            conv(0, self.encoder.width, c[512], c[256]), nn.Linear(c[256], CLASSES)
        )
        self.copy(ours)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x.transpose(2, 1).contiguous()))

    @torch.no_grad()
    def copy(self, ours: nn.Module) -> None:
        norms = (nn.BatchNorm1d, nn.BatchNorm2d)
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, *norms)
        layers, sources = (
            [m for m in model.modules() if isinstance(m, kinds)] for model in (self, ours)
        )
        for layer in layers:
            source = sources.pop(0)
            if isinstance(layer, norms):
                layer.load_state_dict(source.state_dict())
                continue
            weight, bias = source.weight, source.bias
            if isinstance(layer, nn.Conv2d) and layer.bias is None:
                # An edge convolution: theta beside phi.
                weight = torch.cat([weight, sources.pop(0).weight], 1)
            layer.weight.copy_(weight.view_as(layer.weight))
            if layer.bias is not None:
                layer.bias.copy_(torch.zeros(()) if bias is None else bias)
        assert not sources, f"layers without a counterpart: {sources}"


def pair(name: str, width: float, k: int, points: int) -> tuple[nn.Module, Reference]:
    """Our network and its reference with the same weights."""
    ours = clouds.build(name, CLASSES, width=width, k=k, points=points, dropout=0.0)
    return ours, Reference(name, ours, width, k, points)


def random_clouds(batch: int, points: int) -> Tensor:
    """``[B, N, 3]`` in the unit sphere."""
    x = torch.randn(batch, points, 3, generator=torch.Generator().manual_seed(0))
    return x / x.norm(dim=-1).amax(1)[:, None, None]


def difference(name: str) -> float:
    """Largest difference of logits and input gradients, over their largest values, in float64 and
    evaluation mode.

    All weights and running statistics are random, so that no layer is idle (a T-Net starts as a
    constant). PointNet++ gets larger clouds: then no ball holds more than k points, of which ports
    take the first and we the nearest k.
    """
    ours, reference = (model.double().eval() for model in pair(name, 0.25, 12, 286))
    generator = torch.Generator().manual_seed(1)
    for value in (value for value in ours.state_dict().values() if value.is_floating_point()):
        spread = 0.5 if value.dim() < 2 else (2 / value.shape[1]) ** 0.5
        value.normal_(0, spread, generator=generator)
        if value.dim() < 2:  # variances are positive
            value.abs_().add_(0.1)
    reference.copy(ours)
    x = random_clouds(3, 286).double().mul_(3 if name == "pointnet2" else 1).requires_grad_(True)
    found = []
    for model in (ours, reference):
        logits = model(x)
        found.append((logits.detach(), *torch.autograd.grad(logits.square().sum(), x)))
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*found, strict=True))


# --------------------------------------------------------------------------------------- the timing


def step(model: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    """Seconds of one training step."""
    start = time.process_time()
    optimiser.zero_grad(set_to_none=True)
    F.cross_entropy(model(x), y).backward()
    optimiser.step()
    return time.process_time() - start


def medians(models: tuple[nn.Module, ...], x: Tensor, y: Tensor, repeats: int) -> list[float]:
    """Median seconds of a step of each model, in turns, after two that do not count."""
    optimisers = [
        torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
        for model in models
    ]
    times = [
        [step(*one, x, y) for one in zip(models, optimisers, strict=True)]
        for _ in range(repeats + 2)
    ]
    return [statistics.median(column) for column in zip(*times[2:], strict=True)]


def run(quick: bool, width: float = 0.25, points: int = 286, k: int = 12, batch: int = 16) -> None:
    x, repeats = random_clouds(batch, points), 5 if quick else 31
    y = torch.randint(CLASSES, (batch,), generator=torch.Generator().manual_seed(0))
    print(f"\ntraining, clouds a second: width {width}, {points} points, k {k}, batch {batch}")
    columns = f"{'ours':>8s}{'reference':>12s}{'time ours / reference':>24s}"
    print(f"  {'':12s}{columns}   (target: at most 1.5)")
    for name in clouds.NETWORKS:
        error = difference(name)
        assert error < 1e-6, f"{name}: outputs or gradients differ by {error:.1e}"
        models = pair(name, width, k, points)
        ours, reference = medians(models, x, y, repeats)
        print(f"  {name:12s}{batch / ours:8.1f}{batch / reference:12.1f}{ours / reference:24.2f}")
