"""A network that is being trained: what of it moves, what it is asked for, what is kept of it."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import UninitializedTensorMixin

from kpnb.checkpoints import with_prefix
from kpnb.features import capture, modules_below, parameters_below
from kpnb.losses import TrainingObjective, cross_entropy
from kpnb.schedule import Schedule, optimiser_for

NetworkInput = Tensor | Mapping[str, Tensor]

# prefix in a checkpoint: key in the optimiser's state
OPTIMISER_STATE = {
    "momentum": "momentum_buffer",
    "mean": "exp_avg",
    "square": "exp_avg_sq",
    "step": "step",
}


class Learner:
    """A copy of a network with what its training needs.

    trained    the parameters that move, by name
    resting    modules in which nothing is trained; they stay in evaluation mode
    rows       samples that go through the network at a time
    whole      why a batch must not be split, for a message; empty when it may be
    """

    def __init__(
        self,
        model: nn.Module,
        x: NetworkInput,
        schedule: Schedule,
        objective: TrainingObjective,
        device: str,
        title: str,
    ) -> None:
        self.schedule, self.objective = schedule, objective
        self.device, self.title = device, title
        self.model = private_copy(model).to(device)
        check_state(self.model)
        self.layout = layout_for(self.model, x, objective)
        x = laid_out(x, self.layout)
        self.trained = trained_parameters(self.model, x, objective)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self.trained)
        self.resting = resting_modules(self.model, x, objective)
        self.rows = schedule.batch_size + 1  # of the largest batch, see batches
        self.whole = why_whole(self.model, self.resting, objective)
        self.optimiser = optimiser_for([*self.trained.values()], schedule)
        self.constants: list[dict[str, float]] = [{} for _ in objective.layers]

    def train_mode(self, rate: float) -> None:
        """Training mode, but for what rests; and the learning rate."""
        self.model.train()
        for module in self.resting:
            module.eval()
        self.optimiser.param_groups[0]["lr"] = rate

    def outputs(self, x: NetworkInput) -> dict[str, Tensor]:
        """What the objective looks at, by the name of its layer."""
        kind, bf16 = torch.device(self.device).type, self.schedule.bf16
        # On CPUs PyTorch's fused attention is several times slower in bfloat16 than the products it
        # is made of.
        attention = sdpa_kernel(SDPBackend.MATH) if bf16 and kind == "cpu" else nullcontext()
        with torch.autocast(kind, torch.bfloat16, enabled=bf16), attention:
            found = capture(self.model, laid_out(x, self.layout), self.objective.looks_at)
        return {name: out.float() if bf16 else out for name, out in found.items()}

    def forward(
        self, x: NetworkInput, labels: Tensor, targets: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, tuple[float, float]]]:
        """The objective for a batch, and its scores as numerators and denominators."""
        outputs = self.outputs(x)
        loss = objective_value(self.objective, self.constants, outputs, targets, labels)
        return loss, scores(self.objective, outputs, targets, labels)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, buffers and the optimiser's state: all that the next epoch starts from."""
        found = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.trained.items():
            state = self.optimiser.state[parameter]
            for prefix, key in OPTIMISER_STATE.items():
                if state.get(key) is not None:
                    rounded = self.schedule.bf16 and key != "step"
                    found[f"{prefix}.{name}"] = state[key].bfloat16() if rounded else state[key]
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what ``tensors`` returned."""
        self.model.load_state_dict(with_prefix(tensors, "model."))
        self.optimiser.state.clear()
        for name, parameter in self.trained.items():
            for prefix, key in OPTIMISER_STATE.items():
                value = tensors.get(f"{prefix}.{name}")
                if value is not None:
                    like = parameter.device if key == "step" else parameter
                    self.optimiser.state[parameter][key] = value.to(like, copy=True)

    def parameters(self, zero: bool = False) -> dict[str, Tensor]:
        """Copies of all parameters, or zeros of their shapes."""
        named = self.model.named_parameters()
        return {k: torch.zeros_like(p) if zero else p.detach().clone() for k, p in named}

    def moved_since(self, before: Mapping[str, Tensor]) -> dict[str, float]:
        """Length of every parameter's way from ``before``."""
        return {
            name: torch.linalg.vector_norm(
                (parameter.detach() - before[name]).cpu(), dtype=torch.float64
            ).item()
            for name, parameter in self.model.named_parameters()
        }


def objective_value(
    objective: TrainingObjective,
    constants: Sequence[Mapping[str, float]],
    outputs: Mapping[str, Tensor],
    targets: Sequence[Tensor],
    labels: Tensor,
) -> Tensor:
    """What is minimised for a batch: the loss, summed over its layers, and the labels' part."""
    parts = []
    if objective.loss:
        for layer, target, more in zip(objective.layers, targets, constants, strict=True):
            function = objective.definition.function
            parts.append(function(outputs[layer], target, **objective.parameters, **more))
    if objective.labels:
        parts.append(objective.labels * cross_entropy(outputs[""], labels))
    return torch.stack(parts).sum() if len(parts) > 1 else parts[0]


@torch.no_grad()
def scores(
    objective: TrainingObjective,
    outputs: Mapping[str, Tensor],
    targets: Sequence[Tensor],
    labels: Tensor,
) -> dict[str, tuple[float, float]]:
    """Accuracy, where the objective looks at the network's own output and labels are classes; and
    the feature error ``sum ||f_T - f_S||^2 / sum ||f_T||^2``; as numerator and denominator.
    """
    found = {}
    if "" in outputs and not labels.is_floating_point():
        chosen = outputs[""].argmax(1)
        if chosen.shape == labels.shape:
            right = (chosen == labels).reshape(len(labels), -1).all(1)  # all labels of a sample
            found["accuracy"] = (right.sum().item(), len(labels))
    if objective.loss and objective.definition.same_shape:
        pairs = [(outputs[name], t) for name, t in zip(objective.layers, targets, strict=True)]
        error = sum((ours - theirs).square().sum().item() for ours, theirs in pairs)
        found["feature_error"] = (error, sum(t.square().sum().item() for _, t in pairs))
    return found


def trained_parameters(
    model: nn.Module, x: NetworkInput, objective: TrainingObjective
) -> dict[str, nn.Parameter]:
    """The parameters that the objective depends on, without those that are frozen: by their owner,
    or because they lie below.
    """
    names = set().union(*(parameters_below(model, x, name) for name in objective.looks_at))
    if objective.frozen_up_to is not None:
        names -= parameters_below(model, x, objective.frozen_up_to)
    return {name: p for name, p in model.named_parameters() if name in names and p.requires_grad}


def resting_modules(
    model: nn.Module, x: NetworkInput, objective: TrainingObjective
) -> list[nn.Module]:
    """Modules below the frozen layer, and whole blocks without a trained parameter: some, such as
    attention, look at their own ``training`` flag.
    """
    blocks = []
    for module in model.modules():
        flags = {parameter.requires_grad for parameter in module.parameters()}
        if flags == {False}:
            blocks.append(module)
    if objective.frozen_up_to is None:
        return blocks
    below = modules_below(model, x, objective.frozen_up_to)
    return blocks + [model.get_submodule(name) for name in below]


def layout_for(
    model: nn.Module, x: NetworkInput, objective: TrainingObjective
) -> torch.memory_format:
    """Channels last for images, a quarter faster on CPUs, unless the model (with a ``view``) cannot
    take it.
    """
    if not isinstance(x, Tensor) or x.dim() != 4:
        return torch.contiguous_format
    try:
        for layer in objective.looks_at:
            parameters_below(model, laid_out(x, torch.channels_last), layer)
    except RuntimeError:
        return torch.contiguous_format
    return torch.channels_last


def laid_out(x: NetworkInput, layout: torch.memory_format) -> NetworkInput:
    """``x`` in that memory layout; several inputs stay as they are."""
    return x.contiguous(memory_format=layout) if isinstance(x, Tensor) else x


def batch_norms(model: nn.Module, resting: Sequence[nn.Module]) -> list[nn.Module]:
    """Batch normalisations that use their batch's statistics in training."""
    kind = nn.modules.batchnorm._BatchNorm
    at_rest = {module for block in resting for module in block.modules()}
    return [m for m in model.modules() if isinstance(m, kind) and m not in at_rest]


def why_whole(model: nn.Module, resting: Sequence[nn.Module], objective: TrainingObjective) -> str:
    """Why a batch must go through the network as a whole, for ``fitting``; "" when it need not."""
    if batch_norms(model, resting):
        return ", and batch normalisation needs it whole: choose a smaller batch_size"
    if objective.loss and not objective.definition.per_sample:
        return f", and the loss {objective.loss} needs it whole: choose a smaller batch_size"
    return ""


def private_copy(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with ``model``."""
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise TypeError(
            f"the network {type(model).__name__} cannot be copied ({error}); weight_norm in "
            "its old form is such a case, torch.nn.utils.parametrizations.weight_norm is not"
        ) from error


def check_state(model: nn.Module) -> None:
    """Raise where a network's state cannot be kept as tensors."""
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(parameter, UninitializedTensorMixin):
            raise TypeError(f"{name!r} has no shape yet: run a batch through the network first")
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise TypeError(f"{name!r} of the network's state is of type {kind}, not a tensor")
