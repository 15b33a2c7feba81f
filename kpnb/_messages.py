"""Wording shared by error messages."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor


def unknown(what: str, name: object, options: Iterable[object]) -> str:
    """Say that ``name`` is not a known ``what`` and name the nearest ``options`` (all of them when
    few).
    """
    known = [str(option) for option in options]
    folded = {option.casefold(): option for option in reversed(known)}  # KD is as near as kd
    close = get_close_matches(str(name).casefold(), folded, n=3, cutoff=0.5)
    near = [folded[option] for option in close]
    if near:
        return f"unknown {what} {name!r}; did you mean {' or '.join(map(repr, near))}?"
    return f"unknown {what} {name!r}; known: {listed(map(repr, known), 12) or 'none'}"


def listed(names: Iterable[str], most: int = 8) -> str:
    """``names`` with commas, ``most`` of them at most, and how many there are then."""
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def one_of(what: str, name: object, options: Collection[object]) -> None:
    """Raise ``ValueError``, as ``unknown`` words it, unless ``name`` is one of the ``options``."""
    if name not in options:
        raise ValueError(unknown(what, name, options))


def positive(**values: float | None) -> None:
    """Raise ``ValueError`` naming the first of ``values`` that is not positive, ``TypeError`` for
    what is no number (None is not checked).
    """
    for name, value in _numbers(values):
        if not value > 0:
            raise ValueError(f"{name}={value} must be positive")


def not_negative(**values: float | None) -> None:
    """Raise ``ValueError`` naming the first of ``values`` that is negative or NaN, ``TypeError``
    for what is no number (None is not checked).
    """
    for name, value in _numbers(values):
        if not value >= 0:
            raise ValueError(f"{name}={value} must not be negative")


def _numbers(values: Mapping[str, float | None]) -> Iterator[tuple[str, float]]:
    """Those that are not None, by name; ``TypeError`` for what is no number."""
    for name, value in values.items():
        if value is None:
            continue
        if not isinstance(value, Real) and getattr(value, "ndim", 1):  # tensors without a size do
            raise TypeError(f"{name}={value!r} must be a number")
        yield name, value


def whole(**values: Any) -> None:
    """Raise ``TypeError`` naming the first of ``values`` that is no whole number (None is not
    checked).
    """
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
            raise TypeError(f"{name}={value!r} must be a whole number")


def required(**values: Any) -> None:
    """Raise ``TypeError`` naming the first of ``values`` that is None."""
    for name, value in values.items():
        if value is None:
            raise TypeError(f"{name}=None: it must be a number")


def plain_numbers(part: object) -> None:
    """Turn NumPy scalars in the fields of a frozen dataclass into Python numbers, for JSON and
    PyTorch.
    """
    for name, value in vars(part).items():
        if isinstance(value, np.generic):
            object.__setattr__(part, name, value.item())


def check_units(units: object) -> None:
    """Raise ``TypeError`` for what lacks the methods of ``kpnb.units.Units``."""
    methods = all(hasattr(units, name) for name in ("count", "spread", "gather"))
    if isinstance(units, type) or not methods:
        what = units.__name__ if isinstance(units, type) else f"{type(units).__name__} {units!r}"
        if isinstance(units, Tensor | np.ndarray):
            kind = "a tensor" if isinstance(units, Tensor) else "an array"
            what = f"{kind} {list(units.shape)}, which kpnb.Regions takes as labels"
        raise TypeError(
            f"units are an object such as kpnb.ImageGrid(16), kpnb.Tokens(mask) or "
            f"kpnb.Regions(labels); got {what}"
        )


def fraction(**values: float) -> None:
    """Raise ``ValueError`` naming the first of ``values`` that is not above 0 and at most 1."""
    for name, value in values.items():
        if not 0 < value <= 1:
            raise ValueError(f"{name}={value} is a share: above 0 and at most 1")


def named_samples(bad: Tensor) -> str:
    """The samples where ``bad [N]`` is true, ten of them at most: "samples 0, 3"."""
    where = bad.nonzero().flatten().tolist()
    return f"{'samples' if len(where) > 1 else 'sample'} {listed(map(str, where), 10)}"
