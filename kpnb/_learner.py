"""A network that is being trained: what of it moves, what it is asked for, what is kept of it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from kpnb._messages import named_samples
from kpnb._models import private_copy
from kpnb._precision import at_least_single, widest
from kpnb._tensors import described
from kpnb._untouched import explaining
from kpnb.checkpoints import HELPER, digest, with_prefix
from kpnb.features import (
    Key,
    call,
    capture,
    check_runs,
    count_runs,
    depended_on,
    device_of,
    differentiable,
    parameters_below,
)
from kpnb.losses import IGNORED, TrainingObjective, cross_entropy
from kpnb.schedule import Schedule, optimiser_for

NetworkInput = Tensor | Mapping[str, Tensor]
Select = Key | Mapping[str, Key] | None

# prefix in a checkpoint: key in the optimiser's state
OPTIMISER_STATE = {
    "momentum": "momentum_buffer",
    "mean": "exp_avg",
    "square": "exp_avg_sq",
    "step": "step",
}


class Learner:
    """A copy of a network with what its training needs.

    trained    the network's parameters that move, by name
    helpers    what the loss trains besides, for each of its layers, see ``losses.Loss``
    resting    modules in which nothing is trained; they stay in evaluation mode
    select     which part of a layer's output is looked at, see ``_outputs.picked``
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
        *,
        select: Select = None,
    ) -> None:
        self.schedule = schedule
        self.objective = objective
        self.device = device
        self.title = title
        self.select = select
        self.model = private_copy(model).to(device)
        check_state(self.model)
        frozen = [] if objective.frozen_up_to is None else [objective.frozen_up_to]
        check_runs(self.model, x, [*objective.looks_at, *frozen], select)
        self.layout = layout_for(self.model, x, objective, select)
        x = laid_out(x, self.layout)
        self.trained = trained_parameters(self.model, x, objective, select)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self.trained)
        self.resting = resting_modules(self.model, x, objective, select)
        self.rows = schedule.batch_size + 1  # of the largest batch, see batches
        self.whole = why_whole(self.model, self.resting, objective)
        self.constants: list[dict[str, float]] = [{} for _ in objective.layers]
        self.labels_checked = False  # of all samples; they are the same at every call
        self.train_with(nn.ModuleList())

    def add_helpers(self, outputs: Mapping[str, Tensor], targets: Sequence[Tensor]) -> None:
        """Make the loss's helpers, if it has any, for the shapes of these outputs and targets."""
        loss = self.objective.definition
        if loss is not None and loss.helper is not None:
            self.train_with(self.objective.helpers(outputs, targets))

    def train_with(self, helpers: nn.ModuleList) -> None:
        """Let the optimiser move ``helpers`` too."""
        self.helpers = helpers
        self.whole = self.whole or why_whole(helpers, [], self.objective)
        besides = {f"{HELPER}{name}": p for name, p in helpers.named_parameters()}
        self.moving = self.trained | besides
        self.optimiser = optimiser_for([*self.moving.values()], self.schedule)

    def train_mode(self, rate: float) -> None:
        """Training mode, but for what rests; and the learning rate."""
        self.model.train()
        self.helpers.train()
        for module in self.resting:
            module.eval()
        self.optimiser.param_groups[0]["lr"] = rate

    def eval_mode(self) -> None:
        """Evaluation mode."""
        self.model.eval()
        self.helpers.eval()

    def outputs(self, x: NetworkInput) -> dict[str, Tensor]:
        """What the objective looks at, by the name of its layer."""
        kind = torch.device(self.device).type
        bf16 = self.schedule.bf16
        attention = plain_attention() if bf16 and kind == "cpu" else nullcontext()
        with torch.autocast(kind, torch.bfloat16, enabled=bf16), attention:
            x = laid_out(x, self.layout)
            found = capture(self.model, x, self.objective.looks_at, select=self.select)
        # losses and scores in float32: a sum over a feature loses too much in bfloat16
        return {name: out.float() if bf16 else out for name, out in found.items()}

    def forward(
        self,
        x: NetworkInput,
        labels: Tensor,
        targets: Sequence[Tensor],
        labelled: Tensor | float = 1.0,
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The objective for a batch, and its scores as numerators and denominators, all of them on
        the device.

        ``labelled`` weighs the labels' part: by it the parts of a larger batch add up to the mean
        over all labels there, where some are ignored.
        """
        outputs = self.outputs(x)
        if self.objective.labels:
            check_labels(outputs[""], labels, classes=not self.labels_checked)
        loss = self.objective_value(outputs, targets, labels, labelled)
        return loss, scores(self.objective, outputs, targets, labels)

    def objective_value(
        self,
        outputs: Mapping[str, Tensor],
        targets: Sequence[Tensor],
        labels: Tensor,
        labelled: Tensor | float = 1.0,
    ) -> Tensor:
        """What is minimised for a batch: the loss, summed over its layers, and the labels' part."""
        objective = self.objective
        parts = []
        for i, target in enumerate(targets):
            pair = (outputs[objective.layers[i]], target)
            if self.helpers:
                pair = self.helpers[i](*pair)
            known = {**objective.parameters, **self.constants[i]}
            value = objective.definition.value(*pair, labels, known)
            check_loss_value(value, objective.loss, pair[0].requires_grad)
            parts.append(objective.loss_weight * value)
        if objective.labels:
            value = cross_entropy(outputs[""], labels)
            weight = torch.as_tensor(objective.labels * labelled, device=value.device)
            parts.append(weight.to(value.dtype) * value)
        return torch.stack(parts).sum() if len(parts) > 1 else parts[0]

    def tensors(self) -> dict[str, Tensor]:
        """Weights, buffers, helpers and the optimiser's state: all that the next epoch starts
        from.
        """
        found = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        found |= {f"{HELPER}{name}": value for name, value in self.helpers.state_dict().items()}
        for name, parameter in self.moving.items():
            state = self.optimiser.state[parameter]
            for prefix, key in OPTIMISER_STATE.items():
                if state.get(key) is not None:
                    # half the size on disk; the steps, a count, would not survive the rounding
                    rounded = self.schedule.bf16 and key != "step"
                    found[f"{prefix}.{name}"] = state[key].bfloat16() if rounded else state[key]
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what ``tensors`` returned."""
        self.model.load_state_dict(with_prefix(tensors, "model."))
        self.helpers.load_state_dict(with_prefix(tensors, HELPER))
        self.optimiser.state.clear()
        for name, parameter in self.moving.items():
            for prefix, key in OPTIMISER_STATE.items():
                value = tensors.get(f"{prefix}.{name}")
                if value is not None:
                    # Adam counts its steps in float32 whatever the parameter's type is
                    like = parameter.device if key == "step" else parameter
                    self.optimiser.state[parameter][key] = value.to(like, copy=True)

    def parameters(self) -> dict[str, Tensor]:
        """Copies of all parameters."""
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}


def check_loss_value(value: Any, loss: str, learns: bool) -> None:
    """``TypeError`` unless a loss gave a tensor of one number, through which the student's output
    can be differentiated where it ``learns``.
    """
    if not isinstance(value, Tensor) or value.dim():
        got = described(value) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"the loss {loss!r} is to give a tensor of one number, a mean; got {got}")
    if learns and torch.is_grad_enabled() and not value.requires_grad:
        raise TypeError(
            f"the loss {loss!r} does not depend on the student's output, or detaches it: nothing "
            "would be learned"
        )


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention as the products it is made of: on CPUs PyTorch's fused form is several times slower
    in bfloat16, and its fast path for evaluation mixes it with single precision.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def batches(order: Tensor, size: int) -> list[Tensor]:
    """``order [N]`` in batches of ``size``; a single last sample joins the batch before it."""
    found = list(order.split(size))
    if len(found) > 1 and len(found[-1]) == 1 < size:
        found[-2:] = [torch.cat(found[-2:])]
    return found


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Random numbers that depend on ``key`` alone; the caller's generators are left as they
    were.
    """
    with torch.random.fork_rng(list(range(torch.cuda.device_count()))):
        torch.manual_seed(int(digest(list(key))[:15], 16))
        yield


def check_labels(logits: Tensor, labels: Tensor, classes: bool = True) -> None:
    """Raise ``ValueError`` unless the cross-entropy of ``labels`` is defined: see
    ``losses.cross_entropy``. Whether the network has their ``classes`` takes a look at the numbers,
    for which a card has to be waited for.
    """
    if logits.dim() < 2 or not logits.is_floating_point():
        raise ValueError(
            f"cross-entropy needs logits [B, K] of {len(labels)} samples; the network's own output "
            f"is {described(logits)}"
        )
    if logits.shape[1] < 2:
        raise ValueError(
            f"the cross-entropy of a single logit, {described(logits)}, is 0 whatever it is: give "
            "the network one output for each class, two for yes and no"
        )
    if labels.is_floating_point() and labels.shape == logits.shape:
        if classes:
            check_probabilities(labels)
        return
    wanted = (*logits.shape[:1], *logits.shape[2:])
    if labels.is_floating_point() or labels.shape != wanted:
        raise ValueError(
            f"labels are class numbers, integers {list(wanted)}; got {described(labels)} for "
            f"logits {list(logits.shape)}"
        )
    if classes:
        check_classes(labels, logits.shape[1])


def check_probabilities(labels: Tensor) -> None:
    """Raise ``ValueError`` unless ``labels [B, K, ...]`` are probabilities of K classes."""
    sums = labels.double().sum(1)
    if labels.min() < 0 or not torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
        raise ValueError(
            "labels that are no integers are the probabilities of all classes, which sum to 1; got "
            f"numbers from {labels.min():.3g} to {labels.max():.3g}, sums from {sums.min():.3g} to "
            f"{sums.max():.3g}"
        )


def check_finite(x: NetworkInput, numbers: Tensor) -> None:
    """Raise ``ValueError`` naming the samples of ``x`` that are not finite; ``numbers [B]`` are
    their positions in the data.
    """
    for values in [x] if isinstance(x, Tensor) else x.values():
        if values.is_floating_point() and len(values) == len(numbers):
            bad = ~values.flatten(1).isfinite().all(1).cpu()
            if bad.any():
                where = torch.zeros(int(numbers.max()) + 1, dtype=torch.bool)
                where[numbers[bad]] = True
                raise ValueError(f"inputs are not finite (NaN or infinite): {named_samples(where)}")


def check_classes(labels: Tensor, classes: int) -> None:
    """Raise ``ValueError`` for integer ``labels`` beyond the network's ``classes``."""
    known = labels[labels != IGNORED]
    if known.is_floating_point():
        return
    if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < classes:
        raise ValueError(
            f"labels from {int(known.min())} to {int(known.max())}, but the network has {classes} "
            f"outputs, for the classes 0 to {classes - 1}"
        )


@torch.no_grad()
def scores(
    objective: TrainingObjective,
    outputs: Mapping[str, Tensor],
    targets: Sequence[Tensor],
    labels: Tensor,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Accuracy, where the objective looks at the network's own output and labels are classes; and
    the feature error ``sum ||f_T - f_S||^2 / sum ||f_T||^2``; as numerator and denominator.
    """
    found = {}
    if "" in outputs and not labels.is_floating_point():
        chosen = outputs[""].argmax(1)
        if chosen.shape == labels.shape:
            known = (labels != IGNORED).reshape(len(labels), -1)
            right = (chosen == labels).reshape(len(labels), -1) | ~known
            counted = known.any(1)
            right = right.all(1) & counted  # all labels of a sample
            found["accuracy"] = (right.sum(), counted.sum())
    if objective.loss and objective.definition.same_shape:
        pairs = [(outputs[name], t) for name, t in zip(objective.layers, targets, strict=True)]
        errors = [widest(at_least_single(ours - theirs).square().sum()) for ours, theirs in pairs]
        sizes = [widest(at_least_single(t).square().sum()) for _, t in pairs]
        found["feature_error"] = (sum(errors), sum(sizes))
    return found


def trained_parameters(
    model: nn.Module, x: NetworkInput, objective: TrainingObjective, select: Select
) -> dict[str, nn.Parameter]:
    """The parameters that the objective depends on, without those that are frozen: by their owner,
    or because they lie below.

    The few samples ``x`` need not reach all of them: a router may send them to one expert of many.
    So where labels count, and nothing is frozen, every parameter may learn, and where they do not,
    every one but those that lie above the layers.
    """
    below = partial(parameters_below, model, x, select=select)
    names = set().union(*(below(layer=name) for name in objective.looks_at))
    if objective.frozen_up_to is not None:
        names -= below(layer=objective.frozen_up_to)
    elif objective.labels:
        names = {*dict(model.named_parameters())}
    else:
        names |= {*dict(model.named_parameters())} - parameters_of_output(model, x)
    return {name: p for name, p in model.named_parameters() if name in names and p.requires_grad}


def parameters_of_output(model: nn.Module, x: NetworkInput) -> set[str]:
    """Names of the parameters that anything depends on that the network puts out at ``x``; of all
    where it cannot be run to its end.
    """
    parameters = differentiable(model)
    with explaining(model, device_of(model)), torch.enable_grad():
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        try:
            found = tree_leaves(call(model, x))
        except Exception:  # whatever a forward pass raises that was never needed to its end
            return {*parameters}
        return depended_on([each for each in found if isinstance(each, Tensor)], parameters)


def resting_modules(
    model: nn.Module, x: NetworkInput, objective: TrainingObjective, select: Select
) -> list[nn.Module]:
    """Modules below the frozen layer, and whole blocks without a trained parameter: some, such as
    attention, look at their own ``training`` flag.

    A module that ran before that layer need not lie below it: a branch beside it may be trained.
    Raises ``ValueError`` for a dropout that runs on both sides of it.
    """
    blocks = []
    for module in model.modules():
        flags = {parameter.requires_grad for parameter in module.parameters()}
        if flags == {False}:
            blocks.append(module)
    if objective.frozen_up_to is None:
        return blocks
    frozen = objective.frozen_up_to
    before, total = (count_runs(model, x, layer, select) for layer in (frozen, ""))
    for name in before:
        module = model.get_submodule(name)
        is_dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        if is_dropout and total[name] > before[name]:
            raise ValueError(
                f"the dropout {name!r} runs below {frozen!r}, where it has to rest, and above, "
                "where it has not: make two modules of it"
            )
    ran = [model.get_submodule(name) for name in before]
    return blocks + [m for m in ran if not any(p.requires_grad for p in m.parameters())]


def layout_for(
    model: nn.Module, x: NetworkInput, objective: TrainingObjective, select: Select
) -> torch.memory_format:
    """Channels last for images, a quarter faster on CPUs, unless the model (with a ``view``) cannot
    take it.
    """
    if not isinstance(x, Tensor) or x.dim() != 4:
        return torch.contiguous_format
    try:
        for layer in objective.looks_at:
            parameters_below(model, laid_out(x, torch.channels_last), layer, select)
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


def check_state(model: nn.Module) -> None:
    """Raise where a network's state cannot be kept as tensors."""
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise TypeError(f"{name!r} of the network's state is of type {kind}, not a tensor")
        if value.dtype == torch.complex128:
            raise TypeError(f"{name!r} is of complex128, which no file keeps: use complex64")
