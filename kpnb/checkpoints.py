"""Results in a folder, written whole or not at all and verified when they are read; the checkpoints
of a training are such results.

An *artefact* is ``<name>.safetensors`` (tensors) and ``<name>.json`` (numbers, digests, versions).
Both are written to a temporary file first and then renamed, the JSON last: an artefact without its
JSON does not exist, so whatever interrupts a computation leaves nothing that is read later. Pickle
is never used.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from kpnb import __version__

log = logging.getLogger(__name__)

HELPER = "helper "
"""How names of a loss's helpers start; with a space, as no name of a network's own does."""


class Item(NamedTuple):
    """One artefact: its tensors (contiguous, on the CPU) and its JSON part."""

    tensors: dict[str, Tensor]
    info: dict[str, Any]


class Artefacts:
    """The artefacts in one ``folder``, which is made when the first is written.

    ``identity`` is signed into every artefact, so that one that was copied here from elsewhere
    counts as damaged. ``origin`` says in clear what they are results of, and lies beside them as
    ``config.json``. Reading never writes and takes no lock.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        identity: str = "",
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(folder).expanduser().absolute()
        self.identity = identity
        self.origin = origin
        from filelock import FileLock  # brings asyncio: not every import of kpnb waits for that

        self._lock = FileLock(self.path / ".lock")  # one object: who holds it may ask again

    @property
    def title(self) -> str:
        """What messages call the folder."""
        return self.identity or str(self.path)

    @property
    def name(self) -> str:
        """What progress bars call it."""
        return self.path.name

    def info(self, name: str) -> dict[str, Any] | None:
        """The JSON part of an artefact, or None when there is none; of its tensors only the size is
        looked at.
        """
        sidecar = self._sidecar(name)
        return None if sidecar is None else sidecar["info"]

    def has(self, name: str) -> bool:
        """Whether the artefact exists, judged as :meth:`info` does."""
        return self._sidecar(name) is not None

    def read(self, name: str) -> Item | None:
        """The artefact, if it is there and every bit is as it was written."""
        sidecar = self._sidecar(name)
        if sidecar is None:
            return None
        data = self._file(name).read_bytes()
        if digest(data) != sidecar["sha256"]:
            return None
        return Item(_by_name(safetensors.torch.load(data)), sidecar["info"])

    def write(
        self, name: str, tensors: Mapping[str, Tensor], info: Mapping[str, Any], seconds: float
    ) -> Item:
        """Write an artefact that took so many ``seconds``, and return it as it will be read.

        ``info`` may hold anything that JSON can; NaN is allowed (an undefined metric) and comes
        back as NaN.
        """
        kept = copied(tensors)
        data = safetensors.torch.save(kept)
        sidecar = {"sha256": digest(data), "bytes": len(data), "info": info, "seconds": seconds}
        sidecar |= {"kpnb": __version__, "torch": torch.__version__}
        sidecar = json.loads(json.dumps(sidecar))  # as it is read: tuples are lists
        signed = sidecar | {"digest": self._signature(name, sidecar)}
        with self.locked(), self._explained():
            if self.origin is not None:
                clear = json.dumps(self.origin, indent=1, sort_keys=True)
                replace_file(self.path / "config.json", clear.encode())
            replace_file(self._file(name), data)
            replace_file(self._file(name, "json"), json.dumps(signed, indent=1).encode())
        return Item(_by_name(kept), sidecar["info"])

    def discard(self, name: str) -> None:
        """Remove an artefact that is damaged, and say so; an intact one stays."""
        with self.locked():
            if self._file(name, "json").exists() and self.read(name) is None:
                log.warning("%s is damaged: it is computed again", self._file(name))
                with self._explained():
                    self._file(name, "json").unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock, so that of several processes one works here at a time."""
        from filelock import Timeout

        with self._explained():
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                log.info("waiting for another process that computes %s", self.title)
                self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    def _file(self, name: str, suffix: str = "safetensors") -> Path:
        return self.path / f"{file_name('name', name)}.{suffix}"

    def _signature(self, name: str, sidecar: Mapping[str, Any]) -> str:
        return digest([self.identity, name, sidecar])

    def _sidecar(self, name: str) -> dict[str, Any] | None:
        """The JSON part, if it is unaltered and belongs to ``name`` and the tensor file has the
        right size.
        """
        try:
            sidecar = json.loads(self._file(name, "json").read_bytes())
            signed = sidecar.pop("digest")  # of the rest
            is_signed = signed == self._signature(name, sidecar)
            is_complete = self._file(name).stat().st_size == sidecar["bytes"]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, AttributeError, TypeError):  # not what was written
            return None
        return sidecar if is_signed and is_complete else None

    def _where(self) -> tuple[str, str]:
        """Which folder cannot be written, and what helps."""
        return str(self.path), "choose a folder that can be written"

    def check_folder(self) -> None:
        """``NotADirectoryError`` when a file lies where the folder is to be, or one above it."""
        places = (self.path, *self.path.parents)
        first = next(place for place in places if os.path.exists(place))
        if not os.path.isdir(first):
            folder, remedy = self._where()
            raise NotADirectoryError(
                f"cannot write to {folder}: {first} is a file, where a folder is wanted; {remedy}"
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.check_folder()
            folder, remedy = self._where()
            reason = error.strerror or error
            raise OSError(
                f"cannot write to {folder} ({reason}): free some space there, or {remedy}"
            ) from error


class Checkpoints:
    """A training's epochs 0 (before its first step) to ``epochs`` as artefacts of a folder.

    Their tensors are ``model.<name>`` for weights and buffers, ``helper <name>`` for what a loss
    trains besides (a regressor) and, for the optimiser's state, ``momentum.<name>`` (SGD) or
    ``mean.``, ``square.`` and ``step.<name>`` (AdamW). Their JSON part is the epoch's entry of the
    log.

    folder  a path, artefacts, or None for a temporary folder that goes when this object does
    epochs  the last epoch; None: the last of those that are there without a gap

    Everywhere ``epoch`` counts from 0, and -1 is the last one.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | Artefacts | None, epochs: int | None = None
    ) -> None:
        temporary = folder is None
        if temporary:
            folder = tempfile.mkdtemp(prefix="kpnb-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.artefacts = folder if isinstance(folder, Artefacts) else Artefacts(folder)
        self.title = "training" if temporary else self.artefacts.title  # for messages
        self.name = "training" if temporary else self.artefacts.name  # for progress bars
        self.epochs = self._last() if epochs is None else epochs

    @property
    def log(self) -> list[dict[str, Any]]:
        """Per epoch: epoch, loss, accuracy, test_accuracy, seconds, lr, device, norms; NaN where
        undefined.

        Loss and accuracy are means over the epoch's batches, as trained. With a loss that needs
        outputs of one shape there are also feature_error and test_feature_error, ``sum ||f_T -
        f_S||^2 / sum ||f_T||^2``.
        Raises ``FileNotFoundError`` for an epoch that is not there.
        """
        entries = [self.artefacts.info(epoch_name(epoch)) for epoch in range(self.epochs + 1)]
        for epoch, entry in enumerate(entries):
            if entry is None:
                raise self._lost(epoch)
        return entries

    @property
    def accuracy(self) -> float:
        """Held-out accuracy after the last epoch; NaN without a test set or a classification."""
        return self.log[-1]["test_accuracy"]

    def step_norms(self) -> list[dict[str, float]]:
        """Per epoch k and parameter ``||w_k - w_{k-1}||``, and for k = 0 ``||w_0||``: the
        ingredients of Eq. 8.
        """
        return [entry["norms"] for entry in self.log]

    def paths(self) -> list[dict[str, float]]:
        """Per epoch, each trained parameter's path over the optimiser's steps (Eq. 8 as released in
        2020).
        """
        return [entry.get("paths", {}) for entry in self.log]

    def number(self, epoch: int) -> int:
        """``epoch`` counted from 0; raises IndexError when there is no such epoch."""
        if not -self.epochs - 1 <= epoch <= self.epochs:
            raise IndexError(f"epoch {epoch} of {self.title}: it has the epochs 0 to {self.epochs}")
        return epoch % (self.epochs + 1)

    def tensors(self, epoch: int = -1) -> dict[str, Tensor]:
        """All tensors of an epoch, on the CPU; ``FileNotFoundError`` when it is not there or
        damaged, so that the next training with this folder computes it again.
        """
        item = self.artefacts.read(epoch_name(self.number(epoch)))
        if item is None:
            with suppress(OSError):  # of a folder that cannot be written
                self.discard(epoch)
            raise self._lost(self.number(epoch))
        return item.tensors

    def state(self, epoch: int = -1) -> dict[str, Tensor]:
        """The state dict of an epoch, on the CPU."""
        return with_prefix(self.tensors(epoch), "model.")

    def load(self, model: nn.Module, epoch: int = -1) -> nn.Module:
        """``model`` (mode and device untouched) with the weights of an epoch."""
        model.load_state_dict(self.state(epoch))
        return model

    def missing(self) -> list[int]:
        """The epochs that are not there; no tensor is read."""
        return [e for e in range(self.epochs + 1) if not self.artefacts.has(epoch_name(e))]

    def to_compute(self) -> list[int]:
        """The epochs that are missing or damaged, in order; what is damaged is discarded.

        Whole files are verified where an epoch has to be computed from them; of the others only
        the size is compared.
        """
        found: list[int] = []
        for epoch in reversed(range(self.epochs + 1)):
            name = epoch_name(epoch)
            is_needed = epoch + 1 in found
            intact = self.artefacts.read(name) if is_needed else self.artefacts.has(name)
            if not intact:
                self.artefacts.discard(name)
                found.append(epoch)
        return found[::-1]

    def write(self, epoch: int, tensors: Mapping[str, Tensor], entry: Mapping[str, Any]) -> None:
        """Write an epoch: its tensors and its entry of the log."""
        self.artefacts.write(epoch_name(epoch), tensors, entry, entry["seconds"])

    def discard(self, epoch: int) -> None:
        """Remove a damaged epoch, and say so."""
        self.artefacts.discard(epoch_name(self.number(epoch)))

    def _last(self) -> int:
        last = -1
        while self.artefacts.has(epoch_name(last + 1)):
            last += 1
        if last < 0:
            raise FileNotFoundError(f"no checkpoints in {self.artefacts.path}")
        return last

    def _lost(self, epoch: int) -> FileNotFoundError:
        return FileNotFoundError(
            f"epoch {epoch} of {self.title} is missing or damaged: train again with the same folder"
        )


def _by_name(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In the order of their names; a file is read in another each time."""
    return dict(sorted(tensors.items()))


def epoch_name(epoch: int) -> str:
    """Name of an epoch's artefact."""
    return f"epoch-{epoch:03d}"


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those of ``tensors`` whose names start with ``prefix``, by the rest of their names."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def digest(value: object) -> str:
    """SHA-256 (hex) of bytes, or of the sorted JSON text of anything else."""
    if not isinstance(value, bytes):
        value = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(value).hexdigest()


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU that do not change when the caller trains on, nor share memory (tied
    weights).
    """
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def file_name(what: str, name: str) -> str:
    """``name``, if it can be a file's on every system; else ``ValueError``, which calls it
    ``what``.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=,+-]*", name):
        raise ValueError(
            f"{what} {name!r} cannot be a file name: use letters, digits and . _ = , + -"
        )
    return name


def replace_file(path: Path, data: bytes) -> None:
    """Write ``path`` so that it holds either its old content or all of ``data``, whatever happens
    meanwhile; the caller sees to it that nobody else writes.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
