"""Where the store of results is."""

import os
from pathlib import Path


def store_folder(root: str | os.PathLike[str] | None = None) -> Path:
    """``root``, else ``$KPNB_STORE``, else ``kpnb`` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root or os.environ.get("KPNB_STORE") or Path(cache) / "kpnb")
    return folder.expanduser().absolute()
