"""What a layer puts out, and where in it the feature is."""

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

Key = int | str | tuple[int | str, ...]
"""Where in a layer's output the feature is: a name, a position, or several from outside in."""


def _entries(output: Any) -> dict[int | str, Any]:
    """The parts of a tuple, list, mapping (model outputs are mappings) or dataclass."""
    if isinstance(output, Mapping):
        return dict(output)
    if dataclasses.is_dataclass(output):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return dict(enumerate(output)) if isinstance(output, tuple | list) else {}


def _contents(output: Any) -> str:
    """What a layer's output holds, for messages."""
    parts = [
        f"{key!r}: {list(value.shape) if isinstance(value, Tensor) else type(value).__name__}"
        for key, value in _entries(output).items()
    ]
    return f"{type(output).__name__} of {', '.join(parts)}" if parts else type(output).__name__


def key_of(output: Any, name: str, select: Key | None) -> tuple[int | str, ...]:
    """Where the feature is in a layer's ``output``: see ``picked``."""
    if select is not None:
        return _path(output, select if isinstance(select, tuple) else (select,))
    if isinstance(output, Tensor):
        return ()
    entries = _entries(output)
    if isinstance(output, tuple | list) and isinstance(entries.get(0), Tensor):
        return (0,)
    tensors = [key for key, value in entries.items() if isinstance(value, Tensor)]
    if len(tensors) != 1:
        remedy = "choose with select=" if tensors else "choose a layer inside it, or use select="
        raise TypeError(f"layer {name!r} returns {_contents(output)}: {remedy}")
    return (tensors[0],)


def _path(output: Any, keys: Iterable[int | str]) -> tuple[int | str, ...]:
    """``keys`` with the places of a named tuple's names, and of positions from the end."""
    path: list[int | str] = []
    for key in keys:
        names = getattr(output, "_fields", ())
        ordered = isinstance(output, tuple | list)
        if key in names:
            key = names.index(key)
        elif ordered and isinstance(key, int) and -len(output) <= key < 0:
            key += len(output)
        path.append(key)
        output = _entries(output).get(key)
    return tuple(path)


def picked(output: Any, name: str, select: Key | None = None) -> Tensor:
    """The feature in the ``output`` of the layer ``name``.

    The output itself when it is a tensor; of a tuple or list the first, as recurrent and attention
    layers return it; of a mapping (such as a model output) or dataclass the one tensor in it.
    ``select`` says otherwise: ``"pooler_output"``, a named tuple's name, -1 for the last, or
    ``(1, 0)`` for the hidden state of an LSTM. Raises ``TypeError`` that lists what is there.
    """
    found = output
    for key in key_of(output, name, select):
        entries = _entries(found)
        if key not in entries:
            raise TypeError(f"layer {name!r} returns {_contents(found)}, which has no {key!r}")
        found = entries[key]
    if not isinstance(found, Tensor):
        raise TypeError(f"layer {name!r} returns {_contents(found)}, not a tensor, at {select!r}")
    _check_numbers(found, name)
    return found


def _check_numbers(feature: Tensor, name: str) -> None:
    """``TypeError`` for a feature whose distances are not those of real numbers side by side."""
    if feature.is_complex():
        raise TypeError(
            f"layer {name!r} returns complex numbers ({feature.dtype}): have the model pass "
            "torch.view_as_real of them, real and imaginary parts side by side, through a module, "
            "and measure that"
        )
    if feature.layout != torch.strided:
        raise TypeError(
            f"layer {name!r} returns a sparse tensor ({feature.layout}): have the model pass its "
            "to_dense() through a module, and measure that"
        )


def replaced(output: Any, key: tuple[int | str, ...], value: Tensor) -> Any:
    """``output`` with ``value`` at ``key``; the original stays as it is."""
    if not key:
        return value
    part = replaced(_entries(output)[key[0]], key[1:], value)
    if isinstance(output, tuple):
        values = [part if i == key[0] else old for i, old in enumerate(output)]
        return output._make(values) if hasattr(output, "_make") else type(output)(values)
    if dataclasses.is_dataclass(output) and not isinstance(output, Mapping):
        return dataclasses.replace(output, **{key[0]: part})
    changed = copy.copy(output)
    changed[key[0]] = part
    return changed
