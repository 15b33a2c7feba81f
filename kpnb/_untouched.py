"""A network is measured as it is, and left as it was found."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def uncompiled() -> Any:
    """Context in which ``torch.compile``d code runs as it was written, so that hooks are called."""
    compiles = "torch._dynamo" in sys.modules  # else nothing was compiled; importing it takes long
    return torch.compiler.set_stance("force_eager") if compiles else nullcontext()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, out of which modules with a ``train`` of their own are called: that undoes
    what they have done to go there. (Only these, since ``train`` gives all parts one mode.)
    """
    switching = [(module, module.training) for module in model.modules() if _switches(module)]
    try:
        model.eval()
        yield
    finally:
        for module, mode in switching:
            module.train(mode)


@contextmanager
def explaining(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode without parameter gradients; modes, ``requires_grad``, buffers and RNG states
    come back in any case. So does what modules with a ``train`` of their own do there, such as
    layers that merge their weights for evaluation.

    PyTorch's fast path of attention is off: it runs without a graph only, and puts zeros where a
    sample is padded, so that passes with and without a graph would not be of one function.
    Recurrent layers stay in training mode, without dropout, which is the same function: cuDNN has
    no derivative of them in evaluation mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    recurrent = [(one, one.dropout) for one in model.modules() if isinstance(one, nn.RNNBase)]
    grads = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    kept = [
        (module, name, tensor, tensor.detach().clone())
        for module in model.modules()
        for name, tensor in _changing(module)
    ]
    gpus = [device] if device.type == "cuda" and torch.cuda.is_available() else []
    fast = torch.backends.mha.get_fastpath_enabled()
    with torch.inference_mode(False), torch.random.fork_rng(gpus), uncompiled():
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            with _evaluating(model):
                for layer, _ in recurrent:
                    layer.training, layer.dropout = True, 0.0
                for parameter, _ in grads:
                    parameter.requires_grad_(False)
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for module, mode in modes:
                module.training = mode
            for layer, dropout in recurrent:
                layer.dropout = dropout
            for parameter, flag in grads:
                parameter.requires_grad_(flag)
            for module, name, tensor, before in kept:
                _restore(module, name, tensor, before)


def _switches(module: nn.Module) -> bool:
    """Whether ``train`` and ``eval`` may do more to a module than to set its mode."""
    return getattr(module.train, "__func__", None) is not nn.Module.train


def _changing(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What of a module's own an evaluation may change: buffers, since a forward pass may count its
    calls or go on with running statistics, and parameters that it merges and takes apart again,
    which rounding would move.
    """
    yield from module.named_buffers(recurse=False)
    if _switches(module):
        yield from module.named_parameters(recurse=False)


def _restore(module: nn.Module, name: str, tensor: Tensor, before: Tensor) -> None:
    """Give a module its buffer or parameter ``tensor`` back, with the values ``before``."""
    if getattr(module, name) is not tensor:
        setattr(module, name, tensor)
    if not torch.equal(tensor, before):
        with torch.no_grad():
            tensor.copy_(before)
