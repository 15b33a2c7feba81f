"""What a network minimises while it is trained: one small function a loss.

A distillation loss compares what student and teacher put out for the same samples, at a pair of
layers or at their ends. A new one is a function ``(student, teacher, **parameters) -> scalar`` and
one line in ``LOSSES``. ``TrainingObjective`` says which loss, at which layers, and how much the
labels count besides.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from kpnb._messages import one_of, positive, unknown

SCALES = ("energy", "sum", "mean")


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the labels, in nats, mean over the batch.

    logits ``[B, K]``, labels ``[B]``; or ``[B, K, n]`` and ``[B, n]`` for n labels a sample, such
    as both ends of an answer.
    """
    return F.cross_entropy(logits, labels)


def feature(student: Tensor, teacher: Tensor, scale: str = "energy", energy: float = 1.0) -> Tensor:
    """Feature distillation: mean over the batch of ``||f_T(x) - f_S(x)||^2``, both ``[B, ...]``.

    Section 4.1 of the paper, "Distillation". ``scale`` says what it is divided by: "sum" is the
    paper's formula as printed, divided by 1. "energy" divides by ``energy``, the mean of
    ``||f_T||^2`` over the training set: a constant that the learning rate absorbs, so that one rate
    serves layers of every width (a student whose feature is 0 has the loss 1). "mean" divides by
    the number of the feature's elements, as the 2020 release does.
    """
    one_of("scale", scale, SCALES)
    divisor = {"energy": energy, "sum": 1.0, "mean": student[0].numel()}[scale]
    return (student - teacher).square().sum() / len(student) / divisor


def soft_targets(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Output distillation: mean over the batch of ``T^2 KL(softmax(z_T / T) || softmax(z_S / T))``.

    Hinton, Vinyals and Dean 2015, section 2; logits ``[B, K]``, T the ``temperature``, nats.
    """
    positive(temperature=temperature)
    ours = F.log_softmax(student / temperature, 1)
    theirs = F.log_softmax(teacher / temperature, 1)
    divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def mean_energy(targets: Tensor) -> dict[str, float]:
    """The constant ``energy`` of ``feature``, from the teacher's features ``[N, ...]`` of all
    samples; 1 where they are 0.
    """
    sizes = targets.flatten(1).square().sum(1)
    return {"energy": sizes.double().mean().item() or 1.0}


@dataclass(frozen=True)
class Loss:
    """An entry of ``LOSSES``.

    function    ``(student [B, ...], teacher [B, ...], **parameters) -> scalar``
    constants   from the teacher's targets of all training samples to further arguments of function
    same_shape  it needs outputs of one shape
    per_sample  it is a mean over samples, so that a batch may go through the network in parts
    """

    function: Callable[..., Tensor]
    constants: Callable[[Tensor], dict[str, float]] | None = None
    same_shape: bool = True
    per_sample: bool = True

    def parameters(self) -> list[str]:
        """Names of what one can choose: what follows student and teacher."""
        return list(inspect.signature(self.function).parameters)[2:]


LOSSES: dict[str, Loss] = {
    "feature": Loss(feature, constants=mean_energy),
    "soft_targets": Loss(soft_targets),
}


@dataclass(frozen=True)
class TrainingObjective:
    """What is minimised: ``loss`` at ``layers`` plus ``labels`` times the cross-entropy of the
    labels.

    loss            a name in ``LOSSES``, or None: the labels alone
    layers          dotted names of the student's layers, "" being its own output; the loss is
                    summed over them
    teacher_layers  the teacher's, in the same order; None: the same names
    parameters      of the loss's function
    labels          weight of the labels' cross-entropy; at 0 what lies above the last layer is not
                    trained
    frozen_up_to    what lies up to this layer is frozen: no gradient, no decay, evaluation mode, so
                    that its features keep their bits; None freezes nothing

    Raises ``ValueError`` for unknown names, for lists of layers that do not match, and when nothing
    is left to minimise.
    """

    loss: str | None = None
    layers: tuple[str, ...] = ("",)
    teacher_layers: tuple[str, ...] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    labels: float = 0.0
    frozen_up_to: str | None = None

    def __post_init__(self) -> None:
        positive(True, labels=self.labels)
        if self.loss is None:
            if not self.labels:
                raise ValueError("nothing to minimise: name a loss, or give labels a weight")
            return
        one_of("loss", self.loss, LOSSES)
        for name in self.parameters:
            if name not in self.definition.parameters():
                raise ValueError(
                    unknown(f"parameter of {self.loss}", name, self.definition.parameters())
                )
        if not self.layers or len(self.layers) != len(self.theirs):
            raise ValueError(
                f"layers {list(self.layers)} and teacher_layers {list(self.theirs)} must be pairs"
            )

    @property
    def definition(self) -> Loss | None:
        """What ``LOSSES`` says of the loss."""
        return None if self.loss is None else LOSSES[self.loss]

    @property
    def theirs(self) -> tuple[str, ...]:
        """The teacher's layers."""
        return self.layers if self.teacher_layers is None else self.teacher_layers

    @property
    def looks_at(self) -> list[str]:
        """The student's layers whose outputs the objective depends on."""
        ends = [""] if self.labels else []
        return list(dict.fromkeys([*(self.layers if self.loss else ()), *ends]))

    def constants(self, targets: Sequence[Tensor]) -> list[dict[str, float]]:
        """The loss's constants for each layer, from the teacher's ``targets [N, ...]`` there."""
        if self.loss is None or self.definition.constants is None:
            return [{} for _ in targets]
        return [self.definition.constants(of_layer) for of_layer in targets]

    @property
    def config(self) -> dict[str, Any]:
        """The objective in JSON's types."""
        distillation = {
            "loss": self.loss,
            "layers": list(self.layers),
            "teacher_layers": list(self.theirs),
            "parameters": dict(self.parameters),
        }
        rest = {"labels": self.labels, "frozen_up_to": self.frozen_up_to}
        return rest if self.loss is None else distillation | rest


def labels_only(frozen_up_to: str | None = None) -> TrainingObjective:
    """Cross-entropy of the labels: a baseline, or a head when what lies below is frozen."""
    return TrainingObjective(labels=1.0, frozen_up_to=frozen_up_to)


def feature_at(
    layer: str, teacher_layer: str | None = None, scale: str = "energy"
) -> TrainingObjective:
    """The paper's distillation, ``feature`` at one layer and nothing else."""
    one_of("scale", scale, SCALES)
    theirs = None if teacher_layer is None else (teacher_layer,)
    return TrainingObjective("feature", (layer,), theirs, {"scale": scale})


def softened_output(temperature: float = 4.0) -> TrainingObjective:
    """``soft_targets`` at the networks' ends and nothing else."""
    positive(temperature=temperature)
    return TrainingObjective("soft_targets", parameters={"temperature": temperature})
