"""What an executed notebook follows from: its text, its parameters, the code that it imports with
the data beside that code, and the versions of the packages that this code imports.

Imports are read, nothing is imported. So a figure's code concerns the notebooks that draw with it,
and a package that nothing of this imports concerns none.
"""

import ast
import json
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kpnb_book.run.source import Cell, cells_of, python

# The folders of our packages. Looking for one does not import it.
PACKAGES = {name: Path(find_spec(name).origin).resolve().parent for name in ("kpnb", "kpnb_book")}


@dataclass(frozen=True)
class Said:
    """What a piece of code says: modules that it may import, and packages that it may look for."""

    modules: frozenset[str]
    packages: frozenset[str]


def origin(path: Path, parameters: Mapping[str, Any]) -> str:
    """Digest of all that an executed copy of the notebook ``path`` follows from."""
    return with_parameters(content_of(path), parameters)


def with_parameters(content: str, parameters: Mapping[str, Any]) -> str:
    """The origin of a run with ``parameters`` of the notebook of this ``content``."""
    return digest([content, parameters])


def content_of(path: Path) -> str:
    """Digest of a notebook's text, its code, data and packages. Outputs, counts and other traces of
    an execution in the file are no part of it.
    """
    cells = cells_of(path)
    said = [_said(python(cell.source)) for cell in cells if cell.kind == "code"]
    files = reached({name for one in said for name in one.modules})
    said += [_said(file.read_text("utf8")) for file in files]
    content = {
        "cells": [_lasting(cell) for cell in cells],
        "files": [[file.name, digest(file.read_bytes())] for file in with_data(files)],
        "versions": _versions(said),
        "python": platform.python_version(),
    }
    return digest(content)


def _lasting(cell: Cell) -> list[Any]:
    """What of a cell an editor does not change when it executes or saves it."""
    return [cell.kind, cell.source, cell.metadata.get("tags"), cell.metadata.get("mystnb")]


def reached(modules: Iterable[str]) -> list[Path]:
    """The files of kpnb and kpnb_book that importing ``modules`` executes, in order of their
    paths.
    """
    found: set[Path] = set()
    waiting = [*modules]
    while waiting:
        for file in _files(waiting.pop()):
            if file not in found:
                found.add(file)
                waiting += _said(file.read_text("utf8")).modules
    return sorted(found)


def with_data(files: Iterable[Path]) -> list[Path]:
    """``files``, with everything in their folders that is not code, and the tables of the book; of
    stored evidence where they have what reads it.
    """
    folders = {file.parent for file in files}
    data = [
        file
        for folder in folders
        for file in folder.iterdir()
        if file.is_file() and file.suffix not in ("", ".py", ".pyc")
    ]
    book = PACKAGES["kpnb_book"].parent
    reads_evidence = any(file.match("studies/results.py") for file in files)
    stored = book.glob("results/*/[!.]*") if reads_evidence else ()
    return sorted({*files, *data, *book.glob("*.csv"), *stored})


def _files(module: str) -> Iterator[Path]:
    """The files that ``import module`` executes: of its packages, and its own. A last part that is
    no module is a name in one, as in ``from kpnb.stats import compare``.
    """
    first, *rest = module.split(".")
    if first not in PACKAGES:
        return
    folder = PACKAGES[first]
    for part in ["", *rest]:
        folder = folder / part
        for file in (folder / "__init__.py", folder.with_suffix(".py")):
            if file.is_file():
                yield file


@cache
def _said(source: str) -> Said:
    """What Python code says; nothing where it is not Python, which fails when it is executed."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return Said(frozenset(), frozenset())
    modules, texts = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.add(node.value)
    looks = "kpnb_book.packages.package" in modules  # for the data that a package brings
    return Said(frozenset(modules), frozenset(texts if looks else ()))


def _versions(said: Iterable[Said]) -> dict[str, str]:
    """Versions of the packages that code imports or looks for."""
    installed = {_canonical(name): name for names in _distributions().values() for name in names}
    found: set[str] = set()
    for one in said:
        for module in one.modules:
            found |= set(_distributions().get(module.partition(".")[0], ()))
        named = {_canonical(text) for text in one.packages}
        found |= {installed[name] for name in named & installed.keys()}
    return {name: version(name) for name in sorted(found - {"kpnb"})}


@cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


def _canonical(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def digest(value: Any) -> str:
    """SHA-256 (hex) of bytes, or of the JSON text of anything else, with sorted keys; what JSON
    does not know, such as a path, is written as its text.
    """
    if not isinstance(value, bytes):
        value = json.dumps(value, sort_keys=True, default=str).encode()
    return sha256(value).hexdigest()
