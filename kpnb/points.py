"""Eq. 5-7: knowledge points, how many there are and how many of them lie on the foreground."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kpnb._messages import fraction, named_samples, not_negative, one_of, positive, whole
from kpnb._precision import widest
from kpnb._tensors import as_numbers, as_tensor, described

Level = Literal["image", "dataset"]


def background_level(entropy: Tensor, background: Tensor, level: Level = "image") -> Tensor:
    """The background's mean entropy (H-bar, nats), ``[..., N, 1]``, from ``entropy [..., N, n]``.

    ``level="image"`` averages over each image's own background (section 3.2); ``"dataset"``
    averages those averages over the images (the released 2020 procedure). Units with NaN are left
    out: padding, which is no unit. NaN for an image without background or whose entropy is
    undefined.
    """
    one_of("level", level, get_args(Level))
    inside = entropy.where(background, torch.nan).nanmean(-1, keepdim=True)
    if level == "image":
        return inside
    return inside.nanmean(-2, keepdim=True).where(~inside.isnan(), torch.nan)


@dataclass(frozen=True)
class KnowledgePoints:
    """Knowledge points of N images with n units; leading dimensions (such as epochs) are kept.

    points      bool ``[..., N, n]``: units discarded less than the background by more than b
    foreground, background   bool ``[N, n]``
    defined     bool ``[..., N]``: images that have an entropy in both regions
    """

    points: Tensor
    foreground: Tensor
    background: Tensor
    defined: Tensor

    def _count(self, region: Tensor) -> Tensor:
        counts = widest((self.points & region).sum(-1))
        return counts.where(self.defined, torch.nan)

    @property
    def n_fg(self) -> Tensor:
        """Foreground knowledge points of each image, ``[..., N]`` (Eq. 7); NaN where undefined."""
        return self._count(self.foreground)

    @property
    def n_bg(self) -> Tensor:
        """Background knowledge points of each image, ``[..., N]`` (Eq. 6); NaN where undefined."""
        return self._count(self.background)

    @property
    def ratio(self) -> Tensor:
        """Lambda of each image, ``[..., N]``: the term averaged in Eq. 5; NaN also where there is
        no point.
        """
        return self.n_fg / (self.n_fg + self.n_bg)

    @property
    def on_foreground(self) -> Tensor:
        """The foreground knowledge points, bool ``[..., N, n]``: the sets S of Eq. 9."""
        return self.points & self.foreground


def regions(
    entropy: Tensor, foreground: Any, background: Any | None = None
) -> tuple[Tensor, Tensor]:
    """Foreground and background, bool ``[N, n]``, where ``entropy [..., N, n]`` is.

    Raises ``ValueError`` for wrong types or shapes, for units in both regions, and when no image
    has one of the regions.
    """
    foreground = _region("foreground", foreground, entropy)
    if background is None:
        background = ~foreground
    background = _region("background", background, entropy)
    check_regions(foreground, background)
    return foreground, background


def check_regions(foreground: Tensor, background: Tensor) -> None:
    """Raise ``ValueError`` for units in both regions, bool ``[N, n]``, and when no image has one of
    the regions.
    """
    both = (foreground & background).any(-1)
    if both.any():
        raise ValueError(
            f"a unit cannot lie on the foreground and on the background ({named_samples(both)}): "
            "kpnb.covered_units(units, x, masks) makes both of masks"
        )
    for name, region in (("foreground", foreground), ("background", background)):
        if not region.any():
            raise ValueError(
                f"no image has a {name} unit, so knowledge points are undefined; check the masks, "
                "and their void value, which belongs to neither region"
            )


def _region(name: str, region: Any, entropy: Tensor) -> Tensor:
    """One region, bool ``[N, n]``, on the device of the ``entropy``."""
    region = as_tensor(region, name)
    if entropy.dim() < 2:
        raise ValueError(
            f"the entropy is [..., N, n], images by units; got {described(entropy)}: a single "
            "image is entropy[None], and its regions likewise"
        )
    if region.shape != entropy.shape[-2:] or region.dtype != torch.bool:
        raise ValueError(
            f"{name} must be bool with the shape {tuple(entropy.shape[-2:])} of the entropy's "
            f"images and units [..., N, n]; got {described(region)}. "
            "kpnb.covered_units(units, x, masks) makes both regions of masks, "
            "kpnb.foreground_units(coverage) one of shares"
        )
    return region.to(entropy.device)


def knowledge_points(
    entropy: Any,
    foreground: Any,
    *,
    b: float = 0.2,
    background: Any | None = None,
    level: Level = "image",
) -> KnowledgePoints:
    """Units with ``H-bar - H_i > b`` (nats) among ``entropy [..., N, n]`` (section 3.2).

    foreground  bool ``[N, n]``
    background  bool ``[N, n]``, default everything else; name it when some units belong to neither
    level       whose background's mean H-bar is, see ``background_level``

    All three may be tensors, arrays or lists; regions are taken to the entropy's device. Units with
    NaN (padding) belong to neither. An image without foreground or without background, also where
    all units of one are NaN, has no defined counts: it gets NaN, which ``summarise`` counts. Raises
    ``TypeError`` for what holds no numbers, ``ValueError`` for shapes that do not fit and when no
    image has one of the regions.
    """
    entropy = as_numbers(entropy, "entropy")
    not_negative(b=b)
    foreground, background = regions(entropy, foreground, background)
    known = ~entropy.isnan()
    both = (foreground & known).any(-1) & (background & known).any(-1)
    reference = background_level(entropy, background, level)
    points = reference - entropy > b
    defined = both & ~reference[..., 0].isnan()
    return KnowledgePoints(points & (foreground | background), foreground, background, defined)


@dataclass(frozen=True)
class Summary:
    """The ``mean`` over the images for which a value is ``defined``, and how many there were of
    these and of ``undefined`` ones.
    """

    mean: float
    defined: int
    undefined: int


def summarise(values: Any) -> Summary:
    """Mean of ``values [N]``, a tensor, array or list, over the images where they are defined (NaN
    when there are none). ``ValueError`` for another shape.
    """
    values = as_numbers(values, "values")
    if values.dim() != 1:
        raise ValueError(f"values are [N], one for each image; got {described(values)}")
    known = values[~values.isnan()]
    return Summary(
        widest(known).mean().item() if len(known) else float("nan"),
        len(known),
        len(values) - len(known),
    )


def foreground_units(coverage: Any, at_least: float = 0.5) -> Tensor:
    """Units that count as foreground, bool ``[N, n]``: those whose mask ``coverage [N, n]``, a
    tensor, array or list, is ``at_least`` so much. ``ValueError`` for what is no share.
    """
    fraction(at_least=at_least)
    coverage = as_numbers(coverage, "coverage")
    if coverage.dim() != 2 or not ((coverage >= 0) & (coverage <= 1)).all():
        raise ValueError(
            f"coverage is [N, n], the share of each unit that a mask covers, from 0 to 1; got "
            f"{described(coverage)}: units.coverage(masks) computes it"
        )
    return coverage >= at_least


def released_filter(
    entropy: Tensor, foreground: Tensor, background: Tensor, late: int = 1
) -> Tensor:
    """Images the released 2020 procedure keeps, bool ``[N]``, from ``entropy [M, N, n]`` over
    epochs; ``foreground`` and ``background`` are bool ``[N, n]``.

    Those whose background is discarded at least as much as their foreground in each of the ``late``
    last epochs. It selects for the hypotheses, so nothing here uses it by default.
    """
    whole(late=late)
    positive(late=late)
    margin = background_level(entropy, background) - background_level(entropy, foreground)
    return (margin[-late:, :, 0] >= 0).all(0)
