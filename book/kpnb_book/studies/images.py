"""The image experiment: convolutional networks, or transformers, on images with masks; cells of a
grid are units.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from kpnb.schedule import Schedule
from kpnb.units import ImageGrid
from kpnb_book.data import emoji
from kpnb_book.data.image_set import ImageSet
from kpnb_book.data.images import ROOTS, SOURCES, load
from kpnb_book.networks.images import TRANSFORMERS, build, layer_path
from kpnb_book.studies import settings
from kpnb_book.studies.settings import OWN
from kpnb_book.studies.study import Study, drawn


@dataclass(frozen=True)
class Settings(settings.Settings):
    """What an image experiment depends on besides; ``size`` in pixels, the rest is that of
    ``networks.images.build``.

    The teacher may start from ``teacher_weights``: a name of torchvision's ("IMAGENET1K_V1") or a
    file, wrapped or prefixed as ``kpnb.load_weights`` takes it; None: from random weights.

    It may be another network, ``teacher_network``: FC1 and FC2 have ``hidden`` units in
    all of them, and the VGGs have equal features at Conv; where shapes differ, nothing is adapted
    but an error names both.

    The laptop's rates were chosen among 0.02, 0.05, 0.1 and 0.2 before any knowledge point was
    counted: ``lr`` by the baseline's held-out accuracy, ``student_lr`` by the student's held-out
    feature error, both on seed 100, which neither stored evidence nor a build trains. The share is
    2,000 of the 8,000 images: of 1,000 students learn their teacher's feature to a held-out error
    of 0.55, of 2,000 to 0.45.
    """

    dataset: str = "emoji"
    network: str = "vgg11_bn"
    grid: int = 16
    size: int = 64
    width: float = 0.125
    hidden: int = 256
    dropout: float = 0.0
    teacher_weights: str | None = None
    teacher_network: str | None = None


WITHOUT_NORMALISATION = ("alexnet", "vgg11", "vgg16", "vgg19")
OF_THESE = {"lr": 0.01, "student_lr": 0.05, "head_lr": 0.01}
"""They do not learn at the rates of networks with batch normalisation. Those of AlexNet are taken
for all: VGG-11 and VGG-16 learn at 0.01, and at 0.05 stay near chance.

On Tiny-ImageNet and seed 100, before any point was counted, of 0.005, 0.01, 0.02, 0.05 and 0.1
AlexNet's baseline had 25.5, 25.7, 23.2, 8.3 and 5.0 % held out (chance: 5 %), and of 0.01, 0.02,
0.05 and 0.1 its student of FC1 a feature error of 0.51, 0.49, 0.44 and 0.47. The head has the
baseline's rate.
"""
OF_TRANSFORMERS = {"layers": ("cls",), "lr": 1e-3, "student_lr": 1e-3, "head_lr": 1e-3}
"""Settings of transformers, where they are not the profile's; the rates are AdamW's.

They were chosen among 0.0003, 0.001 and 0.003, on seed 100 and before any knowledge point was
counted: ``lr`` by the baseline's held-out accuracy (33.9, 34.5 and 32.3 %), ``student_lr`` by the
held-out error of the student's feature (0.74, 0.62 and 0.63), ``head_lr`` by the accuracy of that
student's head (40.8, 41.2 and 41.1 %). The teacher has the baseline's.
"""


class ImageStudy(Study):
    """Profiles: ``smoke`` just runs everything once; ``laptop`` is for two cores; ``paper`` for a
    GPU and real data.
    """

    Settings = Settings
    build = staticmethod(build)
    SOURCES = SOURCES
    ROOTS = ROOTS
    PROFILES: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {
            "epochs": 2,
            "teacher_epochs": 2,
            "head_epochs": 1,
            "size": 32,
            "hidden": 48,
            "grid": 8,
            "teacher_samples": 384,
            "share": 192,
            "test_samples": 96,
            "analysed": 12,
            "seeds": OWN[:2],
        },
        "laptop": {"share": 2000, "seeds": OWN[:1]},
        "paper": {
            "network": "vgg16",
            "layers": ("Conv", "FC1", "FC2", "FC3"),
            "size": 224,
            "width": 1.0,
            "hidden": 4096,
            "dropout": 0.5,
            "teacher_weights": "IMAGENET1K_V1",
            "teacher_samples": "all",
            "share": "all",
            "test_samples": "all",
            "epochs": 150,
            "teacher_epochs": 150,
            "head_epochs": 50,
            "lr": 0.01,
            "student_lr": 0.01,
            "head_lr": 0.01,
            "analysed": 1000,
            "seeds": (0,),
        },
    }

    @classmethod
    def resolve(cls, profile: str = "laptop", **overrides: Any) -> settings.Settings:
        """As ``Study.resolve``; for AlexNet b defaults to 0.25 (section 4.1) and images have the 64
        pixels it needs. Networks without batch normalisation have rates of their own where the
        profile sets none, and transformers other layers and rates.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        values = cls.PROFILES.get(profile, {})
        if given.get("network") in WITHOUT_NORMALISATION:
            given = {name: r for name, r in OF_THESE.items() if name not in values} | given
        if given.get("network") == "alexnet":
            given = {"b": 0.25, "size": max(64, values.get("size", 0))} | given
        if given.get("network") in TRANSFORMERS:
            given = OF_TRANSFORMERS | given
        return super().resolve(profile, **given)

    def load(self, split: str, count: int | None) -> ImageSet:
        s = self.settings
        # The embedded set is composed; others have as many images as they have.
        limit = "count" if s.dataset in emoji.NAMES else "at_most"
        how = {"size": s.size, "root": s.data_root, "store": self.store, limit: count}
        return drawn(load(s.dataset, split, **how), count, seed=0)

    def path(self, layer: str) -> str:
        return layer_path(self.settings.network, layer)

    def spec(self, seed: int) -> dict[str, Any]:
        s = self.settings
        size = {"input_size": s.size, "width": s.width, "hidden": s.hidden, "dropout": s.dropout}
        return {"name": s.network, "num_classes": len(self.train.classes), **size, "seed": seed}

    def schedule(self, epochs: int, lr: float, seed: int, cosine: bool = False) -> Schedule:
        """As in every study; transformers with AdamW, as those who introduced their training on
        images alone do it (Touvron et al. 2021).
        """
        usual = super().schedule(epochs, lr, seed, cosine)
        if self.settings.network not in TRANSFORMERS:
            return usual
        return replace(usual, adamw=True, weight_decay=0.05)

    def teacher_path(self, layer: str) -> str:
        return layer_path(self.settings.teacher_network or self.settings.network, layer)

    def teacher_spec(self) -> dict[str, Any]:
        more = {"name": self.settings.teacher_network, "weights": self.settings.teacher_weights}
        return super().teacher_spec() | {key: value for key, value in more.items() if value}

    @cached_property
    def x(self) -> Tensor:
        """The measured images as the networks see them; channels last, which convolutions on CPUs
        like better.
        """
        return super().x.contiguous(memory_format=torch.channels_last)

    def shown(self, count: int) -> Tensor:
        """Positions of at most ``count`` measured images to show: of the embedded set only artwork
        that may be.
        """
        if self.settings.dataset in emoji.NAMES:
            return self.measured.where("Goog/")[:count]
        return torch.arange(len(self.measured))[:count]

    @property
    def units(self) -> ImageGrid:
        return ImageGrid(self.settings.grid)

    @cached_property
    def regions(self) -> tuple[Tensor, Tensor]:
        """Foreground and background cells, both bool ``[N, n]``, see ``ImageSet.regions``."""
        return self.measured.regions(self.units)

    @property
    def foreground(self) -> Tensor:
        """Cells of which at least half is foreground, bool ``[N, n]``."""
        return self.regions[0]

    @property
    def background(self) -> Tensor:
        """The other cells, bool ``[N, n]``, without those that are mostly void."""
        return self.regions[1]
