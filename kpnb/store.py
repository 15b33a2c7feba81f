"""Results on disk, addressed by what determines them.

A *run* is a folder ``<root>/<kind>/<hash>/``, where the hash is taken of its kind, its configuration and the version
of kpnb; ``config.json`` in it holds the configuration in clear. An *artefact* of a run is ``<name>.safetensors``
(tensors) and ``<name>.json`` (numbers, digests, versions). Both are written to a temporary file first and then
renamed, the JSON last: an artefact without its JSON does not exist, so whatever interrupts a computation leaves
nothing that is read later. Pickle is never used.
"""

import errno
import hashlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from kpnb import __version__

log = logging.getLogger(__name__)

PATIENCE = 3.0  # seconds of waiting for another process before it is said


class Item(NamedTuple):
    """One artefact: its tensors (contiguous, on the CPU) and its JSON part."""

    tensors: dict[str, Tensor]
    info: dict[str, Any]


def canonical(value: object, path: str = "config") -> Any:
    """The JSON form of a configuration in which equal settings look equal.

    Tuples become lists and whole floats become integers (``1.0`` is ``1``); keys are sorted when it is hashed.
    Raises TypeError or ValueError naming the key of anything that JSON cannot hold, NaN and infinity included.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path} is {value}, which JSON cannot hold: use None or a string instead")
        return int(value) if value.is_integer() and abs(value) < 2**53 else float(value)
    if isinstance(value, list | tuple):
        return [canonical(entry, f"{path}[{i}]") for i, entry in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{path} has the key {key!r} of type {type(key).__name__}: keys must be strings")
        return {key: canonical(entry, f"{path}.{key}") for key, entry in value.items()}
    raise TypeError(f"{path} is a {type(value).__name__}, which JSON cannot hold: use numbers, strings, lists, dicts")


def digest(value: object) -> str:
    """SHA-256 (hex) of bytes, or of the sorted JSON text of anything else."""
    data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(data).hexdigest()


class Store:
    """All runs under one folder: ``root``, else ``$KPNB_STORE``, else ``kpnb`` in the user's cache folder."""

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.root = Path(root or os.environ.get("KPNB_STORE") or Path(cache) / "kpnb").expanduser().absolute()

    def run(self, kind: str, config: Mapping[str, Any]) -> "Run":
        """The run that ``config`` determines. Nothing is written before the first artefact."""
        return Run(self.root, kind, canonical(config))

    def runs(self) -> Iterator[tuple[str, str, dict[str, Any], int]]:
        """(kind, address, configuration, bytes on disk) of every run, sorted by address."""
        for path in sorted(self.root.glob("*/*/config.json")):
            try:
                config = json.loads(path.read_bytes())["config"]
            except (OSError, ValueError, KeyError, TypeError):
                log.warning("%s is unreadable; it is written anew when its run is next computed", path)
                config = {}
            size = sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())
            yield path.parent.parent.name, f"{path.parent.parent.name}/{path.parent.name}", config, size


class Run:
    """The artefacts of one configuration; made by :meth:`Store.run`."""

    def __init__(self, root: Path, kind: str, config: dict[str, Any]) -> None:
        self.root, self.kind, self.config = root, _checked("kind", kind), config
        self._identity = {"kind": kind, "config": config, "kpnb": __version__}
        self.address = f"{kind}/{digest(self._identity)[:20]}"
        self.path = root / self.address
        self._lock = FileLock(self.path / ".lock")  # one object, so that a computation may ask for another artefact

    def info(self, name: str) -> dict[str, Any] | None:
        """The JSON part of an artefact, or None when there is none. No tensor is read, only its size is compared."""
        sidecar = self._sidecar(name)
        return sidecar["info"] if isinstance(sidecar, dict) else None

    def has(self, name: str) -> bool:
        """Whether the artefact exists, judged as :meth:`info` does."""
        return self.info(name) is not None

    def get(self, name: str, compute: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]) -> Item:
        """The artefact ``name``, read and verified, or computed and written when it is not there or damaged.

        The lock of the run is held while ``compute`` runs, so processes that want the same artefact compute it once.
        ``info`` may hold anything that JSON can; NaN is allowed (an undefined metric) and comes back as NaN.
        Raises OSError naming the store's folder when that cannot be written.
        """
        item = self._read(name)
        if isinstance(item, Item):
            return item
        with self._locked():
            item = self._read(name)  # another process may have written it meanwhile
            if isinstance(item, Item):
                return item
            if item:
                log.warning("%s is damaged (%s): it is removed and computed again", self._file(name), item)
            with self._explained():
                self._file(name, "json").unlink(missing_ok=True)
                self._file(name).unlink(missing_ok=True)
            start = time.perf_counter()
            tensors, info = compute()
            # A copy: what is returned must not change when the caller trains on, nor share memory (tied weights).
            tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
            return self._write(name, tensors, info, time.perf_counter() - start)

    def _file(self, name: str, suffix: str = "safetensors") -> Path:
        return self.path / f"{_checked('name', name)}.{suffix}"

    def _sidecar(self, name: str) -> dict[str, Any] | str:
        """The verified sidecar, or what is wrong with the artefact ("" when it simply is not there)."""
        try:
            sidecar = json.loads(self._file(name, "json").read_bytes())
            if sidecar.pop("digest") != digest(sidecar):
                return "its JSON was altered"
            if sidecar["artefact"] != f"{self.address}/{name}":
                return f"it belongs to {sidecar['artefact']}"
            size = self._file(name).stat().st_size
        except (FileNotFoundError, NotADirectoryError) as error:
            return "its tensor file is missing" if str(error.filename).endswith(".safetensors") else ""
        except (ValueError, KeyError, AttributeError, TypeError):
            return "its JSON is broken"
        return sidecar if size == sidecar["bytes"] else f"{size} bytes instead of {sidecar['bytes']}"

    def _read(self, name: str) -> Item | str:
        """The verified artefact, or what is wrong with it ("" when it simply is not there)."""
        sidecar = self._sidecar(name)
        if isinstance(sidecar, str):
            return sidecar
        try:
            data = self._file(name).read_bytes()
        except FileNotFoundError:
            return "its tensor file is missing"
        if digest(data) != sidecar["sha256"]:
            return "its SHA-256 differs"
        return Item(safetensors.torch.load(data), sidecar["info"])

    def _write(self, name: str, tensors: dict[str, Tensor], info: dict[str, Any], seconds: float) -> Item:
        data = safetensors.torch.save(tensors)
        sidecar = {"artefact": f"{self.address}/{name}", "sha256": digest(data), "bytes": len(data), "info": info}
        sidecar |= {"seconds": seconds, "kpnb": __version__, "torch": torch.__version__}
        sidecar |= {"created": datetime.now(UTC).isoformat(timespec="seconds")}
        sidecar = json.loads(json.dumps(sidecar))  # as it will be read, so that fresh and stored results are alike
        with self._explained():
            _replace(self._file(name), data)
            _replace(self._file(name, "json"), json.dumps(sidecar | {"digest": digest(sidecar)}, indent=1).encode())
        return Item(tensors, sidecar["info"])

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._explained():
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=PATIENCE)
            except Timeout:
                log.warning("waiting for another process that computes %s", self.address)
                self._lock.acquire()
        try:
            with self._explained():
                for stale in self.path.glob("*.tmp"):  # only the holder of the lock writes here
                    stale.unlink(missing_ok=True)
                text = json.dumps(self._identity, indent=1, sort_keys=True).encode()
                config = self.path / "config.json"
                if not config.exists() or config.read_bytes() != text:
                    _replace(config, text)
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say which folder cannot be written, and what helps."""
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            remedy = "free some space there, or" if full else "make it a writable folder, or"
            reason = error.strerror or str(error)
            message = f"cannot write to the store {self.root} ({reason}): {remedy} set KPNB_STORE to another folder"
            raise OSError(error.errno or errno.EIO, message) from error


def _checked(what: str, name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=,+-]*", name):
        raise ValueError(f"{what} {name!r} cannot be a file name: use letters, digits and . _ = , + -")
    return name


def _replace(path: Path, data: bytes) -> None:
    """Write ``path`` so that it holds either its old content or all of ``data``, also after a power cut."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # POSIX: the rename itself must reach the disk too
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
