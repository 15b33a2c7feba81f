"""Eq. 8-9: when knowledge points are learned, and how many of those tried are kept.

All functions take an epoch axis that starts with the untrained network (epoch 0). The paper's
epochs run from 1; the released 2020 procedure counts epoch 0 too (``first=0``).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kpnb._messages import one_of
from kpnb._precision import widest
from kpnb._tensors import as_numbers, as_tensor, described

STATISTICS = ("num_batches_tracked", "running_mean", "running_var")


def step_norms(
    now: Mapping[str, Tensor], before: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """||w_k - w_{k-1}|| of each parameter tensor, by name; ||w_0|| without a ``before``.

    now, before     ``dict(model.named_parameters())``, copied; differences are taken in their own
                    precision, at least single, and norms in double; a complex number counts as
                    its two parts

    Raises ``ValueError`` when names or shapes are not those of ``before``.
    """
    if before is not None:
        _check_same_parameters(now, before)
    norms = {}
    for name, value in now.items():
        precision = torch.promote_types(value.dtype, torch.float32)
        moved = value.detach().to(precision)
        if before is not None:
            moved = moved - before[name].to(precision)
        if moved.is_complex():  # of which there is no norm in double precision
            moved = torch.view_as_real(moved.resolve_conj())
        norms[name] = torch.linalg.vector_norm(moved.cpu(), dtype=torch.float64).item()
    return norms


def _check_same_parameters(now: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> None:
    changes = [f"{name} is new" for name in now if name not in before]
    changes += [f"{name} is gone" for name in before if name not in now]
    for name in now.keys() & before.keys():
        old, new = list(before[name].shape), list(now[name].shape)
        changes += [f"{name} had the shape {old} and has {new}"] if old != new else []
    if changes:
        raise ValueError(
            f"the network's parameters have changed ({'; '.join(sorted(changes))}), so there is no "
            "distance from the weights before: Eq. 8 follows one network over its training"
        )


def weight_distance(
    initial: Mapping[str, float],
    steps: Sequence[Mapping[str, float]],
    parameters: Iterable[str] | None = None,
) -> Tensor:
    """Path length of the parameters up to every epoch, relative to their start (Eq. 8).

    The sum of ||w_k - w_{k-1}|| / ||w_0||.

    initial     ||w_0|| of each parameter tensor, by name
    steps       for each epoch k = 1..M: ||w_k - w_{k-1}|| of each parameter tensor
    parameters  the names that w consists of; default all, as the paper's text says (the released
                2020 procedure takes the weight of the target layer only)

    Returns ``[M + 1]`` in double precision, 0 for epoch 0. Raises ``LookupError`` for a name that
    is not there and ``ValueError`` for the statistics of a normalisation, which are no parameters,
    and where all of w_0 is 0.
    """
    _check_norms(initial, steps)
    names = list(initial if parameters is None else parameters)
    counted = [name for name in names if name.rpartition(".")[2] in STATISTICS]
    if counted:
        raise ValueError(
            f"{counted[0]} is no parameter: w consists of model.named_parameters(), not of the "
            "whole state dict"
        )
    missing = [name for name in names if name not in initial]
    if missing or not names:
        raise LookupError(f"no weight distance for parameters {missing}; known: {sorted(initial)}")
    for epoch, step in enumerate(steps, 1):
        if missing := [name for name in names if name not in step]:
            raise LookupError(f"epoch {epoch} has no norm of the parameters {missing}")
    norms = [sum(step[n] ** 2 for n in names) ** 0.5 for step in steps]
    start = sum(initial[n] ** 2 for n in names) ** 0.5
    if start == 0:
        raise ValueError(
            f"the parameters {names} are all 0 at the start: a path relative to them is not defined"
        )
    return torch.tensor([0.0, *norms], dtype=torch.float64).cumsum(0) / start


def _check_norms(initial: Any, steps: Any) -> None:
    """Raise ``TypeError`` unless norms are numbers by name, those of the steps in a list."""
    in_order = not isinstance(steps, Mapping | str) and isinstance(steps, Iterable)
    for norms in (initial, *steps) if in_order else (initial, steps):
        numbers = in_order and isinstance(norms, Mapping)
        if not numbers or any(isinstance(v, Tensor) and v.dim() for v in norms.values()):
            raise TypeError(
                "norms are numbers by the parameter's name, for each epoch those of its step, not "
                "the parameters themselves: kpnb.learning.step_norms(now, before) takes them, and "
                "kpnb.trajectory does all of it"
            )


def richest_epoch(n_fg: Tensor, first: int = 1) -> Tensor:
    """The epoch m-hat ``[N]`` in which each image has the most foreground knowledge points (Eq. 8).

    n_fg    ``[M + 1, N]`` counts of Eq. 7 by epoch

    The earliest of equals. Meaningless for an image that never has one; ``learning_distance`` gives
    it NaN.
    """
    return n_fg[first:].nan_to_num(-1).argmax(0) + first


def learning_distance(n_fg: Any, distance: Any, first: int = 1) -> Tensor:
    """Weight distance ``[N]`` at which each image has the most foreground knowledge points (inside
    Eq. 8).

    n_fg        ``[M + 1, N]`` counts of Eq. 7 by epoch
    distance    ``[M + 1]`` from ``weight_distance``
    first       first epoch that counts, 0 the untrained network

    NaN for an image that never has a foreground knowledge point. D_mean and D_var are mean and
    variance over images. Both may be tensors, arrays or lists; ``ValueError`` unless they fit.
    """
    n_fg = as_numbers(n_fg, "n_fg")
    distance = as_numbers(distance, "distance").to(n_fg.device)
    if n_fg.dim() != 2 or distance.dim() != 1:
        raise ValueError(
            f"n_fg is [M + 1, N] and distance [M + 1], epochs first; got {described(n_fg)} and "
            f"{described(distance)}"
        )
    if n_fg.shape[0] != len(distance):
        raise ValueError(f"{n_fg.shape[0]} epochs of counts, but {len(distance)} weight distances")
    check_first(first, len(n_fg))
    never = n_fg[first:].nan_to_num(0).sum(0) == 0
    return distance[richest_epoch(n_fg, first)].where(~never, torch.nan)


def check_first(first: int, epochs: int) -> None:
    """Raise ``ValueError`` unless the ``first`` epoch that counts is one of 0 to ``epochs - 1``."""
    if not 0 <= first < epochs:
        raise ValueError(f"first = {first}: the epochs are 0 to {epochs - 1}")


def d_mean_var(distances: Any) -> tuple[float, float]:
    """D_mean and D_var (Eq. 8): mean and population variance of ``distances [N]``, a tensor, array
    or list, over images that have one.
    """
    distances = as_numbers(distances, "distances")
    known = widest(distances[~distances.isnan()])
    if not len(known):
        return float("nan"), float("nan")
    return known.mean().item(), known.var(correction=0).item()


def detour_ratio(
    on_foreground: Any, first: int = 1, empty: Literal["nan", "zero"] = "nan"
) -> Tensor:
    """Rho ``[N]`` (Eq. 9): the share of all foreground knowledge points ever tried that the last
    epoch holds.

    on_foreground   bool ``[M + 1, N, n]`` sets S_j by epoch
    first           first epoch of the union, 0 the untrained network
    empty           an image that never has one: ``"nan"`` (undefined), or ``"zero"`` as in the
                    released 2020 procedure

    Raises ``ValueError`` for what is not bool of that shape.
    """
    on_foreground = as_tensor(on_foreground, "on_foreground")
    if on_foreground.dtype != torch.bool or on_foreground.dim() != 3:
        raise ValueError(
            f"on_foreground is bool [M + 1, N, n], epochs first; got {described(on_foreground)}"
        )
    check_first(first, len(on_foreground))
    one_of("empty", empty, ("nan", "zero"))
    union = widest(on_foreground[first:].any(0).sum(-1))
    rho = on_foreground[-1].sum(-1) / union
    return rho.nan_to_num(0.0) if empty == "zero" else rho
