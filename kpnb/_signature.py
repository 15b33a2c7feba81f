"""By what an input, units, weights and the function of a network are known again later.

Inputs and weights go by their bits. A function goes by what it computes, since its code may depend
on anything: two that give one feature for every sample are taken for the same.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kpnb._memory import fitting
from kpnb._precision import widest
from kpnb._untouched import explaining
from kpnb.checkpoints import digest
from kpnb.features import Network
from kpnb.inputs import Inputs
from kpnb.perturb import generator
from kpnb.units import Units
from kpnb.weights import COUNTER, bare_name

DIRECTIONS = 8
"""In how many random directions a feature is remembered: any change of it shows in some."""

CONSTANTS = (bool, int, float, complex, str, bytes, type(None))


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of tensors by name: types, shapes and bits."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def digest_of_weights(model: nn.Module) -> str:
    """SHA-256 (hex) of parameters and buffers; of counters, which no evaluation reads, not."""
    values = [*model.named_parameters(), *model.named_buffers()]
    return digest_of({bare_name(name): v for name, v in values if not name.endswith(COUNTER)})


def digest_of_inputs(inputs: Inputs) -> str:
    """SHA-256 (hex) of what is perturbed and of what else the network is called with, as far as
    that is tensors and constants, also in containers.
    """
    tensors = {"": inputs.x}
    rest = [] if inputs.name is None else [inputs.name]
    for place, value in _leaves(inputs.others):
        if isinstance(value, Tensor) and value.layout == torch.strided:
            tensors[place] = value
        else:
            constant = isinstance(value, CONSTANTS)
            rest.append([place, repr(value) if constant else type(value).__qualname__])
    rows = [sorted(inputs.own)] if inputs.stated else []
    return digest([digest_of(tensors), rest, *rows])


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """What lies in mappings, lists and tuples, and in which place."""
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    else:
        yield place, value
        return
    for name, part in parts:
        yield from _leaves(part, f"{place}/{name}")


def digest_of_units(units: Units, x: Tensor) -> str:
    """SHA-256 (hex) of which elements of ``x [N, ...]`` belong to which unit."""
    numbers = torch.arange(1.0, units.count(x) + 1, device=x.device, dtype=x.dtype)
    return digest_of({"": units.spread(numbers.expand(len(x), -1), x)})


def projections(
    network: Network, inputs: Inputs, layers: Sequence[str], rows: int
) -> dict[str, Tensor]:
    """The features of all samples in random directions, ``[N, DIRECTIONS]`` by layer.

    They cost a pass of each sample, of ``rows`` at a time or as many as memory takes.
    """
    parts: list[dict[str, Tensor]] = []
    done = 0

    def attempt(rows: int) -> dict[str, Tensor]:
        part = inputs.rows(slice(done, done + rows))
        features = network.features(part.with_x(part.x.clone()), len(part), layers)
        return {layer: _projected(feature) for layer, feature in features.items()}

    model = network.model
    with torch.inference_mode(False), torch.no_grad(), explaining(model, inputs.x.device):
        while done < len(inputs):
            part, rows = fitting(attempt, rows, "a batch")
            parts.append(part)
            done += rows
    return {layer: torch.cat([part[layer] for part in parts]) for layer in layers}


def _projected(feature: Tensor) -> Tensor:
    flat = widest(feature.flatten(1))
    how = {"generator": generator(0), "dtype": flat.dtype, "device": "cpu"}
    directions = torch.randn(flat.shape[1], DIRECTIONS, **how).to(flat.device)
    return (flat @ directions).to(feature.dtype)  # which tells how much of it is rounding
