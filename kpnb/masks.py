"""Masks of the foreground as people have them, and the units that they make foreground."""

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kpnb._messages import check_units, fraction, listed
from kpnb._tensors import as_tensor, described

if TYPE_CHECKING:
    from kpnb.units import Units

log = logging.getLogger(__name__)


def read_masks(masks: Any, void: Any | None = None) -> tuple[Tensor, Tensor]:
    """What is foreground and what is void, both bool ``[N, ...]``.

    masks   ``[N, ...]`` or ``[N, 1, H, W]``, a tensor, array or list: bool, 0 and 1, or 0 and 255
    void    the value of what belongs to neither foreground nor background (255 in many sets), or
            bool ``[N, ...]``, true there. None: there is nothing of that kind

    Raises ``TypeError`` for what holds no numbers, ``ValueError`` for masks with other values, and
    for 0, 1 and 255 together without a word on ``void``.
    """
    masks = _without_channel(as_tensor(masks, "masks"))
    if masks.is_complex():
        raise TypeError(f"masks hold real numbers; got {described(masks)}")
    neither = _void(masks, void)
    if masks.dtype == torch.bool:
        return masks & ~neither, neither
    values = masks[~neither].unique().tolist()
    if not (set(values) <= {0, 1} or set(values) <= {0, 255}):
        different = dict.fromkeys(f"{value:g}" for value in values)  # every NaN is another one
        raise ValueError(f"masks hold {listed(different)}: {_remedy(values)}")
    if set(values) <= {0} and bool(neither.any()):
        log.warning(
            "masks hold nothing but 0 and void: no element is foreground. Masks of 0 and 255 take "
            "no void=255"
        )
    return (masks != 0) & ~neither, neither


def _without_channel(masks: Tensor) -> Tensor:
    return masks.squeeze(1) if masks.dim() == 4 and masks.shape[1] == 1 else masks


def _void(masks: Tensor, void: Any | None) -> Tensor:
    """Where ``masks`` are void, bool of their shape."""
    if void is None:
        return torch.zeros_like(masks, dtype=torch.bool)
    if isinstance(void, int | float):
        return masks == void
    neither = _without_channel(as_tensor(void, "void"))
    if not neither.dim():  # a number of NumPy's or in a tensor
        return masks == neither.to(masks.device)
    if neither.dtype != torch.bool or neither.shape != masks.shape:
        raise ValueError(
            f"void is a value, or bool like the masks {tuple(masks.shape)}; got "
            f"{described(neither)}"
        )
    return neither.to(masks.device)


def _remedy(values: list[float]) -> str:
    if set(values) == {0, 1, 255}:
        return (
            "say void=255 if 255 belongs to neither foreground nor background "
            "(kpnb.covered_units(units, x, masks, void=255))"
        )
    if any(value % 1 for value in values):
        return "say where the foreground begins, for example masks > 0.5"
    if len(values) > 16 and max(values) > 127:  # edges that are blurred
        return "say where the foreground begins, for example masks > 127"
    return "say which are foreground, for example masks == 1, and void= which belong to neither"


def covered_units(
    units: "Units",
    x: Any,
    masks: Any,
    void: Any | None = None,
    at_least: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Foreground and background units, both bool ``[N, n]``, from ``masks`` as ``read_masks`` takes
    them.

    x   the input ``[N, ...]`` that the units belong to, of several inputs the one that is
        perturbed; masks may lack its channels (``[N, H, W]``
        for ``[N, C, H, W]``, ``[N, T]`` for ``[N, T, E]``)

    Void elements do not count: a unit is foreground when the mask covers ``at_least`` so much of
    the others, and background when it covers less. A unit that is mostly void, or that a sample
    does not have, belongs to neither. Pass both to ``knowledge_points``.

    Raises as ``read_masks``, and ``ValueError`` for masks that do not fit the input, or stand where
    it belongs.
    """
    check_units(units)
    x = as_tensor(x, "the input x")
    fraction(at_least=at_least)
    try:
        units.count(x)
        foreground, neither = (_over(part, x) for part in read_masks(masks, void))
    except ValueError as error:
        if x.any() and _like_masks(x) and not _like_masks(masks):
            raise ValueError(
                f"x holds nothing but the values of masks, {described(x)}, and masks hold others: "
                "the input comes first, kpnb.covered_units(units, x, masks)"
            ) from error
        raise
    every = units.gather(torch.ones_like(x, dtype=torch.float32))
    known = units.gather((~neither).float())
    covered = units.gather(foreground.float())
    there = (every > 0) & (2 * known >= every)
    mostly = covered / known.clamp_min(1) >= at_least  # as foreground_units has it, to the bit
    return mostly & there, ~mostly & there


def _like_masks(values: Any) -> bool:
    """Whether ``values`` could be masks: bool, or of 0, 1 and 255 alone."""
    values = as_tensor(values, "masks")
    return bool(((values == 0) | (values == 1) | (values == 255)).all())


def _over(masks: Tensor, x: Tensor) -> Tensor:
    """``masks``, of the shape of ``x`` or without its channels (second or last), laid over it."""
    masks = masks.to(x.device)
    if masks.shape == x.shape:
        return masks
    first, last = masks.shape == (len(x), *x.shape[2:]), masks.shape == x.shape[:-1]
    if first == last:  # neither, or both
        what = "could lack the second or the last dimension of" if first else "do not fit"
        raise ValueError(f"masks {list(masks.shape)} {what} the input {list(x.shape)}")
    return (masks[:, None] if first else masks[..., None]).expand_as(x)
