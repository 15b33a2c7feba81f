"""Section 4.1, from data to metrics: what the chapters of every modality have in common.

A ``Study`` knows the networks of one experiment (teacher, baseline, a student for every target
layer), trains what the store does not hold yet, and measures them on the same samples. Nothing is
trained before it is asked for. ``kpnb_book.studies`` has a subclass for each modality, which says
what the data, the networks and the units are.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, cached_property
from typing import Any, ClassVar, Literal, get_args

import pandas as pd
import torch
from torch import Tensor, nn

from kpnb._messages import one_of
from kpnb._progress import Progress, note
from kpnb.energy import ClosedForm
from kpnb.entropy import entropy
from kpnb.features import parameters_below
from kpnb.learning import weight_distance
from kpnb.metrics import Choices, Metrics, six_metrics
from kpnb.objectives import Aligned, Objective
from kpnb.points import background_level, knowledge_points
from kpnb.sampling import Stochastic
from kpnb.stats import Chance, Difference, compare_seeds, holm
from kpnb.units import Units
from kpnb_book.store import Run, Store
from kpnb_book.studies import training as distill

Scope = Literal["all", "below", "layer", "layer steps"]
TEACHER_SEED = 1000  # the teacher starts from other weights than any student or baseline


@dataclass(frozen=True)
class Settings:
    """What an experiment of any modality depends on; ``Study.resolve`` gives a profile's values.

    dataset, data_root      which data, and the folder it lies in
    network, layers         name of the network, and the target layers
    b                       threshold of a knowledge point, nats
    seeds, device           one student and one baseline for each seed; where networks run
    epochs                  of student and baseline; the others have ``teacher_epochs`` and
                            ``head_epochs``
    lr                      rate of the baseline; the others have ``teacher_lr`` (None: the same),
                            ``student_lr`` and ``head_lr``
    batch_size              of every training
    teacher_samples, share  how many samples the teacher, and student and baseline, learn from
                            (None: all there are); a share of type float is a part of the teacher's
    test_samples            held-out samples
    analysed                samples of the share that are measured, as the paper measures training
                            samples
    rank, probes, noise     of ``ClosedForm``: more than its defaults, for networks early in
                            training
    max_batch               rows of the largest forward pass when measuring
    scale                   the input's, see ``kpnb.entropy``
    """

    dataset: str = ""
    data_root: str | None = None
    network: str = ""
    layers: tuple[str, ...] = ("FC1", "FC2")
    b: float = 0.2
    seeds: tuple[int, ...] = (0, 1)
    device: str = "cpu"
    epochs: int = 20
    teacher_epochs: int = 15
    head_epochs: int = 10
    lr: float = 0.05
    teacher_lr: float | None = None
    student_lr: float = 0.1
    head_lr: float = 0.05
    batch_size: int = 64
    teacher_samples: int | None = 8000
    share: int | float | None = 1000
    test_samples: int | None = 1000
    analysed: int = 48
    rank: int = 16
    probes: int = 16
    noise: int = 24
    max_batch: int = 32
    scale: float = 1.0


class Study(ABC):
    """One experiment: its data, its networks and their metrics, for the ``seed`` of student and
    baseline.
    """

    Settings: ClassVar[type[Settings]]
    PROFILES: ClassVar[dict[str, dict[str, Any]]]
    build: ClassVar[Callable[..., nn.Module]]

    def __init__(
        self, profile: str = "laptop", *, store: Store | None = None, **overrides: Any
    ) -> None:
        self.settings = self.resolve(profile, **overrides)
        self.store = store or Store()
        for layer in self.settings.layers:
            self.path(layer)
        note(asdict(self.settings))

    @classmethod
    def resolve(cls, profile: str = "laptop", **overrides: Any) -> Settings:
        """A profile's ``Settings`` with ``overrides``; an override of None keeps the profile's
        value.

        The device defaults to a GPU when there is one. Raises ``ValueError`` for unknown profiles
        and settings, with the nearest names.
        """
        one_of("profile", profile, cls.PROFILES)
        known = [field.name for field in fields(cls.Settings)]
        for name in overrides:
            one_of("setting", name, known)
        values = {"device": "cuda" if torch.cuda.is_available() else "cpu"} | cls.PROFILES[profile]
        values |= {name: value for name, value in overrides.items() if value is not None}
        for name in {"layers", "seeds"} & values.keys():
            given = values[name]
            values[name] = tuple(given) if isinstance(given, list | tuple) else (given,)
        return cls.Settings(**values)

    @abstractmethod
    def load(self, split: str, count: int | None) -> Any:
        """The "train" or "test" data, ``count`` samples of it at most (None: all)."""

    def path(self, layer: str) -> str:
        """Dotted module name of a layer such as "FC1"; ``ValueError`` when the network has none of
        that name.
        """
        return layer

    def teacher_path(self, layer: str) -> str:
        """The same in the teacher, whose feature must have the shape of the student's."""
        return self.path(layer)

    @abstractmethod
    def spec(self, seed: int) -> dict[str, Any]:
        """Arguments of ``build`` for the network that starts from ``seed``."""

    @property
    @abstractmethod
    def units(self) -> Units:
        """What a unit of the input is."""

    @property
    def foreground(self) -> Tensor:
        """Foreground units of the measured samples, bool ``[N, n]``; their masks, where these are
        made of units.
        """
        return self.measured.masks

    @cached_property
    def train(self) -> Any:
        """The teacher's training samples."""
        return self.load("train", self.settings.teacher_samples)

    @cached_property
    def share(self) -> Any:
        """The training samples of student and baseline."""
        count = self.settings.share
        count = round(count * len(self.train)) if isinstance(count, float) else count
        return (
            self.train
            if count is None or count >= len(self.train)
            else self.train.share(count, seed=0)
        )

    @cached_property
    def test(self) -> Any:
        """Held-out samples, for accuracies."""
        return self.load("test", self.settings.test_samples)

    @cached_property
    def measured(self) -> Any:
        """The samples that are measured: training samples, as in the paper."""
        return self.share.share(min(self.settings.analysed, len(self.share)), seed=1)

    @cached_property
    def x(self) -> Tensor:
        """The measured samples as the networks see them, ``[N, ...]`` on the device."""
        return self.measured.batch(torch.arange(len(self.measured)), self.settings.device)[0]

    def inputs(self, model: nn.Module) -> tuple[Tensor, float]:
        """What is perturbed when ``model`` is measured, ``[N, ...]`` on its device, and the scale
        of that.
        """
        return self.x, self.settings.scale

    def _options(self) -> dict[str, Any]:
        return {"build": type(self).build, "test": self.test, "device": self.settings.device}

    def _schedule(
        self, epochs: int, lr: float, seed: int, cosine: bool = False
    ) -> distill.Schedule:
        return distill.Schedule(
            epochs, lr, batch_size=self.settings.batch_size, seed=seed, cosine=cosine
        )

    def teacher_spec(self) -> dict[str, Any]:
        """Arguments of ``build`` for the teacher."""
        return self.spec(TEACHER_SEED)

    def teacher(self) -> distill.Training:
        """Cross-entropy on all training samples, the rate falling along a cosine."""
        s = self.settings
        schedule = self._schedule(s.teacher_epochs, s.teacher_lr or s.lr, TEACHER_SEED, cosine=True)
        spec = self.teacher_spec()
        return distill.baseline(
            self.store, spec, self.train, schedule, kind="teacher", **self._options()
        )

    def baseline(self, seed: int = 0) -> distill.Training:
        """Cross-entropy on the share: the network that learns from scratch."""
        schedule = self._schedule(self.settings.epochs, self.settings.lr, seed)
        return distill.baseline(
            self.store, self.spec(seed), self.share, schedule, **self._options()
        )

    def student(self, layer: str, seed: int = 0, teacher_epoch: int = -1) -> distill.Training:
        """The teacher's feature at ``layer`` learned on the share, from the baseline's initial
        weights.

        ``teacher_epoch=0`` takes the teacher before its training, for a control.
        """
        schedule = self._schedule(self.settings.epochs, self.settings.student_lr, seed)
        how = {"teacher": self.teacher(), "epoch": teacher_epoch, "layer": self.path(layer)}
        how |= {"teacher_layer": self.teacher_path(layer)}
        return distill.student(
            self.store, self.spec(seed), self.share, schedule, **how, **self._options()
        )

    def head(self, layer: str, seed: int = 0) -> distill.Training:
        """The student of ``layer`` with what lies above it trained on the share's labels."""
        schedule = self._schedule(self.settings.head_epochs, self.settings.head_lr, seed)
        student, options = self.student(layer, seed), self._options()
        return distill.head(self.store, student, self.path(layer), self.share, schedule, **options)

    @property
    def solver(self) -> ClosedForm:
        """What measures the entropies unless another solver is asked for."""
        return ClosedForm(
            rank=self.settings.rank, probes=self.settings.probes, noise=self.settings.noise
        )

    def entropy_run(
        self,
        training: distill.Training,
        layer: str,
        seed: int,
        solver: ClosedForm | Stochastic,
        objective: Objective,
    ) -> Run:
        """Where the store keeps ``entropies``, an artefact for each epoch."""
        settings = {
            key: value for key, value in asdict(solver).items() if key != "own"
        }  # it is about several layers
        how = {"solver": settings, "objective": asdict(objective), "units": repr(self.units)}
        how |= {} if self.settings.scale == 1 else {"scale": self.settings.scale}
        where = {
            "network": training.address,
            "samples": self.measured.config,
            "layer": self.path(layer),
            "seed": seed,
        }
        return self.store.run("entropy", where | how)

    def entropies(
        self,
        training: distill.Training,
        layer: str,
        epochs: Sequence[int] | None = None,
        *,
        noise_seed: int = 0,
        solver: ClosedForm | Stochastic | None = None,
        objective: Objective | None = None,
    ) -> dict[str, Tensor]:
        """Fields of ``Entropy`` by epoch, ``[M + 1, N, ...]``, of the measured samples at
        ``layer``; stored.

        A sample whose feature does not move has NaN. Noise and probes (``noise_seed``) are the same
        for all networks and epochs; ``solver`` replaces the one of the settings, ``objective`` the
        aligned point.
        """
        s, path = self.settings, self.path(layer)
        solver, objective = solver or self.solver, objective or Aligned()
        run = self.entropy_run(training, layer, noise_seed, solver, objective)
        epochs = (
            range(training.epochs + 1) if epochs is None else [training.number(e) for e in epochs]
        )

        def measure(epoch: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
            model = training.load(epoch=epoch).to(s.device)
            x, scale = self.inputs(model)
            options = {
                "units": self.units,
                "solver": solver,
                "scale": scale,
                "max_batch": s.max_batch,
            }
            found = entropy(
                model, x, path, **options, objective=objective, seed=noise_seed, dead="nan"
            )
            return found.tensors(), found.settings

        names = [f"epoch-{epoch:03d}" for epoch in epochs]
        missing = sum(not run.has(name) for name in names)
        items = []
        with Progress(
            len(names), f"entropy of {training.run.kind} at {layer}", hidden=not missing
        ) as bar:
            for name, epoch in zip(names, epochs, strict=True):
                items.append(run.get(name, lambda epoch=epoch: measure(epoch)).tensors)
                bar.step()
        return {key: torch.stack([item[key] for item in items]) for key in items[0]}

    @cached_property
    def _below(self) -> Callable[[str], set[str]]:
        """From a layer to the names of the parameters that its feature depends on; a network is
        built once for each.
        """
        return cache(
            lambda x: parameters_below(
                type(self).build(**self.spec(0)), self.x[:1].cpu(), self.path(x)
            )
        )

    def distance(self, training: distill.Training, layer: str, scope: Scope = "all") -> Tensor:
        """Relative weight distance ``[M + 1]`` (inside Eq. 8).

        scope: "all" parameters of the network, as in the text; those the feature depends on
        ("below"); the weight of the target layer alone ("layer"); or that weight's path over all
        optimiser steps instead of epochs ("layer steps"), as in the released 2020 procedure.
        """
        initial, *steps = training.step_norms()
        if scope == "all":
            return weight_distance(initial, steps)
        one_of("scope", scope, get_args(Scope))
        ordered = [name for name in initial if name in self._below(layer)]
        last = [name for name in ordered if name.endswith(".weight")][-1:]
        steps = training.paths()[1:] if scope == "layer steps" else steps
        return weight_distance(initial, steps, ordered if scope == "below" else last)

    def metrics(
        self,
        training: distill.Training,
        layer: str,
        choices: Choices | None = None,
        scope: Scope = "all",
    ) -> Metrics:
        """The metrics of one network at one layer, with the study's threshold unless ``choices``
        says otherwise.
        """
        choices = choices or Choices(b=self.settings.b)
        entropy = self.entropies(training, layer)["entropy"].cpu()
        return six_metrics(entropy, self.foreground, self.distance(training, layer, scope), choices)

    def point_counts(self, training: distill.Training, layer: str) -> Tensor:
        """Foreground knowledge points of every measured sample by epoch, ``[M + 1, N]``."""
        entropy = self.entropies(training, layer)["entropy"].cpu()
        return knowledge_points(entropy, self.foreground, b=self.settings.b).n_fg

    def region_means(self, entropies: Mapping[str, Tensor]) -> pd.DataFrame:
        """Mean entropy of each sample's foreground and background: a row for each layer, region and
        sample.
        """
        regions = {"foreground": self.foreground, "background": ~self.foreground}
        frames = [
            pd.DataFrame(
                {"layer": layer, "region": name, "entropy": background_level(entropy, region)[:, 0]}
            )
            for layer, entropy in entropies.items()
            for name, region in regions.items()
        ]
        return pd.concat(frames, ignore_index=True)

    def pair(self, layer: str, seed: int = 0, **options: Any) -> tuple[Metrics, Metrics]:
        """Metrics of the student distilled for ``layer`` and of the baseline, both measured
        there.
        """
        return (
            self.metrics(self.student(layer, seed), layer, **options),
            self.metrics(self.baseline(seed), layer, **options),
        )

    def pairs(self, **options: Any) -> dict[str, tuple[Metrics, Metrics]]:
        """``pair`` for every layer and seed, by a title that names both."""
        s = self.settings
        return {
            f"{layer}, seed {n}": self.pair(layer, n, **options)
            for layer in s.layers
            for n in s.seeds
        }

    def overall(self, chance: Chance = "seeds", **options: Any) -> dict[str, Difference]:
        """Student minus baseline in every metric, averaged over the layers: the six comparisons
        that decide.

        Interval and test allow for other images and other seeds, and the tests are corrected for
        being six.
        """
        s = self.settings
        pairs = [[self.pair(layer, n, **options) for layer in s.layers] for n in s.seeds]
        return holm(compare_seeds(pairs, chance))

    def table(self, **options: Any) -> pd.DataFrame:
        """Table 5 of this study: a row for each layer, seed and network, the six metrics and how
        many are undefined.
        """
        rows = []
        for layer in self.settings.layers:
            for seed in self.settings.seeds:
                for role, metrics in zip(
                    ("student", "baseline"), self.pair(layer, seed, **options), strict=True
                ):
                    undefined = {
                        f"undefined {name}": count for name, count in metrics.undefined().items()
                    }
                    rows.append(
                        {
                            "layer": layer,
                            "network": role,
                            "seed": seed,
                            **metrics.row(),
                            **undefined,
                        }
                    )
        return pd.DataFrame(rows)

    def scores(self, training: distill.Training) -> dict[str, float]:
        """Held-out scores of a network by name."""
        return {"accuracy": training.accuracy}

    def accuracies(self) -> pd.DataFrame:
        """Held-out accuracy of every network, students after their head was trained."""
        rows = [
            {"network": "teacher", "layer": "", "seed": TEACHER_SEED, **self.scores(self.teacher())}
        ]
        for seed in self.settings.seeds:
            rows.append(
                {
                    "network": "baseline",
                    "layer": "",
                    "seed": seed,
                    **self.scores(self.baseline(seed)),
                }
            )
            for layer in self.settings.layers:
                scores = self.scores(self.head(layer, seed))
                rows.append({"network": "student", "layer": layer, "seed": seed, **scores})
        return pd.DataFrame(rows)
