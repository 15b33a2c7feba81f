"""A look at the network before it is measured: two passes of two samples, and one backward.

An entropy means something only where the feature of a sample depends on that sample, is the same
each time, and has a derivative. What goes wrong otherwise would be numbers, not errors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kpnb._memory import out_of_memory
from kpnb.features import layer_at
from kpnb.inputs import Inputs
from kpnb.perturb import Perturbation

NOTICED = 0.05  # of what noise of size tau does to the feature


@dataclass(frozen=True)
class Pair:
    """Two samples: the first that is measured, and another one beside it."""

    inputs: Inputs
    x: Tensor

    def call(self, perturbation: Perturbation) -> Any:
        network = perturbation.network
        return network.forward(network.model, self.inputs.with_x(self.x))

    def features(
        self, perturbation: Perturbation, layers: Sequence[str], runs: dict[str, int] | None = None
    ) -> dict[str, Tensor]:
        return perturbation.network.features(self.inputs.with_x(self.x), 2, layers, runs)


def _pairs(perturbation: Perturbation) -> tuple[Pair, Pair]:
    """The first sample beside another, and beside itself under noise of size tau."""
    first = perturbation.rows(slice(0, 1))
    noise = perturbation.tau * first.normal(1, stream=0)[0] * first.inside()
    close = Pair(first.inputs, torch.cat([first.x, first.x + noise]).detach())
    if len(perturbation.x) == 1:
        return Pair(first.inputs, torch.cat([first.x, -first.x]).detach()), close
    two = perturbation.inputs.rows(slice(0, 2))
    return Pair(two, two.x.detach()), close


def try_layers(perturbation: Perturbation, layers: Sequence[str]) -> dict[str, str]:
    """What is wrong with each layer that cannot be measured, by its name.

    Raises ``LookupError``, ``RuntimeError`` and ``TypeError`` as ``capture`` does. Nothing is tried
    where no two samples fit into a pass.
    """
    if perturbation.max_batch < 2:
        return {}
    try:
        return _tried(perturbation, layers)
    except RuntimeError as error:
        if out_of_memory(error):
            return {}
        raise


def _tried(perturbation: Perturbation, layers: Sequence[str]) -> dict[str, str]:
    apart, close = _pairs(perturbation)
    runs: dict[str, int] = {}
    with torch.enable_grad():
        leaf = apart.x.clone().requires_grad_(True)
        one = Pair(apart.inputs, leaf.clone()).features(perturbation, layers, runs)
    with torch.no_grad():
        two = close.features(perturbation, layers)
    problems = {}
    for name in layers:
        run = layer_at(perturbation.network.model, name)[1]
        if run is None and runs[name] > 1:
            problems[name] = (
                f"layer {name!r} runs {runs[name]} times in a pass: say which run is meant, "
                f"'{name}:0' to '{name}:{runs[name] - 1}'"
            )
        elif problem := _derivative(one[name], leaf, name, two[name]):
            problems[name] = problem
        elif _differs(one[name].detach()[0], two[name][0], two[name][1]):
            problems[name] = _unsteady(perturbation, name, apart, close)
    return problems


def _derivative(feature: Tensor, leaf: Tensor, name: str, noisy: Tensor) -> str:
    """What is wrong with the derivative of the ``feature`` by the ``leaf``; "" when nothing is.

    ``noisy`` is the feature of a sample without and with noise.
    """
    moves = bool((noisy[0] != noisy[1]).any())
    reason = "an operation in it has no derivative"
    if feature.requires_grad:
        try:
            (product,) = torch.autograd.grad(
                feature.sum(), leaf, retain_graph=True, allow_unused=True
            )
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            product, moves, reason = None, True, str(error).split(". ")[0]
        if product is not None:
            return ""
    if not moves:
        return (
            f"the feature of layer {name!r} does not depend on the input, so there is no "
            "information that it could discard; choose another layer"
        )
    return (
        f"the feature of layer {name!r} has no derivative by the input ({reason}): the model or a "
        "part of it runs under torch.no_grad(), torch.inference_mode() or reentrant checkpointing "
        "(use_reentrant=False helps), or detaches what it computes"
    )


def _rounding(feature: Tensor) -> float:
    """How much a feature may differ, relative to itself, between passes of other batches."""
    if feature.dtype == torch.float64:
        return 1e-9
    if feature.dtype == torch.float32:
        return 5e-3 if feature.is_cuda else 1e-4  # GPUs may compute in TF32
    return 0.05


def _differs(one: Tensor, two: Tensor, noisy: Tensor | None = None) -> bool:
    """Whether two features of one sample differ by more than rounding, and by more than a little of
    what noise does.
    """
    apart, size = (one - two).norm(), _rounding(one) * one.norm()
    moved = NOTICED * (noisy - two).norm() if noisy is not None else 0 * size
    return bool(apart > torch.maximum(size, moved))


def _unsteady(perturbation: Perturbation, name: str, apart: Pair, close: Pair) -> str:
    """Says why the feature of layer ``name`` is not the same in both pairs."""
    with torch.no_grad():
        once, again = (apart.features(perturbation, [name])[name] for _ in range(2))
        if _differs(once[0], again[0]):
            where = _first_difference(_trace(perturbation, apart), _trace(perturbation, apart))
            return (
                f"the feature of layer {name!r} is another one each time the same input is seen "
                f"({where}): make the model deterministic in evaluation mode, for example "
                "F.dropout(x, training=self.training), or pass check=False"
            )
        where = _first_difference(_trace(perturbation, apart), _trace(perturbation, close))
    return (
        f"the feature of layer {name!r} of a sample depends on the other samples of its batch "
        f"({where}), as with BatchNorm2d(track_running_stats=False): there is no entropy of a "
        "sample then. Pass max_batch=1 to measure each alone, or check=False"
    )


@dataclass(frozen=True)
class _Run:
    """What went into a module and what came out, of the first sample."""

    name: str
    kind: str
    given: Tensor | None
    found: Tensor | None


def _of_first(value: Any) -> Tensor | None:
    """The first sample of the first tensor in ``value``, if it has one for each."""
    while isinstance(value, tuple | list) and value:
        value = value[0]
    fits = isinstance(value, Tensor) and value.is_floating_point() and value.shape[:1] == (2,)
    return value[0].clone() if fits else None


def _trace(perturbation: Perturbation, pair: Pair) -> list[_Run]:
    """Every run of every module in a pass, in the order in which they end."""
    runs: list[_Run] = []

    def note(name: str, module: nn.Module) -> Any:
        given: list[Tensor | None] = []

        def before(_module: nn.Module, args: Any) -> None:
            given.append(_of_first(args))

        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            runs.append(_Run(name, type(module).__name__, given.pop(), _of_first(output)))

        return module.register_forward_pre_hook(before), module.register_forward_hook(after)

    handles = [note(name, module) for name, module in perturbation.network.model.named_modules()]
    try:
        pair.call(perturbation)
    finally:
        for handle in (handle for both in handles for handle in both):
            handle.remove()
    return runs


def _first_difference(one: list[_Run], two: list[_Run]) -> str:
    """Where two passes first differ."""
    for a, b in zip(one, two, strict=False):
        if a.found is None or b.found is None or not _differs(a.found, b.found):
            continue
        same = a.given is not None and b.given is not None and not _differs(a.given, b.given)
        place = f"{a.name!r} ({a.kind})" if a.name else f"the model itself ({a.kind})"
        return f"first seen in {place}" if same else f"first seen in what {place} is given"
    return "seen in no module's output"
