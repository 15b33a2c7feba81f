"""Training and distillation (section 4.1 of the paper, "Distillation"), one checkpoint an epoch.

    teacher = baseline(network(), everything, schedule, folder="teacher").load(network())
    learned = student(network(), teacher, "fc1", share, schedule, folder="student")
    whole = head(learned.load(network()), "fc1", share, schedule, folder="head")

``train`` is the loop. Epoch k is a function of epoch k-1's checkpoint, the schedule and the data:
its order of samples and its dropout noise come from (seed, epoch). So a killed training goes on
after its last finished epoch and ends, on the same machine with the same number of threads, with
the very bits of an undisturbed one, and a damaged epoch is computed anew from the one before it.
"""

import math
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypedDict, Unpack

import torch
from torch import Tensor, nn

from kpnb._learner import (
    Learner,
    NetworkInput,
    Select,
    batches,
    check_classes,
    check_finite,
    check_labels,
    seeded,
)
from kpnb._memory import fitting
from kpnb._messages import unknown
from kpnb._models import private_copy
from kpnb._precision import at_least_single, widest
from kpnb._progress import Progress
from kpnb._signature import digest_of, digest_of_weights
from kpnb._tensors import as_tensor, described, moved
from kpnb._training_checks import (
    INITIAL,
    Shown,
    check_arguments,
    check_batch_of_one,
    check_same_training,
    check_samples_first,
    check_shapes,
    first_outputs,
    first_samples,
    is_there,
    tell_other_functions,
    what_determines,
)
from kpnb.checkpoints import Artefacts, Checkpoints
from kpnb.features import capture, check_runs
from kpnb.learning import step_norms
from kpnb.losses import TrainingObjective, check_every_label, known_labels, labels_only
from kpnb.schedule import Schedule

Folder = str | os.PathLike[str] | Artefacts | None


class Data(Protocol):
    """What can be trained on."""

    def __len__(self) -> int: ...
    def batch(self, index: Tensor, device: str = "cpu") -> tuple[NetworkInput, Tensor]:
        """Inputs ``x [B, ...]``, or a mapping of such for ``model(**x)``, and labels ``y [B]`` of
        the samples ``index [B]``; the same at every call.
        """


@dataclass(frozen=True, eq=False)
class TensorData:
    """Inputs ``x [N, ...]``, or a mapping of such, and labels ``y [N]`` in memory, as ``Data``.

    Tensors, arrays or lists. Integer labels of any type become int64, which cross-entropy wants.
    Raises ``TypeError`` for what holds no numbers, ``ValueError`` for another number of inputs than
    labels.
    """

    x: NetworkInput
    y: Tensor

    def __post_init__(self) -> None:
        y = as_tensor(self.y, "the labels y")
        parts = self.x if isinstance(self.x, Mapping) else {"x": self.x}
        x = {name: as_tensor(value, f"the inputs {name!r}") for name, value in parts.items()}
        for name, value in {"y": y, **x}.items():
            if not value.dim() or len(value) != len(y):
                raise ValueError(
                    f"inputs and labels are [N, ...] with one N; y is {described(y)}, {name!r} is "
                    f"{described(value)}"
                )
        object.__setattr__(self, "x", x if isinstance(self.x, Mapping) else x["x"])
        object.__setattr__(self, "y", y if y.is_floating_point() else y.long())

    def __len__(self) -> int:
        return len(self.y)

    def tensors(self) -> dict[str, Tensor]:
        """Inputs and labels by name."""
        x = self.x if isinstance(self.x, Mapping) else {"": self.x}
        return {f"x.{name}": value for name, value in x.items()} | {"y": self.y}

    def batch(self, index: Tensor, device: str = "cpu") -> tuple[NetworkInput, Tensor]:
        """The samples ``index``."""
        if isinstance(self.x, Mapping):
            x = {name: moved(value[index], device) for name, value in self.x.items()}
        else:
            x = moved(self.x[index], device)
        return x, moved(self.y[index], device)


# --------------------------------------------------------------------------------- what one calls


class How(TypedDict, total=False):
    """Keyword arguments that the functions below hand on to :func:`train`, which says what they
    mean.
    """

    select: Select
    test: Data | None
    folder: Folder
    device: str


def baseline(model: nn.Module, data: Data, schedule: Schedule, **how: Unpack[How]) -> Checkpoints:
    """Train a copy of ``model`` with cross-entropy, by a ``schedule``: a baseline, or a teacher
    when ``data`` is everything. Options are those of ``train``.
    """
    return train(model, data, schedule, labels_only(), **how)


def student(
    model: nn.Module,
    teacher: nn.Module,
    layer: str,
    data: Data,
    schedule: Schedule,
    *,
    teacher_layer: str | None = None,
    loss: str = "feature",
    parameters: Mapping[str, Any] | None = None,
    weight: float | None = None,
    labels: float = 0.0,
    teacher_select: Select = None,
    **how: Unpack[How],
) -> Checkpoints:
    """Distil what the ``teacher`` has at ``layer`` into a copy of ``model``, on ``data`` and by a
    ``schedule``; what lies above stays as it is, unless the labels count. Options,
    ``teacher_select`` among them, are those of ``train``.

    ``teacher_layer`` where the teacher's has another name; "" is a network's output. ``loss`` is a
    name in :data:`kpnb.losses.LOSSES`, with its ``parameters`` and its ``weight`` (None: that of
    its paper); ``labels`` is the weight of their cross-entropy. For several layers pass a
    :class:`kpnb.losses.TrainingObjective` to :func:`train`.
    """
    for name, given in {"layer": layer, "teacher_layer": teacher_layer or layer}.items():
        if isinstance(given, list | tuple):
            raise TypeError(
                f"{name} is the name of one layer; got {type(given).__name__}. Several are "
                "compared by train(..., TrainingObjective(loss, layers), teacher=teacher)"
            )
    for name in how.keys() - How.__annotations__.keys():
        hint = f"; parameters of a loss are given as parameters={{{name!r}: ...}}"
        raise TypeError(unknown("option", name, How.__annotations__) + hint)
    theirs = None if teacher_layer is None else (teacher_layer,)
    objective = TrainingObjective(
        loss, (layer,), theirs, parameters or {}, labels=labels, weight=weight
    )
    return train(
        model, data, schedule, objective, teacher=teacher, teacher_select=teacher_select, **how
    )


def head(
    model: nn.Module, layer: str, data: Data, schedule: Schedule, **how: Unpack[How]
) -> Checkpoints:
    """Train what lies above ``layer`` of a distilled student with cross-entropy, the rest frozen.

    When nothing lies above it (distillation from the output), every epoch is the student itself,
    with its accuracy.
    """
    if not isinstance(layer, str):
        raise TypeError(f"layer is the name of the student's layer; got {type(layer).__name__}")
    return train(model, data, schedule, labels_only(frozen_up_to=layer), **how)


def train(
    model: nn.Module,
    data: Data,
    schedule: Schedule,
    objective: TrainingObjective,
    *,
    teacher: nn.Module | None = None,
    select: Select = None,
    teacher_select: Select = None,
    test: Data | None = None,
    folder: Folder = None,
    device: str = "cpu",
) -> Checkpoints:
    """Train a copy of ``model`` on ``data`` and keep every epoch, number 0 being the untrained
    network. ``model`` and ``teacher`` are left as they are.

    schedule    rates, batches and how many epochs
    objective   what is minimised; ``losses.labels_only()`` is the cross-entropy alone
    device      where it is trained
    select      which part of a layer's output counts, where it is not a tensor, as in
                ``kpnb.entropy``; for all layers, or by layer: ``{"": "logits"}`` is of the
                network's own output, which labels and softened outputs look at
    teacher_select   the same for the teacher's layers; None: as ``select``
    folder      where checkpoints are kept, and found again: a training goes on after the last
                intact one, if settings, initial weights and ``TensorData``, to the bit, are as they
                were. Of other data only their number is compared, since noise may be added to them.
                A network or teacher that makes something else of the first two samples of
                ``TensorData``, in evaluation mode, is logged; the code of a loss is not looked at.
                None: a temporary folder
    test        held-out samples, on which accuracy and feature error are taken after every epoch

    Of a module that runs several times in a pass, ``"relu:1"`` is the second run.

    Parameters with ``requires_grad=False`` stay frozen; modules whose parameters are all frozen run
    in evaluation mode. The teacher answers once for each sample, in evaluation mode. The last,
    partial batch counts too; a single sample joins the batch before it (batch normalisation needs
    two). A batch that memory does not take goes through the network in halves, each halving said in
    the log, whose gradients add up to that of the batch: equal but for rounding, and for dropout,
    which draws other noise.

    Raises, before training starts, ValueError (no data, a batch of one that cannot be normalised,
    layers of different shapes, a layer that runs several times, labels that are no classes, a
    folder with another training) and TypeError (data of another kind, a network whose state cannot
    be kept, an output whose part is not clear); FloatingPointError when the loss is no longer
    finite, MemoryError when a batch that must stay whole does not fit. Finished epochs are kept.
    """
    check_arguments(model, data, schedule, objective, teacher, test)
    teacher_select = select if teacher_select is None else teacher_select
    checkpoints = Checkpoints(folder, schedule.epochs)
    settings, outputs = {}, {}
    if not checkpoints.artefacts.identity:  # which says itself what belongs there
        settings = what_determines(data, schedule, objective, teacher, test)
        if select is not None or teacher_select is not None:
            settings["select"] = [repr(select), repr(teacher_select)]
        if folder is not None:
            settings |= digests(data, test) | {INITIAL: digest_of_weights(model)}
        check_same_training(checkpoints, model, settings)
        if folder is not None and is_there(device):
            shown = [Shown("network", model, objective.looks_at, select)]
            if teacher is not None and objective.loss:
                shown.append(Shown("teacher", teacher, objective.theirs, teacher_select))
            outputs = outputs_of_first(data, shown, device)
            tell_other_functions(checkpoints, outputs)
    if checkpoints.missing():
        with checkpoints.artefacts.locked(), with_gradients():
            # another process may have begun one
            check_same_training(checkpoints, model, settings)
            missing = checkpoints.to_compute()
            if missing:  # or another process has done it meanwhile
                x, _ = first_samples(data, 2, device)
                learner = Learner(
                    model, x, schedule, objective, device, checkpoints.title, select=select
                )
                answers = Answers(teacher, teacher_select)
                compute(checkpoints, missing, learner, data, answers, test, (outputs, settings))
    return checkpoints


def digests(data: Data, test: Data | None) -> dict[str, str]:
    """Of training and held-out data, where they lie in memory."""
    sets = {"data": data, "held-out data": test}
    known = {name: each for name, each in sets.items() if isinstance(each, TensorData)}
    return {name: digest_of(each.tensors()) for name, each in known.items()}


def outputs_of_first(data: Data, shown: Sequence[Shown], device: str) -> dict[str, Tensor]:
    """What networks make of the first two samples; nothing of data that may add noise to them."""
    if type(data) is not TensorData:
        return {}
    with with_gradients():
        return first_outputs(first_samples(data, 2, device)[0], shown, device)


# --------------------------------------------------------------------------------------- the loop


class Answers(NamedTuple):
    """A teacher, and which part of its layers' outputs counts."""

    teacher: nn.Module | None
    select: Select


class Samples(NamedTuple):
    """Data, and the teacher's targets for all of them, ``[N, ...]`` on the CPU for each layer."""

    data: Data
    targets: list[Tensor]

    def batch(self, index: Tensor, device: str) -> tuple[NetworkInput, Tensor, list[Tensor]]:
        """Inputs, labels and targets of the samples ``index``."""
        x, labels = self.data.batch(index, device)
        labels = labels if labels.is_floating_point() else labels.long()
        return x, labels, [moved(of_layer[index], device) for of_layer in self.targets]

    def first(self, device: str) -> tuple[NetworkInput, Tensor, list[Tensor]]:
        """The same of the first two samples, which show what fits together."""
        return self.batch(torch.arange(min(2, len(self.data))), device)


def compute(
    checkpoints: Checkpoints,
    missing: Sequence[int],
    learner: Learner,
    data: Data,
    answers: Answers,
    test: Data | None,
    training: tuple[Mapping[str, Tensor], Mapping[str, Any]],
) -> None:
    """Compute the ``missing`` epochs in order, each from the one before it, and write them; first
    the first outputs and the settings by which the ``training`` is known again.
    """
    sets = [data] if test is None or len(test) == 0 else [data, test]
    samples, *held_out = with_targets(sets, answers, learner)
    prepare(learner, samples)
    outputs, settings = training
    if settings and len(missing) > checkpoints.epochs:  # what a failed start said counts no more
        checkpoints.artefacts.write("training", outputs, settings, seconds=0.0)
    total = len(data) * sum(epoch > 0 for epoch in missing)
    with Progress(total, checkpoints.name, "sample") as bar:
        for epoch in missing:
            bar.say(f"{checkpoints.name}, epoch {epoch} of {checkpoints.epochs}")
            previous = checkpoints.tensors(epoch - 1) if epoch else learner.tensors()
            entry = run_epoch(learner, epoch, previous, samples, held_out, bar)
            checkpoints.write(epoch, learner.tensors(), entry)


def prepare(learner: Learner, samples: Samples) -> None:
    """Take from the teacher what the loss needs, and raise ValueError for what would fail in the
    middle of an epoch.
    """
    if learner.schedule.epochs and not learner.trained and learner.objective.frozen_up_to is None:
        raise ValueError("nothing to train: all parameters are frozen, or the layer has none")
    x, labels, targets = samples.first(learner.device)
    learner.eval_mode()
    with seeded(0), torch.no_grad():
        outputs = learner.outputs(x)
    if learner.objective.labels:
        check_labels(outputs[""], labels)
        if isinstance(samples.data, TensorData):
            check_classes(samples.data.y, outputs[""].shape[1])
    if learner.objective.loss == "dkd" and isinstance(samples.data, TensorData):
        check_every_label(samples.data.y, outputs[learner.objective.layers[0]].shape[1])
    check_shapes(learner, outputs, targets)
    check_batch_of_one(learner, samples.data)
    learner.constants = learner.objective.constants(samples.targets)
    with seeded(learner.schedule.seed, -2):  # no epoch, nor the -1 that networks are built with
        learner.add_helpers(outputs, targets)
        with torch.no_grad():
            learner.objective_value(outputs, targets, labels)  # the loss may refuse its arguments


def run_epoch(
    learner: Learner,
    epoch: int,
    previous: Mapping[str, Tensor],
    samples: Samples,
    held_out: Sequence[Samples],
    bar: Progress,
) -> dict[str, Any]:
    """Train ``epoch`` (0: nothing) from the tensors of the ``previous`` one and evaluate; its entry
    of the log.

    When memory runs out the epoch starts again with half as many rows at a time, which the next
    epochs keep.
    """
    start = time.perf_counter()
    rate = learner.schedule.rate(epoch) if epoch else 0.0

    def attempt(rows: int) -> dict[str, Any]:
        # from the file, also when it was just written: that is what a resumed training starts from
        learner.restore(previous)
        before = learner.parameters() if epoch else None
        entry = {"epoch": epoch, "lr": rate, "device": str(learner.device)}
        entry |= {"loss": math.nan, "accuracy": math.nan, "test_accuracy": math.nan}
        with seeded(learner.schedule.seed, epoch):
            if epoch and learner.trained:
                entry |= train_epoch(learner, samples, epoch, rate, rows, bar)
            for others in held_out:
                entry |= evaluate(learner, others, rows)
        norms = step_norms(dict(learner.model.named_parameters()), before)
        check_steps(learner, norms, epoch)
        return entry | {"norms": norms}

    entry, learner.rows = fitting(
        attempt, learner.rows, f"a batch of {learner.title}", learner.whole
    )
    learner.labels_checked |= epoch > 0
    return entry | {"seconds": time.perf_counter() - start}


def train_epoch(
    learner: Learner, samples: Samples, epoch: int, rate: float, rows: int, bar: Progress
) -> dict[str, Any]:
    """Every sample once, in random order: mean loss and scores, and the path of every trained
    parameter over the steps. At most ``rows`` samples go through the network at a time.
    """
    means = Means()
    trained = [parameter.detach() for parameter in learner.trained.values()]
    # Taken once: an encoder's table of words is 47 MB, too much to ask for at every step.
    before = [torch.empty_like(parameter) for parameter in trained]
    paths = torch.zeros(len(trained), device=learner.device)
    learner.train_mode(rate)
    order = batches(torch.randperm(len(samples.data)), learner.schedule.batch_size)
    done, unseen = 0, []  # samples that were looked at, and batches since then
    for number, batch in enumerate(order, 1):
        learner.optimiser.zero_grad()
        pieces = [(piece, samples.batch(piece, learner.device)) for piece in batch.split(rows)]
        labels = sum(known_labels(part[1]) for _, part in pieces).clamp(min=1)
        for piece, part in pieces:
            # the mean over the batch is that of its pieces, weighted by their sizes
            size = len(piece) / len(batch)
            labelled = widest(known_labels(part[1])) / labels / size
            loss, scores = learner.forward(*part, labelled)
            (loss * size).backward()
            means.add(loss=(widest(loss.detach()) * len(piece), len(piece)), **scores)
        unseen.append(batch)
        if number % batches_between_looks(learner.device) == 0 or number == len(order):
            when = f"epoch {epoch} after {done}"
            check_loss_is_finite(learner, samples, unseen, rows, means["loss"], when)
            seen = sum(map(len, unseen))
            bar.step(seen, **means.all())
            done, unseen = done + seen, []
        for kept, parameter in zip(before, trained, strict=True):
            kept.copy_(parameter)
        learner.optimiser.step()
        steps = [kept.sub_(now).norm() for kept, now in zip(before, trained, strict=True)]
        paths += torch.stack(steps)
    return means.all() | {"paths": dict(zip(learner.trained, paths.tolist(), strict=True))}


def batches_between_looks(device: str) -> int:
    """After how many batches the loss is looked at. On a CPU after each; a card would have to be
    waited for every time.
    """
    return 1 if torch.device(device).type == "cpu" else 16


FIRST = "epoch 1 after 0"  # samples, in which nothing has been trained yet


def check_loss_is_finite(
    learner: Learner, samples: Samples, unseen: Sequence[Tensor], rows: int, loss: float, when: str
) -> None:
    """Raise where the mean ``loss`` is not finite: ``ValueError`` that names the samples whose
    inputs are not, among the batches that were ``unseen`` so far, or ``FloatingPointError``.
    """
    if math.isfinite(loss):
        return
    for batch in unseen:
        for piece in batch.split(rows):
            check_finite(samples.batch(piece, learner.device)[0], piece)
    if when == FIRST and len(unseen) == 1:  # a card is looked at after several
        raise FloatingPointError(
            f"the loss of {learner.title} is {loss} for the first batch, before anything was "
            "trained: look at the loss, its parameters and what it is given"
        )
    rate = learner.optimiser.param_groups[0]["lr"]
    raise FloatingPointError(
        f"the loss of {learner.title} became {loss} in {when} samples: use a lower learning rate "
        f"than {rate:g}; earlier epochs are kept"
    )


def check_steps(learner: Learner, norms: Mapping[str, float], epoch: int) -> None:
    """``FloatingPointError`` where a step of an epoch left weights that are not finite, as a
    gradient does of which the loss, that was looked at before, shows nothing.
    """
    lost = [name for name in learner.trained if not math.isfinite(norms[name])]
    if lost and epoch:
        raise FloatingPointError(
            f"{lost[0]!r} of {learner.title} is no longer finite after epoch {epoch}, though its "
            "loss was: use a lower learning rate, or find the operation whose derivative is not "
            "finite (torch.autograd.detect_anomaly); earlier epochs are kept"
        )


@torch.no_grad()
def evaluate(learner: Learner, samples: Samples, rows: int) -> dict[str, float]:
    """Scores on held-out samples in evaluation mode, as ``test_...``."""
    means = Means()
    learner.eval_mode()
    for batch in batches(torch.arange(len(samples.data)), learner.schedule.batch_size):
        for piece in batch.split(rows):
            _, scores = learner.forward(*samples.batch(piece, learner.device))
            means.add(**scores)
    return {f"test_{name}": value for name, value in means.all().items()}


class Means:
    """Means of named values over samples that come in parts. Tensors stay on their device until a
    mean is asked for.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = defaultdict(float)
        self._counts: dict[str, Tensor | float] = defaultdict(float)

    def add(self, **parts: tuple[Tensor | float, Tensor | float]) -> None:
        """A sum, and what to divide it by, for each name."""
        for name, (value, count) in parts.items():
            self._sums[name] = self._sums[name] + value
            self._counts[name] = self._counts[name] + count

    def __getitem__(self, name: str) -> float:
        count = float(self._counts[name])
        return float(self._sums[name]) / count if count else math.nan

    def all(self) -> dict[str, float]:
        """The means so far."""
        return {name: self[name] for name in self._sums}


@contextmanager
def with_gradients() -> Iterator[None]:
    """Gradients and plain precision, whatever the caller has switched off or on: stored trainings
    are computed where they are read, which may be under ``no_grad``. The autocast that a schedule
    asks for is switched on inside.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


@torch.no_grad()
def with_targets(sets: Sequence[Data], answers: Answers, learner: Learner) -> list[Samples]:
    """The ``sets`` with what the teacher puts out for all their samples: once, in evaluation
    mode.
    """
    if answers.teacher is None or learner.objective.loss is None:
        return [Samples(data, []) for data in sets]
    device = learner.device
    layers = learner.objective.theirs
    answers = Answers(private_copy(answers.teacher).to(device).eval(), answers.select)
    check_runs(answers.teacher, first_samples(sets[0], 2, device)[0], layers, answers.select)
    found: list[Samples] = []
    rows = learner.schedule.batch_size
    for data in sets:
        attempt = partial(teacher_targets, answers, layers, data, device)
        targets, rows = fitting(attempt, rows, f"a batch of the teacher of {learner.title}")
        found.append(Samples(data, targets))
    return found


def teacher_targets(
    answers: Answers, layers: Sequence[str], data: Data, device: str, rows: int
) -> list[Tensor]:
    """What the teacher puts out at ``layers`` for all samples, ``[N, ...]`` each, on the CPU and in
    float32 at least.
    """
    parts: list[list[Tensor]] = [[] for _ in layers]
    for index in torch.arange(len(data)).split(rows):
        x, _ = data.batch(index, device)
        found = capture(answers.teacher, x, layers, select=answers.select)
        for some, layer in zip(parts, layers, strict=True):
            check_samples_first(found[layer], f"the teacher's {layer or 'output'!r}", len(index))
            some.append(at_least_single(found[layer].cpu()))
    return [torch.cat(some) for some in parts]
