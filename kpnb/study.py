"""Section 4.1 for images, from data to metrics: what the image notebooks have in common.

A ``Study`` knows the networks of one experiment (teacher, baseline, a student for every target layer), trains what
the store does not hold yet, and measures them on the same images. Nothing is trained before it is asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from kpnb import distill
from kpnb._messages import unknown
from kpnb._progress import Progress
from kpnb.data.images import ImageSet, load
from kpnb.energy import ClosedForm
from kpnb.entropy import entropy
from kpnb.layers import parameters_below
from kpnb.learning import weight_distance
from kpnb.metrics import Choices, Metrics, six_metrics
from kpnb.networks.images import build, layer_path
from kpnb.objectives import Aligned
from kpnb.points import background_level, foreground_units, knowledge_points
from kpnb.store import Store
from kpnb.units import ImageGrid

Scope = Literal["all", "below", "layer", "layer steps"]
TEACHER_SEED = 1000  # the teacher starts from other weights than any student or baseline


@dataclass(frozen=True)
class Settings:
    """Everything an image experiment depends on. ``settings(profile)`` gives a profile's values.

    size, width, hidden, dropout describe the network's input (pixels) and ``networks.images.build``; ``teacher_images``
    and ``share`` are how many images teacher, and student and baseline, learn from at most (None: all there are);
    ``analysed`` images of the share are measured, as the paper measures training samples; ``epochs`` is that of
    student and baseline, ``teacher_epochs`` and ``head_epochs`` of the others. ``b`` in nats. ``rank``, ``probes`` and
    ``noise`` are those of ``ClosedForm``: more than its defaults, for networks early in training.

    The laptop's rates were chosen among 0.02, 0.05, 0.1 and 0.2 before any knowledge point was counted: ``lr`` by the
    baseline's held-out accuracy, ``student_lr`` by the student's held-out feature error.
    """

    dataset: str = "emoji"
    data_root: str | None = None
    network: str = "vgg11_bn"
    layers: tuple[str, ...] = ("FC1", "FC2")
    grid: int = 16
    b: float = 0.2
    seeds: tuple[int, ...] = (0, 1)
    device: str = "cpu"
    epochs: int = 20
    teacher_epochs: int = 15
    head_epochs: int = 10
    lr: float = 0.05
    student_lr: float = 0.1
    head_lr: float = 0.05
    teacher_weights: str | None = None
    size: int = 64
    width: float = 0.125
    hidden: int = 256
    dropout: float = 0.0
    teacher_images: int | None = 8000
    share: int | None = 1000
    test_images: int | None = 1000
    analysed: int = 64
    rank: int = 16
    probes: int = 16
    noise: int = 24
    max_batch: int = 64


PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {"epochs": 2, "teacher_epochs": 2, "head_epochs": 1, "size": 32, "width": 0.125, "hidden": 48, "grid": 8,
              "teacher_images": 384, "share": 192, "test_images": 96, "analysed": 12, "seeds": (0,)},
    "laptop": {},
    "paper": {"network": "vgg16", "layers": ("Conv", "FC1", "FC2", "FC3"), "size": 224, "width": 1.0, "hidden": 4096,
              "dropout": 0.5, "teacher_weights": "IMAGENET1K_V1", "teacher_images": None, "share": None,
              "test_images": None, "epochs": 150, "teacher_epochs": 150, "head_epochs": 50, "lr": 0.01,
              "student_lr": 0.01, "head_lr": 0.01, "analysed": 1000, "max_batch": 32, "seeds": (0,)},
}  # fmt: skip
"""``smoke`` only exercises the mechanics; ``laptop`` is meant for two cores; ``paper`` for a GPU and real data."""


def settings(profile: str = "laptop", **overrides: Any) -> Settings:
    """A profile's ``Settings`` with ``overrides``; an override of None keeps the profile's value.

    The device defaults to a GPU when there is one, b to 0.25 for AlexNet (section 4.1), and AlexNet's input to the 64
    pixels it needs at least. Raises ``ValueError`` for unknown profiles and settings, with the nearest names.
    """
    if profile not in PROFILES:
        raise ValueError(unknown("profile", profile, PROFILES))
    known = {field.name: field.type for field in fields(Settings)}
    for name in overrides:
        if name not in known:
            raise ValueError(unknown("setting", name, known))
    given = {name: value for name, value in overrides.items() if value is not None}
    values = PROFILES[profile] | given
    if values.get("network") == "alexnet":
        values = {"b": 0.25} | values | {"size": max(values.get("size", 64), 64)}
    values = {"device": "cuda" if torch.cuda.is_available() else "cpu"} | values
    for name in ("layers", "seeds"):
        if name in values:
            values[name] = tuple(values[name]) if isinstance(values[name], list | tuple) else (values[name],)
    chosen = Settings(**values)
    for layer in chosen.layers:
        layer_path(chosen.network, layer)
    return chosen


class Study:
    """One experiment: its data, its networks and their metrics, for the ``seed`` of student and baseline."""

    def __init__(self, profile: str = "laptop", *, store: Store | None = None, **overrides: Any) -> None:
        self.settings = settings(profile, **overrides)
        self.store = store or Store()

    def _load(self, split: str, count: int | None) -> ImageSet:
        s = self.settings
        made = count if s.dataset == "emoji" else None  # other sets have as many images as they have
        images = load(s.dataset, split, size=s.size, count=made, root=s.data_root, store=self.store)
        return images if count is None or count >= len(images) else images.share(count, seed=0)

    @cached_property
    def train(self) -> ImageSet:
        """The teacher's training images."""
        return self._load("train", self.settings.teacher_images)

    @cached_property
    def share(self) -> ImageSet:
        """The training images of student and baseline."""
        count = self.settings.share
        return self.train if count is None or count >= len(self.train) else self.train.share(count, seed=0)

    @cached_property
    def test(self) -> ImageSet:
        """Held-out images, for accuracies."""
        return self._load("test", self.settings.test_images)

    @cached_property
    def images(self) -> ImageSet:
        """The images that are measured: training samples, as in the paper."""
        return self.share.share(min(self.settings.analysed, len(self.share)), seed=1)

    @cached_property
    def x(self) -> Tensor:
        """The measured images as the networks see them, ``[N, 3, S, S]`` on the device."""
        return self.images.batch(torch.arange(len(self.images)), self.settings.device)[0]

    @cached_property
    def foreground(self) -> Tensor:
        """Units whose larger part is foreground, bool ``[N, n]``."""
        return foreground_units(self.units.coverage(self.images.masks))

    @property
    def units(self) -> ImageGrid:
        return ImageGrid(self.settings.grid)

    def path(self, layer: str) -> str:
        """Dotted module name of "Conv", "FC1", "FC2" or "FC3"."""
        return layer_path(self.settings.network, layer)

    def spec(self, seed: int) -> dict[str, Any]:
        """Arguments of ``networks.images.build``."""
        s = self.settings
        return {
            "name": s.network,
            "num_classes": len(self.train.classes),
            "input_size": s.size,
            "width": s.width,
            "hidden": s.hidden,
            "dropout": s.dropout,
            "seed": seed,
        }

    def _options(self) -> dict[str, Any]:
        return {"build": build, "test": self.test, "device": self.settings.device}

    def teacher(self) -> distill.Training:
        """Cross-entropy on all training images, the rate falling along a cosine."""
        s = self.settings
        schedule = distill.Schedule(s.teacher_epochs, s.lr, seed=TEACHER_SEED, cosine=True)
        spec = self.spec(TEACHER_SEED) | ({"weights": s.teacher_weights} if s.teacher_weights else {})
        return distill.baseline(self.store, spec, self.train, schedule, kind="teacher", **self._options())

    def baseline(self, seed: int = 0) -> distill.Training:
        """Cross-entropy on the share: the network that learns from scratch."""
        schedule = distill.Schedule(self.settings.epochs, self.settings.lr, seed=seed)
        return distill.baseline(self.store, self.spec(seed), self.share, schedule, **self._options())

    def student(self, layer: str, seed: int = 0) -> distill.Training:
        """The teacher's feature at ``layer`` learned on the share, from the baseline's initial weights."""
        schedule = distill.Schedule(self.settings.epochs, self.settings.student_lr, seed=seed)
        teacher = {"teacher": self.teacher(), "layer": self.path(layer)}
        return distill.student(self.store, self.spec(seed), self.share, schedule, **teacher, **self._options())

    def head(self, layer: str, seed: int = 0) -> distill.Training:
        """The student of ``layer`` with what lies above it trained on the share's labels."""
        schedule = distill.Schedule(self.settings.head_epochs, self.settings.head_lr, seed=seed)
        student, options = self.student(layer, seed), self._options()
        return distill.head(self.store, student, self.path(layer), self.share, schedule, **options)

    def entropies(
        self, training: distill.Training, layer: str, epochs: Sequence[int] | None = None, noise_seed: int = 0
    ) -> dict[str, Tensor]:
        """Fields of ``Entropy`` by epoch, ``[M + 1, N, ...]``, of the measured images at ``layer``; stored.

        An image whose feature does not move has NaN. Noise and probes (``noise_seed``) are the same for all networks
        and epochs.
        """
        s, path = self.settings, self.path(layer)
        solver = ClosedForm(rank=s.rank, probes=s.probes, noise=s.noise)
        objective = Aligned(weight=6.0 if s.network.startswith("resnet") else 7.0)
        how = {
            "solver": asdict(solver),
            "objective": asdict(objective),
            "units": asdict(self.units),
            "layer": path,
            "seed": noise_seed,
        }
        run = self.store.run("entropy", {"network": training.address, "images": self.images.config, **how})
        epochs = range(training.epochs + 1) if epochs is None else [training.number(e) for e in epochs]

        def measure(epoch: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
            model = training.load(epoch=epoch).to(s.device)
            found = entropy(
                model,
                self.x,
                path,
                units=self.units,
                solver=solver,
                objective=objective,
                max_batch=s.max_batch,
                seed=noise_seed,
                dead="nan",
            )
            return found.tensors(), found.settings

        names = [f"epoch-{epoch:03d}" for epoch in epochs]
        missing = sum(not run.has(name) for name in names)
        items = []
        with Progress(len(names), f"entropy of {training.run.kind} at {layer}", hidden=not missing) as bar:
            for name, epoch in zip(names, epochs, strict=True):
                items.append(run.get(name, lambda epoch=epoch: measure(epoch)).tensors)
                bar.step()
        return {key: torch.stack([item[key] for item in items]) for key in items[0]}

    def distance(self, training: distill.Training, layer: str, scope: Scope = "all") -> Tensor:
        """Relative weight distance ``[M + 1]`` (inside Eq. 8).

        scope: "all" parameters of the network, as in the text; those the feature depends on ("below"); the weight of
        the target layer alone ("layer"); or that weight's path over all optimiser steps instead of epochs ("layer
        steps"), as in the released 2020 procedure.
        """
        initial, *steps = training.step_norms()
        if scope == "all":
            return weight_distance(initial, steps)
        if scope not in get_args(Scope):
            raise ValueError(unknown("scope", scope, get_args(Scope)))
        below = parameters_below(build(**self.spec(0)), self.x[:1].cpu(), self.path(layer))
        ordered = [name for name in initial if name in below]
        last = [name for name in ordered if name.endswith(".weight")][-1:]
        steps = training.paths()[1:] if scope == "layer steps" else steps
        return weight_distance(initial, steps, ordered if scope == "below" else last)

    def metrics(
        self, training: distill.Training, layer: str, choices: Choices | None = None, scope: Scope = "all"
    ) -> Metrics:
        """The metrics of one network at one layer, with the study's threshold unless ``choices`` says otherwise."""
        choices = choices or Choices(b=self.settings.b)
        return six_metrics(
            self.entropies(training, layer)["entropy"].cpu(),
            self.foreground,
            self.distance(training, layer, scope),
            choices,
        )

    def point_counts(self, training: distill.Training, layer: str) -> Tensor:
        """Foreground knowledge points of every measured image by epoch, ``[M + 1, N]``."""
        entropy = self.entropies(training, layer)["entropy"].cpu()
        return knowledge_points(entropy, self.foreground, b=self.settings.b).n_fg

    def region_means(self, entropies: Mapping[str, Tensor]) -> pd.DataFrame:
        """Mean entropy of each image's foreground and background: a row for each layer, region and image."""
        regions = {"foreground": self.foreground, "background": ~self.foreground}
        frames = [
            pd.DataFrame({"layer": layer, "region": name, "entropy": background_level(entropy, region)[:, 0]})
            for layer, entropy in entropies.items()
            for name, region in regions.items()
        ]
        return pd.concat(frames, ignore_index=True)

    def pair(self, layer: str, seed: int = 0, **options: Any) -> tuple[Metrics, Metrics]:
        """Metrics of the student distilled for ``layer`` and of the baseline, both measured there."""
        return (
            self.metrics(self.student(layer, seed), layer, **options),
            self.metrics(self.baseline(seed), layer, **options),
        )

    def pairs(self, **options: Any) -> dict[str, tuple[Metrics, Metrics]]:
        """``pair`` for every layer and seed, by a title that names both."""
        s = self.settings
        return {f"{layer}, seed {n}": self.pair(layer, n, **options) for layer in s.layers for n in s.seeds}

    def table(self, **options: Any) -> pd.DataFrame:
        """Table 5 of this study: a row for each layer, seed and network, the six metrics and how many are undefined."""
        rows = []
        for layer in self.settings.layers:
            for seed in self.settings.seeds:
                for role, metrics in zip(("student", "baseline"), self.pair(layer, seed, **options), strict=True):
                    undefined = {f"undefined {name}": count for name, count in metrics.undefined().items()}
                    rows.append({"layer": layer, "network": role, "seed": seed, **metrics.row(), **undefined})
        return pd.DataFrame(rows)

    def accuracies(self) -> pd.DataFrame:
        """Held-out accuracy of every network, students after their head was trained."""
        rows = [{"network": "teacher", "layer": "", "seed": TEACHER_SEED, "accuracy": self.teacher().accuracy}]
        for seed in self.settings.seeds:
            rows.append({"network": "baseline", "layer": "", "seed": seed, "accuracy": self.baseline(seed).accuracy})
            for layer in self.settings.layers:
                accuracy = self.head(layer, seed).accuracy
                rows.append({"network": "student", "layer": layer, "seed": seed, "accuracy": accuracy})
        return pd.DataFrame(rows)
