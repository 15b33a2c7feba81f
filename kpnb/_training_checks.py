"""What is checked before a training starts: its arguments, its folder, and what fits together."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from kpnb._learner import Learner, NetworkInput, Select, batch_norms, batches, seeded
from kpnb._models import check_model, private_copy
from kpnb._signature import digest_of_weights
from kpnb._untouched import explaining
from kpnb.checkpoints import Checkpoints, Item, copied, digest, with_prefix
from kpnb.features import capture
from kpnb.losses import TrainingObjective
from kpnb.schedule import Schedule

log = logging.getLogger(__name__)

INITIAL = "initial weights"
"""Name of a digest beside the settings, for folders whose epoch 0 is damaged."""
DIGESTS = ("data", "held-out data")
"""Settings that are digests; folders of an older kpnb, and of other data, have none."""
TF32 = 5e-3
"""How far outputs of one network, on a card and on a CPU, may be apart, in proportion."""

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
    if not isinstance(objective, TrainingObjective):
        raise TypeError(
            "objective is a kpnb.losses.TrainingObjective, such as feature_at('fc1'); got "
            f"{type(objective).__name__}"
        )
    if teacher is not None:
        check_model(teacher, "the teacher")
    for name, given in (("data", data), ("test", data if test is None else test)):
        if not (hasattr(given, "batch") and hasattr(given, "__len__")):
            raise TypeError(
                f"{name} must be TensorData(x, y), or an object with __len__ and "
                f"batch(index, device) as kpnb.distill.Data describes; got {type(given).__name__}"
                f"{_as_data(given, name)}"
            )
    if len(data) == 0:
        raise ValueError("no samples to train on: the data are empty")
    if objective.loss and teacher is None:
        raise ValueError(f"the loss {objective.loss!r} compares with a teacher: pass teacher=")


def _as_data(given: object, name: str) -> str:
    """How the batches of a loader, or inputs and labels, become data; "" for anything else."""
    if isinstance(given, tuple | list) and len(given) == 2:
        return f": TensorData(*{name})"
    if isinstance(given, torch.utils.data.TensorDataset):
        return f": TensorData(*{name}.tensors)"
    if isinstance(given, torch.utils.data.DataLoader):
        return ": of one that yields (x, y) unshuffled, TensorData(*map(torch.cat, zip(*loader)))"
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
    if feature.dim() == 1:
        raise ValueError(
            f"{what} is {list(feature.shape)}, one number for each sample: losses take it as "
            f"[{samples}, 1]"
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
    other initial weights; and when its settings are damaged. Nothing is compared without settings.
    """
    artefacts = checkpoints.artefacts
    if not settings or len(checkpoints.missing()) > checkpoints.epochs:
        return
    other = f"{artefacts.path} holds another training"
    known = artefacts.info("training")
    if known is None:
        raise ValueError(
            f"{artefacts.path} has epochs of a training whose settings (training.json) are damaged "
            "or gone, so it cannot be known again: choose another folder"
        )
    settings = json.loads(json.dumps(settings))  # as they come back from a file
    for name in {**known, **settings}:
        one, two = known.get(name), settings.get(name)
        if one == two or name == INITIAL or (name in DIGESTS and None in (one, two)):
            continue
        found = f"whose {_difference(name, one, two)}"
        if name in DIGESTS:
            found = f"whose {name} are others, or the same in another order or not to the bit"
        raise ValueError(f"{other}, {found}: choose another folder")
    if not _starts_there(artefacts.read("epoch-000"), known.get(INITIAL), model):
        raise ValueError(f"{other}, which started from other weights: choose another folder")


def _starts_there(first: Item | None, digested: str | None, model: nn.Module) -> bool:
    """Whether ``model`` has the weights of the ``first`` epoch; where that is damaged, to the bit
    those that are ``digested``.
    """
    if first is None:
        return digested in (None, digest_of_weights(model))
    return same_weights(with_prefix(first.tensors, "model."), model.state_dict())


def _difference(name: str, then: Any, now: Any) -> str:
    """In what a setting differs, in words; of a mapping the entries that do."""
    if not (isinstance(then, Mapping) and isinstance(now, Mapping)):
        return f"{name} is {then}, not {now}"
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    parts = [f"{key} = {then.get(key)!r}, not {now.get(key)!r}" for key in keys]
    return f"{name} has {'; '.join(parts)}"


class Shown(NamedTuple):
    """A network, the ``layers`` of it that count, and which part of their outputs."""

    whose: str
    model: nn.Module
    layers: Sequence[str]
    select: Select


def first_outputs(first: NetworkInput, shown: Sequence[Shown], device: str) -> dict[str, Tensor]:
    """What networks make of the ``first`` inputs, in evaluation mode, by network and layer."""
    found = {}
    for each in shown:
        model = private_copy(each.model).to(device)
        with torch.no_grad(), explaining(model, torch.device(device)), seeded(0):
            outputs = capture(model, first, each.layers, select=each.select)
        found |= {f"{each.whose} {name}": value.cpu() for name, value in outputs.items()}
    return found


def is_there(device: str) -> bool:
    """Whether this machine has the ``device``; what a card has computed is read on others too."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        return False
    return True


def tell_other_functions(checkpoints: Checkpoints, outputs: Mapping[str, Tensor]) -> None:
    """Log networks that made something else of the first samples, as with another activation; which
    is no error, since what a network computes may be drawn anew each time.
    """
    item = checkpoints.artefacts.read("training")
    if item is None or len(checkpoints.missing()) > checkpoints.epochs:
        return
    for name, now in outputs.items():
        if name in item.tensors and not near(now, item.tensors[name]):
            whose, _, layer = name.partition(" ")
            log.warning(
                "%s: with these weights the %s computes something else at %s than when the "
                "training began; if its code has changed since then, choose another folder",
                checkpoints.artefacts.path,
                whose,
                repr(layer) if layer else "its output",
            )


def near(one: Tensor, two: Tensor) -> bool:
    """Whether they are equal but for what cards and CPUs round differently."""
    if one.shape != two.shape:
        return False
    one, two = one.double(), two.double()
    known = one.isfinite()
    if not torch.equal(known, two.isfinite()):
        return False
    return bool((one - two)[known].norm() <= TF32 * two[known].norm())


def same_weights(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts are equal, but for what machines round differently."""
    if one.keys() != two.keys():
        return False
    pairs = [(value, two[name].cpu()) for name, value in one.items()]
    return all(
        a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, equal_nan=True)
        for a, b in pairs
    )


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
