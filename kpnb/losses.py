"""What a network minimises while it is trained: one small function a loss.

A distillation loss compares what student and teacher put out for the same samples, at a pair of
layers or at their ends. A new one is a function ``(student, teacher, **parameters) -> scalar`` and
one line in ``LOSSES``. ``TrainingObjective`` says which loss, at which layers, and how much it and
the labels count.

``f_S`` and ``f_T`` are the outputs of student and teacher, ``z_S`` and ``z_T`` their logits; i, j
and k are samples of one batch of B, whose outputs are compared as vectors.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kpnb._messages import not_negative, one_of, plain_numbers, positive, unknown
from kpnb._precision import at_least_single

SCALES = ("energy", "sum", "mean")

IGNORED = -100  # the label that PyTorch's cross-entropy leaves out


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the labels, in nats, mean over those that are not ``IGNORED``.

    logits ``[B, K]``, labels ``[B]``; or ``[B, K, n]`` and ``[B, n]`` for n labels a sample, such
    as both ends of an answer; or labels of the logits' shape, probabilities of the K classes. 0
    where all labels are ignored, of which the mean over none would be NaN.
    """
    if labels.is_floating_point():
        return F.cross_entropy(logits, labels)
    total = F.cross_entropy(logits, labels, reduction="sum")
    return total / known_labels(labels).clamp(min=1)


def known_labels(labels: Tensor) -> Tensor:
    """How many labels are not ignored, on their device."""
    return (labels != IGNORED).sum()


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


def soft_targets(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, labels: Tensor | None = None
) -> Tensor:
    """Output distillation: mean over the batch of ``T^2 KL(softmax(z_T / T) || softmax(z_S / T))``.

    Hinton, Vinyals and Dean 2015, section 2; logits ``[B, K]``, T the ``temperature``, nats. Of
    several labels a sample, ``[B, n]``, the logits are ``[B, K, n]``, and the sum over n is taken;
    the ``labels`` are looked at for their shape alone.
    """
    positive(temperature=temperature)
    check_logits(student, labels)
    ours = F.log_softmax(student / temperature, 1)
    theirs = F.log_softmax(teacher / temperature, 1)
    divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def check_logits(logits: Tensor, labels: Tensor | None) -> None:
    """Raise ``ValueError`` unless the second dimension is that of at least two classes, as the
    ``labels`` of several a sample show.
    """
    shape = list(logits.shape)
    if logits.dim() < 2 or shape[1] < 2:
        raise ValueError(f"softened outputs need logits [B, K] of two classes or more; got {shape}")
    if logits.dim() > 2 and labels is not None and list(labels.shape) != [shape[0], *shape[2:]]:
        raise ValueError(
            f"logits of several labels a sample are [B, K, n], the classes second; got {shape} "
            f"for labels {list(labels.shape)}: let the network put out its classes there "
            "(transpose(1, 2))"
        )


# ------------------------------------------------------------------------- losses of each sample


def hints(student: Tensor, teacher: Tensor, scale: str = "sum", energy: float = 1.0) -> Tensor:
    """FitNets' hints: mean over the batch of ``1/2 ||f_T(x) - r(f_S(x))||^2``.

    Romero et al. 2014, Eq. 3. ``student`` is what the trained ``Regressor`` r has made of the
    student's output. ``scale`` and ``energy`` as in ``feature``; the paper's is "sum".
    """
    return feature(student, teacher, scale, energy) / 2


def attention_transfer(student: Tensor, teacher: Tensor, power: float = 2.0) -> Tensor:
    """Attention transfer: mean over the batch and places of ``(q_S - q_T)^2``, where ``q = Q /
    ||Q||`` and ``Q = sum_c |f_c|^power`` is the attention to each place, over the channels c.

    Zagoruyko and Komodakis 2017, Eq. 2, activation-based, squared and averaged as in their code.
    Outputs ``[B, channels, places...]``; the numbers of channels may differ.
    """
    if not power >= 1:
        raise ValueError(f"power = {power}: below 1 it has no derivative where a feature is 0")
    if student.dim() < 3 or student.shape[2:] != teacher.shape[2:]:
        raise ValueError(
            f"attention is compared place by place: the student's {list(student.shape[1:])} and "
            f"the teacher's {list(teacher.shape[1:])} must be channels at the same places"
        )
    ours = student.abs().pow(power).sum(1).flatten(1)
    theirs = teacher.abs().pow(power).sum(1).flatten(1)
    return (unit(ours) - unit(theirs)).square().mean()


def decoupled(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Decoupled distillation: mean over the batch of ``T^2 (alpha TCKD + beta NCKD)``, in nats.

    Zhao et al. 2022, section 3. TCKD is ``KL(b_T || b_S)`` of the two probabilities b "the labelled
    class" and "another", NCKD the divergence of the probabilities among the others. With alpha = 1
    and, in place of beta, the teacher's probability of another class it is ``soft_targets``.
    Logits ``[B, K]``, labels ``[B]``, T the ``temperature``.
    """
    positive(temperature=temperature)
    not_negative(alpha=alpha, beta=beta)
    if student.dim() != 2 or labels.shape != student.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"decoupled distillation needs logits [B, K] and one class for each sample: got "
            f"{list(student.shape)} and labels {list(labels.shape)} of {labels.dtype}"
        )
    check_every_label(labels, student.shape[1])
    chosen = F.one_hot(labels, student.shape[1]).bool()
    ours = target_and_others(student / temperature, chosen)
    theirs = target_and_others(teacher / temperature, chosen)
    target = F.kl_div(ours[0], theirs[0], reduction="batchmean", log_target=True)
    others = F.kl_div(ours[1], theirs[1], reduction="batchmean", log_target=True)
    return temperature**2 * (alpha * target + beta * others)


def check_every_label(labels: Tensor, classes: int) -> None:
    """Raise ``ValueError`` unless each of the ``labels`` is one of the ``classes``: none may be
    ignored. What are no integers the loss itself refuses.
    """
    if labels.is_floating_point():
        return
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"decoupled distillation needs labels from 0 to {classes - 1}, as there are logits: "
            f"got {int(labels.min())} to {int(labels.max())}"
        )


def target_and_others(logits: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the ``chosen [B, K]`` class and of all others together, ``[B, 2]``; and
    of each other class if it is one of them, ``[B, K - 1]``.
    """
    others = logits[~chosen].view(len(logits), -1)
    pair = torch.stack([logits[chosen], others.logsumexp(1)], 1)
    return pair.log_softmax(1), others.log_softmax(1)


# ------------------------------------------------- losses of relations between a batch's samples


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity-preserving distillation: ``||G_T - G_S||_F^2 / B^2``, where row i of G holds the
    products ``<f_i, f_j>`` with all j, divided by their norm.

    Tung and Mori 2019, section 3. Outputs ``[B, ...]`` of any shapes.
    """
    ours = student.flatten(1)
    theirs = teacher.flatten(1)
    return (unit(theirs @ theirs.T) - unit(ours @ ours.T)).square().mean()


def relational(
    student: Tensor, teacher: Tensor, distance: float = 25.0, angle: float = 50.0
) -> Tensor:
    """Relational distillation: ``distance`` times the mean over pairs of ``h(d_S - d_T)`` plus
    ``angle`` times the mean over triples of ``h(a_S - a_T)``, h being Huber's loss.

    Park et al. 2019, section 3; the weights are those of its classification. ``d = ||f_i - f_j||``
    over its mean in the batch; a is the cosine of the angle at j between i and k. The samples of a
    pair or triple are different ones. Outputs ``[B, ...]`` of any shapes.
    """
    not_negative(distance=distance, angle=angle)
    ours = student.flatten(1)
    theirs = teacher.flatten(1)
    pairs = mean_huber(relative_distances(ours), relative_distances(theirs))
    triples = mean_huber(angles(ours), angles(theirs))
    return distance * pairs + angle * triples


def mean_huber(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean of Huber's loss with the threshold 1; 0 of nothing, such as triples of two samples."""
    return F.smooth_l1_loss(ours, theirs, reduction="sum") / max(len(ours), 1)


def relative_distances(f: Tensor) -> Tensor:
    """Distances of all pairs of rows of ``f [B, d]``, over their mean."""
    found = F.pdist(f)
    mean = found.mean()
    return found / mean.masked_fill(mean == 0, 1.0)


def angles(f: Tensor) -> Tensor:
    """Cosine of the angle at row j of ``f [B, d]`` between rows i and k, for all different i, j, k.

    From products of rows: the differences of all pairs, ``[B, B, d]``, would fill the memory where
    a layer is wide. Where two rows are equal, but for rounding, there is no angle, and the cosine
    is 0.
    """
    centred = f - f.mean(0)  # the rounding errors of products grow with their size
    products = centred @ centred.T
    lengths = torch.cdist(f, f, compute_mode="donot_use_mm_for_euclid_dist")
    lengths = lengths.masked_fill(lengths == 0, 1.0)
    # [j, i, k]: <f_i - f_j, f_k - f_j>
    inner = products - products[:, :, None] - products[:, None, :]
    inner = inner + products.diagonal()[:, None, None]
    cosines = inner / (lengths[:, :, None] * lengths[:, None, :])
    cosines = cosines.masked_fill(cosines.abs() > 1.01, 0.0)  # the products have cancelled
    same = torch.eye(len(f), dtype=torch.bool, device=f.device)
    return cosines[~(same | same[:, :, None] | same[:, None, :])]


def probabilistic_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Probabilistic knowledge transfer: mean over i of ``KL(p_T(j|i) || p_S(j|i))``, in nats.

    Passalis and Tefas 2018, section 3, with the cosine kernel: ``p(j|i)`` is ``(cos(f_i, f_j) +
    1) / 2`` over its sum over all j but i. Outputs ``[B, ...]`` of any shapes.
    """
    ours = neighbours(student.flatten(1))
    theirs = neighbours(teacher.flatten(1))
    return (theirs * (theirs.log() - ours.log())).sum(1).mean()


def neighbours(f: Tensor) -> Tensor:
    """``p(j|i)`` of ``probabilistic_transfer``, ``[B, B - 1]``, for the rows of ``f [B, d]``."""
    direction = unit(f)
    kernel = (direction @ direction.T + 1) / 2
    others = ~torch.eye(len(f), dtype=torch.bool, device=f.device)
    kernel = kernel[others].view(len(f), -1).clamp_min(1e-7)  # whose logarithm is finite
    return kernel / kernel.sum(1, keepdim=True)


def contrastive_in_batch(student: Tensor, teacher: Tensor, temperature: float = 0.07) -> Tensor:
    """Contrastive distillation within a batch: mean over i of ``-log(e_ii / sum_j e_ij) - log(e_ii
    / sum_j e_ji)``, in nats, ``e_ij = exp(<s_i, t_j> / temperature)``.

    Tian et al. 2020 with the batch for its memory: every sample has the other B - 1 as negatives,
    not 16384 from a bank of all samples, and the softmax over them (InfoNCE, van den Oord et al.
    2018) takes the place of a binary decision for each. ``s`` and ``t`` are the embeddings ``[B,
    dimension]`` that the trained ``Projections`` make of both outputs.
    """
    positive(temperature=temperature)
    scores = student @ teacher.T / temperature
    own = torch.arange(len(scores), device=scores.device)
    return F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)


def unit(x: Tensor) -> Tensor:
    """The rows of ``x [B, d]`` at length 1. A row of zeros stays, with a finite gradient."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / length.masked_fill(length == 0, 1.0)


# ---------------------------------------- what is trained besides the student, and known beforehand


class Regressor(nn.Module):
    """FitNets' r, from an output of the student to the shape of the teacher's.

    Romero et al. 2014, section 2.2. The identity where the shapes are equal; a linear map of the
    last dimension where only that differs; otherwise, for ``[B, channels, places...]``, a
    convolution without padding, whose kernel is as large as the places are to shrink. Raises
    ``ValueError`` where the teacher's has more places.
    """

    def __init__(self, student: Tensor, teacher: Tensor) -> None:
        super().__init__()
        self.map = regression(list(student.shape[1:]), list(teacher.shape[1:]))

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The pair to compare."""
        return self.map(student), teacher


def regression(ours: list[int], theirs: list[int]) -> nn.Module:
    """A trainable map from a sample's shape ``ours`` to ``theirs``, see ``Regressor``."""
    if ours == theirs:
        return nn.Identity()
    if ours and len(ours) == len(theirs) and ours[:-1] == theirs[:-1]:
        return nn.Linear(ours[-1], theirs[-1])
    convolution = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}.get(len(ours))
    kernel = [a - b + 1 for a, b in zip(ours[1:], theirs[1:], strict=False)]
    if convolution is None or len(ours) != len(theirs) or min(kernel) < 1:
        raise ValueError(
            f"no regressor leads from the student's {ours} to the teacher's {theirs}: choose "
            "layers with as many dimensions, of which the teacher's has no more places"
        )
    return convolution(ours[0], theirs[0], kernel)


class Projections(nn.Module):
    """The embeddings of ``contrastive_in_batch``: a linear map of each network's output to
    ``dimension`` numbers, at length 1.

    Tian et al. 2020: 128 of them, and both maps are trained.
    """

    def __init__(self, student: Tensor, teacher: Tensor, dimension: int = 128) -> None:
        super().__init__()
        self.student = nn.Linear(student[0].numel(), dimension)
        self.teacher = nn.Linear(teacher[0].numel(), dimension)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The pair to compare."""
        ours = self.student(student.flatten(1))
        theirs = self.teacher(teacher.flatten(1).to(self.teacher.weight.dtype))
        return unit(ours), unit(theirs)


def mean_energy(targets: Tensor) -> float:
    """The constant ``energy`` of ``feature`` and ``hints``, from the teacher's features ``[N,
    ...]`` of all samples; 1 where they are 0.
    """
    sizes = at_least_single(targets).flatten(1).square().sum(1)
    return sizes.double().mean().item() or 1.0


# ------------------------------------------------------------------------------- all losses by name


@dataclass(frozen=True)
class Loss:
    """An entry of ``LOSSES``.

    function    ``(student [B, ...], teacher [B, ...], **parameters) -> scalar``; one that has an
                argument ``labels`` gets those of the batch
    weight      of the loss in its paper, where the labels' has 1
    helper      ``(student [B, ...], teacher [B, ...], **parameters) -> nn.Module``, made for a
                pair of outputs and trained with the student: it takes both and returns the pair
                that function compares
    constants   from the teacher's targets of all training samples to further arguments of function
    same_shape  it needs outputs of one shape
    per_sample  it is a mean over samples, so that a batch may go through the network in parts
    """

    function: Callable[..., Tensor]
    weight: float = 1.0
    helper: Callable[..., nn.Module] | None = None
    constants: Mapping[str, Callable[[Tensor], float]] = field(default_factory=dict)
    same_shape: bool = True
    per_sample: bool = True

    def __post_init__(self) -> None:
        for name, default in self.parameters().items():
            if default is inspect.Parameter.empty:
                what = getattr(self.function, "__name__", self.function)
                raise TypeError(f"the parameter {name!r} of the loss {what} needs a default")

    def parameters(self) -> dict[str, Any]:
        """What one can choose, with its default: what follows student and teacher, in function and
        helper, and is not given by the training.
        """
        found = options(self.function) | (options(self.helper) if self.helper else {})
        given = {"labels", *self.constants}
        return {name: default for name, default in found.items() if name not in given}

    def value(
        self, student: Tensor, teacher: Tensor, labels: Tensor, known: Mapping[str, Any]
    ) -> Tensor:
        """The function of a batch; of its labels and the ``known`` arguments it gets its own."""
        arguments = asked_for(self.function, {"labels": labels, **known})
        return self.function(student, teacher, **arguments)


def options(function: Callable[..., Any]) -> dict[str, Any]:
    """Arguments of ``function`` that follow student and teacher, with their defaults."""
    following = list(inspect.signature(function).parameters.values())[2:]
    return {argument.name: argument.default for argument in following}


def asked_for(function: Callable[..., Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the ``known`` arguments that ``function`` takes after student and teacher."""
    return {name: known[name] for name in options(function) if name in known}


ENERGY = {"energy": mean_energy}

LOSSES: dict[str, Loss] = {
    "feature": Loss(feature, constants=ENERGY),
    "soft_targets": Loss(soft_targets),
    "hints": Loss(hints, helper=Regressor, constants=ENERGY, same_shape=False),
    "at": Loss(attention_transfer, weight=1000.0, same_shape=False),
    "dkd": Loss(decoupled),
    "sp": Loss(similarity_preserving, weight=3000.0, same_shape=False, per_sample=False),
    "rkd": Loss(relational, same_shape=False, per_sample=False),
    "pkt": Loss(probabilistic_transfer, same_shape=False, per_sample=False),
    "crd_in_batch": Loss(
        contrastive_in_batch, weight=0.8, helper=Projections, same_shape=False, per_sample=False
    ),
}


# What losses are called elsewhere.
ALIASES = {
    "kd": "soft_targets",
    "kl": "soft_targets",
    "hinton": "soft_targets",
    "logits": "soft_targets",
    "mse": "feature",
    "l2": "feature",
    "fitnet": "hints",
    "fitnets": "hints",
    "attention": "at",
    "attention_transfer": "at",
    "decoupled": "dkd",
    "similarity": "sp",
    "similarity_preserving": "sp",
    "relational": "rkd",
    "probabilistic": "pkt",
    "crd": "crd_in_batch",
    "contrastive": "crd_in_batch",
}
LABELS = ("ce", "cross_entropy", "crossentropy", "labels")  # no distillation


def check_loss(name: Any) -> None:
    """``ValueError`` unless ``name`` is in ``LOSSES``; it tells what is meant by other names."""
    if isinstance(name, str) and name in LOSSES:
        if not isinstance(LOSSES[name], Loss):
            raise TypeError(f"LOSSES[{name!r}] is to be a Loss: LOSSES[{name!r}] = Loss(function)")
        return
    if callable(name):
        raise TypeError("loss is a name in LOSSES: register a function, LOSSES['mine'] = Loss(it)")
    folded = str(name).casefold().replace("-", "_").replace(" ", "_")
    if folded in LABELS:
        raise ValueError(f"unknown loss {name!r}; labels alone are loss=None and labels=1")
    if folded in ALIASES:
        raise ValueError(f"unknown loss {name!r}; did you mean {ALIASES[folded]!r}?")
    raise ValueError(unknown("loss", name, LOSSES))


@dataclass(frozen=True)
class TrainingObjective:
    """What is minimised: ``weight`` times ``loss`` at ``layers`` plus ``labels`` times the
    cross-entropy of the labels.

    loss            a name in ``LOSSES``, or None: the labels alone
    layers          dotted names of the student's layers, "" being its own output; the loss is
                    summed over them
    teacher_layers  the teacher's, in the same order; None: the same names
    parameters      of the loss's function and helper
    labels          weight of the labels' cross-entropy; at 0 what lies above the last layer is not
                    trained
    frozen_up_to    what lies up to this layer is frozen: no gradient, no decay, evaluation mode, so
                    that its features keep their bits; None freezes nothing
    weight          of the loss; None: that of its paper

    Raises ``ValueError`` for unknown names, for lists of layers that do not match, and when nothing
    is left to minimise; ``TypeError`` for a loss that is no ``Loss``, and for parameters that JSON
    cannot hold.
    """

    loss: str | None = None
    layers: tuple[str, ...] = ("",)
    teacher_layers: tuple[str, ...] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    labels: float = 0.0
    frozen_up_to: str | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        object.__setattr__(self, "parameters", _plain(self.parameters))
        not_negative(labels=self.labels)
        positive(weight=self.weight)
        if self.loss is None:
            if not self.labels:
                raise ValueError("nothing to minimise: name a loss, or give labels a weight")
            return
        check_loss(self.loss)
        for name in ("layers", "teacher_layers"):
            if isinstance(given := getattr(self, name), str):
                object.__setattr__(self, name, (given,))
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

    @property
    def loss_weight(self) -> float:
        """Weight of the loss."""
        return self.definition.weight if self.weight is None else self.weight

    def constants(self, targets: Sequence[Tensor]) -> list[dict[str, float]]:
        """The loss's constants for each layer, from the teacher's ``targets [N, ...]`` there."""
        known = {} if self.loss is None else self.definition.constants
        return [{name: of(target) for name, of in known.items()} for target in targets]

    def helpers(self, outputs: Mapping[str, Tensor], targets: Sequence[Tensor]) -> nn.ModuleList:
        """The loss's helper for each layer, made for the student's ``outputs`` by layer and the
        teacher's ``targets`` of some samples.
        """
        make = self.definition.helper
        chosen = asked_for(make, self.parameters)
        made = nn.ModuleList()
        for layer, target in zip(self.layers, targets, strict=True):
            ours = outputs[layer]
            made.append(make(ours, target, **chosen).to(ours.device, ours.dtype))
        return made

    @property
    def config(self) -> dict[str, Any]:
        """The objective in JSON's types."""
        rest = {"labels": self.labels, "frozen_up_to": self.frozen_up_to}
        if self.loss is None:
            return rest
        distillation = {
            "loss": self.loss,
            "layers": list(self.layers),
            "teacher_layers": list(self.theirs),
            "parameters": self.definition.parameters() | dict(self.parameters),
        }
        # Not said where it is 1: trainings from before there were weights keep their addresses.
        weight = {} if self.loss_weight == 1 else {"weight": self.loss_weight}
        return distillation | weight | rest


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """``parameters`` with Python's numbers for NumPy's and PyTorch's; ``TypeError`` for what JSON
    cannot hold, by which a training is known again.
    """
    found = dict(parameters)
    for name, value in found.items():
        if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
            found[name] = value.item()
        try:
            json.dumps(found[name])
        except TypeError:
            raise TypeError(
                f"parameter {name} of a loss is a number, a text or a list of these; got {value!r}"
            ) from None
    return found


def labels_only(frozen_up_to: str | None = None) -> TrainingObjective:
    """Cross-entropy of the labels: a baseline, or a head when what lies below is frozen, up to
    ``frozen_up_to``.
    """
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
