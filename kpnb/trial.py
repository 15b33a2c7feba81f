"""A look at the network before it is measured: a pass of a sample alone, and one in company.

An entropy means something only where the feature of a sample depends on that sample, is the same
each time, and has a derivative. What goes wrong otherwise would be numbers, not errors.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kpnb._memory import out_of_memory
from kpnb._models import quantised_modules
from kpnb.features import counting, unnamed_run
from kpnb.inputs import Inputs
from kpnb.perturb import Perturbation


def _features(
    perturbation: Perturbation,
    shown: Inputs,
    layers: Sequence[str],
    runs: dict[str, int] | None = None,
) -> dict[str, Tensor]:
    """Features ``[len(shown), ...]`` of the layers for the samples ``shown``; ``runs`` as in
    ``capture``.
    """
    x = shown.with_x(shown.x.clone())
    found = perturbation.network.features(x, len(shown), layers, runs)
    return {name: _rounded(feature, perturbation.coarsest) for name, feature in found.items()}


def _rounded(feature: Tensor, coarsest: torch.dtype) -> Tensor:
    """The ``feature`` in a type that is as coarse as what it was computed from."""
    is_finer = feature.is_floating_point() and (
        torch.finfo(feature.dtype).eps < torch.finfo(coarsest).eps
    )
    return feature.to(coarsest) if is_finer else feature


def _shown(perturbation: Perturbation) -> tuple[Inputs, Inputs, int]:
    """The first sample alone; in company, and its row there.

    Company is the second sample on either side, since a recurrent layer along the batch changes
    only what comes later. (Three without gradients take no more memory than two with them.) Where
    there is no second, it is the negative of the first; where a pass takes one sample, there is
    none.
    """
    inputs = perturbation.inputs
    alone = inputs.rows([0])
    order = [1, 0, 1] if perturbation.max_batch > 1 else [0]
    if len(inputs) > 1:
        return alone, inputs.rows(order), order.index(0)
    beside = torch.cat([(alone.x, -alone.x)[i] for i in order])
    return alone, replace(alone.rows([0] * len(order)), x=beside), order.index(0)


def try_layers(perturbation: Perturbation, layers: Sequence[str]) -> dict[str, str]:
    """What is wrong with each layer that cannot be measured, by its name.

    Raises ``LookupError``, ``RuntimeError`` and ``TypeError`` as ``capture`` does. Nothing is tried
    where memory does not take two samples. Warns of half precision.
    """
    try:
        return _tried(perturbation, layers)
    except RuntimeError as error:
        if out_of_memory(error):
            return {}
        raise


def place(name: str) -> str:
    """What messages call the feature of a layer."""
    return f"the feature of layer {name!r}" if name else "the model's own output"


def _tried(perturbation: Perturbation, layers: Sequence[str]) -> dict[str, str]:
    alone, beside, row = _shown(perturbation)
    model = perturbation.network.model
    runs: dict[str, int] = {}
    with torch.no_grad():
        in_company = _noted_features(perturbation, beside, layers, runs)
    with torch.enable_grad():
        differentiable = replace(alone, x=alone.x.clone().requires_grad_(True))
        single = _noted_features(perturbation, differentiable, layers)
    _warn_of_half_precision([perturbation.x, *single.values()])
    guessed = perturbation.max_batch < 2 and _guessed(perturbation.inputs)
    problems = {}
    for name in layers:
        derived, feature = single[name].requires_grad, single[name].detach()
        if unnamed := unnamed_run(model, name, runs[name]):
            problems[name] = unnamed
        elif quantised := _quantised(perturbation, name, alone):
            problems[name] = quantised
        elif not derived:
            problems[name] = _underived(perturbation, name, alone, feature)
        elif _differs(in_company[name][row], feature[0]):
            problems[name] = _unsteady(perturbation, name, beside, alone, row)
        elif guessed and not _same_in_company(perturbation, name, feature):
            problems[name] = f"{place(name)} is not clear. {_rows_of(guessed)}"
    return problems


def _guessed(inputs: Inputs) -> list[str]:
    """The other inputs that are cut into rows without the caller's word."""
    return [] if inputs.stated or len(inputs) < 2 else sorted(inputs.own)


def _rows_of(names: Sequence[str]) -> str:
    """Says that inputs are cut into rows, and how to have it otherwise."""
    return (
        f"Of {', '.join(map(repr, names))}, whose first size is that of the batch, each sample "
        "gets its own row: what all samples share, such as a bias, positions or the adjacency of a "
        f"graph, is named, shared={names[0]!r}; where nothing is, shared=()"
    )


def _noted_features(
    perturbation: Perturbation,
    shown: Inputs,
    layers: Sequence[str],
    runs: dict[str, int] | None = None,
) -> dict[str, Tensor]:
    """``_features``; an error of the model's own says what it was given, and how that was cut."""
    try:
        return _features(perturbation, shown, layers, runs)
    # what sizes that do not fit raise
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        given = tuple(perturbation.x.shape)
        error.add_note(f"in a pass of {len(shown)} of the {given[0]} samples of x {given}")
        if guessed := _guessed(perturbation.inputs):
            error.add_note(_rows_of(guessed))
        raise


def _same_in_company(perturbation: Perturbation, name: str, feature: Tensor) -> bool:
    """Whether the ``feature [1, ...]`` of the first sample is that in a pass of two.

    With ``max_batch=1`` a row of what all samples share, ``[1, T]`` of a bias ``[T, T]``, is laid
    over the whole without a word; two rows do not fit, or make another feature.
    """
    two = perturbation.inputs.rows(slice(0, 2))
    try:
        with torch.no_grad():
            both = _features(perturbation, two, [name])[name]
    except Exception as error:  # of the model's own code, which may raise anything
        return isinstance(error, RuntimeError) and out_of_memory(error)
    return both[0].shape == feature[0].shape and not _differs(both[0], feature[0])


def _warn_of_half_precision(values: Sequence[Tensor]) -> None:
    types = {value.dtype for value in values if value.dtype.itemsize < 4}
    half = sorted(str(dtype).removeprefix("torch.") for dtype in types)
    if half:
        warnings.warn(
            f"the network computes in {' and '.join(half)}, whose rounding moves entropies by "
            "about 0.01 nats, single ones by up to 0.1; measure it in float32, without autocast: "
            "kpnb.entropy(model.float(), x.float(), ...)",
            stacklevel=5,  # who has called entropy
        )


def _quantised(perturbation: Perturbation, name: str, alone: Inputs) -> str:
    """Names the quantised modules that run up to the layer ``name``; "" when there are none."""
    modules = quantised_modules(perturbation.network.model)
    if not modules:
        return ""
    with counting(modules) as ran, torch.no_grad():
        _features(perturbation, alone, [name])
    if not ran:
        return ""
    first = next(iter(ran))
    kind = modules[first]._get_name()
    return (
        f"{place(name)} is computed with quantised numbers (first in {first!r}, {kind}), which "
        "have no derivative: measure the network before its quantisation"
    )


def _underived(perturbation: Perturbation, name: str, alone: Inputs, feature: Tensor) -> str:
    """Says why the ``feature`` of a sample has no derivative."""
    changed = replace(alone, x=1.5 * alone.x + 0.1)
    with torch.no_grad():
        moved = _features(perturbation, changed, [name])[name]
    if bool((moved == feature).all()):
        return (
            f"{place(name)} does not depend on the input, so there is no "
            "information that it could discard; choose another layer"
        )
    return (
        f"{place(name)} has no derivative by the input: the model or a part of it "
        "runs under torch.no_grad(), torch.inference_mode() or reentrant checkpointing "
        "(use_reentrant=False helps), or detaches or rounds what it computes"
    )


def _rounding(feature: Tensor) -> float:
    """How much a feature may differ, relative to itself, between passes of other batches."""
    if feature.dtype == torch.float64:
        return 1e-9
    if feature.dtype == torch.float32:
        return 5e-3 if feature.is_cuda else 1e-4  # GPUs may compute in TF32
    return 0.05


def _differs(one: Tensor, two: Tensor) -> bool:
    """Whether two features of one sample differ by more than rounding.

    Where a longer sample has made it longer, as padding to the longest of a batch does, the part
    that both have counts. The other part is not judged: the feature includes it, which changes the
    entropy unless nothing at padded positions depends on the input.
    """
    if one.shape != two.shape:
        if one.dim() != two.dim():
            return True
        common = tuple(slice(0, min(sizes)) for sizes in zip(one.shape, two.shape, strict=True))
        one = one[common]
        two = two[common]
    known = one.isfinite()
    if not torch.equal(known, two.isfinite()):  # a statistic of one sample may be none
        return True
    return bool((one - two)[known].norm() > _rounding(one) * one[known].norm())


def _unsteady(
    perturbation: Perturbation, name: str, beside: Inputs, alone: Inputs, row: int
) -> str:
    """Says why the feature of layer ``name`` is not the same with and without company, of the
    sample that is ``row`` in ``beside``.
    """
    with torch.no_grad():
        once, again = (_features(perturbation, alone, [name])[name][0] for _ in range(2))
        if _differs(once, again):
            where = _first_difference(_trace(perturbation, alone), _trace(perturbation, alone))
            return (
                f"{place(name)} is another one each time the same input is seen "
                f"({where}): make the model deterministic in evaluation mode, for example "
                "F.dropout(x, training=self.training), or pass check=False"
            )
        where = _first_difference(_trace(perturbation, beside, row), _trace(perturbation, alone))
    found = f"{place(name)} of a sample depends on the other samples of its batch ({where})"
    if guessed := _guessed(perturbation.inputs):
        # Whether a first dimension of B is one of samples cannot be known, only suspected.
        return (
            f"{found}. {_rows_of(guessed)}. Otherwise there is no entropy of a sample; check=False "
            "measures all the same"
        )
    return (
        f"{found}, as with BatchNorm2d(track_running_stats=False), or with recurrent and "
        "attention layers that are built without batch_first=True: there is no entropy of a sample "
        "then. Pass max_batch=1 to measure each alone, or check=False"
    )


@dataclass(frozen=True)
class _Run:
    """What went into a module and what came out, of one sample."""

    name: str
    kind: str
    given: Tensor | None
    found: Tensor | None


def _of_sample(value: Any, samples: int, row: int) -> Tensor | None:
    """The sample ``row`` of the first tensor in ``value``, if that has one for each."""
    while isinstance(value, tuple | list) and value:
        value = value[0]
    fits = isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0
    return value[row].clone() if fits and len(value) == samples else None


def _trace(perturbation: Perturbation, shown: Inputs, row: int = 0) -> list[_Run]:
    """The sample ``row`` in every run of every module in a pass, in the order in which they end."""
    runs: list[_Run] = []

    def notes(name: str, module: nn.Module) -> tuple[Callable[..., None], Callable[..., None]]:
        given: list[Tensor | None] = []

        def before(_module: nn.Module, args: Any) -> None:
            given.append(_of_sample(args, len(shown), row))

        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            found = _of_sample(output, len(shown), row)
            runs.append(_Run(name, type(module).__name__, given.pop(), found))

        return before, after

    network = perturbation.network
    with ExitStack() as attached:
        for name, module in network.model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):  # has no hooks
                before, after = notes(name, module)
                attached.enter_context(module.register_forward_pre_hook(before))
                attached.enter_context(module.register_forward_hook(after))
        network.forward(network.model, shown.with_x(shown.x.clone()))
    return runs


def _first_difference(one: list[_Run], two: list[_Run]) -> str:
    """Where two passes first differ."""
    for a, b in zip(one, two, strict=False):
        if a.found is None or b.found is None or not _differs(a.found, b.found):
            continue
        same = a.given is not None and b.given is not None and not _differs(a.given, b.given)
        module = f"{a.name!r} ({a.kind})" if a.name else f"the model itself ({a.kind})"
        return f"first seen in {module}" if same else f"first seen in what {module} is given"
    return "seen in no module's output"
