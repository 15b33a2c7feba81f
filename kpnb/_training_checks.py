"""What is checked before a training starts: its arguments, its folder, and what fits together."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from kpnb._learner import Learner, NetworkInput, Select, batch_norms, batches, seeded
from kpnb._models import check_model, private_copy
from kpnb.checkpoints import Checkpoints, copied, digest, with_prefix
from kpnb.features import capture
from kpnb.losses import TrainingObjective
from kpnb.schedule import Schedule

ROUNDING = {"single": 5e-3, "bf16": 0.05}
"""How far a network's outputs may be apart, in proportion to themselves: on a card with TF32, and
from its own in bfloat16.
"""

if TYPE_CHECKING:
    from kpnb.distill import Data


def check_arguments(
    model: nn.Module,
    data: "Data",
    schedule: Schedule,
    objective: TrainingObjective,
    teacher: nn.Module | None,
    test: "Data | None",
) -> None:
    """Raise TypeError for data, a schedule or networks of another kind, ValueError where something
    lacks.
    """
    check_model(model)
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule is a kpnb.schedule.Schedule; got {type(schedule).__name__}")
    if teacher is not None:
        check_model(teacher, "the teacher")
    for name, given in (("data", data), ("test", data if test is None else test)):
        if not (hasattr(given, "batch") and hasattr(given, "__len__")):
            raise TypeError(
                f"{name} must be TensorData(x, y), or an object with __len__ and "
                f"batch(index, device) as kpnb.distill.Data describes; got {type(given).__name__}"
                f"{_as_data(given)}"
            )
    if len(data) == 0:
        raise ValueError("no samples to train on: the data are empty")
    if objective.loss and teacher is None:
        raise ValueError(f"the loss {objective.loss!r} compares with a teacher: pass teacher=")


def _as_data(given: object) -> str:
    """How the batches of a loader, or inputs and labels, become data; "" for anything else."""
    if isinstance(given, tuple | list) and len(given) == 2:
        return ": TensorData(*data)"
    if isinstance(given, torch.utils.data.DataLoader):
        return ": of one that yields (x, y), TensorData(*map(torch.cat, zip(*loader)))"
    return ""


def first_samples(data: "Data", count: int, device: str) -> tuple[NetworkInput, Tensor]:
    """Inputs and labels of the first ``count`` samples. TypeError for no tensors."""
    x, labels = data.batch(torch.arange(min(count, len(data))), device)
    parts = list(x.values()) if isinstance(x, Mapping) else [x]
    for part in (*parts, labels):
        if not isinstance(part, Tensor):
            raise TypeError(
                f"{type(data).__name__}.batch gives tensors, inputs and labels; got "
                f"{type(part).__name__}: torch.as_tensor makes one"
            )
    return x, labels


def check_samples_first(feature: Tensor, what: str, samples: int) -> None:
    """Raise ValueError unless a ``feature`` has a part for each of the samples, in front."""
    if not feature.dim() or len(feature) != samples:
        raise ValueError(
            f"{what} is {list(feature.shape)} for {samples} samples: to be compared sample by "
            "sample, they have to be its first dimension; choose another layer"
        )


def what_determines(
    data: "Data",
    schedule: Schedule,
    objective: TrainingObjective,
    teacher: nn.Module | None,
    test: "Data | None",
) -> dict[str, Any]:
    """What tells one training from another, but for the initial weights. Of training data only
    their number, because noise may be added to them; of held-out samples the first ones, too.
    """
    found = {"schedule": schedule.config, "objective": objective.config, "samples": len(data)}
    found["test"] = None if test is None or len(test) == 0 else first_of(test)
    if objective.loss and teacher is not None:
        state = teacher.state_dict().items()  # a quantised teacher's has more than numbers
        weights = {k: v for k, v in state if isinstance(v, Tensor) and v.is_floating_point()}
        found["teacher"] = digest(safetensors.torch.save(copied(weights)))[:20]
    return found


def first_of(data: "Data") -> str:
    """How many samples there are, and a digest of the first ones and their labels."""
    x, labels = first_samples(data, 32, "cpu")
    tensors = {"x": x} if isinstance(x, Tensor) else {f"x.{name}": x[name] for name in x}
    state = safetensors.torch.save(copied(tensors | {"labels": labels}))
    return f"{len(data)} samples, {digest(state)[:20]}"


def check_same_training(
    checkpoints: Checkpoints, model: nn.Module, settings: Mapping[str, Any]
) -> None:
    """Raise ValueError when a folder has the checkpoints of another training: other settings or
    other initial weights. Nothing is compared without settings.
    """
    artefacts = checkpoints.artefacts
    if not settings or len(checkpoints.missing()) > checkpoints.epochs:
        return
    other = f"{artefacts.path} holds another training"
    known = artefacts.info("training") or {}
    settings = json.loads(json.dumps(settings))  # as they come back from a file
    for name in {**known, **settings} if known else ():
        if known.get(name) != settings.get(name):
            found = f"{other}, whose {name} is {known.get(name)}, not {settings.get(name)}"
            if name == "data":  # of which there are digests
                found = f"{other}, of other inputs or labels"
            raise ValueError(f"{found}: choose another folder")
    first = artefacts.read("epoch-000")
    if first and not same_weights(with_prefix(first.tensors, "model."), model.state_dict()):
        raise ValueError(f"{other}, which started from other weights: choose another folder")


def named_outputs(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs by layer under names that an artefact may have."""
    return {f"output {name}": value for name, value in outputs.items()}


@torch.no_grad()
def check_same_function(
    checkpoints: Checkpoints,
    model: nn.Module,
    data: "Data",
    objective: TrainingObjective,
    select: Select,
) -> None:
    """Raise ValueError when the folder has a training of a network that, with these very weights,
    made something else of the first two samples: with another activation, say.
    """
    known = checkpoints.artefacts.read("training")
    if known is None or "data" not in known.info or len(checkpoints.missing()) > checkpoints.epochs:
        return
    x, _ = first_samples(data, 2, str(next(model.parameters(), torch.empty(0)).device))
    with seeded(0):
        found = capture(private_copy(model).eval(), x, objective.looks_at, select=select)
    rounding = ROUNDING["bf16" if known.info["schedule"].get("bf16") else "single"]
    for name, now in named_outputs(found).items():
        then = known.tensors.get(name)
        if then is not None and not same_outputs(now.cpu(), then, rounding):
            raise ValueError(
                f"{checkpoints.artefacts.path} holds the training of a network that computed "
                f"something else from the same weights (of the first samples, at "
                f"{name.removeprefix('output ') or 'its output'!r}): choose another folder"
            )


def same_outputs(one: Tensor, two: Tensor, rounding: float) -> bool:
    """Whether they are equal but for ``rounding``, in proportion to themselves."""
    if one.shape != two.shape:
        return False
    one, two = (each.double().nan_to_num() for each in (one, two))
    return bool((one - two).norm() <= rounding * two.norm())


def same_weights(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts are equal, but for what machines round differently."""
    if one.keys() != two.keys():
        return False
    pairs = [(value, two[name].cpu()) for name, value in one.items()]
    return all(a.shape == b.shape and torch.allclose(a, b, equal_nan=True) for a, b in pairs)


def check_shapes(
    learner: Learner, outputs: Mapping[str, Tensor], targets: Sequence[Tensor]
) -> None:
    """Raise ValueError for layers of different shapes, unless the loss takes them."""
    objective = learner.objective
    if objective.loss is None:
        return
    for ours, theirs, target in zip(objective.layers, objective.theirs, targets, strict=True):
        check_samples_first(outputs[ours], f"the student's {ours or 'output'!r}", len(target))
        one = list(outputs[ours].shape[1:])
        other = list(target.shape[1:])
        if one != other and objective.definition.same_shape:
            raise ValueError(
                f"of a sample the student's {ours or 'output'!r} is {one}, the teacher's "
                f"{theirs or 'output'!r} {other}: choose layers of one shape"
            )


def check_batch_of_one(learner: Learner, data: "Data") -> None:
    """Raise ValueError where a normalisation would get a single value for each mean, or a loss that
    compares samples a single one.
    """
    size = learner.schedule.batch_size
    smallest = min(len(batch) for batch in batches(torch.arange(len(data)), size))
    if smallest > 1 or not learner.trained:
        return
    loss = learner.objective.definition
    if loss is not None and not loss.per_sample:
        raise ValueError(
            f"the loss {learner.objective.loss} compares the samples of a batch, but one has a "
            f"single sample ({len(data)} samples, batch_size={size}): choose a larger batch_size"
        )
    # of groups and instances too: PyTorch refuses those with one value each
    groups = (nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
    grouped = any(isinstance(module, groups) for module in learner.model.modules())
    if not grouped and not batch_norms(learner.model, learner.resting):
        return
    before = copied(learner.tensors())
    learner.train_mode(rate=0.0)
    try:
        with seeded(0), torch.no_grad():
            learner.outputs(data.batch(torch.arange(1), learner.device)[0])
    except ValueError as error:
        if not re.search("more than 1 (value per channel|spatial element)", str(error)):
            raise
        kind = "a normalisation of groups or instances" if grouped else "batch normalisation"
        raise ValueError(
            f"{kind} cannot learn from a batch of one sample ({len(data)} samples, "
            f"batch_size={size}): choose a larger batch_size"
            f"{', or groups of more than one value' if grouped else ''}"
        ) from error
    finally:
        learner.restore(before)
