"""With which versions, when and for how long the notebooks of the book were executed."""

import json
import subprocess
from collections.abc import Iterable, Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("kpnb", "torch", "numpy")
DASH = "\N{EN DASH}"


def revision(root: Path) -> str:
    """The commit of the clone at ``root``, with a + when files differ from it; "" when that is no
    clone, or git is not there.
    """
    return described(root, "--dirty=+")


def described(folder: Path, *options: str) -> str:
    """The commit of the clone that holds ``folder``, as git describes it with these ``options``; ""
    when that is no clone, or git is not there.
    """
    command = ["git", "describe", "--always", *options]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except OSError:  # no git: what was computed counts without a commit, too
        return ""
    return done.stdout.strip()


def sign(copy: Path, root: Path, origin: str = "") -> None:
    """Write into an executed copy with which versions, besides Python's, and from which commit it
    was made.

    ``origin`` identifies all that it follows from.
    """
    notebook = json.loads(copy.read_text("utf8"))
    made = {name: version(name) for name in PACKAGES} | {
        "revision": revision(root),
        "origin": origin,
    }
    notebook["metadata"]["kpnb"] = made
    copy.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf8")


def signed(copy: Path) -> dict[str, str]:
    """What :func:`sign` has written; nothing where there is no such copy."""
    try:
        return json.loads(copy.read_text("utf8"))["metadata"].get("kpnb", {})
    except (OSError, ValueError, KeyError):
        return {}


def _row(copy: Path, metadata: Mapping[str, Any]) -> list[str]:
    ran, made = metadata.get("papermill", {}), metadata.get("kpnb", {})
    ended = (
        datetime.fromisoformat(ran["end_time"]).strftime("%Y-%m-%d %H:%M")
        if ran.get("end_time")
        else DASH
    )
    seconds = f"{ran['duration']:.0f}" if ran.get("duration") is not None else DASH
    versions = [
        metadata.get("language_info", {}).get("version"),
        *(made.get(name) for name in PACKAGES),
    ]
    return [
        f"{{doc}}`../notebooks/{copy.stem}`",
        ended,
        seconds,
        *(v or DASH for v in [*versions, made.get("revision")]),
    ]


def table(copies: Iterable[Path]) -> str:
    """A MyST table with a row for each executed copy, in their order; what a copy does not say is a
    dash. Versions and commit that all have in common stand above it, so that it fits a telephone.
    """
    import pandas as pd

    columns = ["chapter", "finished (UTC)", "seconds", "Python", *PACKAGES, "commit"]
    rows = [
        _row(copy, json.loads(copy.read_text("utf8"))["metadata"])
        for copy in copies
        if copy.is_file()
    ]
    found = pd.DataFrame(rows, columns=columns)
    same = [name for name in columns[3:] if found[name].nunique() == 1]
    shown = found.drop(columns=same)
    lines = [[*shown.columns], ["---"] * shown.shape[1], *shown.to_numpy().tolist()]
    below = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if not same:
        return below
    common = ", ".join(f"{name} {found[name].iloc[0]}" for name in same)
    return f"All chapters: {common}.\n\n{below}"
