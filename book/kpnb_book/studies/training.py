"""Training and distillation (section 4.1 of the paper, "Distillation"), one stored artefact per
epoch.

    teacher = baseline(store, spec, everything, schedule, build=build, kind="teacher")
    student_ = student(store, spec, share, schedule, teacher=teacher, layer="fc1", build=build)   #
    ||f_T - f_S||^2 only whole = head(store, student_, "fc1", share, schedule)           #
    cross-entropy only, everything below is frozen

Epoch k is a function of epoch k-1's artefact, the schedule and the data: its order of samples and
its dropout noise come from (seed, epoch). So a killed training goes on after its last finished
epoch and ends, on the same machine, with the very bits of an undisturbed one, and a damaged epoch
is computed anew from the one before it.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import product
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kpnb._memory import fitting
from kpnb._messages import one_of, positive
from kpnb._progress import Progress
from kpnb.features import capture, modules_below, parameters_below
from kpnb_book.store import Item, Store, copied, digest


class Data(Protocol):
    """What can be trained on. ``config`` (JSON-able) determines the content, because it addresses
    stored runs.
    """

    config: Mapping[str, Any]

    def __len__(self) -> int: ...
    def batch(self, index: Tensor, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """Inputs ``x [B, ...]`` and labels ``y [B]`` of the samples ``index [B]``; the same at
        every call.
        """


@dataclass(frozen=True)
class Schedule:
    """SGD with momentum. The paper's batch is 64; its release has momentum 0.9, weight decay 1e-4,
    150 epochs.

    ``cosine``: the rate falls from ``lr`` to 0 along half a cosine over ``epochs``; otherwise it is
    constant. ``adamw``: AdamW instead of SGD, for transformers; ``momentum`` is its first beta.
    ``bf16``: networks run under bfloat16 autocast while they are trained, and between epochs the
    optimiser's state is rounded to it; weights and losses stay as they are.
    """

    epochs: int = 20
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch_size: int = 64
    seed: int = 0
    cosine: bool = False
    adamw: bool = False
    bf16: bool = False

    def __post_init__(self) -> None:
        positive(batch_size=self.batch_size)
        positive(
            True,
            epochs=self.epochs,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )

    def rate(self, epoch: int) -> float:
        """Learning rate of ``epoch`` 1, 2, ..."""
        return (
            self.lr * (1 + math.cos(math.pi * (epoch - 1) / self.epochs)) / 2
            if self.cosine
            else self.lr
        )

    @property
    def config(self) -> dict[str, Any]:
        """What an epoch depends on: without ``epochs`` if the rate does not, so that a longer run
        extends a shorter.
        """
        left_out = {"adamw": False, "bf16": False} | (
            {} if self.cosine else {"epochs": self.epochs}
        )
        return {key: value for key, value in asdict(self).items() if left_out.get(key) != value}


class Source(NamedTuple):
    """Where a network comes from: what identifies it (JSON-able), a function that makes it, and the
    trainings that must be finished before.
    """

    identity: dict[str, Any]
    make: Callable[[], nn.Module]
    requires: "tuple[Training, ...]" = ()


Build = Callable[..., nn.Module]


@dataclass(frozen=True)
class CrossEntropy:
    """Classification, and the base of the other objectives.

    layer: the loss looks at the output of this layer; "" is the network's own. Only what it depends
    on is trained.
    above: what lies up to this layer is frozen (no gradient, no decay, evaluation mode), so its
    features keep their
        bits; None freezes nothing.
    teacher: the loss also sees the output of its ``teacher_layer``, in evaluation mode, computed
    once per sample.
    """

    metric: ClassVar[str] = "accuracy"
    layer: str = ""
    above: str | None = None
    teacher: Source | None = None
    teacher_layer: str = ""

    @property
    def config(self) -> dict[str, Any]:
        """What addresses the objective in a run."""
        return {
            "loss": type(self).__name__,
            **vars(self),
            "teacher": self.teacher and self.teacher.identity,
        }

    def terms(
        self, output: Tensor, y: Tensor, target: Tensor | None, energy: float
    ) -> tuple[Tensor, float, float]:
        """Loss of a batch, then numerator and denominator of ``metric``, to be summed over batches.

        ``energy`` is the mean of ``||target||^2`` over the training set.
        """
        right = (
            (output.argmax(1) == y).reshape(len(y), -1).all(1)
        )  # both ends of an answer, where y is [B, 2]
        return F.cross_entropy(output, y), right.sum().item(), len(y)


@dataclass(frozen=True)
class Feature(CrossEntropy):
    """Feature distillation: mean over the batch of ``||f_T(x) - f_S(x)||^2`` at a layer, and no
    other loss.

    ``scale``: "sum" is the paper's formula as printed. "energy" (default) divides it by the mean of
    ``||f_T||^2`` over the training set, a constant that the learning rate absorbs, so that one rate
    serves layers of every width (1 is the loss of a student whose feature is 0). "mean" is the 2020
    release's mean over the feature's elements.
    """

    metric: ClassVar[str] = "feature_error"
    scale: str = "energy"

    def __post_init__(self) -> None:
        one_of("scale", self.scale, ["energy", "sum", "mean"])

    def terms(
        self, output: Tensor, y: Tensor, target: Tensor | None, energy: float
    ) -> tuple[Tensor, float, float]:
        error = (output - target).square().sum()
        unit = {"energy": energy, "sum": 1.0, "mean": output[0].numel()}[self.scale]
        return error / len(output) / unit, error.item(), target.square().sum().item()


@dataclass(frozen=True)
class Soft(CrossEntropy):
    """Output distillation: ``T^2 KL(softmax(z_T / T) || softmax(z_S / T))`` (Hinton et al. 2015,
    section 2).
    """

    temperature: float = 4.0

    def __post_init__(self) -> None:
        positive(temperature=self.temperature)

    def terms(
        self, output: Tensor, y: Tensor, target: Tensor | None, energy: float
    ) -> tuple[Tensor, float, float]:
        ours, theirs = (F.log_softmax(z / self.temperature, 1) for z in (output, target))
        loss = self.temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return loss, *super().terms(output, y, target, energy)[1:]


@dataclass
class Training:
    """Training a copy of ``model`` on ``data``: an artefact for each epoch, number 0 being the
    untrained network.

    ``model`` is a network, known by its class, its printed structure and the digest of its weights;
    or, faster when everything is stored, a dict of arguments for ``build``, known by them and the
    name of ``build``; or a training to go on from. After every epoch the metric on ``test`` is
    taken. The last, partial batch counts too; a single sample joins the batch before it (BatchNorm
    needs two). A batch that memory does not take goes through the network in halves, each halving
    said in the log, whose gradients add up to that of the batch: equal but for rounding, and for
    dropout, which draws other noise. Batch normalisation needs it whole, so there it raises
    MemoryError.

    ``log``, ``accuracy`` and ``step_norms`` read JSON only; weights are read, and verified, when
    they are asked for. What is not stored yet, was lost or damaged is computed. Everywhere
    ``epoch`` counts from 0, and -1 is the last one, number ``epochs``. ``address`` is that of the
    ``run`` in its store. Raises FloatingPointError when the loss is no longer finite (finished
    epochs are kept), ValueError without data.
    """

    store: Store
    kind: str
    model: "Model"
    data: Data
    objective: CrossEntropy
    schedule: Schedule
    build: Callable[..., nn.Module] | None = None
    test: Data | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if len(self.data) == 0:
            raise ValueError(f"no samples to train on in {dict(self.data.config)}")
        self.source = source_of(self.model, self.build)
        self.make = self.source.make
        config = {
            "model": self.source.identity,
            "objective": self.objective.config,
            "schedule": self.schedule.config,
        }
        config |= {
            "data": self.data.config,
            "test": self.test.config if self.test is not None else None,
        }
        self.run = self.store.run(self.kind, config)
        self.address, self.epochs = self.run.address, self.schedule.epochs

    @property
    def log(self) -> list[dict[str, Any]]:
        """Per epoch: epoch, loss, accuracy, test_accuracy, seconds, lr, device, norms; NaN where
        undefined.

        Loss and accuracy are means over the epoch's batches, as trained. Feature distillation has
        no accuracy, but feature_error and test_feature_error, ``sum ||f_T - f_S||^2 / sum
        ||f_T||^2``.
        """
        return [
            self.run.info(_name(epoch)) or self._stored(epoch).info
            for epoch in range(self.epochs + 1)
        ]

    @property
    def accuracy(self) -> float:
        """Held-out accuracy after the last epoch; NaN without a test set or a classification."""
        return self.log[-1]["test_accuracy"]

    def step_norms(self) -> list[dict[str, float]]:
        """Per epoch k and parameter ``||w_k - w_{k-1}||``, and for k = 0 ``||w_0||``: the
        ingredients of Eq. 8.
        """
        return [info["norms"] for info in self.log]

    def paths(self) -> list[dict[str, float]]:
        """Per epoch, each trained parameter's path over the optimiser's steps (Eq. 8 as released in
        2020).
        """
        return [info.get("paths", {}) for info in self.log]

    def state(self, epoch: int = -1) -> dict[str, Tensor]:
        """The state dict of an epoch, on the CPU."""
        return _part(self._stored(self.number(epoch)).tensors, "model.")

    def load(self, model: nn.Module | None = None, epoch: int = -1) -> nn.Module:
        """``model`` (mode and device untouched) with the weights of an epoch, or a new one in
        evaluation mode.
        """
        model = model if model is not None else self.make().eval()
        model.load_state_dict(self.state(epoch))
        return model

    def number(self, epoch: int) -> int:
        """``epoch`` counted from 0; raises IndexError when there is no such epoch."""
        if not -self.epochs - 1 <= epoch <= self.epochs:
            raise IndexError(
                f"epoch {epoch} of {self.address}: it has the epochs 0 to {self.epochs}"
            )
        return epoch % (self.epochs + 1)

    def missing(self) -> list[int]:
        """The epochs that are not stored; no tensor is read."""
        return [epoch for epoch in range(self.epochs + 1) if not self.run.has(_name(epoch))]

    @property
    def teacher(self) -> "Training | None":
        """The training that the teacher comes from, if there is one."""
        teacher = self.objective.teacher
        return teacher.requires[0] if teacher and teacher.requires else None

    def requires(self) -> "list[Training]":
        """The trainings that this one needs: its teacher's, and the one that it goes on from."""
        teacher = self.objective.teacher
        return [*self.source.requires, *(teacher.requires if teacher else ())]

    def finish(self) -> Self:
        """Compute every epoch that is not stored, in order."""
        missing = self.missing()
        total = len(self.data) * sum(epoch > 0 for epoch in missing)
        with Progress(total, self.kind, "sample", hidden=not missing) as bar:
            live = cache(lambda: _Live(self, bar))
            for epoch in missing:
                self._artefact(epoch, live)
        return self

    def _stored(self, epoch: int) -> Item:
        if not self.run.has(_name(epoch)):
            self.finish()
        with Progress(0, self.kind, hidden=True) as bar:
            return self._artefact(epoch, cache(lambda: _Live(self, bar)))

    def _artefact(self, epoch: int, live: Callable[[], "_Live"]) -> Item:
        return self.run.get(_name(epoch), lambda: self._compute(epoch, live))

    def _compute(
        self, epoch: int, live: Callable[[], "_Live"]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """An epoch, after those before it which are missing or damaged, with a network that only
        these have seen.
        """
        start = time.perf_counter()
        previous = self._artefact(epoch - 1, live).tensors if epoch else {}
        with _seeded(self.schedule.seed, -1):  # a builder may draw from torch's generator
            network = live()
        attempt = partial(_seeded(self.schedule.seed, epoch)(network.advance), epoch, previous)
        info, _ = fitting(attempt, network.rows, f"a batch of {self.address}", network.whole)
        return network.tensors(), info | {"seconds": time.perf_counter() - start}


Model = Training | nn.Module | Mapping[str, Any] | Source


def baseline(
    store: Store,
    model: Model,
    data: Data,
    schedule: Schedule,
    *,
    kind: str = "baseline",
    build: Build | None = None,
    test: Data | None = None,
    device: str = "cpu",
) -> Training:
    """Train with cross-entropy: a baseline, or a teacher when ``data`` is everything.

    These functions describe a training; nothing is computed before something of it is read.
    """
    objective = CrossEntropy()
    return Training(
        store, kind, model, data, objective, schedule, build=build, test=test, device=device
    )


def student(
    store: Store,
    model: Model,
    data: Data,
    schedule: Schedule,
    *,
    teacher: Model,
    layer: str,
    teacher_layer: str | None = None,
    teacher_epoch: int = -1,
    scale: str = "energy",
    kind: str = "student",
    build: Build | None = None,
    test: Data | None = None,
    device: str = "cpu",
) -> Training:
    """Distil the feature of the teacher (of a training: after ``teacher_epoch``) into ``layer`` of
    a student.

    ``teacher_layer`` where the teacher's has another name; ``scale``: see :class:`Feature`.
    """
    theirs = layer if teacher_layer is None else teacher_layer
    source = source_of(teacher, build, teacher_epoch)
    objective = Feature(layer, teacher=source, teacher_layer=theirs, scale=scale)
    return Training(
        store, kind, model, data, objective, schedule, build=build, test=test, device=device
    )


def head(
    store: Store,
    student: Model,
    layer: str,
    data: Data,
    schedule: Schedule,
    *,
    kind: str = "head",
    build: Build | None = None,
    test: Data | None = None,
    device: str = "cpu",
) -> Training:
    """Train what lies above ``layer`` of a distilled student (its last epoch) with cross-entropy,
    the rest frozen.

    When nothing lies above it (distillation from the output), every epoch is the student itself,
    with its accuracy.
    """
    objective = CrossEntropy(above=layer)
    return Training(
        store, kind, student, data, objective, schedule, build=build, test=test, device=device
    )


def output(
    store: Store,
    model: Model,
    data: Data,
    schedule: Schedule,
    *,
    teacher: Model,
    teacher_epoch: int = -1,
    temperature: float = 4.0,
    kind: str = "output",
    build: Build | None = None,
    test: Data | None = None,
    device: str = "cpu",
) -> Training:
    """Distil the softened output of the teacher into a student, see :class:`Soft`."""
    source = source_of(teacher, build, teacher_epoch)
    objective = Soft(teacher=source, temperature=temperature)
    return Training(
        store, kind, model, data, objective, schedule, build=build, test=test, device=device
    )


def source_of(model: Model, build: Build | None = None, epoch: int = -1) -> Source:
    """Where the network ``model`` comes from; of a training, its ``epoch``."""
    if isinstance(model, Source):
        return model
    if isinstance(model, Training):
        identity = {"run": model.address, "epoch": model.number(epoch)}
        return Source(identity, lambda: model.load(epoch=epoch), (model,))
    if isinstance(model, nn.Module):
        kept = copy.deepcopy(model)  # the caller may train it on before it is needed here
        content = repr(model).encode() + safetensors.torch.save(copied(model.state_dict()))
        identity = {"class": type(model).__qualname__, "digest": digest(content)}
        return Source(identity, lambda: copy.deepcopy(kept))
    if build is None:
        raise TypeError(
            "a model given as a dict of arguments needs build=, the function that takes them"
        )
    identity = {"build": f"{build.__module__}.{build.__qualname__}", "arguments": model}
    return Source(identity, lambda: build(**model))


class _Live:
    """Network, optimiser and teacher's answers in memory."""

    def __init__(self, training: Training, bar: Progress) -> None:
        self.t, self.bar, self.objective, s = training, bar, training.objective, training.schedule
        self.model = training.make().to(training.device)
        x, _ = training.data.batch(torch.arange(min(2, len(training.data))), training.device)
        # Channels last is a quarter faster for images on CPUs, but some models (with a ``view``)
        # cannot take it.
        self.layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
        try:
            trained = parameters_below(
                self.model, x.contiguous(memory_format=self.layout), self.objective.layer
            )
        except RuntimeError:
            self.layout = torch.contiguous_format
            trained = parameters_below(self.model, x, self.objective.layer)
        below: set[str] = set()
        if self.objective.above is not None:
            trained -= parameters_below(self.model, x, self.objective.above)
            below = modules_below(self.model, x, self.objective.above)
        self.parameters = dict(self.model.named_parameters())
        self.trained = {name: p for name, p in self.parameters.items() if name in trained}
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name in trained)
        # Besides what is below, whole blocks: some, such as attention, look at their own
        # ``training`` flag.
        blocks = [
            m for m in self.model.modules() if {p.requires_grad for p in m.parameters()} == {False}
        ]
        self.frozen = [*blocks, *map(self.model.get_submodule, below)]
        group = {"params": [*self.trained.values()]}  # a group, because SGD refuses an empty list
        optimiser = torch.optim.AdamW if s.adamw else torch.optim.SGD
        how = {"betas": (s.momentum, 0.999), "fused": True} if s.adamw else {"momentum": s.momentum}
        whole = any(
            isinstance(m, nn.modules.batchnorm._BatchNorm)
            for m in {*self.model.modules()} - {*self.frozen}
        )
        self.whole = ", and batch normalisation needs it whole: choose a smaller batch_size" * whole
        self.rows = s.batch_size + 1  # of the largest batch, see _batches
        self.optimiser = optimiser([group], s.lr, weight_decay=s.weight_decay, **how)
        # On CPUs PyTorch's fused attention is several times slower in bfloat16 than the products it
        # is made of.
        plain = s.bf16 and torch.device(training.device).type == "cpu"
        self.attention = partial(sdpa_kernel, SDPBackend.MATH) if plain else nullcontext
        teacher = (
            self.objective.teacher and self.objective.teacher.make().to(training.device).eval()
        )
        self.answers, self.test_answers = (
            self._answers(teacher, training.data),
            self._answers(teacher, training.test),
        )
        sizes = torch.zeros(1) if self.answers is None else self.answers.flatten(1).square().sum(1)
        self.energy = sizes.double().mean().item() or 1.0

    @torch.no_grad()
    def _answers(self, teacher: nn.Module | None, data: Data | None) -> Tensor | None:
        """What the teacher says of all samples, ``[N, ...]``, on the CPU."""
        if teacher is None or not data:
            return None
        layer = self.objective.teacher_layer

        def attempt(rows: int) -> Tensor:
            inputs = (data.batch(i, self.t.device)[0] for i in torch.arange(len(data)).split(rows))
            return torch.cat([capture(teacher, x, [layer])[layer].cpu() for x in inputs])

        return fitting(
            attempt, self.t.schedule.batch_size, f"a batch of the teacher of {self.t.address}"
        )[0]

    def tensors(self) -> dict[str, Tensor]:
        """Weights, buffers and the optimiser's state: all that the next epoch starts from."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for (name, parameter), (prefix, key) in product(self.trained.items(), STATE.items()):
            if (value := self.optimiser.state[parameter].get(key)) is not None:
                tensors[f"{prefix}.{name}"] = (
                    value.bfloat16() if self.t.schedule.bf16 and key != "step" else value
                )
        return tensors

    def advance(self, epoch: int, previous: dict[str, Tensor], rows: int) -> dict[str, Any]:
        """Train ``epoch`` (0: nothing) from the ``previous`` one's tensors and evaluate; its entry
        of the log.

        Of a batch, at most so many ``rows`` go through the network at a time.
        """
        self.rows = rows
        self.optimiser.state.clear()
        if epoch:
            self.model.load_state_dict(_part(previous, "model."))
            for (name, parameter), (prefix, key) in product(self.trained.items(), STATE.items()):
                if (value := previous.get(f"{prefix}.{name}")) is not None:
                    self.optimiser.state[parameter][key] = (
                        value if key == "step" else value.to(parameter)
                    )
        before = {
            k: v.detach().clone() if epoch else torch.zeros_like(v)
            for k, v in self.parameters.items()
        }
        rate = self.t.schedule.rate(epoch) if epoch else 0.0
        info = {"epoch": epoch, "lr": rate, "device": str(self.t.device)}
        info |= {"loss": math.nan, "accuracy": math.nan, "test_accuracy": math.nan}
        if epoch and self.trained:
            info |= self._train(epoch, rate)
        if self.t.test:
            info |= self._evaluate(self.t.test)
        moved = {k: (v.detach() - before[k]).cpu() for k, v in self.parameters.items()}
        norms = {
            k: torch.linalg.vector_norm(v, dtype=torch.float64).item() for k, v in moved.items()
        }
        return info | {"norms": norms}

    def _train(self, epoch: int, rate: float) -> dict[str, Any]:
        path, done = torch.zeros(len(self.trained), device=self.t.device), 0
        self.model.train()
        for module in self.frozen:
            module.training = False
        self.optimiser.param_groups[0]["lr"] = rate
        order = torch.randperm(len(self.t.data))
        for size, info in self._batches(self.t.data, self.answers, order):
            if not math.isfinite(info["loss"]):
                where = f"the loss of {self.t.address} became {info['loss']} in epoch {epoch} after {done} samples"
                raise FloatingPointError(
                    f"{where}: use a lower learning rate than {rate:g}; earlier epochs are kept"
                )
            before = [parameter.detach().clone() for parameter in self.trained.values()]
            self.optimiser.step()
            path += torch.stack(
                [
                    (p.detach() - b).norm()
                    for p, b in zip(self.trained.values(), before, strict=True)
                ]
            )
            done += size
            self.bar.step(size, **info)
        return info | {"paths": dict(zip(self.trained, path.tolist(), strict=True))}

    @torch.no_grad()
    def _evaluate(self, data: Data) -> dict[str, float]:
        self.model.eval()
        *_, (_, info) = self._batches(data, self.test_answers, torch.arange(len(data)))
        return {f"test_{self.objective.metric}": info[self.objective.metric]}

    def _batches(
        self, data: Data, answers: Tensor | None, order: Tensor
    ) -> Iterator[tuple[int, dict[str, float]]]:
        """Size of every batch; and the mean loss and the metric so far. Parameters have the
        gradient of its loss.
        """
        student, teacher = self.objective.layer, self.objective.teacher_layer
        batches = list(order.split(self.t.schedule.batch_size))
        if len(batches[-1]) == 1 < len(batches[0]):
            batches[-2:] = [torch.cat(batches[-2:])]
        total = part = whole = count = 0
        for index in batches:
            self.optimiser.zero_grad()
            for piece in index.split(self.rows):
                x, y = data.batch(piece, self.t.device)
                with (
                    torch.autocast(x.device.type, torch.bfloat16, enabled=self.t.schedule.bf16),
                    self.attention(),
                ):
                    output = capture(
                        self.model, x.contiguous(memory_format=self.layout), [student]
                    )[student]
                output = output.float() if self.t.schedule.bf16 else output
                target = answers[piece].to(self.t.device) if answers is not None else None
                if target is not None and output.shape != target.shape:
                    shapes = student or "output", output.shape, teacher or "output", target.shape
                    wrong = "the student's {!r} is {}, the teacher's {!r} {}: choose layers of one shape"
                    raise ValueError(wrong.format(*shapes))
                loss, *score = self.objective.terms(output, y, target, self.energy)
                if loss.requires_grad:
                    (loss * (len(piece) / len(index))).backward()
                total, count = total + loss.item() * len(y), count + len(y)
                part, whole = part + score[0], whole + score[1]
            yield (
                len(index),
                {"loss": total / count, self.objective.metric: part / whole if whole else math.nan},
            )


# prefix in an artefact: key in the optimiser's state
STATE = {"momentum": "momentum_buffer", "mean": "exp_avg", "square": "exp_avg_sq", "step": "step"}


def _name(epoch: int) -> str:
    return f"epoch-{epoch:03d}"


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }


@contextmanager
def _seeded(*key: int) -> Iterator[None]:
    """Random numbers that depend on ``key`` alone; the caller's generators are left as they
    were.
    """
    with torch.random.fork_rng(list(range(torch.cuda.device_count()))):
        torch.manual_seed(int(digest(list(key))[:15], 16))
        yield
