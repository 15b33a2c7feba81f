"""Features of a network's layers, addressed by dotted module name; the network is left as it was
found.

Hooks exist only while a forward pass runs, and the pass is cut off at the last layer asked for.
Compiled models run uncompiled meanwhile, because compiled code does not see hooks.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kpnb._messages import unknown
from kpnb._models import check_module
from kpnb._outputs import Key, picked
from kpnb._tensors import described, taken_to
from kpnb._untouched import explaining, uncompiled

Forward = Callable[[nn.Module, Any], Any]


def call(model: nn.Module, x: Any) -> Any:
    """``model(**x)`` for a mapping, ``model(x)`` for anything else."""
    return model(**x) if isinstance(x, Mapping) else model(x)


def check_forward(forward: object) -> None:
    """Raise ``TypeError`` for what cannot be called."""
    if not callable(forward):
        raise TypeError(f"forward is a function forward(model, x); got {forward!r}")


# ------------------------------------------------------------------------------------------ by name


PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def _plain(name: str, modules: Mapping[str, nn.Module]) -> str:
    """A module's name without what ``torch.compile`` and data parallelism add to it, in a model
    with these ``modules`` by name.
    """
    parts = name.split(".")
    kept = []
    for depth, part in enumerate(parts):
        parallel = isinstance(modules.get(".".join(parts[:depth])), PARALLEL)
        if part != "_orig_mod" and not (part == "module" and parallel):
            kept.append(part)
    return ".".join(kept)


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """All names of all modules, those that a wrapper has prolonged in both forms."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return {_plain(name, modules): module for name, module in modules.items()} | modules


def layer_at(model: nn.Module, name: str) -> tuple[nn.Module, int | None]:
    """The submodule called ``name`` and which of its runs is meant: ``"relu:1"`` is the second run
    of ``relu``, ``"relu"`` leaves it open (None). ``""`` is the model itself.

    Raises ``LookupError`` with the nearest names, ``TypeError`` for what is no name and for
    TorchScript.
    """
    if not isinstance(name, str):
        raise TypeError(_no_name(model, name))
    _refuse_scripted(model, name)
    try:
        return model.get_submodule(name), None
    except AttributeError:  # not as it stands
        modules = _modules(model)
    for known in (name, _plain(name, modules)):
        if known in modules:
            return modules[known], None
        path, colon, run = known.rpartition(":")
        if colon and run.isdecimal() and path in modules:
            return modules[path], int(run)
    raise LookupError(unknown("layer", name, [known for known in modules if known]))


def _refuse_scripted(model: nn.Module, name: str) -> None:
    """``TypeError`` where the layer ``name`` is TorchScript, or inside of it: it has no hooks."""
    part: Any = model
    path = name.split(".")
    for depth in range(len(path) + 1):
        if isinstance(part, torch.jit.ScriptModule):
            what = repr(".".join(path[:depth])) if depth else "the model"
            raise TypeError(
                f"{what} is TorchScript (of torch.jit.script or torch.jit.trace), whose layers "
                "cannot be measured: measure the network before scripting or tracing it"
            )
        part = getattr(part, path[depth], None) if depth < len(path) else None


def _no_name(model: nn.Module, given: object) -> str:
    """Says what a layer is called, where ``given`` is not a name."""
    names = [name for name, module in _modules(model).items() if module is given]
    hint = f"; this module is called {names[0]!r}" if names else ""
    return f"layers go by their names in model.named_modules(); got {type(given).__name__}{hint}"


def layer_names(model: nn.Module, layers: str | Sequence[str]) -> list[str]:
    """One name or several as a list, each once; errors are those of ``layer_at``, and
    ``ValueError`` for none.
    """
    alone = isinstance(layers, str) or not isinstance(layers, Iterable)
    names = list(dict.fromkeys([layers] if alone or isinstance(layers, nn.Module) else layers))
    if not names:
        raise ValueError(f"layers = {layers!r}: name at least one")
    for name in names:
        layer_at(model, name)
    return names


def unnamed_run(model: nn.Module, name: str, runs: int) -> str:
    """Says that the layer ``name`` runs several times in a pass, unless one run is named; "" where
    all is clear.
    """
    if runs < 2 or layer_at(model, name)[1] is not None:
        return ""
    return (
        f"layer {name!r} runs {runs} times in a pass: say which run is meant, "
        f"'{name}:0' to '{name}:{runs - 1}'"
    )


# ------------------------------------------------------------------------------------------ capture


class _AllReached(BaseException):
    """Cuts a forward pass short. Not an ``Exception``, so that a model's own ``except Exception``
    lets it through.
    """


@dataclass
class _Hook:
    """Keeps a copy of a module's output in the run that is asked for, and counts the runs.

    ``waiting`` are the layers that the pass has not reached; with the last one it ends. None: it
    goes on. (Hooks that knew each other would be a cycle, and keep graphs until a collection.)
    """

    name: str
    module: nn.Module
    run: int
    select: Key | None
    waiting: set[str] | None
    feature: Tensor | None = None
    runs: int = 0

    def __call__(self, _module: nn.Module, _args: object, output: Any) -> None:
        if self.runs == self.run:
            # a copy, which an in-place activation that follows cannot change
            self.feature = picked(output, self.name, self.select).clone()
            if self.waiting is not None:
                self.waiting.discard(self.name)
        self.runs += 1
        if self.waiting is not None and not self.waiting:
            raise _AllReached


def capture(
    model: nn.Module,
    x: Any,
    layers: Sequence[str],
    *,
    forward: Forward = call,
    select: Key | Mapping[str, Key] | None = None,
    runs: dict[str, int] | None = None,
) -> dict[str, Tensor]:
    """Outputs of ``layers`` for the input ``x``, in the shapes the layers give them.

    Of a module that runs more than once the first output counts, unless another run is named
    (``"relu:1"`` for the second). Outputs are copies and keep their graph. The model is called as
    ``forward(model, x)``. ``select`` says which part of an output is meant (``picked``), for all
    layers or by layer.

    The pass stops as soon as every layer was reached, unless ``runs`` is given: then it goes on to
    the end and ``runs`` takes up how often each layer ran.

    Raises ``LookupError`` for an unknown name, ``RuntimeError`` when the pass ends without reaching
    a layer, ``TypeError`` for an output whose feature is not clear and for batches in the place of
    one, ``ValueError`` for numbers of another type than the model's. Other errors of the model's
    own get a note of what it was called with.
    """
    check_module(model)
    check_forward(forward)
    if isinstance(x, DataLoader | Iterator):
        raise TypeError(
            f"x is one batch; got {type(x).__name__}: take its batches one after the other, "
            "for batch in loader"
        )
    x = _arrays_taken(model, x)
    hooks: list[_Hook] = []
    names = layer_names(model, layers)
    waiting = {*names} if runs is None else None
    for name in names:
        module, run = layer_at(model, name)
        hooks.append(_Hook(name, module, run or 0, for_layer(select, name), waiting))
    try:
        with ExitStack() as attached, uncompiled():
            for hook in hooks:
                attached.enter_context(hook.module.register_forward_hook(hook))
            forward(model, x)
    except _AllReached:
        pass
    except Exception as error:
        # what comes after the layers is not seen by a pass that is cut off
        if runs is None or any(hook.feature is None for hook in hooks):
            _name_mismatch(error, model, x)
            raise
    if runs is not None:
        runs.update({hook.name: hook.runs for hook in hooks})
    check_reached({hook.name: hook.runs for hook in hooks if hook.feature is None})
    return {hook.name: hook.feature for hook in hooks}


def check_reached(missing: Mapping[str, int]) -> None:
    """Raise ``RuntimeError`` that names the layers ``missing`` in a pass, if any; with how often
    each ran, where another run was asked for.
    """
    named = [
        f"{name!r}" + (f" (it runs {runs} times)" if runs else "") for name, runs in missing.items()
    ]
    if named:
        raise RuntimeError(f"the forward pass never reached layer {', '.join(sorted(named))}")


def _arrays_taken(model: nn.Module, x: Any) -> Any:
    """NumPy arrays in what a model is called with as tensors, where and of what type it is."""
    if isinstance(x, Tensor):
        return x
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    if isinstance(x, Mapping) and any(hasattr(value, "__array__") for value in x.values()):
        return {name: taken_to(value, like.device, like.dtype) for name, value in x.items()}
    return taken_to(x, like.device, like.dtype)


def _name_mismatch(error: Exception, model: nn.Module, x: Any) -> None:
    """``ValueError`` where a model failed on numbers of another type than its parameters'; on any
    other error a note of what the model was called with.
    """
    parts = x if isinstance(x, Mapping) else {"": x}
    given = {str(name): value for name, value in parts.items() if isinstance(value, Tensor)}
    own = {p.dtype for p in model.parameters() if p.is_floating_point()}
    foreign = [name for name, value in given.items() if own and value.dtype not in own]
    foreign.sort(key=lambda name: not given[name].is_floating_point())
    if isinstance(x, Mapping):  # whose integers are token ids, masks, positions
        ids = (torch.int64, torch.int32, torch.bool)
        foreign = [name for name in foreign if given[name].dtype not in ids]
    if foreign and isinstance(error, RuntimeError) and re.search(r"\b(d?type|half)", str(error)):
        name = foreign[0]
        wanted = str(next(iter(own)))
        what = f"the input {name!r}" if name else "the input"
        raise ValueError(
            f"the model computes in {wanted}, {what} is {given[name].dtype}: convert one, "
            f"for example x.to({wanted})"
        ) from error
    shapes = [f"{name} {described(value)}".strip() for name, value in given.items()]
    if shapes:
        error.add_note(f"the model was called with {', '.join(shapes)}, samples first")


def for_layer(option: Any, name: str) -> Any:
    """An option that is one for all layers, or a mapping with one for each that needs it."""
    return option.get(name) if isinstance(option, Mapping) else option


@dataclass(frozen=True)
class Network:
    """A model, and how its features are had: called by ``forward``, the feature at ``select`` of a
    layer's output, its samples along ``batch_dim`` (both for all layers, or by layer).
    """

    model: nn.Module
    forward: Forward = call
    select: Key | Mapping[str, Key] | None = None
    batch_dim: int | Mapping[str, int] = 0

    def __post_init__(self) -> None:
        check_forward(self.forward)
        for option in (self.select, self.batch_dim):
            if isinstance(option, Mapping):
                layer_names(self.model, [*option])  # a misspelt name would be a layer without it

    def features(
        self, x: Any, rows: int, layers: Sequence[str], runs: dict[str, int] | None = None
    ) -> dict[str, Tensor]:
        """Outputs ``[rows, ...]`` of the layers for the input ``x`` of that many samples.

        As ``capture``, with the samples in front. Raises ``ValueError`` for a layer whose output
        does not have one part for each sample.
        """
        how = {"forward": self.forward, "select": self.select, "runs": runs}
        found = capture(self.model, x, layers, **how)
        return {name: self.samples_first(feature, name, rows) for name, feature in found.items()}

    def samples_first(self, feature: Tensor, name: str, rows: int) -> Tensor:
        """The ``feature`` with its samples in front, and a dimension at least for each one's
        numbers; ``ValueError`` unless there are ``rows``.
        """
        dim = for_layer(self.batch_dim, name) or 0
        if -feature.dim() <= dim < feature.dim() and feature.shape[dim] == rows:
            return feature.movedim(dim, 0) if feature.dim() > 1 else feature[:, None]
        fits = [d for d, size in enumerate(feature.shape) if size == rows]
        remedy = f"pass batch_dim={fits[0]}" if fits else "it has no dimension of the samples"
        raise ValueError(
            f"layer {name!r} returns {list(feature.shape)} for {rows} samples, "
            f"which are not along dimension {dim}: {remedy}"
        )


def check_runs(
    model: nn.Module, x: Any, layers: Sequence[str], select: Key | Mapping[str, Key] | None = None
) -> None:
    """Raise ``ValueError`` for a layer that runs several times on ``x [B, ...]`` where none of its
    runs is named.
    """
    runs: dict[str, int] = {}
    with explaining(model, device_of(model)), torch.no_grad():
        capture(model, x, layers, select=select, runs=runs)
    problems = [unnamed_run(model, name, count) for name, count in runs.items()]
    if any(problems):
        raise ValueError("; ".join(filter(None, problems)))


def parameters_below(
    model: nn.Module, x: Any, layer: str, select: Key | Mapping[str, Key] | None = None
) -> set[str]:
    """Names of the parameters that the feature of ``layer`` at the input ``x [B, ...]`` depends
    on.
    """
    parameters = differentiable(model)
    with explaining(model, device_of(model)), torch.enable_grad():
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        return depended_on([capture(model, x, [layer], select=select)[layer]], parameters)


def differentiable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by name, without those of integers, which have no derivative."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() or parameter.is_complex()
    }


def depended_on(ends: Sequence[Tensor], parameters: Mapping[str, Tensor]) -> set[str]:
    """Names of the ``parameters`` that any of the tensors ``ends`` depends on."""
    sums = [end.sum() for end in ends if end.requires_grad]
    gradients = torch.autograd.grad(sums, [*parameters.values()], allow_unused=True)
    return {name for name, found in zip(parameters, gradients, strict=True) if found is not None}


def count_runs(
    model: nn.Module, x: Any, layer: str, select: Key | Mapping[str, Key] | None = None
) -> Counter[str]:
    """How often each leaf module runs, for the input ``x [B, ...]``, up to and including ``layer``,
    by name.
    """
    leaves = {name: module for name, module in model.named_modules() if not any(module.children())}
    with counting(leaves) as found, explaining(model, device_of(model)), torch.no_grad():
        capture(model, x, [layer], select=select)
    return found


@contextmanager
def counting(modules: Mapping[str, nn.Module]) -> Iterator[Counter[str]]:
    """How often each of the ``modules`` runs meanwhile, by name, in the order of first runs."""
    found: Counter[str] = Counter()

    def count(name: str, _module: nn.Module, _args: object) -> None:
        found[name] += 1

    with ExitStack() as attached:
        for name, module in modules.items():
            attached.enter_context(module.register_forward_pre_hook(partial(count, name)))
        yield found


def device_of(model: nn.Module) -> torch.device:
    """Where the model is; the CPU when it has no parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
