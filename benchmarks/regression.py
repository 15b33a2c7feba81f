"""This tree against another one, in one run: error of H, knowledge points, time and memory.

    python -m benchmarks.regression /path/to/another/clone
    python -m benchmarks.regression v0.1.0            # a git revision, checked out for the while
    python -m benchmarks.regression HEAD~5 --quick
    python -m benchmarks.regression HEAD~5 --only grid --repeats 60

Networks of the chapters (the laptop's VGG with a grid, point clouds, an encoder of tokens) are
trained a little, by a few lines below, and measured with the settings of the chapters and with the
defaults, by both sides. Each side is a process of its own with the same environment and the same
networks, and the two take turns, so that what else the machine does disturbs both.

Errors and overlaps are against each side's own exact Jacobian. Times are CPU times; a row's ratio
is the median over the turns, this tree over the other, and its 95 % interval is from a bootstrap
over turns. Memory is what PyTorch has allocated at the peak of one call beyond what it had before,
which is counted, not sampled, and the same at each call. Below the rows stands a line for the grid,
points and tokens: the mean over their rows, and a verdict. Wanted: errors and overlaps no worse,
times and memory at most 3 % more.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"default": (9, 5, 14), "chapter": (16, 16, 24)}  # rank, probes, noise
OF_TOKENS = SETTINGS | {"chapter": (8, 8, 12)}
OF_CLOUDS = SETTINGS | {"chapter": (24, 12, 30)}
SEEDS = range(0, 60, 10)  # of noise and probes, over which errors are averaged
BOUND = 1.03  # of time and memory, over the other side's
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**25)}


# ------------------------------------------------------------------------------ what both measure


def trained(model: nn.Module, data: Any, epochs: int, lr: float) -> nn.Module:
    """A little of plain training, so that features are those of a network that has learned."""
    optimiser = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    torch.manual_seed(0)
    for _ in range(epochs):
        for index in torch.randperm(len(data)).split(64):
            x, y = data.batch(index)
            optimiser.zero_grad()
            nn.functional.cross_entropy(model.train()(x), y).backward()
            optimiser.step()
    return model.eval()


def grid(quick: bool) -> Iterator[dict[str, Any]]:
    """The laptop's VGG after one epoch and after some, at Conv, FC1 and FC2."""
    from kpnb_book.data.images import load
    from kpnb_book.networks.images import build, layer_path

    data = load("emoji", "train", size=64, count=128 if quick else 1000)
    x = data.batch(torch.arange(32))[0].contiguous(memory_format=torch.channels_last)
    spec = {"name": "vgg11_bn", "num_classes": 12, "input_size": 64, "width": 0.125}
    spec |= {"hidden": 256, "dropout": 0.0, "seed": 0}
    for epochs in (1, 6):
        state = trained(build(**spec), data, epochs, 0.05).state_dict()
        for layer in ("Conv", "FC1", "FC2"):
            about = {"kind": "image", "spec": spec, "state": state, "x": x, "scale": 1.0}
            about |= {"layer": layer_path("vgg11_bn", layer), "masks": data.masks[:32]}
            yield about | {"name": f"grid: {layer}, epoch {epochs}", "settings": SETTINGS}


def points(quick: bool) -> Iterator[dict[str, Any]]:
    """The laptop's PointNet and PointNet++ after some epochs, at FC1."""
    from kpnb_book.data.clouds import load
    from kpnb_book.networks.clouds import build, layer_path

    data = load("shapes", "train", count=128 if quick else 400, points=128, background=62)
    for name in ("pointnet", "pointnet2"):
        spec = {"name": name, "num_classes": len(data.classes), "points": 190, "k": 12}
        spec |= {"width": 0.25, "dropout": 0.0, "seed": 0}
        state = trained(build(**spec), data, 2, 0.02).state_dict()
        about = {"kind": "cloud", "spec": spec, "state": state, "scale": 0.4}
        about |= {"x": data.batch(torch.arange(20))[0], "masks": data.masks[:20]}
        about |= {"layer": layer_path(name, "FC1"), "settings": OF_CLOUDS}
        yield about | {"name": f"points: {name}, FC1"}


def tokens(quick: bool) -> Iterator[dict[str, Any]]:
    """Two layers of a pre-trained encoder reading words at random, of different number."""
    del quick
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2000, 20000, (24, 40), generator=generator)
    lengths = torch.randint(10, 39, (24, 1), generator=generator)
    place = torch.arange(40)
    attended, counts = place < lengths + 2, (place > 0) & (place < lengths + 1)
    words = encoder(None).get_input_embeddings().weight.detach()
    about = {"kind": "tokens", "spec": {}, "state": None, "layer": "feature"}
    about |= {"x": words[ids], "attended": attended, "counts": counts}
    about |= {"masks": counts & (place % 5 == 1), "scale": words.std().item()}
    yield about | {"name": "tokens: encoder, first", "settings": OF_TOKENS}


def encoder(layers: int | None = 2) -> nn.Module:
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    from kpnb_book.hub import source

    logging.set_verbosity_error()  # weights that are left out are not worth a table
    where = source("minilm")
    size = {} if layers is None else {"num_hidden_layers": layers}
    config = AutoConfig.from_pretrained(**where, **size)
    return AutoModel.from_pretrained(**where, config=config, add_pooling_layer=False).eval()


class First(nn.Module):
    """The vector of the first token, from word embeddings."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.feature = encoder, nn.Identity()

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        how = {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
        return self.feature(self.encoder(**how).last_hidden_state[:, 0])


class Marked(First):
    """The same from one tensor with three channels of marks, as kpnb once had it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., 3:], x[..., 1].long())


# ----------------------------------------------------------------------------------------- one side


def network(case: dict[str, Any]) -> nn.Module:
    """The network of a case, built by this tree's code on both sides."""
    if case["kind"] == "tokens":
        return encoder()
    if case["kind"] == "image":
        from kpnb_book.networks.images import build
    else:
        from kpnb_book.networks.clouds import build
    model = build(**case["spec"])
    model.load_state_dict(case["state"])
    return model.eval()


def method_of(tree: Path) -> None:
    """From here on ``kpnb`` is that of ``tree``; what was built with this tree's stays as it is."""
    for name in [*sys.modules]:
        if name.partition(".")[0] in ("kpnb", "kpnb_book"):
            del sys.modules[name]
    sys.path.insert(0, str(tree))
    import kpnb

    assert Path(kpnb.__file__).is_relative_to(tree), kpnb.__file__


def prepared(
    case: dict[str, Any], model: nn.Module
) -> tuple[nn.Module, Any, dict[str, Any], Tensor]:
    """Model, input, options and foreground units of a case, as this side's kpnb wants them."""
    import kpnb

    options: dict[str, Any] = {"scale": case["scale"], "dead": "nan"}
    if case["kind"] != "tokens":
        grid = case["kind"] == "image"
        options["units"] = kpnb.ImageGrid(16) if grid else kpnb.Points()
        masks = kpnb.foreground_units(options["units"].coverage(case["masks"])) if grid else None
        return model, case["x"], options, case["masks"] if masks is None else masks
    words, attended, counts = case["x"], case["attended"].long(), case["counts"]
    if hasattr(kpnb, "Regions"):
        options |= {"units": kpnb.Tokens(counts), "perturb": "inputs_embeds"}
        return (
            First(model),
            {"inputs_embeds": words, "attention_mask": attended},
            options,
            case["masks"],
        )
    marks = torch.stack([counts.long(), attended, 0 * attended], -1)
    return (
        Marked(model),
        torch.cat([marks, words], -1),
        options | {"units": kpnb.Tokens()},
        case["masks"],
    )


def peak(call: Callable[[], object]) -> float:
    """MiB that PyTorch has allocated at most during a call, beyond what it had before."""
    gc.collect()
    with profile(profile_memory=True) as found:
        call()
    events = [event for event in found.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return np.cumsum([0, *changes]).max() / 2**20


def serve(tree: Path, cases: list[dict[str, Any]]) -> None:
    """Answers one request a line: errors and overlap of a case, or the time or memory of a call."""
    torch.set_num_threads(1)
    networks = [network(case) for case in cases]
    method_of(tree)
    import kpnb
    from kpnb.metrics import agreement

    ready, exact = [prepared(*pair) for pair in zip(cases, networks, strict=True)], {}

    def measured(number: int, rank: int | None, probes: int, noise: int, seed: int = 0) -> Tensor:
        model, x, options, _ = ready[number]
        solver = kpnb.ClosedForm(rank=rank, probes=probes, noise=noise)
        layer = cases[number]["layer"]
        return kpnb.entropy(model, x, layer, solver=solver, seed=seed, **options).entropy

    def quality(number: int, numbers: tuple[int, int, int]) -> list[float]:
        if number not in exact:
            exact[number] = measured(number, None, 5, 14)
        all_found = [measured(number, *numbers, seed=seed) for seed in SEEDS]
        pairs = [agreement(found, exact[number], ready[number][3]) for found in all_found]
        return [statistics.mean(values) for values in zip(*pairs, strict=True)]

    def answer(what: str, number: int, setting: str) -> Any:
        numbers = cases[number]["settings"][setting]
        if what == "quality":
            return quality(number, numbers)
        if what == "memory":
            return peak(lambda: measured(number, *numbers))
        start = time.process_time()
        measured(number, *numbers)
        return time.process_time() - start

    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line))), flush=True)


# ---------------------------------------------------------------------------------------- two sides


class Side:
    """A process that measures with the kpnb of a tree."""

    def __init__(self, tree: Path, cases: Path) -> None:
        path = os.pathsep.join(map(str, (ROOT, ROOT / "book")))
        environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        environment["KINETO_LOG_LEVEL"] = "99"  # the profiler's own messages
        environment["KPNB_PROGRESS"] = str(cases.with_suffix(".progress"))  # not on the terminal
        command = [sys.executable, __file__, str(tree), "--serve", str(cases)]
        self._process = subprocess.Popen(
            command, env=environment, stdin=-1, stdout=-1, text=True, cwd=cases.parent
        )

    def ask(self, *request: object) -> Any:
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def tree_of(other: str) -> Iterator[Path]:
    """The folder of another clone, or a git revision checked out for as long as this lasts."""
    if (Path(other) / "kpnb").is_dir():
        yield Path(other).resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", f"{folder}/tree", other], check=True)
        try:
            yield Path(folder) / "tree"
        finally:
            subprocess.run([*git, "remove", "--force", f"{folder}/tree"], check=True)


def times(sides: list[Side], request: tuple[object, ...], repeats: int) -> np.ndarray:
    """Seconds of each side, ``[sides, repeats]``, which take turns, and turns in who goes first."""
    found: list[list[float]] = [[] for _ in sides]
    for turn in range(repeats):
        order = range(len(sides)) if turn % 2 else reversed(range(len(sides)))
        for number in order:
            found[number].append(sides[number].ask("time", *request))
    return np.array(found)


def resampled(ratios: np.ndarray, rng: np.random.Generator, draws: int = 4000) -> np.ndarray:
    """Medians of ``ratios [T]`` over turns drawn with replacement, ``[draws]``."""
    return np.median(ratios[rng.integers(len(ratios), size=(draws, len(ratios)))], 1)


def verdict(low: float, high: float) -> str:
    """What an interval of a ratio says about ``BOUND``."""
    if high <= BOUND:
        return "within 3 %"
    return "more" if low > BOUND else "open: repeat more often"


@dataclass
class Row:
    """Ratios of a case and a setting, this side over the other: by turn, and of memory."""

    kind: str
    ratios: np.ndarray
    memory: float


def compare(cases: list[dict[str, Any]], theirs: Side, ours: Side, repeats: int) -> list[Row]:
    """Print a line for each case and setting."""
    titles = ("error of H, nats", "IoU of points", "time", "memory, MiB")
    print(f"  {'':38s}{titles[0]:>18s}{titles[1]:>16s}{titles[2]:>22s}{titles[3]:>25s}")
    both = f"{'other':>9s}{'this':>8s}"
    print(f"  {'':39s}{both}{both}{'ratio':>7s}{'95 %':>11s}  {both}{'ratio':>8s}")
    rows, rng = [], np.random.default_rng(0)
    for number, case in enumerate(cases):
        for setting, numbers in case["settings"].items():
            request = (number, setting)
            error, iou = theirs.ask("quality", *request)
            my_error, my_iou = ours.ask("quality", *request)
            memory, my_memory = (side.ask("memory", *request) for side in (theirs, ours))
            other, mine = times([theirs, ours], request, repeats)
            row = Row(case["name"].partition(":")[0], mine / other, my_memory / memory)
            low, high = np.quantile(resampled(row.ratios, rng), (0.025, 0.975))
            line = f"  {case['name'] + f', {setting} {numbers}':39s}{error:9.5f}{my_error:8.5f}"
            line += f"{iou:9.4f}{my_iou:8.4f}{np.median(row.ratios):7.3f}{low:6.3f}-{high:5.3f}"
            print(f"{line}{memory:10.1f}{my_memory:8.1f}{row.memory:8.3f}", flush=True)
            rows.append(row)
    return rows


def summarise(rows: list[Row]) -> None:
    """Print a line for each kind of unit: geometric means over its rows, and what they say."""
    print(f"\n  {'':10s}{'time':>6s}{'95 %':>14s}  {'':26s}{'memory':>8s}{'largest':>10s}")
    rng = np.random.default_rng(0)
    for kind in dict.fromkeys(row.kind for row in rows):
        of_kind = [row for row in rows if row.kind == kind]
        ratio = np.exp(np.mean([np.log(np.median(row.ratios)) for row in of_kind]))
        draws = np.exp(np.mean([np.log(resampled(row.ratios, rng)) for row in of_kind], axis=0))
        low, high = np.quantile(draws, (0.025, 0.975))
        memory = np.array([row.memory for row in of_kind])
        said = f"{verdict(low, high):26s}{np.exp(np.log(memory).mean()):8.3f}{memory.max():10.3f}"
        print(f"  {kind:10s}{ratio:6.3f}{low:8.3f}-{high:5.3f}  {said}")


KINDS = {"grid": grid, "points": points, "tokens": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.regression",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("other", nargs="?", help="folder of another clone, or a git revision")
    parser.add_argument("--quick", action="store_true", help="trained and repeated less")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=[*KINDS], help="these units")
    parser.add_argument("--repeats", type=int, help="turns (default: 31, with --quick 3)")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.other:
        parser.error("name another tree: a folder or a git revision")
    if given.serve:
        serve(Path(given.other), torch.load(given.serve, weights_only=True))
        return
    repeats = given.repeats or (3 if given.quick else 31)
    with tempfile.TemporaryDirectory() as folder, tree_of(given.other) as tree:
        cases = [case for kind in given.only for case in KINDS[kind](given.quick)]
        torch.save(cases, Path(folder) / "cases.pt")
        sides = [Side(place, Path(folder) / "cases.pt") for place in (tree, ROOT)]
        try:
            summarise(compare(cases, *sides, repeats))
        finally:
            for side in sides:
                side.close()


if __name__ == "__main__":
    main()
