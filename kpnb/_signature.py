"""By what an input, units, weights and the function of a network are known again later.

Inputs and weights go by their bits. A function goes by what it computes, since its code may depend
on anything: two that give the same feature for every sample, under a little noise, are one.
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
from kpnb.inputs import Inputs
from kpnb.perturb import Perturbation, generator
from kpnb.units import Units, on_device, units_of
from kpnb.weights import COUNTER, bare_name

BUCKETS = 64
"""Numbers that stand for the feature of a sample."""
PIECE = 2**22  # numbers whose bits are looked at together
ROWS = 32  # samples whose units are looked at together
CONSTANTS = (bool, int, float, complex, str, bytes, type(None))
SINGLE, TF32 = 1e-5, 5e-3
"""How far features of one function may be apart, in proportion to themselves, in float32; and where
a card may multiply them as TF32.
"""


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of tensors by name: types, shapes and bits; in pieces, as they may fill the
    memory.
    """
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach()
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        rows = max(1, PIECE // max(1, value[:1].numel())) if value.dim() else 1
        for piece in value.split(rows) if value.dim() else [value]:
            bits = piece.resolve_conj().resolve_neg().cpu().contiguous()
            found.update(bits.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def digest_of_weights(model: nn.Module) -> str:
    """SHA-256 (hex) of parameters and buffers; of counters, which no evaluation reads, not."""
    values = [*model.named_parameters(), *model.named_buffers()]
    return digest_of({bare_name(name): v for name, v in values if not name.endswith(COUNTER)})


def digest_of_inputs(inputs: Inputs) -> str:
    """SHA-256 (hex) of what is perturbed and of what else the network is called with: tensors and
    constants, also in containers. Of anything else the type counts.
    """
    tensors, rest = {"": inputs.x}, {"name": str(inputs.name)}
    for place, value in _leaves(inputs.others):
        if isinstance(value, Tensor) and _is_plain(value):
            tensors[place] = value
        else:
            constant = isinstance(value, CONSTANTS)
            rest[place] = repr(value) if constant else type(value).__qualname__
    rows = sorted(map(str, inputs.own)) if inputs.stated else None
    return digest([digest_of(tensors), rest, rows])


def _is_plain(value: Tensor) -> bool:
    """Whether it has numbers side by side in memory."""
    usual = value.layout == torch.strided and not value.is_nested
    return usual and not value.is_meta and not value.is_quantized


def _leaves(value: Any, place: str = "", above: tuple[int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """A value, and what lies in it if it is a mapping, a list or a tuple; each with its place."""
    yield place, value
    if not isinstance(value, Mapping | list | tuple) or id(value) in above:
        return
    parts = value.items() if isinstance(value, Mapping) else enumerate(value)
    for name, part in parts:
        yield from _leaves(part, f"{place}[{name!r}]", (*above, id(value)))


def digest_of_units(units: Units, x: Tensor) -> str:
    """SHA-256 (hex) of how many units ``x [N, ...]`` has, which elements belong to which, and how
    they are summed. Of whole numbers on the CPU: their sums are the same in any order.
    """
    units = on_device(units, torch.device("cpu"))
    count, found = units.count(x), []
    for first in range(0, len(x), ROWS):
        rows = slice(first, first + ROWS)
        part, own = x[rows].cpu().double(), units_of(units, rows, x)
        drawn = torch.randint(1024, part.shape, generator=generator(first)).double()
        laid = own.spread(torch.arange(1.0, count + 1).double().repeat(len(part), 1), part)
        found.append(digest_of({"laid": laid, "summed": own.gather(drawn)}))
    return digest([count, found])


def signatures(perturbation: Perturbation, layers: Sequence[str]) -> dict[str, Tensor]:
    """What the features ``[N, d]`` of all samples are known by, ``[N, BUCKETS + 2]`` for each
    layer: a count sketch (Charikar, Chen and Farach-Colton, 2002), how many numbers are not finite,
    and how much of the sketch may be rounding.

    Under noise of size tau, because functions may differ in what a sample alone does not show, such
    as a clamp. They cost a pass of each sample.
    """
    parts: list[dict[str, Tensor]] = []
    done, rows, samples = 0, perturbation.max_batch, len(perturbation.x)

    def attempt(rows: int) -> dict[str, Tensor]:
        batch = perturbation.rows(slice(done, done + rows))
        (features,) = batch.features(layers, batch.tau * batch.normal(1, stream=3))
        return {name: _signature(one[0], batch.coarsest) for name, one in features.items()}

    model, device = perturbation.network.model, perturbation.x.device
    with torch.inference_mode(False), torch.no_grad(), explaining(model, device):
        while done < samples:
            part, rows = fitting(attempt, rows, "a batch")
            parts.append(part)
            done += rows
    return {layer: torch.cat([part[layer] for part in parts]) for layer in layers}


def _signature(feature: Tensor, coarsest: torch.dtype) -> Tensor:
    """That of a ``feature [B, d]``, computed in types as coarse as ``coarsest``; on the CPU."""
    numbers = widest(feature)
    # drawn one after the other: a feature that padding prolongs keeps its own
    draws = torch.randint(2 * BUCKETS, feature.shape[1:], generator=generator(0)).to(feature.device)
    signed = numbers.nan_to_num(0, 0, 0) * (1 - 2 * (draws % 2))
    sketch = numbers.new_zeros(len(feature), BUCKETS).index_add_(1, draws // 2, signed)
    infinite = (~numbers.isfinite()).sum(1, keepdim=True)
    eps = max(torch.finfo(dtype).eps for dtype in (feature.dtype, coarsest))
    if eps == torch.finfo(torch.float32).eps:
        eps = TF32 if feature.is_cuda else SINGLE
    elif eps < SINGLE:
        eps = 1e-11
    rounding = torch.full_like(sketch[:, :1], eps)
    return torch.cat([sketch, infinite, rounding], 1).cpu()


def same_function(one: Tensor, two: Tensor) -> bool:
    """Whether two ``signatures [N, BUCKETS + 2]`` are of one function, but for rounding."""
    if one.shape != two.shape:
        return False
    (one, infinite, eps), (two, too, other) = (x.split([BUCKETS, 1, 1], 1) for x in (one, two))
    tolerance = torch.maximum(eps, other)
    of_one_type = (eps == other) | (tolerance == TF32) & (torch.minimum(eps, other) == SINGLE)
    near = (one - two).norm(dim=1, keepdim=True) <= tolerance * one.norm(dim=1, keepdim=True)
    return bool((near & (infinite == too) & of_one_type).all())
