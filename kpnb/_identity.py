"""What a call of somebody's network computes, as plain data for a digest: code and constants.

Two calls of one description compute the same, as far as can be seen from outside: code, the values
that it closes over, global constants and functions that it names, also those in modules of one's
own, and plain attributes. Packages that are installed go by their names alone.
"""

import argparse
import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LIBRARIES = {*sys.stdlib_module_names, "torch", "numpy", "kpnb"}
CONSTANTS = (bool, int, float, complex, str, bytes, type(None), Enum, torch.dtype, torch.device)
OPEN = (SimpleNamespace, argparse.Namespace)  # of a library, and nothing but what users put there
PRIVATE = {*vars(nn.Module())}  # what PyTorch keeps in every module
SPARSE = {torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}
HELD = (list, set, frozenset, Mapping, Tensor, np.ndarray, np.generic, functools.partial, *OPEN)
"""What a class may hold beside its constants and functions."""


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of tensors by name: types, shapes and bits."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def identity_of_call(
    model: nn.Module, forward: Callable[..., Any], attributes: bool = True
) -> list[Any]:
    """What ``forward`` does with the ``model``, but for the weights and buffers of it; without the
    plain ``attributes`` of modules too, which a training may change (a rate of dropout).
    """
    own = _Description(_parts(model))
    described = own.module if attributes else own.code
    parts = [[name, *described(module)] for name, module in model.named_modules()]
    return [own.of(forward), parts]


def identity_of(part: object) -> Any:
    """What a unit type, a solver or an objective is: its class, and what it was made with."""
    return _Description({}).of(part)


def identity_of_input(value: object) -> Any:
    """What else a network is called with: constants, tensors, containers and objects of these.

    Two values of one description are the same, so objects of installed packages go by all that can
    be seen of them.
    """
    return _Description({}, data=True).of(value)


class _Description:
    """Describes values; one that was ``seen`` goes by its place among them.

    data    the values are data: objects of which little is known differ where they are printed
            differently
    """

    def __init__(self, seen: dict[int, Any], data: bool = False) -> None:
        self.seen = seen  # by id, and the object itself, so that no other gets its id
        self.data = data
        self._names: frozenset[str] = frozenset()  # in the code that is being described
        self._entered: set[tuple[int, frozenset[str]]] = set()  # modules, with these
        self._single = (
            (CONSTANTS, repr),
            (tuple, self._items),
            ((set, frozenset), lambda value: sorted(str(self.of(item)) for item in value)),
            ((np.ndarray, np.generic), self._array),
            (CodeType, lambda code: [code.co_code.hex(), code.co_names, self.of(code.co_consts)]),
            (ModuleType, self._namespace),
            (BuiltinFunctionType, lambda value: value.__name__),
        )
        self._holding = (  # what may be part of the network, or hold itself
            (Tensor, self._tensor),
            (Mapping, lambda value: self._items(value.items())),
            (list, self._items),
            (functools.partial, lambda made: self._items((made.func, made.args, made.keywords))),
            (MethodType, lambda bound: self._items((bound.__func__, bound.__self__))),
            (FunctionType, self._function),
            (type, self._class),
            (object, self._object),
        )

    def of(self, value: Any) -> Any:
        """Plain data that is the same in another process for the same value."""
        for kinds, described in self._single:
            if isinstance(value, kinds):
                return described(value)
        if id(value) in self.seen:
            return f"the same as {[*self.seen].index(id(value))}"
        self.seen[id(value)] = value
        described = next(found for kinds, found in self._holding if isinstance(value, kinds))
        return described(value)

    def _items(self, values: Iterable[Any]) -> list[Any]:
        return [self.of(value) for value in values]

    def code(self, module: nn.Module) -> list[Any]:
        """Class and hooks."""
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        return [self.of(type(module)), self.of(hooks)]

    def module(self, module: nn.Module) -> list[Any]:
        """Class, hooks and plain attributes."""
        attributes = {key: v for key, v in vars(module).items() if key not in PRIVATE}
        if module._forward_pre_hooks:  # they leave tensors there, as the old weight_norm does
            attributes = {key: v for key, v in attributes.items() if not isinstance(v, Tensor)}
        return [*self.code(module), self.of(attributes)]

    def _function(self, function: FunctionType) -> Any:
        if _installed(function.__module__):
            return f"{function.__module__}.{function.__qualname__}"
        code = function.__code__
        cells = tuple(_held(cell) for cell in function.__closure__ or ())
        parts = (code, function.__defaults__, function.__kwdefaults__, cells)
        outer, self._names = self._names, frozenset(_names(code))
        named = self._named(function.__globals__)
        described = [self.of(parts), named]
        self._names = outer
        return described

    def _named(self, known: Mapping[str, Any]) -> list[Any]:
        """What of ``known`` the code names that is being described."""
        return [[name, self.of(known[name])] for name in sorted(self._names & known.keys())]

    def _namespace(self, module: ModuleType) -> Any:
        """Its name; of somebody's own what the code takes from it too."""
        entry = id(module), self._names
        if _installed(module.__name__) or entry in self._entered:  # they may import each other
            return module.__name__
        self._entered.add(entry)
        return [module.__name__, self._named(vars(module))]

    def _class(self, kind: type) -> Any:
        """Its name; of somebody's own class its functions and values too, and its bases."""
        if _installed(kind.__module__):
            return f"{kind.__module__}.{kind.__qualname__}"
        content = []
        for name, value in vars(kind).items():
            if isinstance(value, staticmethod | classmethod | property):
                value = value.fget if isinstance(value, property) else value.__func__
            constant = isinstance(value, (*CONSTANTS, tuple)) and not name.startswith("__")
            held = isinstance(value, HELD) and not _reserved(name)
            if constant or held or isinstance(value, FunctionType):
                content.append([name, self.of(value)])
        return [kind.__qualname__, content, [self.of(base) for base in kind.__bases__]]

    def _object(self, value: Any) -> Any:
        if isinstance(value, nn.Module):  # one beside the network
            tensors = dict(value.named_parameters()) | dict(value.named_buffers())
            parts = [[name, *self.module(module)] for name, module in value.named_modules()]
            return [digest_of(tensors), parts]
        kind = type(value)
        if dataclasses.is_dataclass(value):  # without what it has computed since it was made
            names = [field.name for field in dataclasses.fields(value)]
            return [self.of(kind), [[name, self.of(getattr(value, name))] for name in names]]
        opaque = _installed(kind.__module__) and not isinstance(value, OPEN)
        state = getattr(value, "__dict__", {})
        if self.data and (opaque or not state):
            return [self.of(kind), repr(value), self.of(state)]
        return self.of(kind) if opaque else [self.of(kind), self.of(state)]

    def _tensor(self, value: Tensor) -> Any:
        if value.layout in SPARSE and not value.is_meta:  # str() leaves out most of many values
            value = value.detach().to_sparse_coo().coalesce()
            return [[*value.shape], digest_of({"at": value.indices(), "": value.values()})]
        plain = value.layout == torch.strided and not value.is_meta and not value.is_quantized
        return digest_of({"": value}) if plain else str(value)

    def _array(self, value: np.ndarray | np.generic) -> Any:
        if value.dtype.hasobject:
            return self.of(value.tolist())
        return [str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()]


def _parts(model: nn.Module) -> dict[int, Any]:
    """What the network has of its own, by id."""
    known = [*model.modules(), *model.parameters(), *model.buffers()]
    return {id(part): part for part in known}


def _reserved(name: str) -> bool:
    """Whether Python, an Enum or a NamedTuple keeps something of its own by this name."""
    return (name.startswith("_") and name.endswith("_")) or name == "_field_defaults"


def _names(code: CodeType) -> set[str]:
    """Names of globals (and attributes) in the code and in the functions that it defines."""
    inner = [_names(value) for value in code.co_consts if isinstance(value, CodeType)]
    return set(code.co_names).union(*inner)


def _held(cell: CellType) -> Any:
    """What a variable of an outer function holds; None before it has a value."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _installed(module: str | None) -> bool:
    """Whether a module, by its name, is of Python, of kpnb or of a package that is installed."""
    name = module or ""
    if name.partition(".")[0] in LIBRARIES:
        return True
    found = sys.modules.get(name)
    file = getattr(found, "__file__", None) or str(getattr(found, "__path__", ""))
    return "site-packages" in file or "dist-packages" in file
