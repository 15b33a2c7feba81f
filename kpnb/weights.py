"""Other people's weights: state dicts and files, as their training code wraps and names them."""

import argparse
import copy
import glob
import logging
import os
import pathlib
import re
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kpnb._messages import listed, unknown
from kpnb._models import check_module

log = logging.getLogger(__name__)

Source = Mapping[str, Any] | nn.Module | str | os.PathLike[str]

ENTRIES = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights")
"""What training code calls the weights inside its checkpoints; the first that is there is taken."""

WRAPPERS = ("module", "model", "net", "network")
"""Attributes under which wrappers (DataParallel, Lightning, ...) hold the network."""

TRANSPARENT = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that torch.compile, FSDP and activation checkpointing insert at any depth."""

OPTIMISER = ("momentum", "mean", "square", "step")
"""What kpnb's own checkpoints hold, parameter by parameter, beside ``model``."""

SUFFIXES = (".safetensors", ".pt", ".pth", ".pth.tar", ".ckpt", ".bin")
"""Endings of the files in a folder that are weights; a file that is named may have any."""

USUAL = ("model.safetensors", "pytorch_model.bin")
"""What Hugging Face's trainer calls the weights in the folder of a checkpoint, beside others."""

NUMBER = re.compile(r"\d+")

COUNTER = "num_batches_tracked"

PLAIN_DATA = [
    argparse.Namespace,  # the arguments of a command line, which torchvision and timm keep
    pathlib.PosixPath,
    pathlib.WindowsPath,
    np.float64(0).__reduce__()[0],  # numpy's numbers, such as a best accuracy
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
]
"""Classes allowed in a checkpoint beside tensors, because making them runs no foreign code."""
OF_OTHERS = {
    ".npz": "NumPy's",
    ".npy": "NumPy's",
    ".h5": "of Keras",
    ".keras": "of Keras",
    ".onnx": "of ONNX",
    ".pb": "of TensorFlow",
    ".gguf": "of llama.cpp",
}
"""Endings of files that PyTorch does not read, and whose they are."""


def load_weights(
    model: nn.Module, source: Source, *, entry: str | None = None, prefix: str | None = None
) -> list[str]:
    """Load a state dict or a file of any usual form into ``model``, all of it or nothing.

    model   any module, also compiled or in DataParallel; device and mode stay as they are
    source  a mapping of names to tensors; another network; ``.safetensors``; what ``torch.save``
            writes (any suffix, read with ``weights_only=True``); a folder with one such file
            (of an ending in ``SUFFIXES``). "~" is the home folder. Wrapped in an entry such as
            ``"state_dict"`` or ``"model"``, and with names that all start with ``module.``,
            ``_orig_mod.``, ``model.`` or another prefix
    entry   the entry of the file to take, such as ``"state_dict_ema"``; default the plain weights,
            not their moving average
    prefix  take only the names that start so, without the prefix: ``"student."``

    Returns what a reader should know about the choice, which is logged as well. A
    ``num_batches_tracked`` that an old file lacks stays as the model has it: no evaluation reads
    it. A tied tensor may be stored once.

    Raises ``FileNotFoundError`` for a missing file, or a folder without any, and ``ValueError`` for
    one that is damaged, holds objects whose loading would run code, or does not fit: missing and
    unexpected names and other shapes are listed, and the model is as it was.
    """
    notes = loaded(model, source, entry, prefix)
    for note in notes:
        log.warning("%s", note)
    return notes


def loaded(model: nn.Module, source: Source, entry: str | None, prefix: str | None) -> list[str]:
    """``load_weights``, returning its notes without logging them."""
    where = named(source)
    check_module(model)
    own = model.state_dict(keep_vars=True)
    if any(isinstance(value, Tensor) and value.is_meta for value in own.values()):
        raise ValueError("the model is on the meta device, without memory: model.to_empty() first")
    state, notes = read_weights(source, entry=entry)
    if prefix is not None:
        state = _under(state, prefix, where)
    state = renamed(state, own)
    kept = _complete(state, own)
    _check_fit(state, own, where)
    _load(model, state, where)
    if kept:
        notes.append(f"weights without {COUNTER} ({len(kept)} layers), which stays as it was")
    return notes


def _load(model: nn.Module, state: Mapping[str, Any], where: str) -> None:
    """Write checked weights; modules with rules of their own may still refuse, so it is undone."""
    own = model.state_dict()
    before = OrderedDict(
        (name, value.clone() if isinstance(value, Tensor) else copy.deepcopy(value))
        for name, value in own.items()
        if not is_lazy(value)
    )
    state = OrderedDict(state)
    # The names are today's, so the versions are; without them, modules expect their oldest form.
    before._metadata = state._metadata = own._metadata
    try:
        model.load_state_dict(state)
    except Exception as error:
        model.load_state_dict(before, strict=False)
        raise ValueError(f"{where} does not fit the model: {error}") from error


def named(source: Source) -> str:
    """What an error calls the source."""
    return "the state dict" if isinstance(source, Mapping | nn.Module) else str(source)


def read_weights(source: Source, *, entry: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """The weights in ``source``, on the CPU, by the names they have there; and remarks.

    Arguments and errors are those of ``load_weights``.
    """
    if isinstance(source, nn.Module):
        source = source.state_dict()
    if not isinstance(source, Mapping | str | os.PathLike):
        kind = type(source).__name__
        raise TypeError(f"weights come as a state dict, a network or a file; got {kind}")
    content = source if isinstance(source, Mapping) else _file_content(expanded(source))
    where = named(source)
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise ValueError(f"{where} holds a {kind}, not a state dict (names to tensors)")
    found = _state_dicts(content)
    if not found:
        raise ValueError(f"{where} holds no tensors by name, but {_held(content)}")
    chosen = entry if entry is not None else _plain_entry(found, where)
    if chosen not in found:
        raise ValueError(f"{where}: " + unknown("entry", chosen, found))
    notes = []
    least = len(found[chosen]) / 2  # smaller ones are an optimiser's, a metric's, ...
    others = [name for name in found if name != chosen and len(found[name]) >= least]
    if entry is None and others:
        notes.append(f"weights taken from {chosen!r}, not {listed(others)}; entry= names another")
    return _without_optimiser(found[chosen]), notes


def _file_content(path: Path) -> Any:
    """What a file holds; nothing in it is executed."""
    if path.is_dir():
        path = _only_file(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights file {path} does not exist{looked_in(path)}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(PLAIN_DATA):
            return torch.load(path, "cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged files raise anything at all
        raise ValueError(
            f"weights file {path} is damaged or holds more than tensors: {_reason(path, error)}"
        ) from error


def _only_file(folder: Path) -> Path:
    """The file with the weights in a checkpoint's folder, as Hugging Face's trainer writes it."""
    usual = [folder / name for name in USUAL]
    present = [path for path in usual if path.is_file()]
    files = present or weights_in(folder)
    if len(files) == 1 or present:
        return files[0]
    if not files:
        remedy = "name one of them"
        raise FileNotFoundError(f"the folder {folder} holds no weights: {lying_in(folder)}{remedy}")
    raise ValueError(
        f"the folder {folder} holds {len(files)} weights files "
        f"({listed(path.name for path in files)}): name one"
    )


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with "~" for the home folder, as shells expand it."""
    return Path(os.path.expanduser(path))


def looked_in(path: str | os.PathLike[str]) -> str:
    """Where a relative path was looked for, in brackets; "" for an absolute one."""
    return "" if expanded(path).is_absolute() else f" (looked in {Path.cwd()})"


def weights_in(folder: Path) -> list[Path]:
    """What lies in a folder and is weights by its ending."""
    return sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES))


def lying_in(folder: Path) -> str:
    """What lies in a folder without weights, and which endings these have; for an error, which
    then says what helps.
    """
    entries = [path for path in folder.glob("[!.]*") if path.name != "__pycache__"]
    names = sorted(path.name + os.sep * path.is_dir() for path in entries)
    found = f"it holds {listed(names, 4)}" if names else "it is empty"
    return f"{found}; in a folder, files that end in {', '.join(SUFFIXES)} count. Else "


def patterns_in(folder: Path) -> list[str]:
    """Patterns of what lies in a folder, has a number in its name and can be weights, the one of
    most names first: of folders with such files, and of what ``torch.save`` wrote.
    """
    kinds: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("[!.]*")):
        kinds.setdefault(NUMBER.sub("*", path.name), []).append(path)
    found = []
    for kind, paths in sorted(kinds.items(), key=lambda item: -len(item[1])):
        files = weights_in(paths[0]) if paths[0].is_dir() else []
        if len(paths) < 2 or not (files or zipfile.is_zipfile(paths[0])):
            continue
        several = len(files) > 1 and not any(file.name in USUAL for file in files)
        inside = [file.name for file in files[:1] if several]
        found.append(os.path.join(glob.escape(str(folder)), kind, *inside))
    return found


def _reason(path: Path, error: Exception) -> str:
    """Why a file was refused; PyTorch's own text would advise to run what is in it."""
    try:
        with torch.serialization.safe_globals(PLAIN_DATA):
            foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not a file of PyTorch's at all
        foreign = []
    if foreign:
        what = f"objects of {listed(foreign)}, whose loading runs code"
        return f"{what}; save model.state_dict() alone"
    if path.suffix in OF_OTHERS:
        return f"{path.suffix} is {OF_OTHERS[path.suffix]}; torch.save(state_dict, path) of tensors"
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _held(content: Mapping[Any, Any]) -> str:
    """What a mapping without tensors has, for an error."""
    what = listed(map(str, content))
    if any(isinstance(value, np.ndarray) for value in content.values()):
        return f"NumPy arrays ({what}); torch.from_numpy makes a tensor of each"
    return what


def is_state(value: object) -> bool:
    """Whether ``value`` maps names to tensors, but for extra state, which may be anything."""
    if not isinstance(value, Mapping) or not value:
        return False
    extra = [name for name in value if isinstance(name, str) and name.endswith("_extra_state")]
    rest = [name for name in value if name not in extra]
    return bool(rest) and all(isinstance(n, str) and isinstance(value[n], Tensor) for n in rest)


def _state_dicts(content: Mapping[Any, Any]) -> dict[str, dict[str, Any]]:
    """State dicts by their dotted place in a checkpoint, at most two levels down."""
    if is_state(content):
        return {"": dict(content)}
    found = _nested(content, "", 2)
    if found:
        return found
    some = any(isinstance(value, Tensor) for value in content.values())
    return {"": dict(content)} if some else {}  # with an epoch or a rate among the weights


def _nested(content: Mapping[Any, Any], place: str, depth: int) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, value in content.items():
        if not isinstance(value, Mapping) or str(name).startswith("optim"):
            continue
        if is_state(value):
            found[f"{place}{name}"] = dict(value)
        elif depth > 1:
            found |= _nested(value, f"{place}{name}.", depth - 1)
    return found


def _plain_entry(found: Collection[str], where: str) -> str:
    """The entry with the weights that were trained, not a moving average of them."""
    plain = [name for name in found if not re.search(r"(?<![a-z])(ema|swa)(?![a-z])", name.lower())]
    plain = plain or list(found)
    usual = [name for entry in ENTRIES for name in plain if name.split(".")[-1] == entry]
    if usual or len(plain) == 1:
        return (usual or plain)[0]
    raise ValueError(
        f"{where} holds several state dicts ({listed(plain)}): say which, entry={plain[0]!r}"
    )


def _without_optimiser(state: dict[str, Any]) -> dict[str, Any]:
    """The weights alone of one of kpnb's own checkpoints; any other state dict as it is."""
    # "helper 0.map.weight" is of a loss; no name of a network's own has a space
    state = {name: value for name, value in state.items() if "helper " not in name}
    weights = {name for name in state if name.startswith("model.")}
    others = [name.partition(".") for name in state if name not in weights]
    own = all(first in OPTIMISER and f"model.{rest}" in weights for first, _, rest in others)
    return {name: state[name] for name in state if name in weights} if own and others else state


def _under(state: Mapping[str, Any], prefix: str, where: str) -> dict[str, Any]:
    chosen = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    if chosen:
        return chosen
    starts = {start for name in state for start in _prefixes([name])[1:]}
    raise ValueError(f"{where}: " + unknown("prefix", prefix, sorted(starts)))


def bare_name(name: str) -> str:
    """A dotted name without the parts that transparent wrappers insert."""
    return ".".join(part for part in name.split(".") if part not in TRANSPARENT)


def _prefixes(names: Iterable[str]) -> list[str]:
    """Everything that all ``names`` start with, up to a dot: ``["", "module.", ...]``."""
    parts = [name.split(".")[:-1] for name in names]
    found = [""]
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        found.append(f"{found[-1]}{level[0]}.")
    return found


def renamed(state: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """``state`` under the names that a model has for it (``own``), wrapped as either may be.

    What all tensors of the file start with is taken off, and of the model's what a wrapper adds, so
    that most names agree. Tensors that the model does not have stay, without the prefix.
    """
    ours = {bare_name(name): name for name in own}
    theirs = {bare_name(str(name)): value for name, value in state.items()}
    if "n_averaged" not in ours:
        theirs.pop("n_averaged", None)  # torch.optim.swa_utils counts there
    wraps = [p for p in _prefixes(ours) if set(p.split(".")[:-1]) <= set(WRAPPERS)]
    starts = _prefixes(name for name, value in theirs.items() if isinstance(value, Tensor))
    pairs = [(ours_from, theirs_from) for ours_from in wraps for theirs_from in starts]

    def agreeing(pair: tuple[str, str]) -> tuple[int, int]:
        add, cut = pair
        shared = sum(add + name.removeprefix(cut) in ours for name in theirs)
        return shared, -len(add + cut)

    add, cut = max(pairs, key=agreeing)
    result = {}
    for name, value in theirs.items():
        stripped = name.removeprefix(cut)
        found = ours.get(add + stripped, stripped)
        if found in own or isinstance(value, Tensor) or found.endswith("_extra_state"):
            result[found] = value  # and not, say, the epoch
    return result


def _complete(state: dict[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Fill in what a complete file need not hold; the names of the counters among it."""
    places: dict[tuple[int, torch.Size], str] = {}
    for name, value in own.items():
        if name in state and isinstance(value, Tensor) and not is_lazy(value):
            places[value.data_ptr(), value.shape] = name
    kept = []
    for name in [name for name in own if name not in state]:
        value = own[name]
        if name.split(".")[-1] == COUNTER:
            state[name] = value
            kept.append(name)
        elif isinstance(value, Tensor) and not is_lazy(value) and value.numel():
            twin = places.get((value.data_ptr(), value.shape))
            if twin:
                state[name] = state[twin]  # one tensor with two names
    return kept


def _check_fit(state: Mapping[str, Any], own: Mapping[str, Any], where: str) -> None:
    """``ValueError`` that lists everything in which ``state`` and a model differ."""
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {_kind(state[name])} there and {_kind(own[name])} in the model"
        for name in own
        if name in state and not _same_kind(state[name], own[name])
    ]
    lists = {"missing": _with_nearest(missing[:6], unexpected) + missing[6:]}
    lists |= {"not in the model": unexpected, "of another shape": shapes}
    wrong = [f"{title}: {listed(names, 40)}" for title, names in lists.items() if names]
    if wrong:
        advice = _advice(_fitting_prefixes(state, own)) if missing else ""
        raise ValueError(f"{where} does not fit the model. {advice}" + "; ".join(wrong))


def _same_kind(value: object, own: object) -> bool:
    if not isinstance(value, Tensor) or not isinstance(own, Tensor):
        return isinstance(value, Tensor) == isinstance(own, Tensor)  # extra state
    if is_lazy(own):
        return True
    floating = value.is_floating_point() == own.is_floating_point()
    return floating and value.shape == own.shape


def _kind(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    shape = str(list(value.shape))
    return shape if value.is_floating_point() else f"{str(value.dtype)[6:]} {shape}"


def _with_nearest(names: Sequence[str], others: Collection[str]) -> list[str]:
    """``names`` with what may be meant by them, each of the ``others`` once at most."""
    pairs = [(_nearness(name, other), name, other) for name in names for other in others]
    near: dict[str, str] = {}
    for nearness, name, other in sorted(pairs, key=lambda pair: -pair[0]):
        if nearness and name not in near and other not in near.values():
            near[name] = other
    return [f"{name} (is it {near[name]}?)" if name in near else name for name in names]


def _nearness(name: str, other: str) -> float:
    """0 to 1: 0 unless one name is the other behind a prefix, or each of their parts between dots
    is like that of the other.
    """
    ours = name.split(".")
    theirs = other.split(".")
    if len(ours) != len(theirs):
        short, long = sorted((ours, theirs), key=len)
        return len(short) / len(long) if len(short) > 1 and long[-len(short) :] == short else 0
    alike = [SequenceMatcher(None, *pair).ratio() for pair in zip(ours, theirs, strict=True)]
    return sum(alike) / len(alike) if min(alike) >= 0.6 else 0


def _fitting_prefixes(state: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """The prefixes under which everything is there; those alone where the shapes fit, if any do."""
    names = [name for name in own if name.split(".")[-1] != COUNTER]
    if not names:
        return []
    starts = {name.removesuffix(names[0]) for name in state if name.endswith(f".{names[0]}")}
    complete = [p for p in sorted(starts) if all(p + name in state for name in names)]
    fitting = [p for p in complete if all(_same_kind(state[p + n], own[n]) for n in names)]
    return fitting or complete


def _advice(prefixes: Sequence[str]) -> str:
    """What to pass for one of several networks in a file; "" where no prefix helps."""
    if not prefixes:
        return ""
    choice = " or ".join(f"prefix={prefix!r}" for prefix in prefixes[:4])
    if len(prefixes) == 1:
        return f"All that the model needs lies under one prefix: pass {choice}. "
    return f"All that the model needs lies under each of {len(prefixes)} prefixes: pass {choice}. "
