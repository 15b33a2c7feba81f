"""The paper's other experiments on images (sections 3.2, 4.2, 4.5): rescaled networks, some classes
only, probes.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kpnb.features import capture
from kpnb_book.data.image_set import ImageSet
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.training import CrossEntropy, Schedule, Soft, Training

Way = Literal["even", "uneven", "as printed"]


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
        second.bias /= factor if way == "as printed" else 1
    return model


def other_maps(model: nn.Module, x: Tensor, layer: str, target: Tensor) -> dict[str, Tensor]:
    """Explanations that look at a layer's feature, from Captum, each ``[N, h, w]`` in the feature's
    resolution.

    Size of the gradient of the logit ``target [N]`` with respect to the feature; Grad-CAM; and
    internal influence, that gradient averaged over a path from the black image.
    """
    from captum.attr import (  # the one page that needs it
        InternalInfluence,
        LayerGradCam,
        LayerGradientXActivation,
    )

    module = model.get_submodule(layer)
    gradient = LayerGradientXActivation(model, module, multiply_by_inputs=False).attribute(
        x, target
    )
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
    gap, size = ((values.flatten(1).norm(dim=1)) for values in (after - before, before))
    return (gap / size).nanmean().item()


class SomeClasses(ImageStudy):
    """The experiment on the images of some classes only; ``classes`` are their positions among
    all.
    """

    def __init__(
        self, profile: str = "laptop", *, classes: Iterable[int], **overrides: Any
    ) -> None:
        super().__init__(profile, **overrides)
        self.classes = sorted(classes)

    def load(self, split: str, count: int | None) -> ImageSet:
        images = super().load(split, count)
        chosen = images.subset(torch.isin(images.labels, torch.tensor(self.classes)))
        names = tuple(images.classes[i] for i in self.classes)
        labels = torch.searchsorted(torch.tensor(self.classes), chosen.labels)
        return replace(
            chosen, labels=labels, classes=names, config=chosen.config | {"classes": self.classes}
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
        everything = self.whole.teacher()

        def narrowed(run: str, classes: list[int]) -> nn.Module:
            model = everything.load()
            last = model.get_submodule(self.path("FC3"))
            last.weight, last.bias = (
                nn.Parameter(p.detach()[classes]) for p in (last.weight, last.bias)
            )
            last.out_features = len(classes)
            return model

        model = {"run": everything.address, "classes": self.classes}
        options = {"build": narrowed, "test": self.test, "device": self.settings.device}
        return Training(
            self.store, "teacher", model, self.train, CrossEntropy(), Schedule(0), **options
        ).finish()


def softened(study: ImageStudy, seed: int = 0, temperature: float = 4.0) -> Training:
    """The student of the teacher's softened output (Hinton et al. 2015), in the baseline's
    schedule.
    """
    teacher = study.student("FC3", seed).objective.teacher
    return replace(
        study.baseline(seed),
        kind="output",
        objective=Soft(teacher=teacher, temperature=temperature),
    ).finish()


def fine_tuned(study: ImageStudy, source: Training | None, seed: int = 0) -> Training:
    """The baseline's training, from weights that were learned before; its last layer starts as the
    baseline's.

    They are those of ``source``, or of torchvision (``teacher_weights``) when there is none.
    """
    spec = study.spec(seed)
    if source is None:
        model, build = spec | {"weights": study.settings.teacher_weights}, type(study).build
    else:
        model = {"run": source.address, "spec": spec}

        def build(run: str, spec: Mapping[str, Any]) -> nn.Module:
            network, last = type(study).build(**spec), study.path("FC3") + "."
            kept = {key: value for key, value in source.state().items() if not key.startswith(last)}
            network.load_state_dict(kept, strict=False)
            return network

    return replace(study.baseline(seed), kind="fine-tuned", model=model, build=build).finish()


def probe_accuracies(study: ImageStudy, training: Training, layer: str) -> Tensor:
    """Held-out accuracy, by epoch ``[M + 1]``, of a linear classifier of a layer's feature; stored.

    Least squares on the share, with a ridge of a thousandth of the feature's mean square: unlike a
    trained head it is the same for every network and epoch, and cheap enough for all of them.
    """
    where = {"network": training.address, "layer": study.path(layer), "recipe": 1}
    run = study.store.run("probe", where | {"data": study.share.config, "test": study.test.config})

    def features(model: nn.Module, data: ImageSet) -> Tensor:
        inputs = (
            data.batch(part, study.settings.device)[0]
            for part in torch.arange(len(data)).split(256)
        )
        found = [
            capture(model, x, [study.path(layer)])[study.path(layer)].flatten(1).double().cpu()
            for x in inputs
        ]
        return nn.functional.pad(torch.cat(found), (0, 1), value=1.0)

    @torch.no_grad()
    def accuracy(epoch: int) -> Tensor:
        model = training.load(epoch=epoch).to(study.settings.device)
        learned, held_out = features(model, study.share), features(model, study.test)
        gram, labels = learned.T @ learned, nn.functional.one_hot(study.share.labels).double()
        ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        weight = torch.linalg.solve(gram + ridge, learned.T @ labels)
        return ((held_out @ weight).argmax(1) == study.test.labels).double().mean()

    def accuracies() -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {
            "accuracy": torch.stack([accuracy(epoch) for epoch in range(training.epochs + 1)])
        }, {}

    return run.get("accuracy", accuracies).tensors["accuracy"]
