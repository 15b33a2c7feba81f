"""Features of a network's layers, addressed by dotted module name; the network is left as it was
found.

Hooks exist only while a forward pass runs, and the pass is cut off at the last layer asked for.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kpnb._messages import unknown


class _AllReached(BaseException):
    """Cuts a forward pass short. Not an ``Exception``, so that a model's own ``except Exception``
    lets it through.
    """


def module_at(model: nn.Module, name: str) -> nn.Module:
    """The submodule with the dotted ``name`` (``""`` is the model itself); ``LookupError`` with the
    nearest names.
    """
    modules = dict(model.named_modules())
    if name not in modules:
        raise LookupError(unknown("layer", name, [n for n in modules if n]))
    return modules[name]


def _as_feature(output: object, name: str) -> Tensor:
    """The tensor of a module's output; recurrent and transformer blocks return it first in a
    tuple.
    """
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor):
        raise TypeError(
            f"layer {name!r} returns {type(output).__name__}, not a tensor; choose a layer inside it"
        )
    return first


def capture(model: nn.Module, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Outputs of ``layers`` for the input ``x [B, ...]``, in the shapes the layers give them.

    The pass stops as soon as every layer was reached; of a module that runs more than once the
    first output counts. Outputs are copies (an in-place activation that follows cannot change them)
    and keep their graph; what follows a layer gets a copy of its copy, so later outputs have
    derivatives with respect to earlier ones.

    Raises ``LookupError`` for an unknown name, ``RuntimeError`` when the pass ends without reaching
    a layer.
    """
    features: dict[str, Tensor] = {}
    wanted = set(layers)

    def keep(name: str) -> object:
        def hook(_module: nn.Module, _args: object, output: object) -> object:
            if name in features:
                return None
            features[name] = _as_feature(output, name).clone()
            if wanted == features.keys():
                raise _AllReached
            if isinstance(output, Tensor):
                return features[name].clone()
            return (
                type(output)([features[name].clone(), *output[1:]])
                if not hasattr(output, "_fields")
                else None
            )

        return hook

    targets = {name: module_at(model, name) for name in wanted}
    handles = []
    try:
        handles += [module.register_forward_hook(keep(name)) for name, module in targets.items()]
        model(x)
    except _AllReached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    missing = sorted(wanted - features.keys())
    if missing:
        raise RuntimeError(f"the forward pass never reached layer {', '.join(map(repr, missing))}")
    return {name: features[name] for name in layers}


def leads_through(feature: Tensor, earlier: Tensor, x: Tensor) -> bool:
    """Whether the leaf ``x`` acts on the captured ``feature`` only by way of the captured
    ``earlier``.
    """
    gate, waiting, seen = earlier.grad_fn, [feature.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if getattr(node, "variable", None) is x:
            return False
        if node is not None and node is not gate and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return True


@contextmanager
def explaining(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode without parameter gradients; modes, ``requires_grad`` and RNG states come
    back in any case.
    """
    modes = [(module, module.training) for module in model.modules()]
    grads = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with torch.random.fork_rng(
        [device] if device.type == "cuda" and torch.cuda.is_available() else []
    ):
        try:
            model.eval()
            for parameter, _ in grads:
                parameter.requires_grad_(False)
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter, flag in grads:
                parameter.requires_grad_(flag)


def parameters_below(model: nn.Module, x: Tensor, layer: str) -> set[str]:
    """Names of the parameters that the feature of ``layer`` at the input ``x [B, ...]`` depends
    on.
    """
    parameters = dict(model.named_parameters())
    with explaining(model, x.device), torch.enable_grad():
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        feature = capture(model, x, [layer])[layer]
        if not feature.requires_grad:
            return set()
        gradients = torch.autograd.grad(feature.sum(), [*parameters.values()], allow_unused=True)
    return {
        name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None
    }


def modules_below(model: nn.Module, x: Tensor, layer: str) -> set[str]:
    """Names of the leaf modules that run, for the input ``x [B, ...]``, up to and including
    ``layer``.
    """
    below: set[str] = set()
    handles = []
    try:
        for name, module in model.named_modules():
            if not any(module.children()):
                handles.append(
                    module.register_forward_pre_hook(lambda _m, _a, name=name: below.add(name))
                )
        with explaining(model, x.device), torch.no_grad():
            capture(model, x, [layer])
    finally:
        for handle in handles:
            handle.remove()
    return below
