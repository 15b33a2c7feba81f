"""Eq. 5-9 for a training that anybody did: from its checkpoints, or from inside its loop."""

import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from kpnb import __version__
from kpnb._messages import listed, named_samples
from kpnb._models import check_model, private_copy
from kpnb._progress import Progress
from kpnb._signature import (
    digest_of,
    digest_of_inputs,
    digest_of_units,
    digest_of_weights,
    same_function,
    signatures,
)
from kpnb._tensors import as_tensor, described
from kpnb.checkpoint_files import Checkpoint, in_order, where_in
from kpnb.checkpoints import Artefacts, Checkpoints, Item, digest
from kpnb.entropy import TENSORS, Entropy, HowMeasured, entropy, read_measurement, undefined
from kpnb.features import layer_names
from kpnb.learning import step_norms, weight_distance
from kpnb.metrics import Choices, Metrics, counted_entropy, read_choices, six_metrics
from kpnb.points import check_regions, knowledge_points, summarise
from kpnb.weights import Source, loaded

log = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Trajectory:
    """What one layer of a network knew from its untrained state (epoch 0) to its last epoch M.

    measured    the fields of ``Entropy`` by epoch, ``[M + 1, N, ...]``, on the CPU
    norms       by epoch, ||w_k - w_{k-1}|| of each parameter tensor, ||w_0|| for epoch 0
    foreground  bool ``[N, n]``
    background  bool ``[N, n]``, or None: everything else
    choices     how ``metrics`` reads the paper unless told otherwise
    settings    everything that produced the result, ready for JSON
    """

    measured: Mapping[str, Tensor]
    norms: Sequence[Mapping[str, float]]
    foreground: Tensor
    background: Tensor | None
    choices: Choices
    settings: Mapping[str, Any]

    def __repr__(self) -> str:
        epochs, samples, units = self.entropy.shape
        layer = self.settings.get("layer", "a layer")
        return f"Trajectory({layer}, epochs 0 to {epochs - 1}, {samples} x {units} units)"

    @property
    def entropy(self) -> Tensor:
        """H_i of Eq. 2, ``[M + 1, N, n]`` nats."""
        return self.measured["entropy"]

    @property
    def distance(self) -> Tensor:
        """Relative weight distance inside Eq. 8, ``[M + 1]``, over all parameters (no buffers)."""
        return weight_distance(self.norms[0], self.norms[1:])

    def metrics(self, choices: Choices | None = None) -> Metrics:
        """The six metrics, image by image (Eq. 5-9)."""
        return six_metrics(
            self.entropy,
            self.foreground,
            self.distance,
            choices or self.choices,
            background=self.background,
        )

    def row(self) -> dict[str, float]:
        """The six metrics as in Table 5: a mean over images each, and one variance."""
        return self.metrics().row()

    def table(self) -> list[dict[str, float]]:
        """By epoch: weight distance, and the means over images of the counts and lambda."""
        found = knowledge_points(
            counted_entropy(self.entropy, self.foreground, self.background, self.choices),
            self.foreground,
            b=self.choices.b,
            background=self.background,
            level=self.choices.level,
        )
        return [
            {
                "epoch": epoch,
                "distance": distance,
                "n_fg": summarise(found.n_fg[epoch]).mean,
                "n_bg": summarise(found.n_bg[epoch]).mean,
                "lambda": summarise(found.ratio[epoch]).mean,
            }
            for epoch, distance in enumerate(self.distance.tolist())
        ]


class Recorder:
    """The six metrics (Eq. 5-9) of a training from inside its loop, without keeping checkpoints.

        recorder = kpnb.Recorder(model, x, foreground, "layer4")
        recorder.epoch()  # the untrained network
        for _ in range(epochs):
            train(model)
            recorder.epoch()
        print(recorder.trajectory().row())

    It measures the model where it stands and leaves it, and the random numbers, as they are; it
    keeps one copy of the parameters, on the CPU, for the length of the next step. Arguments
    (``layer``, ``choices`` and ``background`` too, but no ``progress``, which is the training's to
    show) and errors are those of ``trajectory``, and:

    folder      one for each training: the list of its epochs is kept too, from the start
    resume      the first ``epoch()`` may find the weights of an epoch that was recorded in
                ``folder``, and goes on after it. ``ValueError`` when epochs are recorded, and the
                model's weights are those of none, or it computes something else with them now.
                Without it they are replaced, unless the first weights are those of a later one
    """

    def __init__(
        self,
        model: nn.Module,
        x: Any,
        foreground: Any,
        layer: str | Sequence[str],
        *,
        choices: Choices | None = None,
        background: Any | None = None,
        folder: str | os.PathLike[str] | None = None,
        resume: bool = False,
        **options: Unpack[HowMeasured],
    ) -> None:
        self.options = read_measurement(options, "choices", "background", "folder", "resume")
        if resume and folder is None:
            raise ValueError("resume=True needs the folder= that the training was recorded in")
        check_model(model)
        self.model = model
        self.x = x
        self.layer = layer
        self.layers = layer_names(model, layer)
        self._asked = self.layers
        self.choices = read_choices(choices)
        self.resume = resume
        perturbation = self.options.perturbation(model, x)
        shape = len(perturbation.x), perturbation.units.count(perturbation.x)
        self.foreground = _region(foreground, shape)
        self.background = None if background is None else _region(background, shape)
        check_regions(self.foreground, ~self.foreground if background is None else self.background)
        self._input = digest_of_inputs(perturbation.inputs)
        self._artefacts: Artefacts | None = None
        if folder is not None:
            self._units = digest_of_units(perturbation.units, perturbation.x)
            self._artefacts = Artefacts(folder)
            self._artefacts.check_folder()
        self._epochs: list[dict[str, Any]] = []
        self._measured: list[dict[str, Entropy]] = []
        self._before: dict[str, Tensor] | None = None

    def epoch(self) -> None:
        """Measure the model as it is: before the first epoch, and after each.

        Raises ``ValueError`` for parameters that are not finite. After an exception the recorder
        stands where it stood.
        """
        now = {
            name: parameter.detach().to("cpu", copy=True)
            for name, parameter in self.model.named_parameters()
        }
        norms = self._norms(now)
        if self._before is not None and not any(norms.values()):
            log.warning(
                "epoch %d: no parameter has changed since the epoch before; is this model the one "
                "that is trained?",
                len(self._epochs),
            )
        weights = "" if self._artefacts is None else digest_of_weights(self.model)
        if self.resume and not self._epochs and self._take_up(weights):
            self._before = now
            return
        if self._artefacts is not None and not (self.resume or self._epochs):
            self._tell_what_is_replaced(weights)
        name, item = self._measure(weights)
        found = _results(item)
        self.layers = list(found)  # without those that cannot be measured, which was said
        self._warn_of_undefined(found)
        entry = {"norms": norms, "weights": weights, "name": name}
        entry["tensors"] = digest_of(item.tensors)
        epochs = [*self._epochs, entry]
        if self._artefacts is not None:
            self._keep({"epochs": epochs, "settings": self._settings()})
        self._measured.append(found)
        self._epochs = epochs
        self._before = now

    def _tell_what_is_replaced(self, weights: str) -> None:
        """Log that another training was recorded in the folder, whose list of epochs ends here.

        Raises ``ValueError`` where a trained network begins, which that training has led to.
        """
        known = self._artefacts.info("recorder")
        if known is None:
            return
        epochs = [entry["weights"] for entry in known["epochs"]]
        if weights in epochs and weights != epochs[0]:
            raise ValueError(
                f"the model has the weights of epoch {epochs.index(weights)} that is recorded in "
                f"{self._artefacts.path}: resume=True goes on after it; or choose another folder"
            )
        log.warning(
            "%s has %d recorded epochs, whose list is replaced: resume=True goes on after them",
            self._artefacts.path,
            len(epochs),
        )

    def _keep(self, told: Mapping[str, Any]) -> None:
        """Write the list of epochs that the training can go on after."""
        self._artefacts.write("recorder", {}, told, 0.0)

    def trajectory(self) -> Trajectory | dict[str, Trajectory]:
        """All epochs so far; by layer where several were asked for. ``ValueError`` below two."""
        if len(self._epochs) < 2:
            raise ValueError(
                f"{len(self._epochs)} epochs recorded; the metrics need the untrained network and "
                "at least one epoch: call epoch() before the first one and after each"
            )
        found = {layer: self._trajectory(layer) for layer in self.layers}
        return found[self.layer] if isinstance(self.layer, str) else found

    def _trajectory(self, layer: str) -> Trajectory:
        by_epoch = [found[layer] for found in self._measured]
        measured = {
            name: torch.stack([getattr(found, name) for found in by_epoch]) for name in TENSORS
        }
        settings = by_epoch[-1].settings | {"input": self._input, "epochs": len(by_epoch) - 1}
        norms = [entry["norms"] for entry in self._epochs]
        return Trajectory(measured, norms, self.foreground, self.background, self.choices, settings)

    def _norms(self, now: Mapping[str, Tensor]) -> dict[str, float]:
        try:
            norms = step_norms(now, self._before)
        except ValueError as error:
            raise ValueError(f"epoch {len(self._epochs)}: {error}") from error
        wrong = [name for name, norm in norms.items() if not math.isfinite(norm)]
        if wrong:
            raise ValueError(
                f"epoch {len(self._epochs)}: not finite in parameters {listed(wrong)}; the "
                "training has diverged, or the checkpoint is broken"
            )
        return norms

    def _measure(self, weights: str) -> tuple[str, Item]:
        """What the model with these weights knows, and the name of its artefact: from the folder
        where one there is of the same function.
        """
        if self._artefacts is None:
            return "", Item(*self._entropy())
        signatures = cache(lambda *layers: self._signatures(layers))  # the weights stay
        for number in count():
            name = f"{self._name(weights)}-{number}"
            item = self._artefacts.read(name)
            if item is None:
                self._artefacts.discard(name)  # which says so where it is damaged
                break
            if _is_of_function(item, signatures(*item.info)):
                if [*item.info] == self.layers:
                    return name, item
                break  # a layer that was left out is tried again
        tensors, settings = self._entropy()
        tensors |= signatures(*settings)
        return name, self._artefacts.write(name, tensors, settings, 0.0)

    def _entropy(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, on the CPU, and settings of all layers that can be measured."""
        found = entropy(
            self.model,
            self.x,
            self.layers,
            **vars(self.options),
            dead="nan",
            check=not self._epochs,  # a look at the first is enough
            progress=False,
        )
        tensors = {
            f"{layer}/{key}": value.cpu()
            for layer, result in found.items()
            for key, value in result.tensors().items()
        }
        return tensors, {layer: result.settings for layer, result in found.items()}

    def _signatures(self, layers: Iterable[str]) -> dict[str, Tensor]:
        """What the model's function is known by, as it lies in an artefact beside the entropies."""
        perturbation = self.options.perturbation(self.model, self.x)
        found = signatures(perturbation, [*layers])
        return {f"{layer}/signature": value for layer, value in found.items()}

    def _still_computes(self, item: Item) -> bool:
        """Whether the model has the features of which the entropies in an artefact are."""
        return _is_of_function(item, self._signatures(item.info))

    def _name(self, weights: str) -> str:
        """How the names of artefacts begin that are of the model with these weights."""
        return f"entropy-{digest([self._settings(), weights])[:24]}"

    def _settings(self) -> dict[str, Any]:
        """What an entropy depends on beside the model, ready for JSON."""
        how = self.options
        return {
            "kpnb": __version__,
            "input": self._input,
            "layers": self._asked,
            "units": self._units,
            "solver": repr(how.solver),
            "objective": repr(how.objective),
            "scale": how.scale,
            "seed": how.seed,
            "perturb": how.perturb,
            "select": repr(how.select),
            "batch_dim": repr(how.batch_dim),
        }

    def _take_up(self, weights: str) -> bool:
        """Whether epochs recorded before lead to these weights; they are then taken over."""
        item = self._artefacts.read("recorder")
        if item is None:
            if (self._artefacts.path / "recorder.json").exists():
                raise ValueError(
                    f"the list of epochs in {self._artefacts.path} is damaged, so the training "
                    "cannot go on after them: start again with another folder"
                )
            return False
        epochs = item.info["epochs"]
        known = [number for number, entry in enumerate(epochs, 1) if entry["weights"] == weights]
        if not known:
            raise ValueError(
                f"{self._artefacts.path} has {len(epochs)} recorded epochs, and the model's "
                "weights are those of none: load a checkpoint of that training first, or choose "
                "another folder"
            )
        now = self._settings()
        then = item.info.get("settings", now)  # which names of artefacts tell as well
        if changed := [name for name in now if now[name] != then.get(name)]:
            raise ValueError(
                f"the epochs in {self._artefacts.path} were recorded with other settings "
                f"({listed(changed)}): give those again, or start again with another folder"
            )
        items = [self._artefacts.read(entry["name"]) for entry in epochs[: known[-1]]]
        if not all(map(self._is_as_recorded, items, epochs)):
            raise ValueError(
                f"an epoch recorded in {self._artefacts.path} is damaged or of an older kpnb: "
                "start again with another folder"
            )
        same = [count for count in known if self._still_computes(items[count - 1])]
        if not same:
            raise ValueError(
                f"with the weights of epoch {known[-1] - 1} the model computes something else "
                f"than when that was recorded in {self._artefacts.path}: give its code and "
                "attributes, forward= and the other inputs as they were then, or start again with "
                "another folder"
            )
        if same[-1] < len(epochs):
            log.warning(
                "%s: the training goes on after epoch %d of the %d that are recorded; what was "
                "recorded behind it is replaced",
                self._artefacts.path,
                same[-1] - 1,
                len(epochs) - 1,
            )
        self._measured = [_results(item) for item in items[: same[-1]]]
        self._epochs = epochs[: same[-1]]
        self.layers = list(self._measured[-1])
        return True

    def _is_as_recorded(self, item: Item | None, entry: Mapping[str, Any]) -> bool:
        """Whether an artefact is there, of today's settings, and holds what it held then."""
        named = entry["name"].startswith(self._name(entry["weights"]))
        return item is not None and named and digest_of(item.tensors) == entry.get("tensors")

    def _warn_of_undefined(self, found: Mapping[str, Entropy]) -> None:
        for layer, result in found.items():
            total = len(result.delta_f2)
            objective = self.options.objective
            for where, reason in undefined(result.delta_f2, result.entropy, layer, objective):
                log.warning(
                    "epoch %d, %s (%d of %d): %s; their entropy is undefined there",
                    len(self._epochs),
                    named_samples(where),
                    int(where.sum()),
                    total,
                    reason,
                )


def _region(region: Any, shape: tuple[int, int]) -> Tensor:
    region = as_tensor(region, "a region")
    if region.dtype != torch.bool or region.shape != shape:
        raise ValueError(
            f"foreground and background are bool {list(shape)}, images by units; got "
            f"{described(region)}: kpnb.covered_units(units, x, masks) makes both of masks"
        )
    return region.cpu()


def _is_of_function(item: Item, signatures: Mapping[str, Tensor]) -> bool:
    """Whether the entropies in an artefact are of the function with these ``signatures``."""
    return all(same_function(item.tensors[name], value) for name, value in signatures.items())


def _results(item: Item) -> dict[str, Entropy]:
    """The entropies by layer that an artefact holds."""
    return {
        layer: Entropy(
            **{key: item.tensors[f"{layer}/{key}"] for key in TENSORS}, settings=settings
        )
        for layer, settings in item.info.items()
    }


class _OfCheckpoints(Recorder):
    """Checkpoints that are loaded one after the other: no training, which may go on later."""

    def _tell_what_is_replaced(self, weights: str) -> None:
        """Nothing is."""

    def _keep(self, told: Mapping[str, Any]) -> None:
        """Nothing to go on after."""


def trajectory(
    model: nn.Module,
    checkpoints: str | os.PathLike[str] | Checkpoints | Iterable[Checkpoint],
    x: Any,
    foreground: Any,
    layer: str | Sequence[str],
    *,
    choices: Choices | None = None,
    background: Any | None = None,
    entry: str | None = None,
    prefix: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **options: Unpack[HowMeasured],
) -> Trajectory | dict[str, Trajectory]:
    """What a network knew in each of its checkpoints, and so the six metrics (Eq. 5-9).

    model       the network that the checkpoints are of, on the device to measure on; a copy is
                loaded and measured, so it stays as it is
    checkpoints epoch 0 (untrained), 1, ..., M. A pattern such as ``"runs/epoch-*.pt"`` or a folder:
                in natural order, epoch-9 before epoch-10; where there are several numbers, that
                behind "epoch", "ep", "iter" or "step". Or an iterable in the order it has, of
                files, patterns, state dicts, networks, and functions that return one of these.
                Or what ``kpnb.distill`` returns.
                In a folder, files of the endings ``weights.SUFFIXES`` count.
                Many loops do not save the untrained network: put its state dict in front,
                ``[initial, "runs/epoch-*.pt"]``, where before training ``initial =
                copy.deepcopy(model.state_dict())``: without the copy, training changes it
    x           ``[N, ...]`` floating point, on the model's device, or a mapping: see ``entropy``
    foreground  bool ``[N, n]``, see ``covered_units``
    layer       dotted name of a module; several are measured together and come back by name
    background  bool ``[N, n]``, default everything else
    choices     threshold b and where else the paper can be read in two ways
    entry, prefix   see ``load_weights``; a state dict in memory that has neither, such as the
                untrained network's in front of files, is taken as it is
    folder      keep what was measured there; it is not measured again for the same weights, input,
                layer and settings, where the network still computes the same features (one pass of
                each sample under noise tells, to within rounding). What changes derivatives alone,
                such as ``detach``, is not seen: take another folder then
    progress    show it

    Everything else is as in ``entropy``, with the same defaults: ``units``, ``solver``,
    ``objective``, ``scale``, ``perturb``, ``shared``, ``forward``, ``select``, ``batch_dim``,
    ``max_batch`` and ``seed``. A sample whose feature does not move or is not finite in an epoch is
    NaN there; epoch, layer and samples are logged, and the other epochs keep theirs.

    Raises ``ValueError`` and ``FileNotFoundError`` as ``load_weights`` does, for files that are not
    there before anything is measured; ``ValueError`` for fewer than two checkpoints and for
    patterns whose files have no one order; ``TypeError`` for an option that does not exist.
    """
    read_measurement(options, "choices", "background", "entry", "prefix", "folder", "progress")
    check_model(model)
    sources = in_order(checkpoints, entry)
    _check_named(sources, entry, prefix)
    recorder = _OfCheckpoints(
        private_copy(model),
        x,
        foreground,
        layer,
        choices=choices,
        background=background,
        folder=folder,
        **options,
    )
    _replay(recorder, sources, entry, prefix, progress)
    return recorder.trajectory()


def _check_named(sources: Sequence[Checkpoint], entry: str | None, prefix: str | None) -> None:
    """``ValueError`` where all checkpoints are in memory, and none has ``entry`` or ``prefix``."""
    in_memory = [each for each in sources if isinstance(each, Mapping | nn.Module)]
    if len(in_memory) < len(sources):
        return
    found = [where_in(each, entry, prefix) for each in in_memory]
    for place, (name, given) in enumerate({"entry": entry, "prefix": prefix}.items()):
        if given is not None and all(each[place] is None for each in found):
            raise ValueError(f"{name}={given!r}: none of the state dicts has it")


def _replay(
    recorder: Recorder,
    sources: Sequence[Checkpoint],
    entry: str | None,
    prefix: str | None,
    progress: bool,
) -> None:
    """Load one checkpoint after the other into the recorder's model, and record it."""
    said: set[str] = set()
    ends: dict[int, str] = {0: "", len(sources) - 1: ""}
    what = f"entropy at {listed(recorder.layers)}"
    with Progress(len(sources), what, "checkpoint", hidden=not progress) as bar:
        for number, source in enumerate(sources):
            try:
                weights = _resolved(source)
                notes = loaded(recorder.model, weights, *where_in(weights, entry, prefix))
                recorder.epoch()
                if number in ends:
                    ends[number] = digest_of_weights(recorder.model)
            except Exception as error:
                what = source if isinstance(source, str | os.PathLike) else type(source).__name__
                error.add_note(f"in checkpoint {number} of 0 to {len(sources) - 1} ({what})")
                raise
            for note in sorted({*notes} - said):
                log.warning("checkpoint %d: %s", number, note)
            said |= {*notes}
            bar.step()
    if len(sources) > 2 and len({*ends.values()}) == 1:
        log.warning(
            "checkpoint 0 has the weights of the last one, %d: a state dict that is not copied "
            "changes with training; keep copy.deepcopy(model.state_dict()) of the untrained one",
            len(sources) - 1,
        )


def _resolved(source: Checkpoint) -> Source:
    """The state dict or file that a checkpoint stands for."""
    return source() if callable(source) and not isinstance(source, nn.Module) else source
