"""Results on disk, addressed by what determines them.

A *run* is a folder ``<root>/<kind>/<hash>/``, where the hash is taken of its kind, its
configuration and the version of kpnb; ``config.json`` in it holds the configuration in clear. An
*artefact* of a run is ``<name>.safetensors`` (tensors) and ``<name>.json`` (numbers, digests,
versions). Both are written to a temporary file first and then renamed, the JSON last: an artefact
without its JSON does not exist, so whatever interrupts a computation leaves nothing that is read
later. Pickle is never used.
"""

import hashlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from torch import Tensor

from kpnb import __version__
from kpnb_book.place import store_folder

log = logging.getLogger(__name__)

PATIENCE = 3.0  # seconds of waiting for another process before it is said


class Item(NamedTuple):
    """One artefact: its tensors (contiguous, on the CPU) and its JSON part."""

    tensors: dict[str, Tensor]
    info: dict[str, Any]


def canonical(value: object, path: str = "config") -> Any:
    """The JSON form of a configuration in which equal settings look equal: tuples are lists,
    ``1.0`` is ``1``.

    Raises TypeError naming the key of anything that JSON cannot hold, NaN and infinity included.
    """
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() and abs(value) < 2**53 else float(value)
    if isinstance(value, list | tuple):
        return [canonical(entry, f"{path}[{i}]") for i, entry in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(
                    f"{path} has the key {key!r} of type {type(key).__name__}: keys must be strings"
                )
        return {key: canonical(entry, f"{path}.{key}") for key, entry in value.items()}
    what = value if isinstance(value, float) else f"a {type(value).__name__}"
    raise TypeError(
        f"{path} is {what}, which JSON cannot hold: use numbers, strings, None, lists, dicts"
    )


def digest(value: object) -> str:
    """SHA-256 (hex) of bytes, or of the sorted JSON text of anything else."""
    data = (
        value
        if isinstance(value, bytes)
        else json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    )
    return hashlib.sha256(data).hexdigest()


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU that do not change when the caller trains on, nor share memory (tied
    weights).
    """
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


class Store:
    """All runs under one folder: ``root``, else ``$KPNB_STORE``, else ``kpnb`` in the user's cache
    folder.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self.root = store_folder(root)

    def run(self, kind: str, config: Mapping[str, Any]) -> "Run":
        """The run that ``config`` determines. Nothing is written before its first artefact is
        computed.
        """
        return Run(self.root, kind, canonical(config))


class Run:
    """The artefacts of one configuration; made by :meth:`Store.run`."""

    def __init__(self, root: Path, kind: str, config: dict[str, Any]) -> None:
        self.root, self.kind, self.config = root, _checked("kind", kind), config
        self._identity = {"kind": kind, "config": config, "kpnb": __version__}
        self.address = f"{kind}/{digest(self._identity)[:20]}"
        self.path = root / self.address
        self._lock = FileLock(
            self.path / ".lock"
        )  # one object, so that a computation may ask for another artefact

    def info(self, name: str) -> dict[str, Any] | None:
        """The JSON part of an artefact, or None when there is none. No tensor is read, only its
        size is compared.
        """
        return (self._sidecar(name) or {}).get("info")

    def has(self, name: str) -> bool:
        """Whether the artefact exists, judged as :meth:`info` does."""
        return self._sidecar(name) is not None

    def get(
        self, name: str, compute: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]
    ) -> Item:
        """The artefact ``name``, read and verified, or computed and written when it is not there or
        damaged.

        The lock of the run is held while ``compute`` runs, so processes that want the same artefact
        compute it once. ``info`` may hold anything that JSON can; NaN is allowed (an undefined
        metric) and comes back as NaN. Raises OSError naming the store's folder when that cannot be
        written.
        """
        if item := self._read(name):
            return item
        with self._locked():
            if item := self._read(name):  # another process has written it meanwhile
                return item
            if self._file(name, "json").exists():
                log.warning("%s is damaged: it is computed again", self._file(name))
            start = time.perf_counter()
            tensors, info = compute()
            return self._write(name, copied(tensors), info, time.perf_counter() - start)

    def _file(self, name: str, suffix: str = "safetensors") -> Path:
        return self.path / f"{_checked('name', name)}.{suffix}"

    def _sidecar(self, name: str) -> dict[str, Any] | None:
        """The JSON part, if it is unaltered and belongs to ``name`` and the tensor file has the
        right size.
        """
        try:
            sidecar = json.loads(self._file(name, "json").read_bytes())
            intact = sidecar.pop("digest") == digest([self.address, name, sidecar])
            intact = intact and self._file(name).stat().st_size == sidecar["bytes"]
        except (
            FileNotFoundError,
            NotADirectoryError,
            ValueError,
            KeyError,
            AttributeError,
            TypeError,
        ):
            return None
        return sidecar if intact else None

    def _read(self, name: str) -> Item | None:
        """The artefact, if it is there and every bit is as it was written."""
        if not (sidecar := self._sidecar(name)):
            return None
        data = self._file(name).read_bytes()
        return (
            Item(safetensors.torch.load(data), sidecar["info"])
            if digest(data) == sidecar["sha256"]
            else None
        )

    def _write(
        self, name: str, tensors: dict[str, Tensor], info: dict[str, Any], seconds: float
    ) -> Item:
        data = safetensors.torch.save(tensors)
        sidecar = {"sha256": digest(data), "bytes": len(data), "info": info, "seconds": seconds}
        sidecar |= {"kpnb": __version__, "torch": torch.__version__}
        sidecar = json.loads(
            json.dumps(sidecar)
        )  # as it will be read, so that fresh and stored results are alike
        signed = sidecar | {"digest": digest([self.address, name, sidecar])}
        with self._explained():
            _replace(
                self.path / "config.json",
                json.dumps(self._identity, indent=1, sort_keys=True).encode(),
            )
            _replace(self._file(name), data)
            _replace(self._file(name, "json"), json.dumps(signed, indent=1).encode())
        return Item(tensors, sidecar["info"])

    def _locked(self) -> AcquireReturnProxy:
        """The lock of the run, released at the end of a ``with``."""
        with self._explained():
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                return self._lock.acquire(timeout=PATIENCE)
            except Timeout:
                log.warning("waiting for another process that computes %s", self.address)
                return self._lock.acquire()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say which folder cannot be written, and what helps."""
        try:
            yield
        except OSError as error:
            remedy = "free some space there, make it a writable folder, or set KPNB_STORE to another folder"
            raise OSError(
                f"cannot write to the store {self.root} ({error.strerror or error}): {remedy}"
            ) from error


def _checked(what: str, name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=,+-]*", name):
        raise ValueError(
            f"{what} {name!r} cannot be a file name: use letters, digits and . _ = , + -"
        )
    return name


def _replace(path: Path, data: bytes) -> None:
    """Write ``path`` so that it holds either its old content or all of ``data``, whatever happens
    meanwhile.
    """
    temporary = path.with_name(f"{path.name}.tmp")  # only the holder of the run's lock writes here
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
