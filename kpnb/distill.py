"""Training and distillation (section 4.1 of the paper, "Distillation"), one stored artefact per epoch.

    teacher = baseline(store, spec, everything, schedule, build=build, kind="teacher")
    student_ = student(store, spec, share, schedule, teacher=teacher, layer="fc1", build=build)   # ||f_T - f_S||^2 only
    whole = head(store, student_, "fc1", share, schedule)           # cross-entropy only, everything below is frozen

Epoch k is a function of epoch k-1's artefact, the schedule and the data: its order of samples and its dropout noise
come from (seed, epoch). So a killed training goes on after its last finished epoch and ends, on the same machine,
with the very bits of an undisturbed one, and a damaged epoch is computed anew from the one before it.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypedDict, Unpack

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kpnb._messages import unknown
from kpnb._progress import Progress
from kpnb.layers import capture, explaining, modules_below, parameters_below
from kpnb.store import Item, Run, Store, digest


class Data(Protocol):
    """What can be trained on. ``config`` (JSON-able) determines the content, because it addresses stored runs."""

    config: Mapping[str, Any]

    def __len__(self) -> int: ...
    def batch(self, index: Tensor, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """Inputs ``x [B, ...]`` and labels ``y [B]`` of the samples ``index [B]``; the same at every call."""
        ...


@dataclass(frozen=True)
class Schedule:
    """SGD with momentum. The paper's batch is 64; its release has momentum 0.9, weight decay 1e-4, 150 epochs.

    ``milestones``: after these epochs the rate is multiplied by ``gamma``. ``cosine``: the rate falls to 0 along half
    a cosine over ``epochs``. ``amp``: forward passes in bfloat16, weights and losses in float32; faster where the
    processor has bfloat16 units, and a different (coarser) training, therefore off unless asked for.
    """

    epochs: int = 20
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch_size: int = 64
    seed: int = 0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    cosine: bool = False
    amp: bool = False

    def __post_init__(self) -> None:
        for name, low in {"epochs": 0, "lr": 0, "momentum": 0, "weight_decay": 0, "batch_size": 1}.items():
            if not getattr(self, name) >= low:
                raise ValueError(f"Schedule.{name} is {getattr(self, name)}: it must be at least {low}")

    def rate(self, epoch: int) -> float:
        """Learning rate of ``epoch`` 1, 2, ..."""
        rate = self.lr * self.gamma ** sum(epoch > milestone for milestone in self.milestones)
        return rate * (1 + math.cos(math.pi * (epoch - 1) / self.epochs)) / 2 if self.cosine else rate

    @property
    def config(self) -> dict[str, Any]:
        """What an epoch depends on: without ``epochs`` if the rate does not, so that a longer run extends a shorter."""
        return {key: value for key, value in asdict(self).items() if key != "epochs" or self.cosine}


class CrossEntropy:
    """Classification: teacher and baseline. Base of the other objectives, which say what they do differently."""

    metric = "accuracy"

    @property
    def config(self) -> dict[str, Any]:
        """What addresses the objective in a run."""
        return {"name": "cross-entropy"}

    def trained(self, model: nn.Module, x: Tensor) -> set[str]:
        """Names of the parameters that the optimiser gets; the others neither move nor decay."""
        return {name for name, _ in model.named_parameters()}

    def frozen(self, model: nn.Module, x: Tensor) -> set[str]:
        """Names of the modules that stay in evaluation mode."""
        return set()

    def teach(self) -> Callable[[Tensor], Tensor] | None:
        """The function from an input ``[B, ...]`` to what the teacher says of it, or None without a teacher."""
        return None

    def output(self, model: nn.Module, x: Tensor) -> Tensor:
        """What the loss looks at."""
        return model(x)

    def loss(self, output: Tensor, y: Tensor, target: Tensor | None, energy: float) -> Tensor:
        """Scalar loss of a batch; ``energy`` is the teacher's mean squared norm over the training set."""
        return F.cross_entropy(output, y)

    def score(self, output: Tensor, y: Tensor, target: Tensor | None) -> tuple[float, float]:
        """Numerator and denominator of ``metric``, to be summed over batches."""
        return (output.argmax(1) == y).sum().item(), len(y)


class Feature(CrossEntropy):
    """Feature distillation: mean over the batch of ``||f_T(x) - f_S(x)||^2`` at a layer, and no other loss.

    ``scale``: "sum" is the paper's formula as printed. "energy" (default) divides it by the mean of ``||f_T||^2`` over
    the training set, a constant that the learning rate absorbs, so that one rate serves layers of every width (1 is
    the loss of a student whose feature is 0). "mean" is the 2020 release's mean over the feature's elements.
    The teacher speaks in evaluation mode, once per sample; parameters above the layer are not trained.
    """

    metric = "feature_error"

    def __init__(
        self,
        teacher: "Training | nn.Module",
        layer: str,
        teacher_layer: str | None = None,
        scale: str = "energy",
        epoch: int = -1,
    ) -> None:
        if scale not in ("energy", "sum", "mean"):
            raise ValueError(unknown("scale", scale, ["energy", "sum", "mean"]))
        self.layer, self.teacher_layer, self.scale = layer, teacher_layer or layer, scale
        self._identity, self._teacher = _source(teacher, epoch)

    @property
    def config(self) -> dict[str, Any]:
        layers = {"layer": self.layer, "teacher_layer": self.teacher_layer}
        return {"name": "feature", "teacher": self._identity, "scale": self.scale, **layers}

    def trained(self, model: nn.Module, x: Tensor) -> set[str]:
        return parameters_below(model, x, self.layer)

    def teach(self) -> Callable[[Tensor], Tensor]:
        teacher = self._teacher()
        return lambda x: capture(teacher.to(x.device).eval(), x, [self.teacher_layer])[self.teacher_layer]

    def output(self, model: nn.Module, x: Tensor) -> Tensor:
        return capture(model, x, [self.layer])[self.layer]

    def loss(self, output: Tensor, y: Tensor, target: Tensor | None, energy: float) -> Tensor:
        unit = {"energy": energy, "sum": 1.0, "mean": output[0].numel()}[self.scale]
        return (output - self._same(output, target)).flatten(1).square().sum(1).mean() / unit

    def score(self, output: Tensor, y: Tensor, target: Tensor | None) -> tuple[float, float]:
        target = self._same(output, target)
        return (output - target).square().sum().item(), target.square().sum().item()

    def _same(self, output: Tensor, target: Tensor | None) -> Tensor:
        assert target is not None
        if output.shape != target.shape:
            here, there = (f"{tuple(t.shape[1:])} per sample" for t in (output, target))
            raise ValueError(
                f"the student's layer {self.layer!r} gives {here}, the teacher's {self.teacher_layer!r} {there}: "
                "choose layers of one shape"
            )
        return target


class Soft(CrossEntropy):
    """Output distillation: ``T^2 KL(softmax(z_T / T) || softmax(z_S / T))`` (Hinton et al. 2015, section 2).

    The squared error of the logits is :class:`Feature` at the last layer.
    """

    def __init__(self, teacher: "Training | nn.Module", temperature: float = 4.0, epoch: int = -1) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}: it must be positive")
        self.temperature = temperature
        self._identity, self._teacher = _source(teacher, epoch)

    @property
    def config(self) -> dict[str, Any]:
        return {"name": "soft", "teacher": self._identity, "temperature": self.temperature}

    def teach(self) -> Callable[[Tensor], Tensor]:
        teacher = self._teacher()
        return lambda x: teacher.to(x.device).eval()(x)

    def loss(self, output: Tensor, y: Tensor, target: Tensor | None, energy: float) -> Tensor:
        assert target is not None
        if output.shape != target.shape:
            raise ValueError(f"the student's output is {tuple(output.shape)}, the teacher's {tuple(target.shape)}")
        ours, theirs = (F.log_softmax(z / self.temperature, 1) for z in (output, target))
        return self.temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


class Head(CrossEntropy):
    """Cross-entropy for the parameters above ``layer``; everything below is frozen, so its features keep their bits.

    Frozen means: no gradient, no decay, and evaluation mode (BatchNorm statistics fixed, no dropout).
    """

    def __init__(self, layer: str) -> None:
        self.layer = layer

    @property
    def config(self) -> dict[str, Any]:
        return {"name": "head", "layer": self.layer}

    def trained(self, model: nn.Module, x: Tensor) -> set[str]:
        return super().trained(model, x) - parameters_below(model, x, self.layer)

    def frozen(self, model: nn.Module, x: Tensor) -> set[str]:
        frozen, trained = modules_below(model, x, self.layer), self.trained(model, x)
        for name, module in model.named_modules():  # blocks that read their own ``training`` flag, such as attention
            inside = {f"{name}.{inner}".lstrip(".") for inner, _ in module.named_parameters()}
            if inside and not inside & trained:
                frozen.add(name)
        return frozen


@dataclass(frozen=True)
class Training:
    """A finished training: ``epochs`` + 1 artefacts, number 0 being the untrained network.

    ``log``, ``accuracy`` and ``step_norms`` read JSON only; weights are read, and verified, when they are asked for.
    Everywhere ``epoch`` counts from 0, and -1 is the last one.
    """

    run: Run
    epochs: int
    _trainer: "_Trainer"

    @property
    def address(self) -> str:
        """Address of the run in its store."""
        return self.run.address

    @property
    def log(self) -> list[dict[str, Any]]:
        """Per epoch: epoch, loss, accuracy, test_accuracy, seconds, lr, device, norms; NaN where undefined.

        Loss and accuracy are means over the epoch's batches, as trained. Feature distillation has no accuracy, but
        feature_error and test_feature_error, ``sum ||f_T - f_S||^2 / sum ||f_T||^2``.
        """
        return [self._trainer.info(epoch) for epoch in range(self.epochs + 1)]

    @property
    def accuracy(self) -> float:
        """Held-out accuracy after the last epoch; NaN without a test set or a classification."""
        return self._trainer.info(self.epochs)["test_accuracy"]

    def step_norms(self) -> list[dict[str, float]]:
        """Per epoch k and parameter ``||w_k - w_{k-1}||``, and for k = 0 ``||w_0||``: the ingredients of Eq. 8."""
        return [info["norms"] for info in self.log]

    def state(self, epoch: int = -1) -> dict[str, Tensor]:
        """The state dict of an epoch, on the CPU."""
        tensors = self._trainer.artefact(self.number(epoch)).tensors
        self._trainer.live = None  # a damaged epoch was computed anew
        return {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}

    def load(self, model: nn.Module | None = None, epoch: int = -1) -> nn.Module:
        """``model`` (mode and device untouched) with the weights of an epoch, or a new one in evaluation mode."""
        model = model if model is not None else self._trainer.make().eval()
        model.load_state_dict(self.state(epoch))
        return model

    def number(self, epoch: int) -> int:
        """``epoch`` counted from 0; raises IndexError when there is no such epoch."""
        if not -self.epochs - 1 <= epoch <= self.epochs:
            raise IndexError(f"epoch {epoch} of {self.address}: it has the epochs 0 to {self.epochs}")
        return epoch % (self.epochs + 1)


Model = Training | nn.Module | Mapping[str, Any]


def train(
    model: nn.Module | Callable[[], nn.Module],
    data: Data,
    objective: CrossEntropy,
    schedule: Schedule,
    run: Run,
    *,
    test: Data | None = None,
    device: str = "cpu",
) -> Training:
    """Train a copy of ``model`` (or what it returns, when it is a function); stored epochs are not computed again.

    ``run`` must be determined by all that determines the weights: :func:`baseline` and its siblings see to that.
    The last, partial batch is trained on too; one of a single sample joins the batch before it (BatchNorm needs two).
    Raises FloatingPointError when the loss is no longer finite (finished epochs are kept), ValueError without data.
    """
    if len(data) == 0:
        raise ValueError(f"no samples to train on in {dict(data.config)}")
    trainer = _Trainer(_maker(model), data, objective, schedule, run, test, device)
    trainer.finish()
    return Training(run, schedule.epochs, trainer)


class Options(TypedDict, total=False):
    """What every function below takes by name: builder of the model, held-out data, device ("cpu", "cuda:1")."""

    build: Callable[..., nn.Module] | None
    test: Data | None
    device: str


def baseline(
    store: Store,
    model: Model,
    data: Data,
    schedule: Schedule | None = None,
    *,
    kind: str = "baseline",
    **options: Unpack[Options],
) -> Training:
    """Train with cross-entropy: a baseline, or a teacher when ``data`` is everything.

    ``model`` is a network, known by its class, its printed structure and the digest of its weights, or, faster when
    everything is stored, a dict of arguments for ``build``, known by these arguments and the name of ``build``, or a
    training to go on from.
    """
    return fit(store, kind, model, data, CrossEntropy(), schedule, **options)


def student(
    store: Store,
    model: Model,
    data: Data,
    schedule: Schedule | None = None,
    *,
    teacher: "Training | nn.Module",
    layer: str,
    teacher_layer: str | None = None,
    epoch: int = -1,
    scale: str = "energy",
    **options: Unpack[Options],
) -> Training:
    """Distil the feature of the teacher (at ``epoch``) into ``layer`` of a student: see :class:`Feature`."""
    return fit(store, "student", model, data, Feature(teacher, layer, teacher_layer, scale, epoch), schedule, **options)


def head(
    store: Store,
    student: Model,
    layer: str,
    data: Data,
    schedule: Schedule | None = None,
    **options: Unpack[Options],
) -> Training:
    """Train what lies above ``layer`` of a distilled student (its last epoch): see :class:`Head`.

    When nothing lies above it (distillation from the output), every epoch is the student itself, with its accuracy.
    """
    return fit(store, "head", student, data, Head(layer), schedule, **options)


def output(
    store: Store,
    model: Model,
    data: Data,
    schedule: Schedule | None = None,
    *,
    teacher: "Training | nn.Module",
    temperature: float = 4.0,
    epoch: int = -1,
    **options: Unpack[Options],
) -> Training:
    """Distil the softened output of the teacher (at ``epoch``) into a student: see :class:`Soft`."""
    return fit(store, "output", model, data, Soft(teacher, temperature, epoch), schedule, **options)


def fit(
    store: Store,
    kind: str,
    model: Model,
    data: Data,
    objective: CrossEntropy,
    schedule: Schedule | None = None,
    *,
    build: Callable[..., nn.Module] | None = None,
    test: Data | None = None,
    device: str = "cpu",
) -> Training:
    """:func:`train` in the run that model, objective, schedule and data determine."""
    schedule = schedule or Schedule()
    identity, make = _source(model, build=build)
    config = {"model": identity, "objective": objective.config, "schedule": schedule.config}
    config |= {"data": data.config, "test": test.config if test is not None else None}
    return train(make, data, objective, schedule, store.run(kind, config), test=test, device=device)


def _source(
    model: Model, epoch: int = -1, build: Callable[..., nn.Module] | None = None
) -> tuple[dict[str, Any], Callable[[], nn.Module]]:
    """What identifies a network in a run's configuration, and a function that makes it."""
    if isinstance(model, Training):
        number = model.number(epoch)
        return {"run": model.address, "epoch": number}, lambda: model.load(epoch=number)
    if isinstance(model, nn.Module):
        weights = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
        name, content = type(model).__qualname__, repr(model).encode() + safetensors.torch.save(weights)
        return {"class": name, "digest": digest(content)}, _maker(model)
    if build is None:
        raise TypeError("a model given as a dict of arguments needs build=, the function that takes them")
    return {"build": f"{build.__module__}.{build.__qualname__}", "arguments": dict(model)}, lambda: build(**model)


def _maker(model: nn.Module | Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    if not isinstance(model, nn.Module):
        return model
    kept = copy.deepcopy(model)  # now: the caller may change the model before an epoch has to be computed again
    return lambda: copy.deepcopy(kept)


@contextmanager
def _seeded(*key: int) -> Iterator[None]:
    """Random numbers that depend on ``key`` alone; the caller's generators are left as they were."""
    with torch.random.fork_rng(list(range(torch.cuda.device_count()))):
        torch.manual_seed(int(digest(list(key))[:15], 16))
        yield


@dataclass
class _Trainer:
    """Computes the artefacts of a training that are not stored; holds no network until one has to be computed."""

    make: Callable[[], nn.Module]
    data: Data
    objective: CrossEntropy
    schedule: Schedule
    run: Run
    test: Data | None
    device: str
    live: "_Live | None" = None
    bar: Progress | None = None

    def finish(self) -> None:
        """Compute every epoch that is not stored."""
        epochs, steps = self.schedule.epochs, len(_batches(len(self.data), self.schedule.batch_size))
        missing = [epoch for epoch in range(epochs + 1) if not self.run.has(_name(epoch))]
        if not missing:
            return
        done = steps * (epochs - sum(epoch > 0 for epoch in missing))
        try:
            with Progress(epochs * steps, self.run.kind, "batch", done) as self.bar:
                for epoch in missing:
                    if epoch and self.run.has(_name(epoch)):  # by another process, meanwhile
                        self.bar.step(steps)
                    else:
                        self.artefact(epoch)
        finally:
            self.live = self.bar = None

    def info(self, epoch: int) -> dict[str, Any]:
        return self.run.info(_name(epoch)) or self.artefact(epoch).info

    def artefact(self, epoch: int) -> Item:
        """The artefact of an epoch, with those before it that it needs and that are not stored."""
        first = epoch
        while first and not (self.live and self.live.epoch == first - 1) and not self.run.has(_name(first - 1)):
            first -= 1
        for earlier in range(first, epoch):
            self.run.get(_name(earlier), lambda k=earlier: self._compute(k))
        return self.run.get(_name(epoch), lambda: self._compute(epoch))

    def _compute(self, epoch: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        start = time.perf_counter()
        if self.live is None or (epoch == 0 and self.live.epoch != 0):
            with _seeded(self.schedule.seed, -1):  # a builder may draw from torch's generator
                self.live = _Live(self)
        live = self.live
        if epoch and live.epoch != epoch - 1:
            live.restore(epoch - 1, self.artefact(epoch - 1).tensors)
        with _seeded(self.schedule.seed, epoch):
            info = {"epoch": epoch, "lr": self.schedule.rate(epoch) if epoch else 0.0, "device": str(self.device)}
            info |= {"loss": math.nan, "accuracy": math.nan, "test_accuracy": math.nan}
            info |= live.advance(epoch, self.bar) if epoch else {"norms": _norms(live.parameters)}
            info |= live.evaluate()
        return live.tensors(), info | {"seconds": time.perf_counter() - start}


class _Live:
    """Network, optimiser and teacher's answers in memory, standing at the end of ``epoch``."""

    def __init__(self, trainer: _Trainer) -> None:
        self.t, self.epoch = trainer, 0
        self.device, self.schedule, self.objective = torch.device(trainer.device), trainer.schedule, trainer.objective
        self.model = trainer.make().to(self.device)
        self.layout = torch.contiguous_format
        x, _ = self._batch(trainer.data, torch.arange(min(2, len(trainer.data))))
        self.layout = self._fastest_layout(x)
        self.frozen = self.objective.frozen(self.model, x)
        self.trained = self.objective.trained(self.model, x)
        self.parameters = dict(self.model.named_parameters())
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name in self.trained)
        chosen = [parameter for name, parameter in self.parameters.items() if name in self.trained]
        s = self.schedule
        sgd = {"lr": s.lr, "momentum": s.momentum, "weight_decay": s.weight_decay}
        self.optimiser = torch.optim.SGD(chosen, **sgd) if chosen else None
        teach = self.objective.teach()
        self.targets, self.test_targets = self._answers(teach, trainer.data), self._answers(teach, trainer.test)
        sizes = self.targets.flatten(1).square().sum(1) if self.targets is not None else torch.ones(1)
        self.energy = sizes.double().mean().item() or 1.0

    def restore(self, epoch: int, tensors: dict[str, Tensor]) -> None:
        """Go to the end of ``epoch``, whose artefact holds ``tensors``."""
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        if self.optimiser:
            self.optimiser.state.clear()
            for name in self.trained:
                if (momentum := tensors.get(f"optim.{name}")) is not None:
                    buffer = torch.empty_like(self.parameters[name]).copy_(momentum)
                    self.optimiser.state[self.parameters[name]]["momentum_buffer"] = buffer
        self.epoch = epoch

    def tensors(self) -> dict[str, Tensor]:
        """Weights, buffers and momentum: all that the next epoch starts from."""
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        for name in self.trained:
            momentum = self.optimiser.state[self.parameters[name]].get("momentum_buffer")
            if momentum is not None:
                tensors[f"optim.{name}"] = momentum
        return tensors

    def advance(self, epoch: int, bar: Progress | None) -> dict[str, Any]:
        """Train one epoch; its mean loss and metric, and how far each parameter went."""
        before = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        order = torch.randperm(len(self.t.data))
        total = part = whole = 0.0
        self.epoch = -1  # neither here nor there until the epoch is complete
        self.model.train()
        for name, module in self.model.named_modules():
            if name in self.frozen:
                module.training = False
        for group in self.optimiser.param_groups if self.optimiser else []:
            group["lr"] = self.schedule.rate(epoch)
        for number, index in enumerate(_batches(len(order), self.schedule.batch_size) if self.optimiser else []):
            loss, score = self._step(order[index])
            if not math.isfinite(loss):
                raise FloatingPointError(self._diverged(loss, epoch, number + 1))
            total, part, whole = total + loss * len(index), part + score[0], whole + score[1]
            if bar:
                bar.step(loss=total / (index[-1].item() + 1), **{self.objective.metric: part / whole if whole else 0.0})
        self.epoch = epoch
        moved = _norms({name: parameter - before[name] for name, parameter in self.parameters.items()})
        if not self.optimiser:
            return {"norms": moved}
        return {"loss": total / len(order), self.objective.metric: part / whole if whole else math.nan, "norms": moved}

    def _step(self, index: Tensor) -> tuple[float, tuple[float, float]]:
        (x, y), target = self._batch(self.t.data, index), _pick(self.targets, index, self.device)
        output = self._output(x)
        loss = self.objective.loss(output, y, target, self.energy)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.item(), self.objective.score(output.detach(), y, target)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The metric on the test set, in evaluation mode."""
        if self.t.test is None or len(self.t.test) == 0:
            return {}
        self.model.eval()
        part = whole = 0.0
        for index in _batches(len(self.t.test), self.schedule.batch_size):
            (x, y), target = self._batch(self.t.test, index), _pick(self.test_targets, index, self.device)
            score = self.objective.score(self._output(x), y, target)
            part, whole = part + score[0], whole + score[1]
        return {f"test_{self.objective.metric}": part / whole if whole else math.nan}

    def _output(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.schedule.amp):
            output = self.objective.output(self.model, x)
        return output.float() if self.schedule.amp else output

    def _batch(self, data: Data, index: Tensor) -> tuple[Tensor, Tensor]:
        x, y = data.batch(index, self.t.device)
        return (x.contiguous(memory_format=self.layout) if x.dim() == 4 else x), y

    @torch.no_grad()
    def _answers(self, teach: Callable[[Tensor], Tensor] | None, data: Data | None) -> Tensor | None:
        """The teacher's answers ``[N, ...]`` to all samples, on the CPU."""
        if teach is None or data is None or len(data) == 0:
            return None
        parts = _batches(len(data), self.schedule.batch_size)
        return torch.cat([teach(self._batch(data, index)[0]).cpu() for index in parts])

    @torch.no_grad()
    def _fastest_layout(self, x: Tensor) -> torch.memory_format:
        """Channels last for images, a quarter faster on CPUs, unless the model cannot take it (a ``view`` in it)."""
        if x.dim() == 4:
            with explaining(self.model, self.device):
                try:
                    self.objective.output(self.model, x.contiguous(memory_format=torch.channels_last))
                    return torch.channels_last
                except RuntimeError:
                    pass
        return torch.contiguous_format

    def _diverged(self, loss: float, epoch: int, step: int) -> str:
        where = f"the loss of {self.t.run.address} became {loss} in epoch {epoch}, step {step}"
        return f"{where}: use a lower learning rate than {self.schedule.rate(epoch):g}; epochs before {epoch} are kept"


def _name(epoch: int) -> str:
    return f"epoch-{epoch:03d}"


def _norms(values: Mapping[str, Tensor]) -> dict[str, float]:
    return {k: torch.linalg.vector_norm(v.detach().cpu(), dtype=torch.float64).item() for k, v in values.items()}


def _pick(values: Tensor | None, index: Tensor, device: torch.device) -> Tensor | None:
    return values[index].to(device) if values is not None else None


def _batches(count: int, size: int) -> list[Tensor]:
    """0 .. ``count`` - 1 in pieces of ``size``; a single leftover joins the piece before it."""
    pieces = list(torch.arange(count).split(size))
    if len(pieces) > 1 and len(pieces[-1]) == 1 and size > 1:
        pieces[-2:] = [torch.cat(pieces[-2:])]
    return pieces
