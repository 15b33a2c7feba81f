"""Eq. 1-4: how much of each input unit's information a layer discards, as one call."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import length_hint
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np
import torch
from torch import Tensor, nn

from kpnb._memory import fitting
from kpnb._messages import named_samples, one_of, positive, required, unknown, whole
from kpnb._models import check_model
from kpnb._precision import widest
from kpnb._progress import Progress
from kpnb._untouched import explaining
from kpnb.energy import ClosedForm, UnitEnergy, unit_energies
from kpnb.features import Forward, Key, Network, call, for_layer, layer_names
from kpnb.inputs import read_inputs
from kpnb.objectives import Aligned, Objective, entropy_of, solve
from kpnb.perturb import LINEARITY, Perturbation
from kpnb.sampling import Stochastic, learn_sigma
from kpnb.trial import place, try_layers
from kpnb.units import Units, on_device, read_units

Fields = dict[str, Tensor]
"""The tensors of an ``Entropy`` by name."""


@dataclass(frozen=True, repr=False)
class Entropy:
    """Information discarding of one layer for N samples of n units.

    entropy     ``[N, n]`` nats: H_i of Eq. 2; the larger, the more of unit i's information is
                discarded
    sigma       ``[N, n]`` input units: the perturbation that the feature allows
    delta_f2    ``[N]`` squared feature units: the feature's variance under noise of size tau (NaN
                where the feature or its derivative is not finite)
    linearity   ``[N]``: squared feature change at sigma, measured over predicted: 1 where the
                linear model behind the closed form holds (NaN from the stochastic learner, which
                has no prediction)
    error       ``[N, n]`` nats: standard error of H_i due to the random probes, 0 where it is exact
                (NaN from the stochastic learner: repeat it with another seed instead)
    rank        ``[N]``: feature directions whose energy is exact (NaN from the stochastic learner)
    settings    everything that produced the result, ready for JSON; from the stochastic learner
                also the step at which each sample ``stopped``, and the passes that all of them
                took, ``forwards`` and ``backwards`` (the look at the network before is not counted)

    Units that a sample does not have (special and padding tokens) are NaN everywhere.
    """

    entropy: Tensor
    sigma: Tensor
    delta_f2: Tensor
    linearity: Tensor
    error: Tensor
    rank: Tensor
    settings: dict[str, Any]

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.entropy.shape))
        known = self.entropy[self.entropy.isfinite()]
        ends = (f"{end:.2f}" for end in (known.min(), known.max())) if len(known) else ("?", "?")
        linear = self.linearity.nanmedian()
        checked = f", linearity {linear:.2g}" if linear.isfinite() else ""
        return f"Entropy({shape} units: {' to '.join(ends)} nats{checked})"

    def tensors(self) -> Fields:
        """The result's tensors by name, for storing."""
        return {name: getattr(self, name) for name in TENSORS}


TENSORS = ("entropy", "sigma", "delta_f2", "linearity", "error", "rank")


# --------------------------------------------------------------------------------------- one batch


def _linearity(
    perturbation: Perturbation, layer: str, found: UnitEnergy, sigma: Tensor, check: int
) -> Tensor:
    """Squared feature change at ``sigma [B, n]`` over ``check`` draws, measured over predicted,
    ``[B]``.
    """
    x = perturbation.x
    # a sample without any energy is NaN, which networks may refuse
    still = sigma.nan_to_num().to(x.dtype)
    noise = perturbation.units.spread(still, x) * perturbation.normal(check, LINEARITY)
    with torch.no_grad():
        parts = [part[layer] - found.feature for part in perturbation.features([layer], noise)]
    measured = sum(widest(part).square().sum(-1).sum(0) for part in parts) / check
    return measured / (widest(found.energy) * sigma.square()).nansum(-1)


def _closed_form(
    perturbation: Perturbation, layers: Sequence[str], solver: ClosedForm, objective: Objective
) -> dict[str, Fields]:
    """The fields of ``Entropy`` for one batch, by layer."""
    results = {}
    for layer, found in unit_energies(perturbation, layers, solver).items():
        sigma, error = solve(found.energy, found.deviation, objective, perturbation.tau)
        finite = found.finite[:, None]
        sigma, error = sigma.where(finite, torch.nan), error.where(finite, torch.nan)
        delta_f2 = perturbation.tau**2 * widest(found.energy).nansum(-1)
        results[layer] = {
            "entropy": entropy_of(sigma),
            "sigma": sigma,
            "delta_f2": delta_f2.where(found.finite, torch.nan),
            "linearity": _linearity(perturbation, layer, found, sigma, solver.check),
            "error": error,
            "rank": torch.full_like(delta_f2, found.rank),
        }
    return results


def _stochastic(
    perturbation: Perturbation, layers: Sequence[str], solver: Stochastic, objective: Objective
) -> dict[str, Fields]:
    """The fields of ``Entropy`` for one batch, by layer, and what each sample took."""
    results = {}
    for layer in layers:
        learned = learn_sigma(perturbation, layer, solver, objective)
        results[layer] = {
            "entropy": entropy_of(learned.sigma),
            "sigma": learned.sigma,
            "delta_f2": learned.delta_f2,
            "linearity": torch.full_like(learned.delta_f2, torch.nan),
            "error": torch.full_like(learned.sigma, torch.nan),
            "rank": torch.full_like(learned.delta_f2, torch.nan),
            "stopped": learned.stopped,
            "forwards": torch.full_like(learned.stopped, learned.forwards),
            "backwards": torch.full_like(learned.stopped, learned.backwards),
        }
    return results


# -------------------------------------------------------------------------------------- all of them


def _measured(
    perturbation: Perturbation,
    layers: Sequence[str],
    solver: ClosedForm | Stochastic,
    objective: Objective,
    bar: Progress,
) -> dict[str, Fields]:
    """The fields of ``Entropy`` for all samples, ``max_batch`` of them at a time or as many as
    memory takes.
    """
    run = _closed_form if isinstance(solver, ClosedForm) else _stochastic
    parts: list[dict[str, Fields]] = []
    done = 0
    rows = perturbation.max_batch
    samples = len(perturbation.x)

    def attempt(rows: int) -> dict[str, Fields]:
        batch = perturbation.rows(slice(done, done + rows))
        return run(replace(batch, max_batch=rows), layers, solver, objective)

    while done < samples:
        part, rows = fitting(attempt, rows, "the entropy of a batch")
        parts.append(part)
        bar.step(min(rows, samples - done))
        done += rows
    return {layer: _joined([part[layer] for part in parts], perturbation.x) for layer in layers}


def _joined(parts: Sequence[Fields], x: Tensor) -> Fields:
    """The batches' fields of one layer behind one another, in the precision of ``x`` or float32."""
    precision = torch.promote_types(x.dtype, torch.float32)
    joined = {name: torch.cat([part[name].detach() for part in parts]) for name in parts[0]}
    return joined | {name: joined[name].to(precision) for name in TENSORS}


def undefined(
    delta_f2: Tensor, entropy: Tensor, layer: str, objective: Objective
) -> Iterator[tuple[Tensor, str]]:
    """Which samples have no entropy at a layer, bool ``[N]``, and why.

    ``delta_f2 [N]`` and ``entropy [N, n]`` are those of an ``Entropy``.
    """
    overflown = ~delta_f2.isfinite()
    still = delta_f2 <= 0
    unreached = entropy.isnan().all(-1) & ~overflown & ~still
    reasons = (
        (
            overflown,
            f"{place(layer)} is not finite (NaN or infinite), or its derivative or the square of "
            "that is not (float64 has room for more)",
        ),
        (
            still,
            f"{place(layer)} does not move under noise (delta_f^2 = 0), so every unit is "
            "discarded completely",
        ),
        (
            unreached,
            f"at layer {layer!r} the mean entropy never gets as high as {objective}, which may ask "
            "for too much",
        ),
    )
    for where, reason in reasons:
        if where.any():
            yield where, reason


def _problem(fields: Fields, layer: str, objective: Objective) -> str:
    """Names samples whose feature is not finite or does not move, or whose mean entropy is out of
    reach; "" when there are none.
    """
    found = list(undefined(fields["delta_f2"], fields["entropy"], layer, objective))
    if not found:
        return ""
    where, reason = found[0]
    return (
        f"{named_samples(where)}: {reason}; choose another layer, or pass dead='nan' to go on "
        "with NaN there"
    )


def _check_units(perturbation: Perturbation) -> None:
    """Raise ``ValueError`` that names samples without any unit."""
    if (empty := ~perturbation.exists().any(-1)).any():
        raise ValueError(
            f"{named_samples(empty)}: no unit at all, so there is nothing to perturb; check the "
            "mask or the labels of the units, or pass dead='nan' to go on with NaN there"
        )


def _report(problems: Mapping[str, str], layers: Sequence[str]) -> None:
    """``ValueError`` when no layer could be measured, a warning when some could not."""
    text = "; ".join(problems.values())
    if len(problems) == len(layers):
        raise ValueError(text)
    if problems:
        warnings.warn(f"left out {', '.join(map(repr, problems))}: {text}", stacklevel=3)


def _warn_of_scale(results: Mapping[str, Entropy], perturbation: Perturbation) -> None:
    """Warn where ``scale`` is not that of the input, and a feature changes by far more or less at
    sigma than its derivative says: it is not the network that is measured then.
    """
    spread = float(widest(perturbation.x).std(correction=0))
    if 1 / 5 <= spread / perturbation.scale <= 5:
        return
    medians = {layer: float(found.linearity.nanmedian()) for layer, found in results.items()}
    far = [f"{v:.2g} at layer {layer!r}" for layer, v in medians.items() if v < 0.1 or v > 10]
    if far:
        warnings.warn(
            f"scale={perturbation.scale:g}, while the input has the standard deviation "
            f"{spread:.3g}: the squared feature change is {', '.join(far)} times what the "
            f"derivative predicts, so that these entropies say little; pass scale={spread:.2g}, "
            "or what the spread of the data is",
            stacklevel=3,
        )


class HowMeasured(TypedDict, total=False):
    """Keyword arguments of ``entropy`` that are the same for a whole training."""

    units: Units | None
    solver: ClosedForm | Stochastic | None
    objective: Objective | None
    scale: float
    perturb: str | None
    shared: str | Sequence[str] | None
    forward: Forward
    select: Key | Mapping[str, Key] | None
    batch_dim: int | Mapping[str, int]
    max_batch: int
    seed: int


class Options(HowMeasured, total=False):
    """Keyword arguments of ``entropy``, which says what they mean."""

    dead: Literal["raise", "nan"]
    check: bool
    progress: bool


@dataclass
class Measurement:
    """What is the same for all measurements of a training: keyword arguments of ``entropy``, which
    says what they mean, with their defaults, and what they raise.
    """

    units: Units | None = None
    solver: ClosedForm | Stochastic | None = None
    objective: Objective | None = None
    scale: float = 1.0
    perturb: str | None = None
    shared: str | Sequence[str] | None = None
    forward: Forward = call
    select: Key | Mapping[str, Key] | None = None
    batch_dim: int | Mapping[str, int] = 0
    max_batch: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        self.units = read_units(self.units)
        self.solver = self.solver or ClosedForm()
        self.objective = self.objective or Aligned()
        if not isinstance(self.solver, ClosedForm | Stochastic):
            raise TypeError(f"solver is ClosedForm() or Stochastic(); got {self.solver!r}")
        if isinstance(self.objective, type) or not hasattr(self.objective, "mean_weight"):
            raise TypeError(f"objective is Aligned() or Converged(alpha); got {self.objective!r}")
        required(max_batch=self.max_batch, scale=self.scale, seed=self.seed)
        whole(max_batch=self.max_batch, seed=self.seed)
        positive(max_batch=self.max_batch, scale=self.scale)
        self.max_batch, self.scale, self.seed = (
            int(self.max_batch), float(self.scale), int(self.seed)
        )  # fmt: skip

    def perturbation(self, model: nn.Module, x: Any) -> Perturbation:
        """The inputs ``x`` of a model, ready to be perturbed; whole, not in batches."""
        network = Network(model, self.forward, self.select, self.batch_dim)
        inputs = read_inputs(model, x, self.perturb, self.shared)
        self.units.count(inputs.x)
        units = on_device(self.units, inputs.x.device)
        return Perturbation(network, inputs, units, self.scale, self.max_batch, self.seed)


def read_measurement(options: Mapping[str, Any], *beside: str) -> Measurement:
    """The ``options`` as a ``Measurement``. ``TypeError`` for one that is none, which names the
    nearest, also among what the caller takes ``beside`` them.
    """
    known = list(vars(Measurement()))
    for name in options:
        if name in ("dead", "check"):
            raise TypeError(
                f"{name} is an option of kpnb.entropy alone: over a training the first network is "
                "looked at, and what cannot be measured is NaN, and said"
            )
        if name not in known:
            raise TypeError(unknown("option", name, [*known, *beside]))
    return Measurement(**options)


@overload
def entropy(model: nn.Module, x: Any, layers: str, **options: Unpack[Options]) -> Entropy: ...
@overload
def entropy(
    model: nn.Module, x: Any, layers: Sequence[str], **options: Unpack[Options]
) -> dict[str, Entropy]: ...
def entropy(
    model: nn.Module,
    x: Any,
    layers: str | Sequence[str],
    *,
    units: Units | None = None,
    solver: ClosedForm | Stochastic | None = None,
    objective: Objective | None = None,
    scale: float = 1.0,
    perturb: str | None = None,
    shared: str | Sequence[str] | None = None,
    forward: Forward = call,
    select: Key | Mapping[str, Key] | None = None,
    batch_dim: int | Mapping[str, int] = 0,
    max_batch: int = 32,
    seed: int = 0,
    dead: Literal["raise", "nan"] = "raise",
    check: bool = True,
    progress: bool = True,
) -> Entropy | dict[str, Entropy]:
    """Information discarding H_i of every input unit at one layer or several (Eq. 1-4).

    model       any module that maps ``x`` to its prediction; it is evaluated in ``eval()`` mode and
                left untouched
    x           ``[N, ...]`` floating point, on the model's device; or a mapping of inputs, of which
                ``perturb`` names the one that is perturbed. NumPy arrays are taken to the model's
                device and type of numbers
    shared      names of the other inputs that all samples have in common, such as a bias ``[T,
                T]``. Of those that are not named, each tensor has a row for each sample, or one for
                all, and what holds no tensors is shared. Where N = T by accident, what cannot be
                told is an error: ``shared="bias"`` says it, ``shared=()`` that nothing is shared
    layers      dotted module name(s); several layers share the forward passes. Of a module that
                runs several times in a pass, ``"relu:0"`` is the first run, ``"relu:1"`` the second
    units       what a unit is; default the paper's 16 x 16 ``ImageGrid``
    solver      ``ClosedForm()`` (default) or ``Stochastic()``, Eq. 4 as printed
    objective   ``Aligned(-2.8)`` (default) or ``Converged(alpha)``
    scale       the input's scale: sigma_0 = tau = 0.01 x scale, and ``Aligned``'s mean refers to
                sigma / scale (1 for images normalised to unit variance)
    forward     how the model is called, ``forward(model, x)``; default ``model(x)``, or
                ``model(**x)`` for a mapping
    select      which part of a layer's output is the feature, where it is not a tensor: a name or
                position, or a tuple of them from the outside in; for all layers, or by layer.
                Without it: the first of a tuple, the only tensor of a mapping
    batch_dim   dimension of the feature along which the samples are; for all layers, or by layer
    max_batch   rows of the largest forward pass, which bounds the memory; halved, and said so, when
                that runs out
    seed        of the noise and probes; the same for all networks and epochs that are to be
                compared, and not the one that their weights were drawn with, since one generator
                would then have drawn both
    dead        what to do with samples whose feature does not move or is not finite: raise, or give
                them NaN
    check       look first, in two small passes, whether the feature is the same each time, is that
                of each sample alone (not with ``max_batch=1``), and has a derivative; and warn of
                half precision, whose rounding moves entropies by about 0.01 nats, and afterwards of
                a ``scale`` so far from that of the input that ``linearity`` is far from 1
    progress    show it where it takes long

    Raises ``LookupError`` for an unknown layer or input, ``RuntimeError`` for a layer that the pass
    never reaches, ``TypeError`` for an output that is no tensor and for arguments of another kind,
    ``ValueError`` for inputs, settings or layers that make no sense, always naming the culprit,
    ``MemoryError`` when not even one row fits. Of several layers those that make sense are returned
    all the same, and a warning names the others.
    """
    check_model(model)
    names = layer_names(model, layers)
    one_of("dead", dead, ("raise", "nan"))
    how = Measurement(
        units, solver, objective, scale, perturb, shared, forward, select, batch_dim,
        max_batch, seed,
    )  # fmt: skip
    solver, objective = how.solver, how.objective
    with torch.inference_mode(False):
        perturbation = how.perturbation(model, x)
        if dead == "raise":
            _check_units(perturbation)
        with explaining(model, perturbation.x.device):
            problems = try_layers(perturbation, names) if check else {}
            good = [name for name in names if name not in problems]
            hidden = not (progress and good)
            with Progress(len(perturbation.x), "entropy", "sample", hidden=hidden, delay=5) as bar:
                fields = _measured(perturbation, good, solver, objective, bar) if good else {}
    if dead == "raise":
        found = {name: _problem(fields[name], name, objective) for name in good}
        problems |= {name: problem for name, problem in found.items() if problem}
    _report(problems, names)
    results = {
        name: Entropy(
            **{tensor: fields[name][tensor] for tensor in TENSORS},
            settings=_settings(name, perturbation, solver, objective) | _taken(fields[name]),
        )
        for name in names
        if name not in problems
    }
    if check:
        _warn_of_scale(results, perturbation)
    return results[layers] if isinstance(layers, str) else results


def _settings(
    layer: str, perturbation: Perturbation, solver: ClosedForm | Stochastic, objective: Objective
) -> dict[str, Any]:
    """What produced the result of a layer, ready for JSON."""
    x = perturbation.x
    network = perturbation.network
    inputs = perturbation.inputs
    stated = {"shared": sorted(set(inputs.others) - inputs.own)} if inputs.stated else {}
    return stated | {
        "layer": layer,
        "perturb": inputs.name,
        "select": repr(for_layer(network.select, layer)),
        "batch_dim": for_layer(network.batch_dim, layer) or 0,
        "units": repr(perturbation.units),
        "solver": repr(solver),
        "objective": repr(objective),
        "scale": perturbation.scale,
        "seed": perturbation.seed,
        "dtype": str(x.dtype),
        "precision": str(widest(x.new_empty(0)).dtype),  # of what follows the features
    }


def _taken(fields: Fields) -> dict[str, Any]:
    """What the stochastic learner took, ready for JSON; nothing of the closed form."""
    if "stopped" not in fields:
        return {}
    passes = {name: int(fields[name].sum()) for name in ("forwards", "backwards")}
    return {"stopped": fields["stopped"].tolist(), **passes}


def _moved(value: Any, device: torch.device) -> Any:
    """Tensors, alone or in a mapping, on the ``device``."""
    if isinstance(value, Mapping):
        return {name: _moved(part, device) for name, part in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def entropies(
    model: nn.Module,
    batches: Iterable[Any],
    layers: str | Sequence[str],
    *,
    units: Units | Callable[[Any], Units] | None = None,
    check: bool = True,
    progress: bool = True,
    **options: Unpack[Options],
) -> Iterator[Entropy | dict[str, Entropy]]:
    """``entropy`` (Eq. 1-4) of one batch after the other, for data that do not fit into memory.

    batches  anything that yields inputs as ``entropy`` takes them, such as a ``DataLoader``. Of a
             tuple or list, which data loaders make of (x, y), the first entry is the input. Each
             batch is taken to the model's device
    layers, progress   as in ``entropy``
    units    as in ``entropy``, or a function from a batch's input to its units
    check    looks at the first batch, and at those with an input that none before had

    Yields what ``entropy`` returns, batch by batch; nothing is kept. A sample's result does not
    depend on how samples of one shape are divided. Texts that are padded to the longest of their
    batch have another shape in another batch, which changes nothing for the closed form where a
    network that masks padding makes one vector of each text (that of its first token, or a mean).
    Where the feature is a vector for each token, padded positions are a part of it: have the model
    pass zeros there through a module, which leaves the closed form within its ``error``, or make
    batches of texts of one length. The stochastic learner draws other noise for another shape.

    Raises as ``entropy`` does, with the number of the batch, and ``TypeError`` for a single batch.
    """
    check_model(model)
    if isinstance(batches, Tensor | np.ndarray | Mapping | str) or not hasattr(batches, "__iter__"):
        raise TypeError(
            "batches are something that yields them, such as a DataLoader; got "
            f"{type(batches).__name__} (kpnb.entropy measures a single batch)"
        )
    device = next((parameter.device for parameter in model.parameters()), None)
    total = length_hint(batches) or None  # a loader of a stream has a length that only raises
    known: set[str] = set()
    with Progress(total, "entropy", unit="batch", hidden=not progress) as bar:
        for number, batch in enumerate(batches):
            x = batch[0] if isinstance(batch, tuple | list) and batch else batch
            x = _moved(x, device) if device else x
            how = options | {"progress": False}
            try:
                how["units"] = units if units is None or hasattr(units, "count") else units(x)
                names = {*x} if isinstance(x, Mapping) else set()
                new = not number or not names <= known
                known |= names
                found = entropy(model, x, layers, check=check and new, **how)
            except Exception as error:
                error.add_note(f"in batch {number}")
                raise
            yield found
            bar.step()
