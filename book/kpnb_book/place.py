"""Where the store of results is."""

import os
from pathlib import Path

EVIDENCE = "evidence"
"""Kind of the folders of a store that hold the networks of one seed while it is computed."""


def seed_lock(folder: Path) -> Path:
    """The lock of such a folder. It lies beside the folder, which is deleted in the end."""
    return folder.with_name(f".{folder.name}.lock")


def store_folder(root: str | os.PathLike[str] | None = None) -> Path:
    """``root``, else ``$KPNB_STORE``, else ``kpnb`` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root or os.environ.get("KPNB_STORE") or Path(cache) / "kpnb")
    return folder.expanduser().absolute()
