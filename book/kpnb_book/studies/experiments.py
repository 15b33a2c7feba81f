"""The paper's other experiments on images (sections 3.2, 4.2, 4.5): rescaled networks, some classes
only, probes.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kpnb.features import capture
from kpnb.losses import softened_output
from kpnb_book.data.image_set import ImageSet
from kpnb_book.studies import images, settings
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.plan import Plan
from kpnb_book.studies.training import Model, Schedule, Source, Training

Way = Literal["even", "uneven", "as printed"]

BRIEF_TEACHER_SIZE = {
    "laptop": {
        "teacher_samples": 4000,
        "teacher_epochs": 8,
        "share": 500,
        "epochs": 12,
        "analysed": 16,
    }
}
"""Settings by profile, for ``settings.brief``, of the chapter on the size of the teacher."""
BRIEF_OUTPUTS = {  # FC3 is less forgiving than FC1
    "smoke": {"student_lr": 0.005},
    "laptop": {"epochs": 12, "analysed": 24, "student_lr": 0.05},
}
"""The same of the chapter on distillation from the output."""
BRIEF_FINE_TUNING = {"laptop": {"epochs": 12, "analysed": 24, "share": 500}}
BRIEF_BEFORE = {"laptop": {"teacher_samples": 4000, "teacher_epochs": 8}}
"""The same of the chapter on fine-tuning: of the two networks that are compared, and of the one
that learned other classes before.
"""


def folded(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode in which batch normalisations are part of the convolutions before
    them.
    """
    model = copy.deepcopy(model).eval()
    for i, module in enumerate(model.features):
        if isinstance(module, nn.BatchNorm2d):
            model.features[i - 1] = fuse_conv_bn_eval(model.features[i - 1], module)
            model.features[i] = nn.Identity()
    return model


def inner_layers(model: nn.Module) -> dict[str, tuple[nn.Conv2d, nn.Conv2d]]:
    """Every pair of neighbouring convolutions, by the name of the activation between them."""
    convolutions = [i for i, module in enumerate(model.features) if isinstance(module, nn.Conv2d)]
    found = {}
    for first, second in zip(convolutions[::2], convolutions[1::2], strict=False):
        inner = next(i for i in range(first, second) if isinstance(model.features[i], nn.ReLU))
        found[f"features.{inner}"] = (model.features[first], model.features[second])
    return found


@torch.no_grad()
def rescaled(model: nn.Module, way: Way = "even", factor: float = 4.0) -> nn.Module:
    """A copy whose convolutions are multiplied by c and divided by it again, in disjoint pairs of
    neighbours.

    The second of a pair gives back what the first one changes, because ReLU and pooling commute
    with c > 0:
    w1 <- c w1, b1 <- c b1, w2 <- w2 / c. c is ``factor`` for all channels ("even"), or goes in
    equal steps of its logarithm from 1/factor to factor over the channels ("uneven"). "as printed"
    divides b2 as well, as the formula in section 3.2 does, and so changes the output wherever b2 is
    not 0.
    """
    model = folded(model)
    for first, second in inner_layers(model).values():
        c = torch.full_like(first.bias, factor)
        if way == "uneven":
            c = c ** torch.linspace(-1, 1, len(c))
        first.weight *= c[:, None, None, None]
        first.bias *= c
        second.weight /= c[:, None, None]
        if way == "as printed":
            second.bias /= factor
    return model


def other_maps(model: nn.Module, x: Tensor, layer: str, target: Tensor) -> dict[str, Tensor]:
    """Explanations that look at a layer's feature, from Captum, each ``[N, h, w]`` in the feature's
    resolution.

    Size of the gradient of the logit ``target [N]`` with respect to the feature; Grad-CAM; and
    internal influence, that gradient averaged over a path from the average colour.
    """
    # The one page that needs it.
    from captum.attr import InternalInfluence, LayerGradCam, LayerGradientXActivation

    module = model.get_submodule(layer)
    raw = LayerGradientXActivation(model, module, multiply_by_inputs=False)
    gradient = raw.attribute(x, target)
    cam = LayerGradCam(model, module).attribute(x, target, relu_attributions=True)
    influence = InternalInfluence(model, module).attribute(x, target=target, n_steps=8)
    found = {
        "gradient": gradient.norm(dim=1),
        "Grad-CAM": cam[:, 0],
        "internal influence": influence.norm(dim=1),
    }
    return {name: values.detach() for name, values in found.items()}


def relative_change(before: Tensor, after: Tensor) -> float:
    """Length of the difference of two maps ``[N, ...]`` over that of the first, mean over the
    samples.
    """
    gap = (after - before).flatten(1).norm(dim=1)
    size = before.flatten(1).norm(dim=1)
    return (gap / size).nanmean().item()


@dataclass(frozen=True)
class ClassesSettings(images.Settings):
    """``classes``: positions, among all, of the classes that the experiment is about."""

    classes: tuple[int, ...] = ()


class SomeClasses(ImageStudy):
    """The experiment on the images of some ``classes`` only."""

    Settings: ClassVar[type[settings.Settings]] = ClassesSettings

    @classmethod
    def resolve(cls, profile: str = "laptop", **overrides: Any) -> settings.Settings:
        """As ``ImageStudy.resolve``; the classes are in their order among all."""
        found = super().resolve(profile, **overrides)
        return replace(found, classes=tuple(sorted(found.classes)))

    def load(self, split: str, count: int | None) -> ImageSet:
        images, classes = super().load(split, count), self.settings.classes
        if classes and classes[-1] >= len(images.classes):
            raise ValueError(
                f"class number {classes[-1]} is asked for (they count from 0), but "
                f"{self.settings.dataset!r} has {len(images.classes)} classes: pass other classes="
            )
        positions = torch.tensor(classes, dtype=images.labels.dtype)
        chosen = images.subset(torch.isin(images.labels, positions))
        return replace(
            chosen,
            labels=torch.searchsorted(positions, chosen.labels),
            classes=tuple(images.classes[i] for i in classes),
            config={**chosen.config, "classes": classes},
        )


class FewOutputs(SomeClasses):
    """Its teacher is that of all classes, ``whole``, with the outputs of the chosen ones only
    (table 8).
    """

    def __init__(self, profile: str = "laptop", *, whole: ImageStudy, **overrides: Any) -> None:
        super().__init__(profile, store=whole.store, **overrides)
        self.whole = whole

    def teacher(self) -> Training:
        """A training of no epochs, which only knows its held-out accuracy."""
        everything, classes = self.whole.teacher(), list(self.settings.classes)

        def narrowed() -> nn.Module:
            model = everything.load()
            last = model.get_submodule(self.path("FC3"))
            last.weight = nn.Parameter(last.weight.detach()[classes])
            last.bias = nn.Parameter(last.bias.detach()[classes])
            last.out_features = len(classes)
            return model

        identity = {"run": everything.address, "classes": classes}
        model = Source(identity, narrowed, (everything,))
        return self.classifier(model, self.train, Schedule(0), kind="teacher")


def softened(study: ImageStudy, seed: int = 0, temperature: float = 4.0) -> Training:
    """The student of the teacher's softened output (Hinton et al. 2015), in the baseline's
    schedule.
    """
    return study.taught(
        softened_output(temperature),
        seed,
        study.teacher(),
        schedule=study.baseline(seed).schedule,
        kind="output",
    )


def softened_plan(study: FewOutputs, seed: int, temperature: float) -> Plan:
    """Both students and the baseline are trained, and measured at FC3."""
    students = study.student("FC3", seed), softened(study, seed, temperature)
    networks = [(network, "FC3") for network in (*students, study.baseline(seed))]
    return Plan.measuring(study, networks)


def halves(classes: Sequence[str], weights: str | None) -> tuple[range, range]:
    """Which classes a network learns first, and which it is fine-tuned on: half of them each; of
    one that starts from ``weights`` none and all. ``ValueError`` with fewer than two in each.
    """
    half = 0 if weights else len(classes) // 2
    if not weights and half < 2:
        raise ValueError(
            "fine-tuning needs four classes, two to learn first and two to go on with; this data "
            f"set has {len(classes)} ({', '.join(classes)})"
        )
    return range(half), range(half, len(classes))


def fine_tuned(study: ImageStudy, source: Training | None, seed: int = 0) -> Training:
    """The baseline's training, from weights that were learned before; its last layer starts as the
    baseline's.

    They are those of ``source``, or of torchvision (``teacher_weights``) when there is none.
    """
    spec, last = study.spec(seed), study.path("FC3") + "."

    def started() -> nn.Module:
        network = type(study).build(**spec)
        kept = {key: value for key, value in source.state().items() if not key.startswith(last)}
        network.load_state_dict(kept, strict=False)
        return network

    model: Model = {**spec, "weights": study.settings.teacher_weights}
    if source is not None:
        model = Source({"run": source.address, "spec": spec}, started, (source,))
    schedule = study.baseline(seed).schedule
    return study.classifier(model, study.share, schedule, kind="fine-tuned")


def fine_tuned_plan(study: ImageStudy, source: Training | None, layer: str, seed: int) -> Plan:
    """The fine-tuned network and the baseline are trained, and measured at ``layer``."""
    networks = [(fine_tuned(study, source, seed), layer), (study.baseline(seed), layer)]
    return Plan.measuring(study, networks)


def probe_accuracies(study: ImageStudy, training: Training, layer: str) -> Tensor:
    """Held-out accuracy, by epoch ``[M + 1]``, of a linear classifier of a layer's feature; stored.

    Least squares on the share, with a ridge of a thousandth of the feature's mean square: unlike a
    trained head it is the same for every network and epoch, and cheap enough for all of them.
    """
    where = {"network": training.address, "layer": study.path(layer), "recipe": 1}
    where["epochs"] = training.epochs  # at a constant rate no part of the address
    run = study.store.run("probe", where | {"data": study.share.config, "test": study.test.config})

    def accuracies() -> tuple[dict[str, Tensor], dict[str, Any]]:
        epochs = range(training.epochs + 1)
        found = [_probe_accuracy(study, training.load(epoch=n), layer) for n in epochs]
        return {"accuracy": torch.stack(found)}, {}

    return run.get("accuracy", accuracies).tensors["accuracy"]


@torch.no_grad()
def _probe_accuracy(study: ImageStudy, model: nn.Module, layer: str) -> Tensor:
    model = model.to(study.settings.device)
    learned = _features(study, model, study.share, layer)
    held_out = _features(study, model, study.test, layer)
    gram, labels = learned.T @ learned, nn.functional.one_hot(study.share.labels).double()
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram + ridge, learned.T @ labels)
    return ((held_out @ weight).argmax(1) == study.test.labels).double().mean()


def _features(study: ImageStudy, model: nn.Module, data: ImageSet, layer: str) -> Tensor:
    """The feature of every sample, flat and followed by a 1, ``[N, d + 1]``."""
    path, found = study.path(layer), []
    for part in torch.arange(len(data)).split(256):
        x, _ = data.batch(part, study.settings.device)
        found.append(capture(model, x, [path])[path].flatten(1).double().cpu())
    return nn.functional.pad(torch.cat(found), (0, 1), value=1.0)
