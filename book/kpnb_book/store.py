"""Results on disk, addressed by what determines them.

A *run* is a folder ``<root>/<kind>/<hash>/``, where the hash is taken of its kind, its
configuration and the version of kpnb; ``config.json`` in it holds the configuration in clear. What
is in it are artefacts, see ``kpnb.checkpoints``.
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from kpnb import __version__
from kpnb.checkpoints import Artefacts, Item, digest, file_name
from kpnb_book.place import store_folder

__all__ = ["Item", "Run", "Store", "canonical", "digest"]


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


class Run(Artefacts):
    """The artefacts of one configuration; made by :meth:`Store.run`."""

    def __init__(self, root: Path, kind: str, config: dict[str, Any]) -> None:
        self.root, self.kind, self.config = root, file_name("kind", kind), config
        self.said = self.kind  # what progress bars call it
        origin = {"kind": kind, "config": config, "kpnb": __version__}
        self.address = f"{kind}/{digest(origin)[:20]}"
        super().__init__(root / self.address, self.address, origin)

    @property
    def name(self) -> str:
        """What progress bars call it: the kind, unless the code that computes it sets ``said``."""
        return self.said

    def get(
        self, name: str, compute: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]
    ) -> Item:
        """The artefact ``name``, read and verified, or computed and written when it is not there or
        damaged.

        The lock of the folder is held while ``compute`` runs, so processes that want the same
        artefact compute it once. Raises OSError naming the folder when that cannot be written.
        """
        if item := self.read(name):
            return item
        with self.locked():
            if item := self.read(name):  # another process has written it meanwhile
                return item
            self.discard(name)
            start = time.perf_counter()
            tensors, info = compute()
            return self.write(name, tensors, info, time.perf_counter() - start)

    def _where(self) -> tuple[str, str]:
        remedy = "make it a writable folder, or set KPNB_STORE to another folder"
        return f"the store {self.root}", remedy


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
                kind = type(key).__name__
                raise TypeError(f"{path} has the key {key!r} of type {kind}: keys must be strings")
        return {key: canonical(entry, f"{path}.{key}") for key, entry in value.items()}
    what = value if isinstance(value, float) else f"a {type(value).__name__}"
    raise TypeError(
        f"{path} is {what}, which JSON cannot hold: use numbers, strings, None, lists, dicts"
    )
