"""The six metrics of Table 5 from a network's entropies over its training."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kpnb._messages import not_negative, one_of, plain_numbers
from kpnb._precision import widest
from kpnb._tensors import as_numbers
from kpnb.learning import d_mean_var, detour_ratio, learning_distance
from kpnb.points import Level, knowledge_points, regions, released_filter, summarise

NAMES = ("n_fg", "n_bg", "lambda", "d_mean", "d_var", "rho")
BETTER = {"n_fg": 1, "n_bg": -1, "lambda": 1, "d_mean": -1, "d_var": -1, "rho": 1}
"""Direction in which the hypotheses want the student to differ from the baseline."""
_SYMBOLS = ("$N^{fg}$", "$N^{bg}$", "$\\lambda$", "$D_{mean}$", "$D_{var}$", "$\\rho$")
SYMBOL = dict(zip(NAMES, _SYMBOLS, strict=True))


@dataclass(frozen=True)
class Choices:
    """Where the paper's text (the defaults) and the released 2020 procedure (``released``) decide
    differently.

    b       threshold, nats
    level   the background's mean entropy: of each ``"image"`` or over the ``"dataset"``
    first   first epoch that counts for m-hat and the union of Eq. 9: 1, or 0 (the untrained
            network)
    empty   rho of an image without any foreground knowledge point: ``"nan"`` (undefined) or
            ``"zero"``
    filtered   leave out the images that ``points.released_filter`` does, which selects for the
               hypotheses; the release does so, but ``released`` leaves it off, so that it is asked
               for by name

    Raises ``ValueError`` for a negative threshold or epoch and for unknown words.
    """

    b: float = 0.2
    level: Level = "image"
    first: int = 1
    empty: Literal["nan", "zero"] = "nan"
    filtered: bool = False

    def __post_init__(self) -> None:
        not_negative(b=self.b)
        one_of("level", self.level, get_args(Level))
        one_of("empty", self.empty, ("nan", "zero"))
        plain_numbers(self)
        if not isinstance(self.first, int) or self.first < 0:
            raise ValueError(f"first = {self.first!r}: epochs count from 0, in whole numbers")

    @classmethod
    def released(cls, b: float = 0.2) -> "Choices":
        """What the released 2020 procedure does, but for its filter of images."""
        return cls(b, "dataset", 0, "zero")


def read_choices(choices: Choices | None) -> Choices:
    """``choices``, by default those of the paper's text; ``TypeError`` for anything else."""
    if not isinstance(choices, Choices | None):
        raise TypeError(f"choices are kpnb.Choices(b=0.2, ...); got {choices!r}")
    return choices or Choices()


@dataclass(frozen=True)
class Metrics:
    """One value per image, ``[N]``, NaN where it is undefined.

    n_fg, n_bg  knowledge points on foreground and background after the last epoch (Eq. 7 and 6)
    ratio       lambda, the term that Eq. 5 averages
    distance    weight distance at m-hat, of which D_mean and D_var are mean and variance (Eq. 8)
    rho         Eq. 9
    points      bool ``[M + 1, N, n]``: the knowledge points by epoch
    """

    n_fg: Tensor
    n_bg: Tensor
    ratio: Tensor
    distance: Tensor
    rho: Tensor
    points: Tensor

    def per_image(self) -> dict[str, Tensor]:
        """The metrics that are means over images."""
        return {
            "n_fg": self.n_fg,
            "n_bg": self.n_bg,
            "lambda": self.ratio,
            "d_mean": self.distance,
            "rho": self.rho,
        }

    def row(self) -> dict[str, float]:
        """The six metrics as in Table 5."""
        found = {name: summarise(values).mean for name, values in self.per_image().items()}
        found["d_var"] = d_mean_var(self.distance)[1]
        return {name: found[name] for name in NAMES}

    def undefined(self) -> dict[str, int]:
        """Number of images that each metric leaves out because it is undefined there."""
        return {name: summarise(values).undefined for name, values in self.per_image().items()}


def counted_entropy(
    entropy: Tensor, foreground: Tensor, background: Tensor | None, choices: Choices
) -> Tensor:
    """``entropy [M + 1, N, n]`` of the images that count by the ``choices``, NaN of the others."""
    if not choices.filtered:
        return entropy
    background = ~foreground if background is None else background
    kept = released_filter(entropy, foreground, background)
    return entropy.where(kept[:, None], torch.nan)


def six_metrics(
    entropy: Any,
    foreground: Any,
    distance: Any,
    choices: Choices | None = None,
    *,
    background: Any | None = None,
) -> Metrics:
    """Metrics of one network at one layer (Eq. 5-9).

    entropy     ``[M + 1, N, n]`` nats, epochs 0 (untrained) to M
    foreground  bool ``[N, n]``
    distance    ``[M + 1]`` from ``learning.weight_distance``
    choices     threshold b and where else the paper can be read in two ways
    background  bool ``[N, n]``, default everything else

    Tensors, arrays or lists. Counts and lambda are those of the last epoch. Raises ``TypeError``
    and ``ValueError`` as ``knowledge_points`` and ``learning_distance`` do.
    """
    choices = read_choices(choices)
    entropy = as_numbers(entropy, "entropy")
    if entropy.dim() != 3 or len(entropy) < 2:
        raise ValueError(
            "entropy is [epochs, images, units] with at least two epochs; "
            f"got {tuple(entropy.shape)}"
        )
    foreground, background = regions(entropy, foreground, background)
    entropy = counted_entropy(entropy, foreground, background, choices)
    found = knowledge_points(
        entropy, foreground, b=choices.b, background=background, level=choices.level
    )
    counted = found.defined[choices.first :].all(0)  # the untrained network may be undefined
    return Metrics(
        n_fg=found.n_fg[-1],
        n_bg=found.n_bg[-1],
        ratio=found.ratio[-1],
        distance=learning_distance(found.n_fg, distance, choices.first),
        rho=detour_ratio(found.on_foreground, choices.first, choices.empty).where(
            counted, torch.nan
        ),
        points=found.points,
    )


def agreement(
    entropy: Tensor,
    other: Tensor,
    foreground: Tensor,
    b: float = 0.2,
    background: Tensor | None = None,
) -> tuple[float, float]:
    """Mean absolute difference (nats) of ``entropy [N, n]`` and ``other``, and the mean IoU of
    their knowledge points at the threshold ``b``; ``foreground`` and ``background`` (default
    everything else) are bool ``[N, n]``.

    The IoU is over the images in which either has a knowledge point.
    """
    where = {
        "foreground": foreground.to(entropy.device),
        "background": background if background is None else background.to(entropy.device),
    }
    one, two = (knowledge_points(e, b=b, **where).points for e in (entropy, other))
    overlap = widest((one & two).sum(-1)) / (one | two).sum(-1)
    return (entropy - other).abs().nanmean().item(), overlap.nanmean().item()
