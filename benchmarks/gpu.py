"""kpnb on a CUDA card: is it right there, how fast is it, and what does a row of the paper cost?

    python -m benchmarks gpu FOLDER                     # at most 8 minutes
    python -m benchmarks gpu FOLDER --minutes 4 --price 2.5     # an hour of the card costs 2.5
    python -m benchmarks gpu FOLDER --revision 1a2b3c4          # of a copy that git does not know

It needs torchvision beside what kpnb needs, no network and no data: weights and images are random.
It writes FOLDER/gpu-CARD.json and FOLDER/gpu-CARD.md, anew after each figure, so that what was
measured is kept whatever happens then. Without a card it says so and runs a miniature of every part
on the CPU, whose times mean nothing.

correctness   the energies on the card against the CPU in float64; what float32, TF32 and bfloat16
              cost in error; memory by ``max_batch``; a batch for which the memory really runs out
speed         maps a second (a map is the entropy of one image at one layer) beside a bare loop of
              the same autograd calls, the time of a matrix product with as many operations, and the
              learner with the settings of the 2020 release in both its ways to stop
row           VGG-16 at full width on as many images as CUB-200-2011 has, as in the paper's Table 5:
              an epoch and some maps are timed, all of them are extrapolated; and a plain loop

Each part has a share of the minutes, and what others have left of theirs. A case that would take
longer than is left, or that fails, is left out, and the report says so.
"""

import argparse
import copy
import json
import logging
import math
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vgg

import kpnb
from kpnb import distill
from kpnb._memory import log as memory_log
from kpnb._memory import out_of_memory
from kpnb.features import capture, explaining
from kpnb.schedule import Schedule

CLOSED, EXACT = kpnb.ClosedForm(), kpnb.ClosedForm(rank=None)
SHARES = {"correctness": 0.2, "speed": 0.45, "row": 0.35}  # of the minutes
# Steps of the learner with 96 samples: 5,760 passes, and about 3,400 (benchmarks/solvers.py).
STEPS = {"as released": 60, "stopped when aligned": 36}
SAMPLES = kpnb.Stochastic().samples
IMAGES, EPOCHS, CLASSES = 5994, 150, 200  # training images and classes of CUB-200-2011
DIFFERENT = 256  # of these images; the others repeat them
BATCHES = 2  # in a call whose speed is measured, which draws its noise once


@dataclass
class Part:
    """What a part has found so far, and when its time is up; ``keep`` is called when that grows."""

    seconds: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    keep: Callable[[], None] = lambda: None

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.began)

    def each(self, cases: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        """The named ``cases`` while there is time; the names of the others are kept."""
        for name, case in cases:
            if self.left > 0:
                yield name, case
            else:
                self.leave(name)

    @contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """What fails is left out, with its reason, and the part goes on."""
        try:
            yield
        except Exception as error:
            why = "does not fit into memory"
            self.leave(f"{name}: {why if lacks(error) else f'{type(error).__name__}: {error}'}")

    def add(self, **row: Any) -> None:
        self.rows.append(row)
        self.keep()

    def leave(self, name: str) -> None:
        self.left_out.append(name)
        self.keep()

    def found(self) -> dict[str, Any]:
        """For JSON."""
        return {"seconds": self.seconds, "rows": self.rows, "left_out": self.left_out}


def lacks(error: Exception) -> bool:
    """Whether memory ran out."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and out_of_memory(error)
    )


@dataclass(frozen=True)
class Network:
    """A network with random weights, and the layers at which it is measured."""

    build: Callable[[], nn.Module]
    layers: tuple[str, ...]
    pixels: int = 224


@dataclass(frozen=True)
class Sizes:
    """How large everything is: in full for a card, in miniature without one."""

    networks: dict[str, Network]
    batches: tuple[int, ...]
    pool: int  # images in the calls whose memory is looked at
    product: int  # rows and columns of the matrix product
    repeats: int
    epoch: int  # images of an epoch that is timed
    batch_size: int


def _vgg(plan: list[int | str], hidden: int, pixels: int, classes: int = 10) -> nn.Module:
    """A narrow VGG of torchvision's own parts."""
    features = vgg.make_layers(plan)
    width = plan[-2]
    side = pixels // 2 ** plan.count("M")
    head = nn.Sequential(nn.Linear(width * side**2, hidden), nn.ReLU(), nn.Linear(hidden, classes))
    return nn.Sequential(features, nn.Flatten(), head)


def small() -> Network:
    """A network whose whole Jacobian is soon computed."""
    plan = [8, "M", 16, "M"]
    return Network(lambda: _vgg(plan, 48, 32), ("0.5", "2.1", "2.2"), 32)


def full() -> Sizes:
    models = torchvision.models
    blocks = tuple(f"encoder.layers.encoder_layer_{block}" for block in (2, 5, 8, 11))
    classified = {"num_classes": CLASSES}
    networks = {
        "vgg16": Network(
            lambda: models.vgg16(**classified),
            ("features.30", "classifier.1", "classifier.4", "classifier.6"),
        ),
        "alexnet": Network(
            lambda: models.alexnet(**classified),
            ("features.12", "classifier.2", "classifier.5", "classifier.6"),
        ),
        "resnet50": Network(
            lambda: models.resnet50(**classified), ("layer1", "layer2", "layer3", "layer4")
        ),
        "vit_b_16": Network(lambda: models.vit_b_16(**classified), blocks),
    }
    return Sizes(networks, (8, 32, 128, 512), 64, 8192, 3, IMAGES, 64)


def miniature() -> Sizes:
    transformer = Network(
        lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=10),
        ("encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"),
        32,
    )
    return Sizes({"vgg16": small(), "vit_b_16": transformer}, (2,), 4, 64, 1, 4, 2)


# ----------------------------------------------------------------------------------- how to measure


def made(network: Network, device: torch.device) -> nn.Module:
    """The network with the same random weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return network.build().eval().to(device)


def images(count: int, pixels: int, device: torch.device) -> Tensor:
    """Random images ``[count, 3, pixels, pixels]``, the same on every device."""
    x = torch.randn(count, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))
    return x.to(device)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median wall time of ``run``, after one run that does not count."""
    times = []
    for _ in range(repeats + 1):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether float32 products and convolutions may be computed in TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def under_bf16(model: nn.Module, x: Tensor) -> Any:
    """How the model is called under bfloat16 autocast."""
    with torch.autocast(x.device.type, torch.bfloat16):
        return model(x)


def entropies(
    model: nn.Module, x: Tensor, layers: Sequence[str], rows: int, **how: Any
) -> dict[str, kpnb.Entropy]:
    """``kpnb.entropy`` without its look at the network and without a bar."""
    grid = min(16, x.shape[-1] // 2)
    how = {"units": kpnb.ImageGrid(grid), "dead": "nan", "check": False, "progress": False} | how
    return kpnb.entropy(model, x, [*layers], max_batch=rows, **how)


def peak(run: Callable[[], object], device: torch.device) -> float | None:
    """MiB that ``run`` adds at its peak; None where nobody counts."""
    if device.type != "cuda":
        run()
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


# -------------------------------------------------------------------------------------- correctness


def correctness(part: Part, device: torch.device, sizes: Sizes) -> None:
    """Everything that a card could do differently."""
    # memory before it runs out: a library remembers what it chose when there was little
    steps = {"precision": precisions, "memory": memory, "out of memory": halving}
    with tf32(False):
        for name, step in part.each(steps.items()):
            with part.trying(name):
                step(part, device, sizes)


def precisions(part: Part, device: torch.device, _sizes: Sizes) -> None:
    """Distance of H to the exact one, computed on the CPU in float64, at every layer (nats)."""
    network = small()
    model, x = made(network, torch.device("cpu")).double(), images(4, 32, torch.device("cpu"))
    exact = entropies(model, x.double(), network.layers, 32, solver=EXACT)
    kinds = {
        "float64": (torch.float64, False, {}),
        "float32": (torch.float32, False, {}),
        "TF32": (torch.float32, True, {}),
        "bfloat16": (torch.float32, False, {"forward": under_bf16}),
    }
    solvers = {"exact": EXACT, "sketched": CLOSED}
    cases = [((name, kind), (solvers[name], kinds[kind])) for name in solvers for kind in kinds]
    for (name, kind), (solver, (dtype, fast, how)) in cases:
        with part.trying(f"{name} energies, {kind}"), tf32(fast):
            moved = made(network, device).to(dtype)
            found = entropies(moved, x.to(device, dtype), network.layers, 32, solver=solver, **how)
            for layer, wanted in exact.items():
                gap = (found[layer].entropy.cpu().double() - wanted.entropy).abs()
                row = {"what": f"{name} energies", "precision": kind, "layer": layer}
                part.add(**row, mean_error=gap.nanmean().item(), max_error=_largest(gap))


def _largest(values: Tensor) -> float:
    """The largest that is a number; NaN when none is."""
    known = values[~values.isnan()]
    return known.max().item() if len(known) else float("nan")


def memory(part: Part, device: torch.device, sizes: Sizes) -> None:
    """Peak memory by ``max_batch``, which bounds it, and not the number of images."""
    name, network = next(iter(sizes.networks.items()))
    model, layer = made(network, device), network.layers[1]
    for rows in sizes.batches[:2]:
        for count in (sizes.pool // 2, sizes.pool):
            x = images(count, network.pixels, device)
            run = lambda x=x, rows=rows: entropies(model, x, [layer], rows)  # noqa: E731
            title = {"what": f"memory of {name}", "layer": layer, "images": count}
            part.add(**title, max_batch=rows, peak_mib=peak(run, device))


class Greedy(nn.Module):
    """Asks for more memory than there is when more than ``rows`` images come; for machines whose
    memory is not to be filled.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.rows:
            torch.empty(2**60)
        return x


class Said(logging.Handler):
    """Counts how often a batch was halved."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.times += "does not fit into memory" in record.getMessage()


@contextmanager
def counted() -> Iterator[Said]:
    """How often batches are halved meanwhile."""
    said = Said()
    memory_log.addHandler(said)
    try:
        yield said
    finally:
        memory_log.removeHandler(said)


@contextmanager
def crowded(device: torch.device, room: float) -> Iterator[None]:
    """Only so many MiB of the card's memory are free."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    ballast = torch.empty(max(0, free - int(room * 2**20)), dtype=torch.uint8, device=device)
    try:
        yield
    finally:
        del ballast
        torch.cuda.empty_cache()


def halving(part: Part, device: torch.device, sizes: Sizes) -> None:
    """A call with too large a ``max_batch`` halves it until it fits; the result stays."""
    name, network = next(iter(sizes.networks.items()))
    few, many = 4, 64
    model, layer = made(network, device), network.layers[1]
    x = images(many, network.pixels, device)
    wanted = entropies(model, x, [layer], few)[layer].entropy
    if device.type == "cuda":
        need = peak(lambda: entropies(model, x[:many], [layer], few), device)
        tight = crowded(device, 3 * need + 256)  # and what the libraries want for themselves
    else:
        model, layer, tight = nn.Sequential(Greedy(few), model), f"1.{layer}", nullcontext()
    with tight, counted() as said:
        found = entropies(model, x, [layer], many)[layer].entropy
    row = {"what": f"out of memory, {name}", "images": many, "max_batch": many}
    part.add(**row, halved=said.times, max_error=_largest((found - wanted).abs()))


# -------------------------------------------------------------------------------------------- speed


def bare_loop(model: nn.Module, x: Tensor, layers: Sequence[str]) -> None:
    """As many forward and backward passes as the closed form makes, and nothing else."""
    with explaining(model, x.device):
        leaf = x.clone().requires_grad_(True)
        features = capture(model, leaf.clone(), layers)
        with torch.no_grad():
            for _ in range(CLOSED.noise):
                capture(model, x, layers)
            for layer in layers:
                capture(model, x, [layer])
        for feature in features.values():
            vector = torch.ones_like(feature)
            for _ in range(CLOSED.rank + CLOSED.probes):
                torch.autograd.grad(feature, leaf, vector, retain_graph=True)


def product_rate(device: torch.device, size: int, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square matrix product."""
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    return 2 * size**3 / seconds(lambda: a @ b, device, 9)


def learner_step(
    model: nn.Module, x: Tensor, layer: str, device: torch.device, repeats: int
) -> float:
    """Seconds of one of the learner's steps for one image, 96 samples in one pass."""
    one, two = (kpnb.Stochastic(steps=steps) for steps in (1, 4))
    times = [
        seconds(lambda s=s: entropies(model, x[:1], [layer], SAMPLES, solver=s), device, repeats)
        for s in (one, two)
    ]
    return (times[1] - times[0]) / 3


def speed(part: Part, device: torch.device, sizes: Sizes) -> None:
    """Maps a second of every network, in TF32 as its users run it; small batches of all networks
    come before large ones of any.
    """
    with tf32(True):
        for kind, dtype in (("TF32", torch.float32), ("bfloat16", torch.bfloat16)):
            rate = product_rate(device, sizes.product, dtype)
            part.add(what="matrix product", precision=kind, tflops=rate / 1e12)
        rate = 1e12 * part.rows[0]["tflops"]
        found = {name: Measured(part, name, one) for name, one in sizes.networks.items()}
        cases = [(name, batch) for batch in sizes.batches for name in found]
        for title, (name, batch) in part.each((f"{n}, {b}", (n, b)) for n, b in cases):
            with part.trying(title):
                found[name].at(batch, rate, device, sizes.repeats)


@dataclass
class Measured:
    """A network whose speed is measured, from small batches to large ones."""

    part: Part
    name: str
    network: Network
    model: nn.Module | None = None
    steps: dict[str, float] = field(default_factory=dict)  # seconds of the learner's, by layer
    took: dict[str, float] = field(default_factory=dict)  # seconds of an image's case
    failed: set[str] = field(default_factory=set)

    def at(self, batch: int, rate: float, device: torch.device, repeats: int) -> None:
        """A batch size: all layers in one call, and each alone."""
        layers = self.network.layers
        self.model = self.model or made(self.network, device)
        x = images(batch, self.network.pixels, device)
        for layer in layers:
            if layer not in self.steps:
                self.steps[layer] = learner_step(self.model, x, layer, device, repeats)
        for what, asked in {"all": layers, **{layer: (layer,) for layer in layers}}.items():
            title = f"{self.name}, {what}, {batch}"
            if what in self.failed:
                self.part.leave(f"{title}: a smaller batch failed")
            elif self.took.get(what, 0.0) * batch > self.part.left:
                self.part.leave(f"{title}: would take too long")
            else:
                self.failed.add(what)
                with self.part.trying(title):
                    start = time.monotonic()
                    self.one(x, what, asked, rate, device, repeats)
                    self.took[what] = (time.monotonic() - start) / batch
                    self.failed.remove(what)

    def one(
        self,
        x: Tensor,
        what: str,
        asked: Sequence[str],
        rate: float,
        device: torch.device,
        repeats: int,
    ) -> None:
        """One case, beside the learner at these layers."""
        found = one_batch(self.model, x, asked, rate, device, repeats)
        learner = sum(self.steps[layer] for layer in asked) / len(asked)
        ways = {
            f"ratio to learner {way}": steps * learner * found["maps_a_second"]
            for way, steps in STEPS.items()
        }
        self.part.add(what=self.name, layer=what, batch=len(x), **found, **ways)


def one_batch(
    model: nn.Module,
    x: Tensor,
    layers: Sequence[str],
    rate: float,
    device: torch.device,
    repeats: int,
) -> dict[str, float | None]:
    """Maps a second, of a call on some batches like ``x``; and the time of the bare loop and of a
    matrix product with as many operations, as shares of the time that the maps took. The bare loop,
    which does not go on with half of a batch, may find no room; it is None then.
    """
    several = torch.cat([x] * BATCHES)
    with counted() as said:
        whole = seconds(lambda: entropies(model, several, layers, len(x)), device, repeats)
    whole /= BATCHES
    try:
        bare = seconds(lambda: bare_loop(model, x, layers), device, repeats)
    except RuntimeError as error:
        if not lacks(error):
            raise
        bare = None
    with FlopCounterMode(display=False) as counter:
        bare_loop(model, x[:1], layers)
    return {
        "maps_a_second": len(x) * len(layers) / whole,
        "of bare loop": None if bare is None else bare / whole,
        "of matrix product": len(x) * counter.get_total_flops() / rate / whole,
        "halved": said.times // (repeats + 1),  # by each run
    }


# ---------------------------------------------------------------------------------------------- row


def row(part: Part, device: torch.device, sizes: Sizes, price: float | None) -> None:
    """Hours of a row of Table 5: four students and a baseline, measured after every epoch; what
    they cost where an hour has a ``price``.

    A student is measured at its layer, the baseline at all four. The epoch of every student is
    taken to cost what that of one at the last layer does, which trains the most.
    """
    name, network = next(iter(sizes.networks.items()))
    model, layers = made(network, device), network.layers
    maps, epochs, keeping = {}, {}, math.nan
    rows = sizes.batches[min(1, len(sizes.batches) - 1)]
    x = images(BATCHES * rows, network.pixels, device)
    for title, asked in part.each([("all", layers), *((layer, (layer,)) for layer in layers)]):
        with part.trying(f"an image's maps, {title}"), tf32(True):
            run = lambda asked=asked: entropies(model, x, asked, rows)  # noqa: E731
            maps[title] = seconds(run, device, sizes.repeats) / len(x)
            part.add(what="an image's maps", network=name, layer=title, seconds=maps[title])
    data = Repeated(labelled(min(DIFFERENT, sizes.epoch), network.pixels), sizes.epoch)
    timed = {"baseline": None, "student": layers[-1]}
    for role, layer in part.each(timed.items()):
        with part.trying(f"an epoch of a {role}"):
            took, rest = epoch_seconds(model, layer, data, device, sizes)
            training = took * IMAGES / sizes.epoch
            if role == "baseline":  # the rest of a student is also its teacher's answers
                keeping = rest
            epochs[role] = training + keeping
            found = {"seconds": training, "and for its checkpoint": keeping}
            part.add(what=f"an epoch of a {role}", network=name, **found)
            if role == "baseline":
                plain_loop(part, name, model, data, training, device, sizes)
    if len(maps) < 1 + len(layers) or len(epochs) < len(timed):
        return
    training = EPOCHS * (len(layers) * epochs["student"] + epochs["baseline"]) / 3600
    measuring = (EPOCHS + 1) * IMAGES * sum(maps.values()) / 3600
    hours = {"training": training, "measuring": measuring, "together": training + measuring}
    for what, hour in hours.items():
        cost = {} if price is None else {"cost": price * hour}
        part.add(what=f"the row, {what}", network=name, hours=hour, **cost)


def labelled(count: int, pixels: int) -> distill.TensorData:
    """Random images with labels, on the CPU."""
    return distill.TensorData(images(count, pixels, torch.device("cpu")), torch.arange(count) % 10)


@dataclass(frozen=True)
class Repeated:
    """So many samples, of which only ``few`` are different."""

    few: distill.TensorData
    count: int

    def __len__(self) -> int:
        return self.count

    def batch(self, index: Tensor, device: str = "cpu") -> tuple[Tensor, Tensor]:
        return self.few.batch(index % len(self.few), device)


def epoch_seconds(
    model: nn.Module, layer: str | None, data: Repeated, device: torch.device, sizes: Sizes
) -> tuple[float, float]:
    """Seconds of an epoch by ``kpnb.distill``, of the second, as the first warms up; and what is
    left of the whole time for each of the three checkpoints.
    """
    how = Schedule(epochs=2, batch_size=sizes.batch_size, lr=1e-4)
    start = time.perf_counter()
    if layer is None:
        learned = distill.baseline(model, data, how, device=str(device))
    else:
        learned = distill.student(model, model, layer, data, how, device=str(device))
    whole = time.perf_counter() - start
    took = [entry["seconds"] for entry in learned.log]
    return took[-1], max(whole - sum(took), 0.0) / len(took)


def plain_loop(
    part: Part,
    name: str,
    model: nn.Module,
    data: Repeated,
    training: float,
    device: torch.device,
    sizes: Sizes,
) -> None:
    """The loop of whoever writes it anew, beside an epoch of the baseline's ``training``."""
    with part.trying("a plain loop"):
        plain = IMAGES / sizes.epoch * plain_seconds(model, data, device, sizes)
        part.add(what="a plain loop", network=name, seconds=plain, ratio=plain / training)


def plain_seconds(model: nn.Module, data: Repeated, device: torch.device, sizes: Sizes) -> float:
    """Seconds of an epoch of the loop that whoever trains a baseline writes, with the same batches
    and optimiser, and nothing kept.
    """
    how = Schedule(lr=1e-4)
    model = copy.deepcopy(model).train()
    optimiser = torch.optim.SGD(
        model.parameters(), how.lr, momentum=how.momentum, weight_decay=how.weight_decay
    )

    def epoch() -> None:
        for index in torch.randperm(len(data)).split(sizes.batch_size):
            x, y = data.batch(index, str(device))
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()

    return seconds(epoch, device, 1)


# ------------------------------------------------------------------------------------------- report


def revision() -> str:
    """What git says of this folder; "unknown" where there is no git, or a copy that it does not
    know.
    """
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    except OSError:
        found = ""
    return found or "unknown"


def machine(device: torch.device) -> dict[str, Any]:
    """Card and versions that the figures belong to."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "none, on the CPU"
    return {
        "card": card,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "python": platform.python_version(),
        "kpnb": kpnb.__version__,
        "measured": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same columns as one Markdown table, the others as tables of their own."""
    lines: list[str] = []
    before: list[str] = []
    for each in rows:
        if [*each] != before:
            before = [*each]
            lines += ["", f"| {' | '.join(before)} |", "|---" * len(before) + "|"]
        lines.append(f"| {' | '.join(map(shown, each.values()))} |")
    return "\n".join(lines)


def shown(value: Any) -> str:
    if value is None:
        return "not measured"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def report(about: dict[str, Any], parts: dict[str, Part], note: str) -> str:
    """The page: what the figures belong to, and each part with what it left out."""
    lines = [f"# kpnb on {about.get('card', 'a GPU')}", "", note, ""]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    for name, part in parts.items():
        lines += ["", f"## {name}", table(part.rows)]
        if part.left_out:
            lines += ["", f"Left out: {'; '.join(part.left_out)}."]
    return "\n".join(lines) + "\n"


def measure(
    device: torch.device,
    sizes: Sizes,
    minutes: float,
    price: float | None,
    keep: Callable[[dict[str, Part]], None],
) -> dict[str, Part]:
    """All parts, each within its share of the time and what those before it have left; ``keep`` is
    given them whenever there is something new.
    """
    runs = {
        "correctness": lambda part: correctness(part, device, sizes),
        "speed": lambda part: speed(part, device, sizes),
        "row": lambda part: row(part, device, sizes, price),
    }
    parts: dict[str, Part] = {}
    unspent = 0.0
    for name, run in runs.items():
        budget = 60 * minutes * SHARES[name] + unspent
        part = parts[name] = Part(budget, keep=lambda: keep(parts))
        print(f"{name} ...", flush=True)
        with part.trying(name):
            run(part)
        unspent = max(part.left, 0.0)
    return parts


def write(folder: Path, kept: dict[str, Any], parts: dict[str, Part]) -> str:
    """Both files, under the card's name; returns the page."""
    card = re.sub(r"[^a-z0-9]+", "-", kept["machine"]["card"].lower()).strip("-")
    text = report(kept["machine"], parts, kept["note"])
    found = kept | {"parts": {name: part.found() for name, part in parts.items()}}
    folder.mkdir(parents=True, exist_ok=True)
    for kind, content in (("json", json.dumps(found, indent=1) + "\n"), ("md", text)):
        begun = folder / f"gpu-{card}.{kind}.tmp"
        begun.write_text(content, "utf8")
        os.replace(begun, begun.with_suffix(""))  # whoever stops this keeps what there was
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="for the two files")
    parser.add_argument("--minutes", type=float, default=7, help="for all parts; then a part ends")
    parser.add_argument("--price", type=float, help="of an hour of the card")
    parser.add_argument("--revision", help="of this code; without it git is asked")
    given = parser.parse_args(arguments)
    there = torch.cuda.is_available()
    device = torch.device("cuda" if there else "cpu")
    note = "Measured on a card." if there else (
        "There is no CUDA card here: a miniature on the CPU, whose times mean nothing."
    )  # fmt: skip
    print(note)
    code = {"revision": given.revision or revision()}
    kept = {"note": note, "machine": machine(device) | code}
    kept |= {"minutes": given.minutes, "price": given.price}
    sizes = full() if there else miniature()
    parts = measure(
        device, sizes, given.minutes, given.price, lambda parts: write(given.folder, kept, parts)
    )
    print(write(given.folder, kept, parts))


if __name__ == "__main__":
    main()
