"""Other people's models: what cannot be copied or measured is named before anything else."""

import copy

from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def check_module(model: object, what: str = "the model") -> None:
    """Raise ``TypeError`` for what is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{what} is a torch.nn.Module; got {type(model).__name__}")


def check_model(model: object, what: str = "the model") -> None:
    """Raise ``TypeError`` for what is no module, ``ValueError`` for one without shapes or
    values.
    """
    check_module(model, what)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(value):
            raise ValueError(f"{name!r} has no shape yet: run a batch through {what} first")
        if value.is_meta:
            raise ValueError(
                f"{name!r} is on the meta device, which keeps shapes and no values: build {what} "
                "outside of torch.device('meta'), or model.to_empty(device='cpu') and load its "
                "weights"
            )


def private_copy(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with ``model``, on the same device.

    Also where a module keeps results of its last pass, as the old form of ``weight_norm`` does:
    PyTorch copies leaves of a graph only. Raises ``TypeError`` for a model that cannot be copied.
    """
    derived = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    try:
        return copy.deepcopy(model, {id(value): value.detach().clone() for value in derived})
    except Exception as error:  # copying runs the model's own code, which may raise anything
        raise TypeError(f"{type(model).__name__} cannot be copied: {error}") from error


def quantised_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that compute with PyTorch's quantised numbers, which have no derivative, by name."""
    found = {}
    for name, module in model.named_modules():
        home = type(module).__module__
        if home.startswith("torch.") and ".quantized" in home and ".reference" not in home:
            found[name] = module
    return found
