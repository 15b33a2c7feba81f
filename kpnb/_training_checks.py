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
from kpnb._tensors import described
from kpnb._untouched import explaining
from kpnb.checkpoints import Checkpoints, copied, digest, with_prefix
from kpnb.features import capture
from kpnb.losses import TrainingObjective
from kpnb.perturb import generator
from kpnb.schedule import Schedule

log = logging.getLogger(__name__)

DATA, OUTPUT = "data ", "output "  # how names of what trainings are known by begin
ROWS = 1024  # samples that are looked at together
ROUNDING, TF32 = 1e-5, 5e-3
"""How far numbers of the same data, and outputs of one network on a card and on a CPU, may be
apart, in proportion to themselves.
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


def what_determines(
    data: "Data",
    schedule: Schedule,
    objective: TrainingObjective,
    teacher: nn.Module | None,
    test: "Data | None",
) -> dict[str, Any]:
    """What tells one training from another, but for the initial weights and ``known_by``. Of
    training data only their number, because noise may be added to them; of held-out samples the
    first ones, too.
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
            found = _difference(name, known.get(name), settings.get(name))
            raise ValueError(f"{other}, whose {found}: choose another folder")
    first = artefacts.read("epoch-000")
    if first and not same_weights(with_prefix(first.tensors, "model."), model.state_dict()):
        raise ValueError(f"{other}, which started from other weights: choose another folder")


class Shown(NamedTuple):
    """A network, the ``layers`` of it that count, and which part of their outputs."""

    whose: str
    model: nn.Module
    layers: Sequence[str]
    select: Select


def known_by(
    tensors: Mapping[str, Tensor], first: NetworkInput, shown: Sequence[Shown], device: str
) -> dict[str, Tensor]:
    """By what a training on ``tensors [N, ...]``, inputs and labels by name, is known again beside
    its settings: a number for each sample, ``[N]``, and what the untrained networks make of the
    ``first`` inputs.
    """
    found = {f"{DATA}{name}": _sketched(value) for name, value in tensors.items()}
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        return found  # what a card has computed is read where there is none
    for each in shown:
        model = private_copy(each.model).to(device)
        with torch.no_grad(), explaining(model, torch.device(device)), seeded(0):
            outputs = capture(model, first, each.layers, select=each.select)
        of_layers = outputs.items()
        found |= {f"{OUTPUT}{each.whose} {name}": value.cpu() for name, value in of_layers}
    return found


def _difference(name: str, then: Any, now: Any) -> str:
    """In what a setting differs, in words; of a mapping the entries that do."""
    if not (isinstance(then, Mapping) and isinstance(now, Mapping)):
        return f"{name} is {then}, not {now}"
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    parts = [f"{key} = {then.get(key)!r}, not {now.get(key)!r}" for key in keys]
    return f"{name} has {'; '.join(parts)}"


def check_loss_value(value: Any, loss: str) -> None:
    """Raise TypeError unless a loss gave a tensor of one number that can be differentiated,
    ValueError where it is not finite before anything was trained.
    """
    if not isinstance(value, Tensor) or value.dim():
        got = described(value) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"the loss {loss!r} is to give a tensor of one number, a mean; got {got}")
    if not value.requires_grad:
        raise TypeError(
            f"the loss {loss!r} does not depend on the student's output, or detaches it: nothing "
            "would be learned"
        )
    if not value.isfinite():
        raise ValueError(
            f"the loss {loss!r} is {value.item()} for the first samples, before anything is trained"
        )


def _sketched(values: Tensor) -> Tensor:
    """Of each sample in ``values [N, ...]`` the sum with random signs, ``[N]``. That tells others
    from them, and the same in another order, but not how machines round.
    """
    signs = 2.0 * torch.randint(2, values.shape[1:], generator=generator(0)).flatten() - 1
    signs = signs.to(values.device, torch.float64)
    parts = [part.flatten(1) if part.dim() > 1 else part[:, None] for part in values.split(ROWS)]
    return torch.cat([(part.double() @ signs).cpu() for part in parts])


def check_data(checkpoints: Checkpoints, known: Mapping[str, Tensor]) -> None:
    """Raise ValueError when a folder has the training on other data; what is not known of one side
    is not compared.
    """
    then = _recorded(checkpoints)
    parts = [{name for name in each if name.startswith(DATA)} for each in (known, then)]
    same = all(near(known[name], then[name], ROUNDING) for name in parts[0] & parts[1])
    if all(parts) and not (parts[0] == parts[1] and same):
        raise ValueError(
            f"{checkpoints.artefacts.path} holds another training, on other inputs or labels, or "
            "on the same in another order: choose another folder"
        )


def tell_other_functions(checkpoints: Checkpoints, known: Mapping[str, Tensor]) -> None:
    """Log networks that made something else of the first samples, as with another activation; which
    is no error, since what a network computes may be drawn anew each time.
    """
    then = _recorded(checkpoints)
    for name, now in known.items():
        if name.startswith(OUTPUT) and name in then and not near(now, then[name], TF32):
            whose, _, layer = name.removeprefix(OUTPUT).partition(" ")
            log.warning(
                "%s: with these weights the %s computes something else at %s than when the "
                "training began; if its code has changed since then, choose another folder",
                checkpoints.artefacts.path,
                whose,
                repr(layer) if layer else "its output",
            )


def _recorded(checkpoints: Checkpoints) -> dict[str, Tensor]:
    """``known_by`` of the training in a folder; nothing where none was begun."""
    item = checkpoints.artefacts.read("training")
    begun = len(checkpoints.missing()) <= checkpoints.epochs
    return item.tensors if item is not None and begun else {}


def near(one: Tensor, two: Tensor, rounding: float) -> bool:
    """Whether they are equal but for ``rounding``, in proportion to themselves."""
    if one.shape != two.shape:
        return False
    one, two = one.double(), two.double()
    known = one.isfinite()
    if not torch.equal(known, two.isfinite()):
        return False
    return bool((one - two)[known].norm() <= rounding * two[known].norm())


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
